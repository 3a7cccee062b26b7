"""Merging: many models in, one out, without ever holding a model in memory.

:mod:`.request` is what was asked, and what that alone refuses; :mod:`.sources` reads checkpoints and adapters
by spans; :mod:`.planning` opens and aligns them into a :mod:`.plan`, or refuses; :mod:`.models` is what a
rule sees: passes over deltas; :mod:`.run` writes the result. The rules are the files of ``merge/``.
"""
