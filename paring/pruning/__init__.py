"""What pruning methods share: what one sees, how exact counts are kept, masks, plans and passes.

A method is a file in ``prune/``. One that scores (``unit="element"`` or ``"row"``) is given a
:class:`~paring.pruning.matrix.Matrix` and returns scores ``(out, in)``, fp32, not negative: the least are
pruned. One that also changes survivors (``unit="tensor"``) is given the matrix and its
:class:`~paring.pruning.matrix.Budget` and returns :class:`~paring.pruning.matrix.Pruned`.
"""
