"""Merging: many models in, one out, without ever holding a model in memory.

:mod:`.sources` reads checkpoints and adapters by spans; :mod:`.plan` aligns their tensors and refuses what
cannot be meant; :mod:`.models` is what a rule sees: passes over deltas; :mod:`.run` writes the result. The
rules themselves are the files of ``merge/``.
"""
