"""One matrix as pruning methods see it, what it may keep, and what is known of its inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from paring.kernels import module
from paring.kernels import pruning as kernels
from paring.kernels.pruning import reference

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Inputs:
    """What calibration has seen of a matrix's inputs X ``(in, tokens)``.

    ``norms (in,)`` are the root mean squares over tokens, fp32; ``gram (in, in)`` is ``X X^T / tokens``,
    fp32, or None where only norms were asked for.
    """

    norms: F32
    tokens: int
    gram: F32 | None = None


@dataclass(frozen=True, eq=False)
class Matrix:
    """A matrix that is pruned: ``weights (out, in)``, fp32, whatever the file's orientation and dtype.

    Of a stack of experts it is one expert's. ``inputs`` is None where nothing was calibrated. Methods leave
    both as they are.
    """

    name: str
    weights: F32
    inputs: Inputs | None = None


@dataclass(frozen=True, slots=True)
class Budget:
    """What a matrix keeps: ``keep`` entries in all; or so many in each row; or in each group of ``of``
    along the inputs.

    Exactly one of ``row`` and ``of`` may be set: ``Budget(300)``, ``Budget(5, row=True)``,
    ``Budget(2, of=4)``.
    """

    keep: int
    row: bool = False
    of: int | None = None


@dataclass(frozen=True, eq=False)
class Pruned:
    """What a method that changes survivors gives back: ``mask (out, in)``, true where kept, and the new
    ``weights (out, in)``, fp32, zero elsewhere."""

    mask: Mask
    weights: F32


def select(scores: npt.NDArray[Any], budget: Budget, device: str = "cpu") -> Mask:
    """The mask ``(out, in)`` that keeps the best ``scores (out, in)``, exactly as many as ``budget`` says.

    Of equal scores those that come first in flat order are pruned first. Scores in fp32 are compared on
    ``device``.
    """
    rows, columns = scores.shape
    width = budget.of or (columns if budget.row else rows * columns)
    flat = np.ascontiguousarray(scores).reshape(-1, width) if scores.size else scores.reshape(0, width)
    if flat.dtype != np.float32:
        return reference.best(flat, budget.keep).reshape(scores.shape)
    if device != "cpu":
        sent = module("pruning", "gpu").send(flat, device)
        found: Mask = kernels.best(sent, budget.keep).cpu().numpy()
        return found.reshape(scores.shape)
    kernel = kernels.best if budget.of is None else kernels.grouped
    more = () if budget.of is None else (budget.of,)
    mask: Mask = kernel(flat, budget.keep, *more)
    return mask.reshape(scores.shape)
