"""Adapters compared by their updates ``scale * B @ A``, which no change of gauge alters: never by A and B.

Norms and inner products come from the factors, never from the dense product; only signs need its entries,
which are made and forgotten in spans. A module that an adapter lacks is an update of zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from paring import lowrank
from paring.coding import Factors
from paring.diffing.alikeness import signs, square
from paring.diffing.report import Difference, NotCompared, TensorDiff
from paring.errors import UnsupportedError
from paring.factors import read_factors
from paring.merging.inputs import Model
from paring.merging.models import F32, F64, Models, Place, Target
from paring.merging.modules import key
from paring.merging.sources import Updates
from paring.spectrum import ranks_of
from paring.stream import in_order

#: one module of all adapters, None where one lacks it
Row = list[Factors | None]


def compare(opened: Sequence[Model], threads: int) -> Difference:
    """All adapters against the first, and pairwise. Raises UnsupportedError where two have no module in
    common.
    """
    rows, rest = _join(opened)
    if not rows:
        raise UnsupportedError(
            f"{opened[0].path} and {opened[1].path} have no module in common: adapters of different bases?"
        )
    n = len(opened)
    agree = _agreements(opened, rows, threads)
    measured = list(in_order(_measure, list(rows.values()), threads))
    tensors = [
        _tensor(row, gram, apart, signs)
        for row, (gram, apart), signs in zip(rows.values(), measured, agree, strict=True)
    ]
    gram = sum((found[0] for found in measured), np.zeros((n, n)))
    apart = sum((found[1] for found in measured), np.zeros(n))
    return Difference(
        kind="adapters",
        inputs=[str(model.path) for model in opened],
        tensors=tensors,
        not_compared=rest,
        change=[_root(x, gram[0, 0]) for x in apart],
        cosine=[_cosine(gram, 0, i) for i in range(n)],
        delta_norm=[float(np.sqrt(x)) for x in np.diagonal(gram)],
        delta_cosine=square([_cosine(gram, i, j) for i, j in combinations(range(n), 2)], n),
        agreement=square(_shares(agree.sum(axis=0)), n),
        warnings=_warnings(opened),
    )


def _warnings(opened: Sequence[Model]) -> list[str]:
    bases = {model.adapter.base: model.path for model in opened if model.adapter and model.adapter.base}
    if len(bases) < 2:
        return []
    (one, a), (two, b), *_ = bases.items()
    return [f"{a} was made for {one}, {b} for {two}: updates of different bases"]


def _join(opened: Sequence[Model]) -> tuple[dict[str, Row], list[NotCompared]]:
    """Modules by key, in order, and what is no plain update, or not in all."""
    rows: dict[str, Row] = {}
    rest: list[NotCompared] = []
    whole: dict[str, list[int]] = {}
    for i, model in enumerate(opened):
        assert model.adapter is not None
        rest += [NotCompared(name, f"{why}, in {model.path}") for name, why in model.adapter.refused]
        for tensor in model.adapter.carried:
            if not tensor.name.endswith((".alpha", ".scalar")):
                whole.setdefault(tensor.name, []).append(i)
        for factors in read_factors(model.adapter):
            rows.setdefault(key(factors.name), [None] * len(opened))[i] = factors
    for name, holders in whole.items():
        rest.append(NotCompared(name, _whole(opened, name, holders)))
    out = {}
    for own, row in rows.items():
        parts = [(i, part) for i, part in enumerate(row) if part is not None]
        name = parts[0][1].name
        shapes = {(part.B.shape[0], part.A.shape[1]): i for i, part in parts}
        if len(shapes) > 1:
            told = ", ".join(f"{a} x {b} in {opened[i].path}" for (a, b), i in shapes.items())
            rest.append(NotCompared(name, f"shapes differ: {told}"))
            continue
        out[own] = row
        if len(parts) < len(row):
            lacking = [str(opened[i].path) for i, part in enumerate(row) if part is None]
            rest.append(NotCompared(name, f"not in {', '.join(lacking)}: an update of zero"))
    return (out if any(None not in row for row in out.values()) else {}), rest


def _whole(opened: Sequence[Model], name: str, holders: Sequence[int]) -> str:
    """A full tensor of adapters: who has it, and whether its bits are the same."""
    if len(holders) < 2:
        return f"a full tensor, only in {opened[holders[0]].path}"
    first, *others = (opened[i].checkpoint.read(name) for i in holders)
    same = all(x.dtype == first.dtype and x.tobytes() == first.tobytes() for x in others)
    return "a full tensor, " + ("equal" if same else "differs")


def _measure(row: Row) -> tuple[F64, F64]:
    """Inner products of the updates ``(adapters, adapters)``, and squared distances from the first."""
    n = len(row)
    gram, apart = np.zeros((n, n)), np.zeros(n)
    for i, one in enumerate(row):
        for j, two in enumerate(row[i:], i):
            if one is not None and two is not None:
                found = lowrank.inner(one.A, one.B, two.A, two.B) * one.scale * two.scale
                gram[i, j] = gram[j, i] = max(found, 0.0) if i == j else found
    first = row[0]
    for i, other in enumerate(row[1:], 1):
        if first is not None and other is not None:
            apart[i] = lowrank.distance(first.A, first.B * first.scale, other.A, other.B * other.scale)
        else:
            apart[i] = gram[0, 0] + gram[i, i]
    return gram, apart


def _agreements(opened: Sequence[Model], rows: dict[str, Row], threads: int) -> F64:
    """``(modules, 2, adapters, adapters)``: entries nonzero in both, and those whose signs agree."""
    targets, sources = [], []
    for own, row in rows.items():
        some = next(part for part in row if part is not None)
        shape = some.B.shape[0], some.A.shape[1]
        names = (None, *(own if part is not None else None for part in row))
        targets.append(Target(own, shape, "F32", names, (1.0,) * len(row)))
    for i, model in enumerate(opened):
        assert model.adapter is not None
        mine = ((part.name, own) for own, row in rows.items() if (part := row[i]) is not None)
        sources.append(Updates(model.adapter, dict(mine)))
    n = len(opened)
    view = Models(targets, [None, *sources], True, frozenset(range(1, n + 1)), threads=threads)

    def count(chunk: F32, place: Place) -> F64:
        return np.stack(signs(chunk))

    return view.totals(count, scope="tensor")


def _tensor(row: Row, gram: F64, apart: F64, agree: F64) -> TensorDiff:
    here = [part is not None for part in row]
    part = next(part for part in row if part is not None)
    pairs = list(combinations(range(len(row)), 2))
    ranks = [None if f is None else ranks_of(lowrank.svd(f.A, f.B)[1]) for f in row]
    shares = _shares(agree)
    return TensorDiff(
        part.name,
        (part.B.shape[0], part.A.shape[1]),
        [_root(x, gram[0, 0]) if ok and here[0] else None for x, ok in zip(apart, here, strict=True)],
        [_cosine(gram, 0, i) for i in range(len(row))],
        [float(np.sqrt(gram[i, i])) if ok else None for i, ok in enumerate(here)],
        effective_rank=[None if found is None else found[0] for found in ranks],
        rank_90=[None if found is None else found[1] for found in ranks],
        delta_cosine=[_cosine(gram, i, j) for i, j in pairs],
        agreement=shares,
    )


def _shares(counts: F64) -> list[float | None]:
    both, agree = counts
    pairs = combinations(range(len(both)), 2)
    return [float(agree[i, j] / both[i, j]) if both[i, j] else None for i, j in pairs]


def _root(part: float, whole: float) -> float | None:
    return float(np.sqrt(part / whole)) if whole > 0 else None


def _cosine(gram: F64, i: int, j: int) -> float | None:
    norm = float(np.sqrt(gram[i, i] * gram[j, j]))
    return min(1.0, max(-1.0, float(gram[i, j]) / norm)) if norm > 0 else None
