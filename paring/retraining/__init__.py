"""Recovery after pruning, with the model's own class (extra ``retrain``): what is trained, on what, and how.

From below: :mod:`.adapters` (updates that keep a mask), :mod:`.apollo` (an optimizer with little state),
:mod:`.fitting` (the one training loop), :mod:`.text` (data), :mod:`.pupil` (a model, its masks, its files),
:mod:`.subsets` (which parameters), :mod:`.blocks` (reconstruction block by block), :mod:`.run` (folders in,
a folder out). The recipes themselves stand in ``prune/``: PERP, PST, PDP.
"""
