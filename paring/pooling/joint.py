"""A basis in common for many adapters: of each module one U and V for all of them, and of each adapter a
small core (joint diagonalisation, Compress then Serve, arXiv:2407.00066, here with factors of low rank).

``B_i A_i ~ U^T C_i V``: U (k, out) and V (k, in) are the principal directions of what all adapters do,
every one counted by its own energy, quantised at a price of a bit; C_i, of rank r_i at most, is what fits
them best as they decode. Pays where there are many adapters in one small space; for unrelated ones it
cannot: k directions for k components.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from paring import lowrank
from paring.codecs.residual import Difference
from paring.codecs.trellis import values
from paring.coding import Factors
from paring.dtypes import from_f32
from paring.packing import Spec
from paring.pooling.pricing import F64, Trellis, meet, short
from paring.pooling.report import CandidateReport

if TYPE_CHECKING:
    from paring.pooling.work import Items, State, Work

_FEWEST = 3  # adapters that a basis is worth a try for
_WORD = 12.0  # bits of an entry of a core, about


def attempt(
    state: State, coding: Sequence[Work], error: float, trellis: Trellis, least: int
) -> Iterator[CandidateReport]:
    """Try a basis in common for the adapters ``coding``, against the ``least`` bytes that others take;
    where it takes fewer, ``state`` has it.
    """
    groups = _groups(coding)
    if len(coding) < _FEWEST or groups is None:
        return
    what = f"a basis in common for {len(coding)} adapters"
    trial = _Trial(groups, coding, error, trellis)
    bound = trial.fewest()
    if bound >= least:
        yield CandidateReport(what, bound, least, False, "the cores and directions needed alone take as much")
        return
    found = meet(trial.top, trial.at)
    if found is None:
        yield CandidateReport(what, bound, least, False, "the error cannot be met")
        return
    directions = [item for pair in found.bases for item in pair]
    before = state.stages.nbytes
    numbers = []
    for item in directions:
        name = f"/{len(state.stages.numbers)}"
        state.put("", [(_hidden(name, item), item)])
        numbers.append(state.stages.numbers[name])
    for work, cores in zip(coding, found.cores, strict=True):
        items: Items = {}
        for place, (f, (mix_a, mix_b)) in enumerate(zip(work.new, cores, strict=True)):
            for side, (name, mix) in enumerate(((f.a, mix_a), (f.b or "", mix_b))):
                number = numbers[2 * place + side]
                layout: Any = "columns" if side else "rows"
                items[name] = Difference(
                    f.shapes[side], f.dtypes[side], layout, number, state.tensors[number], mix
                )
        state.put_work(work, items)
    total = state.stages.nbytes - before
    ranks = [len(values(item, "F32")) if i % 2 == 0 else 0 for i, item in enumerate(directions)]
    why = f"{sum(ranks) / max(1, len(ranks) // 2):.1f} directions a module for {len(coding)} adapters"
    yield CandidateReport(what, total, least, total < least, why)


def _hidden(name: str, item: Any) -> Spec:
    return Spec(name, "F32", item.shape)


def _groups(coding: Sequence[Work]) -> list[list[Factors]] | None:
    """The modules of all adapters, place by place; None where they are not of the same shapes, matrices
    all.
    """
    if len({len(work.new) for work in coding}) != 1 or not coding:
        return None
    groups = [list(group) for group in zip(*(work.new for work in coding), strict=True)]
    for group in groups:
        if len({(f.A.shape[1], f.B.shape[0]) for f in group}) != 1:
            return None
    return groups


class _Found:
    """Bases as items (V, U) by module; and by adapter the mixes of A and B by module."""

    def __init__(self, bases: list[tuple[Any, Any]], cores: list[list[tuple[F64, F64]]]) -> None:
        self.bases, self.cores = bases, cores


class _Trial:
    def __init__(
        self, groups: Sequence[Sequence[Factors]], coding: Sequence[Work], error: float, trellis: Trellis
    ) -> None:
        self.groups, self.error, self.trellis = groups, error, trellis
        self.energy = np.array([max(work.energy(), 1e-300) for work in coding])
        # the leading directions, (k, n), with what they hold of all adapters' energy, each adapter's being 1
        self.directions = []
        for group in groups:
            parts = [lowrank.svd(f.A, f.B * np.float64(f.scale)) for f in group]
            weights = [s / e**0.5 for (_, s, _), e in zip(parts, self.energy, strict=True)]
            sides = []
            for rows in ([V for _, _, V in parts], [U.T for U, _, _ in parts]):
                stacked = np.concatenate([w[:, None] * r for w, r in zip(weights, rows, strict=True)])
                _, s, directions = np.linalg.svd(stacked, full_matrices=False)
                sides.append((s**2, directions))
            self.directions.append((sides[0], sides[1]))
        self.top = max(float(s[0]) if len(s) else 0.0 for pair in self.directions for s, _ in pair) or 1.0

    def fewest(self) -> int:
        """Bytes that the directions take at least, by reverse water-filling: those of one side of every
        module, as if they were Gaussian and the other side were known. The bound of any coding of them at
        this error.
        """
        energy = np.concatenate([pair[0][0] for pair in self.directions])
        length = np.concatenate([np.full(len(pair[0][0]), pair[0][1].shape[1]) for pair in self.directions])
        allowed = self.error**2 * len(self.energy)
        low, high = 0.0, float(energy.max(initial=0.0))
        for _ in range(60):
            level = (low + high) / 2
            low, high = (level, high) if np.minimum(energy, level).sum() <= allowed else (low, level)
        bits = 0.5 * np.log2(np.maximum(energy / max(low, 1e-300), 1.0)) * length
        return int(bits.sum() / 8)

    def at(self, price: float) -> tuple[_Found, bool]:
        """All at a price, and whether every adapter is within the error."""
        bases, cores = [], [[] for _ in self.energy]  # type: ignore[var-annotated]
        lost = np.zeros(len(self.energy))
        for group, pair in zip(self.groups, self.directions, strict=True):
            items, wide = [], []
            for side, (s, directions) in enumerate(pair):
                rank = sum(len(f.A) for f in group)
                coded = self.trellis.code(directions, s, price, extra=_WORD * rank)
                keep = np.flatnonzero(coded[1]) if coded[1].any() else np.arange(min(1, len(s)))
                some = tuple(part[keep] for part in coded)
                n = directions.shape[1]
                shape = (n, len(keep)) if side else (len(keep), n)
                item = self.trellis.item(shape, "columns" if side else "rows", some)  # type: ignore[arg-type]
                if item is None:
                    return _Found([], []), False
                items.append(item)
                wide.append(values(item, "F32").T if side else values(item, "F32"))
            bases.append((items[0], items[1]))
            for i, f in enumerate(group):
                mix_a, mix_b, loss = _core(f, wide[0], wide[1], self.error)
                cores[i].append((mix_a, mix_b))
                lost[i] += loss
        return _Found(bases, cores), bool((lost <= self.error**2 * self.energy).all())


def _core(f: Factors, V: F64, U: F64, error: float) -> tuple[F64, F64, float]:
    """The mixes of V (k, in) for A (r, in), and of U (l, out) for the columns of B, that fit a module best;
    and what they lose of it, once rounded as they are stored.
    """
    q_v, l_v = np.linalg.qr(V.T)  # V = l_v.T @ q_v.T
    q_u, l_u = np.linalg.qr(U.T)
    core = (q_u.T @ f.B.astype(np.float64)) @ (f.A.astype(np.float64) @ q_v)
    u, s, v = np.linalg.svd(core, full_matrices=False)
    r = len(f.A)
    k = min(r, len(s))
    mix_a, mix_b = np.zeros((r, len(V))), np.zeros((r, len(U)))
    root = np.sqrt(s[:k])
    mix_a[:k] = np.linalg.solve(l_v, (root[:, None] * v[:k]).T).T
    mix_b[:k] = np.linalg.solve(l_u, u[:, :k] * root).T
    mix_a, mix_b = short(mix_a, error), short(mix_b, error)
    A = from_f32(mix_a @ V, f.dtypes[0]).f32()
    B = from_f32((mix_b @ U).T, f.dtypes[1]).f32()
    return mix_a, mix_b, f.scale**2 * lowrank.distance(f.A, f.B, A, B)
