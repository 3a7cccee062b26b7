"""Which adapters are related: by the spaces that their rank vectors span, which no change of gauge moves.

``(B, A)`` and ``(B G, G^-1 A)`` are one update. The *overlap* of two modules on the side of A is
``||Q1^T Q2||^2 / r``, Q the orthonormal bases of the rows: 1 where one holds the other, about ``r / in`` for
unrelated ones. Independent adapters of one base measure .01 to .06, checkpoints of one run above .9.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from paring.coding import Factors
from paring.pooling.pile import Source
from paring.pooling.report import RelationReport

F64 = npt.NDArray[np.float64]
_SAMPLE = 24  # modules that are looked at, spread over all


def matched(first: Source, second: Source) -> list[tuple[Factors, Factors]]:
    """Modules of two adapters that belong together: of one name and shape, else the same places where all
    shapes agree one by one.
    """
    ours, theirs = first.modules, second.modules
    by_name = {module.name: module for module in ours}
    pairs = [(by_name[m.name], m) for m in theirs if m.name in by_name and _alike(by_name[m.name], m) and m.b]
    if pairs or len(ours) != len(theirs):
        return pairs
    by_place = [(a, b) for a, b in zip(ours, theirs, strict=True) if b.b and a.b]
    return by_place if all(_alike(a, b) for a, b in by_place) else []


def _alike(first: Factors, second: Factors) -> bool:
    return bool(first.A.shape[1] == second.A.shape[1] and first.B.shape[0] == second.B.shape[0])


def relation(first: Source, second: Source) -> RelationReport | None:
    """The relation of two adapters, None where they have no modules in common."""
    pairs = matched(first, second)
    if not pairs:
        return None
    some = pairs[:: max(1, len(pairs) // _SAMPLE)]
    of_a = [_overlap(_basis(first, a, 0), _basis(second, b, 0)) for a, b in some]
    of_b = [_overlap(_basis(first, a, 1), _basis(second, b, 1)) for a, b in some]
    chance = np.mean([max(len(a.A), len(b.A)) / a.A.shape[1] for a, b in some])
    return RelationReport(first.name, second.name, float(np.mean(of_a)), float(np.mean(of_b)), float(chance))


def _overlap(q1: F64, q2: F64) -> float:
    """``||Q1^T Q2||^2 / r`` of two bases (r, n), r the smaller of their ranks."""
    r = min(len(q1), len(q2))
    return float(((q1 @ q2.T) ** 2).sum() / r) if r else 0.0


def _basis(source: Source, module: Factors, side: int) -> F64:
    key = module.name, side
    if key not in source.bases:
        source.bases[key] = basis(module.B.T if side else module.A)
    return source.bases[key]


def basis(rows: npt.NDArray[np.floating]) -> F64:
    """An orthonormal basis (rank, n) of rows; those below 1e-6 of the largest singular value are left out."""
    _, s, V = np.linalg.svd(np.asarray(rows, np.float64), full_matrices=False)
    kept: F64 = V[s > 1e-6 * max(float(s[0]), 1e-300)] if len(s) else V
    return kept


def related(source: Source, others: Sequence[Source]) -> list[RelationReport]:
    """The relations of ``source`` with ``others``, nearest first."""
    found = [known for other in others if (known := relation(other, source)) is not None]
    return sorted(found, key=lambda known: -known.most)
