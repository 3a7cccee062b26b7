"""What methods ask of calibration, and refuse to do without."""

from __future__ import annotations

import numpy as np

from paring.errors import BadValueError, OptionError
from paring.pruning.matrix import F32, Inputs, Matrix


def norms(matrix: Matrix) -> F32:
    """The root mean squares of the matrix's inputs, ``(in,)``. Raises OptionError without statistics,
    BadValueError where calibration saw no input of it."""
    return _seen(matrix).norms


def gram(matrix: Matrix) -> F32:
    """``X X^T / tokens`` of the matrix's inputs, ``(in, in)``. Raises as :func:`norms`, and OptionError where
    the statistics hold norms alone."""
    found = _seen(matrix)
    if found.gram is None:
        raise OptionError(
            f"{matrix.name}: this method needs products of inputs, and the statistics hold norms only: "
            "run `paring calibrate` with --gram"
        )
    return found.gram


def _seen(matrix: Matrix) -> Inputs:
    found = matrix.inputs
    if found is None:
        raise OptionError(
            f"{matrix.name}: this method needs statistics of inputs: make them with `paring calibrate` and "
            "give them with --stats"
        )
    if found.tokens == 0 or not np.any(found.norms):
        raise BadValueError(
            f"{matrix.name}: calibration saw no input of it but zeros: use other text, or leave it out"
        )
    return found
