"""Who shares what in a pool, read from the file: from payloads' heads and indices, no tensor is decoded.

What is stored by itself is a *root*; every tensor is traced to the parts of roots that it is told by. A root
is counted in units, the greatest length that divides all shards cut from it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import gcd
from typing import Protocol

import numpy as np
import numpy.typing as npt

from paring import codecs
from paring.codecs import residual, shards
from paring.codecs.shards import Pool
from paring.dtypes import itemsize, numel
from paring.errors import BadFileError
from paring.kernels.ternary.tensor import Layout, segments
from paring.packing import Spec
from paring.pooling.report import LevelReport, MemberReport, SharingReport

LEVELS = ("alone", "tensor", "vector", "shard", "related")


class Payload(Protocol):
    """A payload, read or about to be written."""

    @property
    def codec(self) -> str: ...
    @property
    def version(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def specs(self) -> tuple[Spec, ...]: ...


@dataclass(frozen=True, slots=True, eq=False)
class _Told:
    """How one tensor is told: its level, the tensors it refers to, and for a gather its pool and indices."""

    level: str
    refers: tuple[int, ...]
    pool: Pool | None = None
    layout: Layout = "whole"
    index: npt.NDArray[np.int64] | None = None


@dataclass(eq=False)
class _File:
    """All tensors of a file by number: specs, how they are told, payload and owner."""

    specs: list[Spec]
    told: list[_Told]
    payload: list[int]
    owner: list[str]


def read(payloads: Sequence[Payload], data: Mapping[int, bytes | memoryview]) -> _File:
    """Read how every tensor is told. ``data`` holds the payloads that refer to tensors, by place. Raises
    BadFileError.
    """
    file = _File([], [], [], [])
    for place, payload in enumerate(payloads):
        shapes = [spec.shape for spec in payload.specs]
        told: list[_Told] = [_Told("alone", ())] * len(shapes)
        if payload.codec == shards.ID and place in data:
            rows = zip(shards.layouts_of(data[place], shapes), shapes, strict=True)
            told = [_gather(*one, shape) for one, shape in rows]
        elif payload.codec == residual.ID and place in data:
            told = [_Told("related", numbers) for numbers in residual.references(data[place], shapes)]
        if any(number >= len(file.specs) for one in told for number in one.refers):
            raise BadFileError("a pool is damaged: a payload refers to tensors behind it")
        for spec, one in zip(payload.specs, told, strict=True):
            file.specs.append(spec)
            file.told.append(one)
            file.payload.append(place)
            file.owner.append(spec.name.partition("/")[0])
    return file


def _gather(pool: Pool, layout: Layout, index: npt.NDArray[np.int64], shape: tuple[int, ...]) -> _Told:
    n = segments(shape, layout)[1]
    level = "tensor" if layout == "whole" else "vector" if pool.length == n else "shard"
    return _Told(level, tuple(number for number, _ in pool.tensors), pool, layout, index)


def referring(payload: Payload) -> bool:
    """Whether the tensors of a payload are told by others."""
    return codecs.refers(codecs.find(payload.codec, payload.version))


class _Units:
    """Roots in units, and which units each tensor is told by."""

    def __init__(self, file: _File) -> None:
        self.file = file
        self.length: dict[int, int] = {}
        for told in file.told:
            for number, layout in told.pool.tensors if told.pool else ():
                if layout != "whole" and told.pool is not None:
                    self.length[number] = gcd(self.length.get(number, 0), told.pool.length)
        self._found: dict[int, dict[int, npt.NDArray[np.int64]]] = {}

    def size(self, root: int) -> int:
        """Entries of a unit of a root."""
        return self.length.get(root) or max(1, numel(self.file.specs[root].shape))

    def count(self, root: int) -> int:
        return -(-numel(self.file.specs[root].shape) // self.size(root))

    def of(self, number: int) -> dict[int, npt.NDArray[np.int64]]:
        """root -> how often a tensor uses each of its units."""
        if number not in self._found:
            self._found[number] = self._of(number)
        return self._found[number]

    def _of(self, number: int) -> dict[int, npt.NDArray[np.int64]]:
        told = self.file.told[number]
        if told.pool is None or told.index is None:
            found = {number: np.ones(self.count(number), np.int64)}
            for other in told.refers:
                found |= self.of(other)
            return found
        found = {}
        first = 0
        for other, layout in told.pool.tensors:
            size = numel(self.file.specs[other].shape) // told.pool.length
            uses = np.bincount(
                told.index[(told.index >= first) & (told.index < first + size)] - first, minlength=size
            )
            first += size
            if not uses.any():
                continue
            if self.file.told[other].pool is not None or self.file.told[other].refers or layout == "whole":
                for root, theirs in self.of(other).items():
                    found[root] = found.get(root, 0) + theirs * (uses.max() or 1)
            else:
                units = np.repeat(uses, told.pool.length // self.size(other))
                found[other] = found.get(other, 0) + units
        return found


def measure(
    payloads: Sequence[Payload],
    data: Mapping[int, bytes | memoryview],
    adapters: Sequence[Mapping[str, object]],
) -> SharingReport:
    """The sharing in a pool whose manifest tells of ``adapters``."""
    names = [str(each["name"]) for each in adapters]
    file = read(payloads, data)
    units = _Units(file)
    uses: dict[int, dict[str, npt.NDArray[np.int64]]] = defaultdict(dict)
    tensors: dict[int, npt.NDArray[np.int64]] = {}
    for number, owner in enumerate(file.owner):
        for root, counts in units.of(number).items() if owner else ():
            uses[root][owner] = uses[root].get(owner, 0) + counts
            tensors[root] = tensors.get(root, 0) + (counts > 0)
    within = dict.fromkeys(names, 0)
    common: dict[str, dict[str, int]] = {name: {} for name in names}
    across = 0
    for root, by in uses.items():
        unit = units.size(root) * itemsize(file.specs[root].dtype)
        for name, counts in by.items():
            within[name] += unit * int(np.maximum(counts - 1, 0).sum())
            for other, theirs in by.items():
                both = int(counts[theirs > 0].sum())
                if other != name and both:
                    common[name][other] = common[name].get(other, 0) + unit * both
        across += unit * int(
            np.maximum(sum((counts > 0).astype(np.int64) for counts in by.values()) - 1, 0).sum()
        )
    hidden = [counts for root, counts in tensors.items() if not file.owner[root]]
    needs = {name: _needs(file, name) for name in names}
    members = []
    for name, facts in zip(names, adapters, strict=True):
        decoded = sum(
            numel(spec.shape) * itemsize(spec.dtype)
            for spec, owner in zip(file.specs, file.owner, strict=True)
            if owner == name
        )
        others = set().union(*(needs[other] for other in names if other != name))
        source, error = facts.get("source"), facts.get("error")
        members.append(
            MemberReport(
                name,
                sum(owner == name for owner in file.owner),
                source["bytes"] if isinstance(source, dict) else None,
                decoded,
                sum(payloads[place].nbytes for place in needs[name]),
                sum(payloads[place].nbytes for place in needs[name] - others),
                within[name],
                {other: min(both, decoded) for other, both in sorted(common[name].items())},
                float(error) if isinstance(error, int | float) else None,
            )
        )
    return SharingReport(
        members, _levels(file, payloads), sum(within.values()), across,
        sum(int((counts > 1).sum()) for counts in hidden), sum(int((counts == 1).sum()) for counts in hidden),
    )  # fmt: skip


def _needs(file: _File, name: str) -> set[int]:
    """The payloads that an adapter needs."""
    todo = [number for number, owner in enumerate(file.owner) if owner == name]
    seen = set(todo)
    while todo:
        for other in file.told[todo.pop()].refers:
            if other not in seen:
                seen.add(other)
                todo.append(other)
    return {file.payload[number] for number in seen}


def _levels(file: _File, payloads: Sequence[Payload]) -> list[LevelReport]:
    """Tensors and bytes by level; those of a payload go to its tensors in proportion to theirs decoded."""
    sizes = [numel(spec.shape) * itemsize(spec.dtype) for spec in file.specs]
    whole = [0] * len(payloads)
    for number, place in enumerate(file.payload):
        whole[place] += max(1, sizes[number])
    out = []
    for level in LEVELS:
        own = [i for i, told in enumerate(file.told) if told.level == level and file.owner[i]]
        told_bytes = sum(sizes[i] for i in own)
        taken = sum(payloads[file.payload[i]].nbytes * max(1, sizes[i]) / whole[file.payload[i]] for i in own)
        if own:
            out.append(LevelReport(level, len(own), told_bytes, round(taken)))
    pools = [i for i, owner in enumerate(file.owner) if not owner]
    if pools:
        taken = sum(payloads[place].nbytes for place in {file.payload[i] for i in pools})
        out.append(LevelReport("pool", len(pools), sum(sizes[i] for i in pools), round(taken)))
    return out
