"""Coding without loss: repeats, pools of shards, differences from a related adapter; each only where its
bytes, counted as coded, are fewer than without it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from paring.codecs import shards
from paring.codecs.residual import Difference, apart
from paring.codecs.shards import Gather, Pool
from paring.dtypes import Stored
from paring.kernels.ternary.tensor import Layout
from paring.packing import Spec
from paring.pooling import hashing
from paring.pooling.hashing import Found, Lines
from paring.pooling.pile import F64, Part, Source, is_float
from paring.pooling.relations import matched
from paring.pooling.stages import MOST_DEPTH, Stages, sizes

_LEAST = 64  # bytes below which a tensor is not worth a reference
_SAME = 0.999  # a residual must be smaller than this part of the tensor to be tried


@dataclass(eq=False)
class Held:
    """What the file holds: tensors by number, those of ``roots`` stored by themselves (with what their rank
    vectors are), and the number of every content.
    """

    tensors: dict[int, Stored] = field(default_factory=dict)
    roots: dict[int, Layout] = field(default_factory=dict)
    contents: dict[bytes, int] = field(default_factory=dict)

    def put(self, number: int, tensor: Stored, root: Layout | None = None) -> None:
        """Note a tensor of the file; with ``root`` it is stored by itself, its rank vectors being these."""
        self.tensors[number] = tensor
        self.contents.setdefault(hashing.content(tensor), number)
        if root is not None:
            self.roots[number] = root


def split(parts: Sequence[Part], held: Held) -> tuple[list[Part], list[Part]]:
    """The parts of new content, and those that repeat one of them or what the file holds. Small ones are
    never repeats: to refer to them takes as much.
    """
    seen: set[bytes] = set()
    new, repeats = [], []
    for part in parts:
        key = hashing.content(part.tensor)
        if part.tensor.nbytes >= _LEAST and (key in seen or key in held.contents):
            repeats.append(part)
        else:
            new.append(part)
            seen.add(key)
    return new, repeats


@dataclass(frozen=True, slots=True, eq=False)
class Pooled:
    """A pool of shards that pays: the parts made of it, what must be added to the file for it, and bytes."""

    parts: tuple[Part, ...]
    found: Found
    owned: tuple[tuple[int, Layout], ...]
    dtype: str
    plain: int
    pooled: int


def pools(parts: Sequence[Part], held: Held, shortest: int) -> Iterator[Pooled]:
    """The pools of shards that make ``parts`` smaller, exactly."""
    large = [part for part in parts if part.tensor.nbytes >= _LEAST and part.tensor.numel]
    for dtype in sorted({part.tensor.dtype for part in large}):
        own = [part for part in large if part.tensor.dtype == dtype]
        lines = [Lines(part.tensor, part.layout) for part in own]
        lines += [
            Lines(held.tensors[n], layout, n)
            for n, layout in held.roots.items()
            if held.tensors[n].dtype == dtype and held.tensors[n].numel
        ]
        for group in hashing.linked(lines, shortest):
            found = hashing.shared(lines, group, shortest)
            if found is None:
                continue
            made = _measured(lines, own, found, dtype)
            if made is not None and made.pooled < made.plain:
                yield made


def _measured(lines: Sequence[Lines], own: Sequence[Part], found: Found, dtype: str) -> Pooled | None:
    """A pool with its bytes counted, None where it does not rebuild its tensors (numbers that collided)."""
    members = tuple(own[i] for i in found.members)
    owned = tuple((lines[i].number or 0, lines[i].layout) for i in found.owned)
    pool = Stored(dtype, found.pool)
    known: dict[int, Stored] = {lines[i].number or 0: lines[i].tensor for i in found.owned}
    last = 1 + max(known, default=-1)
    items = gathers(members, found, owned, last if len(pool.data) else None)
    known[last] = pool
    raw = shards.encode(items)
    shapes = [part.tensor.shape for part in members]
    again = shards.decode(raw, shapes, [dtype] * len(members), known=known)
    if any(a.tobytes() != part.tensor.tobytes() for a, part in zip(again, members, strict=True)):
        return None
    plain = sizes([(part.spec, part.tensor) for part in members])
    more = sizes([(Spec("/", dtype, pool.shape), pool)]) if len(pool.data) else 0
    return Pooled(members, found, owned, dtype, plain, len(raw) + more + 24)


def gathers(
    parts: Sequence[Part], found: Found, owned: Sequence[tuple[int, Layout]], added: int | None
) -> list[Gather]:
    """The items of ``parts``; ``added`` is the number of the new pool, None for none."""
    rows: Layout = "rows"
    pool = Pool(found.length, (*owned, *([] if added is None else [(added, rows)])))
    return [
        Gather(part.tensor, part.layout, pool, index, moves)
        for part, index, moves in zip(parts, found.index, found.moves, strict=True)
    ]


def repeat(part: Part, held: Held) -> Gather:
    """A part as what it repeats."""
    number = held.contents[hashing.content(part.tensor)]
    pool = Pool(part.tensor.numel, ((number, "whole"),))
    return Gather(part.tensor, "whole", pool, np.zeros(1, np.int64))


def differences(
    source: Source, other: Source, parts: Mapping[str, Part], stages: Stages, held: Held
) -> tuple[dict[str, Difference], int, int]:
    """Which of ``parts`` (of ``source``, by name) are fewer bytes as differences from their counterparts in
    ``other``; with their bytes, and those that they would take alone.
    """
    found: dict[str, Difference] = {}
    less = alone = 0
    for theirs, ours in matched(other, source):
        for a, b in ((theirs.a, ours.a), (theirs.b, ours.b)):
            if a is None or b is None or b not in parts or a not in other.parts:
                continue
            part = parts[b]
            number = held.contents.get(hashing.content(other.parts[a].tensor))
            if number is None:
                continue
            made = _difference(part, number, held.tensors[number], stages.depth[number])
            if made is None:
                continue
            before = sizes([(part.spec, part.tensor)])
            item, after = made
            if after < before:
                found[b] = item
                less, alone = less + after, alone + before
    return found, less, alone


def _difference(part: Part, number: int, base: Stored, depth: int) -> tuple[Difference, int] | None:
    """The smallest exact difference of a part from a tensor of the file, and its bytes; None for no hope."""
    if depth >= MOST_DEPTH or not is_float(part.tensor) or not is_float(base) or not part.tensor.numel:
        return None
    other = Part("", "", base, part.layout if len(base.shape) > 1 else "whole")
    if other.length != part.length:
        return None
    target, rows = part.rows(), other.rows()
    best: tuple[Difference, int] | None = None
    for mix in _mixes(target, rows):
        left = apart(part.tensor, base, part.layout, mix)
        if left is None:
            continue
        kept = left if left.data.any() else None
        made = Difference(part.tensor.shape, part.tensor.dtype, part.layout, number, base, mix, kept)
        size = sizes([(part.spec, made)])
        if best is None or size < best[1]:
            best = made, size
    return best


def _mixes(target: F64, rows: F64) -> Iterator[F64 | None]:
    """Mixes worth a try: none, one number (also as fp32 and fp16 round it), a matrix."""
    energy = float((target**2).sum())
    if not energy or not rows.any():
        return
    if target.shape == rows.shape:
        if float(((target - rows) ** 2).sum()) < _SAME * energy:
            yield None
        top = np.unravel_index(np.abs(rows).argmax(), rows.shape)
        fit = float((target * rows).sum() / (rows**2).sum())
        if fit and float(((target - fit * rows) ** 2).sum()) < 0.25 * energy:
            ratio = float(target[top] / rows[top])
            with np.errstate(over="ignore"):
                tried = [fit, ratio, float(np.float32(fit)), float(np.float32(ratio)), float(np.float16(fit))]
            for number in dict.fromkeys(tried):
                if np.isfinite(number) and number not in (0.0, 1.0):
                    yield np.array(number)
    if len(rows) <= 256:
        mix: Any = np.linalg.lstsq(rows.T, target.T, rcond=1e-12)[0].T
        if float(((target - mix @ rows) ** 2).sum()) < 0.25 * energy:
            yield np.ascontiguousarray(mix)
