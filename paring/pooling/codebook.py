"""A pool of alike shards, each adapter as their numbers and what is left: MoS found in adapters after the
fact.

Shards are alike where the cosine of their angle is above .9, whatever their sign and size. Adapters trained
apart have hardly any, as Gaussian noise has not (a trained, expanded MoS adapter that was changed a little
since has). Without them no pool pays: K codewords for shards of d entries leave at least ``2^(-2 log2(K) /
d)`` of the variance of Gaussian shards, so a coder of what is left saves no more than the indices cost, and
the codewords come on top. That is measured and told.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from paring.codecs.residual import Difference, predicted
from paring.codecs.shards import Gather, Pool, moved
from paring.codecs.trellis import values
from paring.coding import Factors
from paring.dtypes import Stored, from_f32
from paring.kernels.ternary.tensor import Layout, laid, segments
from paring.kernels.trellis.tensor import Levels
from paring.packing import Spec
from paring.pooling import alike
from paring.pooling.hashing import divisors
from paring.pooling.pricing import F64, Trellis, meet, squares
from paring.pooling.report import CandidateReport

if TYPE_CHECKING:
    from paring.pooling.work import Items, State, Work

_MOST = 20_000  # shards that are compared with each other
_WHAT = "a pool of alike shards"


@dataclass(frozen=True, slots=True, eq=False)
class _Vectors:
    """One factor of one module: its tensor's name, layout, rank vectors (r, n), and what their errors
    count.
    """

    work: Work
    name: str
    factors: Factors
    side: int
    rows: F64
    weights: F64

    @property
    def layout(self) -> Layout:
        return "columns" if self.side else "rows"

    @property
    def dtype(self) -> str:
        return self.factors.dtypes[self.side]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.factors.shapes[self.side]


@dataclass(frozen=True, slots=True, eq=False)
class _Group:
    """Factors whose rank vectors are of one length and dtype, in shards of ``length``: for each shard of
    all, in order, its codeword and move; ``words`` (K, length) are the codewords and ``weights`` (K,) what
    errors in them count.
    """

    members: list[_Vectors]
    length: int
    index: npt.NDArray[np.int64]
    moves: npt.NDArray[np.int16]
    words: F64
    weights: F64


def attempt(
    state: State, coding: Sequence[Work], error: float, trellis: Trellis, least: int, shortest: int
) -> Iterator[CandidateReport]:
    """Try a pool of alike shards for the adapters ``coding``, against the ``least`` bytes that others take;
    where it takes fewer, ``state`` has it.
    """
    vectors = [one for work in coding for one in _vectors(work)]
    groups = []
    for key in sorted({(one.rows.shape[1], one.dtype) for one in vectors}):
        members = [one for one in vectors if (one.rows.shape[1], one.dtype) == key]
        found = _group(members, shortest)
        if found is not None:
            groups.append(found)
    if not groups:
        yield _bound(vectors, shortest, least)
        return
    top = max(float((one.weights * squares(one.rows)).max(initial=0.0)) for one in vectors) or 1.0
    made = meet(top, lambda price: _at(price, groups, vectors, trellis, coding, error))
    count = sum(len(group.words) for group in groups)
    shards = sum(len(group.index) for group in groups)
    why = f"{count} codewords for {shards} shards of " + ", ".join(str(group.length) for group in groups)
    if made is None:
        yield CandidateReport(_WHAT, least, least, False, why + "; the error cannot be met")
        return
    total = _put(made, state, groups, coding)
    yield CandidateReport(_WHAT, total, least, total < least, why)


def _vectors(work: Work) -> Iterator[_Vectors]:
    energy = max(work.energy(), 1e-300)
    for f in work.new:
        A, B = f.A.astype(np.float64), f.B.T.astype(np.float64)
        scale = f.scale**2 / energy
        yield _Vectors(work, f.a, f, 0, A, scale * squares(B))
        yield _Vectors(work, f.b or "", f, 1, B, scale * squares(A))


def _group(members: list[_Vectors], shortest: int) -> _Group | None:
    """``members`` in shards of the length that saves most; None where hardly any are alike at any length."""
    rows = np.concatenate([one.rows for one in members])
    weights = np.concatenate([one.weights for one in members])
    best: tuple[float, int, alike.Clusters] | None = None
    for length in divisors(rows.shape[1], max(shortest, 16)):
        shards = rows.reshape(-1, length)
        if len(shards) > _MOST or alike.neighbours(shards) < 0.1:
            continue
        found = alike.cluster(shards)
        cost = 4.0 * len(found.words) * length + 16.0 * len(shards)
        if cost < 0.9 * 4.0 * rows.size and (best is None or cost < best[0]):
            best = cost, length, found
    if best is None:
        return None
    _, length, found = best
    each = np.repeat(weights, rows.shape[1] // length)
    words, counted = found.means(rows.reshape(-1, length), each)
    return _Group(members, length, found.index, found.moves, words, counted)


@dataclass(eq=False)
class _Made:
    """All at one price: pools as items, and of every tensor its prediction (None: none) and what is left."""

    pools: list[Levels]
    told: dict[tuple[str, str], tuple[int, Gather | None, Any, _Vectors]]


def _at(
    price: float,
    groups: Sequence[_Group],
    vectors: Sequence[_Vectors],
    trellis: Trellis,
    coding: Sequence[Work],
    error: float,
) -> tuple[_Made, bool]:
    made = _Made([], {})
    items: dict[str, Items] = {work.source.name: {} for work in coding}
    for number, group in enumerate(groups):
        k, classes, scales, _ = trellis.code(group.words, group.weights, price)
        item = Levels(group.words.shape, "rows", trellis.bits, classes, scales, k)
        made.pools.append(item)
        first = 0
        pool = from_f32(values(item, "F32"), group.members[0].dtype)
        for one in group.members:
            count = one.rows.size // group.length
            here = slice(first, first + count)
            first += count
            told = _gather(one, pool, number, group.index[here], group.moves[here], group.length)
            base = predicted(told.tensor, one.layout, None)
            left = trellis.item(one.shape, one.layout, trellis.code(one.rows - base, one.weights, price))
            made.told[one.work.source.name, one.name] = number, told, left, one
            item_ = (
                told
                if left is None
                else Difference(one.shape, one.dtype, one.layout, 0, told.tensor, None, left)
            )
            items[one.work.source.name][one.name] = item_
    for one in vectors:
        key = one.work.source.name, one.name
        if key not in made.told:
            k, classes, scales, _ = trellis.code(one.rows, one.weights, price)
            whole = Levels(one.shape, one.layout, trellis.bits, classes, scales, k)
            made.told[key] = -1, None, whole, one
            items[key[0]][key[1]] = whole
    return made, all(work.error(items[work.source.name]) <= error for work in coding)


def _gather(
    one: _Vectors,
    pool: Stored,
    number: int,
    index: npt.NDArray[np.int64],
    moves: npt.NDArray[np.int16],
    length: int,
) -> Gather:
    """A factor as its codewords, moved."""
    taken = moved(Stored(pool.dtype, pool.data[index]), moves)
    whole = laid(taken.data.reshape(segments(one.shape, one.layout)), one.layout, one.shape)
    rows_: Layout = "rows"
    some = moves if moves.any() else None
    return Gather(Stored(pool.dtype, whole), one.layout, Pool(length, ((number, rows_),)), index, some)


def _put(made: _Made, state: State, groups: Sequence[_Group], coding: Sequence[Work]) -> int:
    """Add all to ``state``; returns the bytes."""
    before = state.stages.nbytes
    numbers = []
    for item, group in zip(made.pools, groups, strict=True):
        name = f"/{len(state.stages.numbers)}"
        state.put("", [(Spec(name, group.members[0].dtype, item.shape), item)])
        numbers.append(state.stages.numbers[name])
    for work in coding:
        plain: Items = {}
        differ: list[tuple[str, Gather, Any, _Vectors]] = []
        for (owner, name), (number, told, left, one) in made.told.items():
            if owner != work.source.name:
                continue
            if told is None:
                plain[name] = left
                continue
            pool = Pool(told.pool.length, ((numbers[number], "rows"),))
            own = Gather(told.tensor, told.layout, pool, told.index, told.moves)
            if left is None:
                plain[name] = own
            else:
                differ.append((name, own, left, one))
        state.put_work(work, plain)
        first = len(state.stages.numbers)
        hidden = [
            (Spec(f"/{first + i}", g.tensor.dtype, g.shape), g) for i, (_, g, _, _) in enumerate(differ)
        ]
        state.put("", hidden)
        items = {
            name: Difference(
                one.shape, one.dtype, one.layout, state.stages.numbers[spec.name], g.tensor, None, left
            )
            for (name, g, left, one), (spec, _) in zip(differ, hidden, strict=True)
        }
        state.put_work(work, items)
    return state.stages.nbytes - before


def _bound(vectors: Sequence[_Vectors], shortest: int, least: int) -> CandidateReport:
    """What a pool would take at the same error: measured on the rank vectors that are most."""
    total, words = 0.0, []
    for key in sorted({(one.rows.shape[1], one.dtype) for one in vectors}):
        rows = np.concatenate([one.rows for one in vectors if (one.rows.shape[1], one.dtype) == key])
        lengths = divisors(rows.shape[1], max(shortest, 16))
        if not lengths or not rows.any():
            continue
        length = min(lengths, key=lambda d: abs(d - 64))
        tried = alike.quantise(rows.reshape(-1, length))
        saved = 0.5 * float(np.log2(1 / max(tried.left, 1e-9))) * rows.size
        total += (16.0 * tried.words * length + tried.bits_index - saved) / 8
        words.append(
            f"{tried.words} codewords of {length} leave {tried.left:.0%} (Gaussian shards: at least "
            f"{tried.bound:.0%}), {tried.alike:.1%} of shards have one like them"
        )
    return CandidateReport(_WHAT, least + max(0, round(total)), least, False, "; ".join(words[:2]))
