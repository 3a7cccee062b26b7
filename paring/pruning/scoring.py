"""From scores to masks: what a method makes of a matrix, or of some of its rows, brought to its file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np

from paring.dtypes import from_f32
from paring.errors import BadValueError
from paring.kernels import pruning as kernels
from paring.kernels.pruning import Bits, Sums
from paring.pruning import inputs, sparsity
from paring.pruning.cutting import Cut
from paring.pruning.matrix import F32, Budget, Inputs, Mask, Matrix, Pruned, select
from paring.pruning.plan import PrunePlan
from paring.pruning.reading import Piece
from paring.pruning.refitting import refit
from paring.pruning.request import BY_MAGNITUDE
from paring.pruning.statistics import Statistics


class Scorer:
    """The method of a plan on pieces of its targets, of which it is given the ``values (n,)``, fp32, in the
    order of the file; one for all threads."""

    def __init__(self, plan: PrunePlan, stats: Statistics | None, budgets: Mapping[str, Budget]) -> None:
        self._plan, self._stats, self._budgets = plan, stats, budgets

    def matrix(self, piece: Piece, values: F32) -> Matrix:
        """What the method sees of a piece: ``(out, in)``, of whole rows."""
        target = self._plan.targets[piece.index]
        values = (
            np.ascontiguousarray(values.reshape(target.inn, -1).T)
            if target.turned
            else values.reshape(-1, target.inn)
        )
        name = target.matrix(piece.number)
        return Matrix(name, values, self._inputs(name))

    def _inputs(self, name: str) -> Inputs | None:
        """What the method, or refitting after it, is to know of a matrix's inputs."""
        if self._stats is None:
            return None
        products = self._plan.method.sees == "grams" or self._plan.request.refit
        return self._stats.inputs(name, gram=products)

    def scores(self, matrix: Matrix) -> F32:
        """Scores ``(out, in)``, fp32. Raises BadValueError where the method gives none for every entry."""
        method = self._plan.method
        found = np.asarray(method.function(matrix, **self._plan.options), np.float32)
        if found.shape != matrix.weights.shape or not np.isfinite(found).all() or (found < 0).any():
            raise BadValueError(
                f"{matrix.name}: {method.name} gave scores that are not finite, negative or of another shape"
            )
        return found

    def flat(self, piece: Piece, values: F32) -> F32:
        """The scores ``(n,)`` of a piece with these ``values (n,)``, in the order of its file."""
        found = self.scores(self.matrix(piece, values))
        return cast(F32, self._stored(piece, found).reshape(-1))

    def keep(self, piece: Piece, values: F32) -> Mask:
        """What stays of a piece by its matrix's budget, in the order of its file ``(n,)``."""
        target = self._plan.targets[piece.index]
        budget = self._budgets.get(target.matrix(piece.number))
        if budget is None and self._plan.request.lines is None:
            return np.ones(piece.stop - piece.start, np.bool_)
        mask = self._best(self.scores(self.matrix(piece, values)), budget)
        return cast(Mask, self._stored(piece, mask).reshape(-1))

    def _best(self, scores: F32, budget: Budget | None) -> Mask:
        """What stays of ``scores (out, in)``."""
        if self._plan.request.lines is not None:
            return self._lines(scores, self._plan.request.lines)
        assert budget is not None, "without one all stays"
        if budget.of is None:
            return select(scores, budget, self._plan.device)
        whole = scores.shape[1] // budget.of * budget.of
        mask = np.ones(scores.shape, np.bool_)
        mask[:, :whole] = select(scores[:, :whole], budget, self._plan.device)
        return mask

    def _lines(self, scores: F32, lines: str) -> Mask:
        """Whole outputs or inputs stay or go, by the L2 norm of their scores; of equal ones the first go."""
        assert self._plan.share is not None, "planning has refused others"
        axis = 1 if lines == "outputs" else 0
        norms = np.sqrt(np.square(scores, dtype=np.float64).sum(axis=axis))
        gone = np.argsort(norms, kind="stable")[: sparsity.pruned(self._plan.share, len(norms))]
        mask = np.ones(scores.shape, np.bool_)
        mask[(gone,) if axis else (slice(None), gone)] = False
        return mask

    def changed(self, piece: Piece, bits: Bits, before: F32, out: Bits) -> tuple[Mask, Sums]:
        """Fill ``out`` with what a method makes of a piece of stored ``bits``, whose values are ``before``,
        where survivors change; the mask ``(n,)``. Raises BadValueError where they become NaN or infinite."""
        target, method = self._plan.targets[piece.index], self._plan.method
        budget = self._budgets.get(target.matrix(piece.number))
        if budget is None and self._plan.request.lines is None:
            mask = np.ones(len(before), np.bool_)
            return mask, kernels.masked(bits, before, mask, out)
        matrix = self.matrix(piece, before)
        found = self._pruned(matrix, budget)
        mask = self._stored(piece, found.mask).reshape(-1)
        weights = self._stored(piece, found.weights).reshape(-1).astype(np.float32) * mask
        if not np.isfinite(weights).all():
            raise BadValueError(f"{matrix.name}: {method.name} made NaN or infinity of its weights")
        made = from_f32(weights, target.dtype, matrix.name)
        out[:] = np.where(mask, made.data, np.zeros_like(made.data))
        after = made.f32()
        kept, zero, now = (int(np.count_nonzero(some)) for some in (mask, before == 0, after == 0))
        lost = float(np.square(after - before, dtype=np.float64).sum())
        return mask, Sums(kept, zero, now, lost, float(np.square(before, dtype=np.float64).sum()))

    def _pruned(self, matrix: Matrix, budget: Budget | None) -> Pruned:
        """What the method makes of a matrix, refitted where that is asked for."""
        method = self._plan.method
        if method.unit == "tensor":
            assert budget is not None, "without one all stays"
            found = cast(Pruned, method.function(matrix, budget, **self._plan.options))
            _refuse_miscounted(method.name, matrix.name, found.mask, budget)
        else:
            mask = self._best(self.scores(matrix), budget)
            found = Pruned(mask, np.where(mask, matrix.weights, np.float32(0)))
        if self._plan.request.refit:
            gram = inputs.gram(matrix)
            return Pruned(found.mask, refit(found.weights, matrix.weights, found.mask, gram))
        return found

    def _stored(self, piece: Piece, matrix: Any) -> Any:
        """``(out, in)`` in the order of the file."""
        target = self._plan.targets[piece.index]
        return np.ascontiguousarray(matrix.T) if target.turned else matrix


def above(keys: Any, cut: Cut, number: int) -> Mask:
    """Which ``keys (n,)`` of piece ``number`` stay."""
    out = np.empty(len(keys), np.bool_)
    start = 0
    for stop, first in cut.split(number, lambda: keys):
        stop = len(keys) if stop < 0 else stop
        np.greater_equal(keys[start:stop], first, out=out[start:stop])
        start = stop
    return out


def by_slabs(plan: PrunePlan, index: int) -> bool:
    """Whether some rows of a target may be pruned without the others."""
    budgets = (plan.budgets.get(plan.targets[index].matrix(i)) for i in range(plan.targets[index].stack))
    alone = all(budget is None or budget.row or budget.of is not None for budget in budgets)
    return (
        BY_MAGNITUDE in plan.method.invariants and alone and not plan.targets[index].turned
        and plan.request.lines is None and not plan.request.refit
    )  # fmt: skip


def _refuse_miscounted(method: str, name: str, mask: Mask, budget: Budget) -> None:
    """Raise BadValueError where a method did not keep what it was told to."""
    if budget.of is not None:
        right = (mask.reshape(-1, budget.of).sum(axis=1) == budget.keep).all()
    elif budget.row:
        right = (mask.sum(axis=1) == budget.keep).all()
    else:
        right = mask.sum() == budget.keep
    if not right:
        raise BadValueError(f"{name}: {method} keeps other numbers than {budget}")
