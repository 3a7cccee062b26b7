"""``diff``: what people look at before they merge.

:mod:`.run` compares checkpoints, :mod:`.adapters` adapters by their updates; :mod:`.alikeness` has the sums
that both make of pairs of deltas, :mod:`.plotting` the picture.
"""
