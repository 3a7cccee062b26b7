"""Vocabularies in merges: tokenizers read and united (:mod:`.tokenizers`), which row of which model a token
is (:mod:`.vocabulary`), sources whose embeddings are re-indexed (:mod:`.reindexed`), and the files that a
result gets (:mod:`.files`).
"""
