"""What is to be coded within an error, adapter by adapter, and the file that it goes to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from paring import codecs, lowrank
from paring.coding import Factors, Family, loss_of
from paring.dtypes import Stored, from_f32
from paring.packing import Spec
from paring.pooling import hashing
from paring.pooling.pile import Part, Source
from paring.pooling.pricing import F64
from paring.pooling.stages import Stages, sizes

#: names of tensors within an adapter -> items of codecs
Items = dict[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Coders:
    """How single adapters are coded: ``spectral(modules, threads, device)`` is a family of codings, ``plan``
    what :class:`.pricing.Trellis` spends bits by.
    """

    spectral: Callable[[Sequence[Factors], int, str], Family]
    plan: F64


@dataclass(eq=False)
class Work:
    """One adapter to be coded. Of its modules ``new`` are the different ones, ``same`` tells which of them
    each of all is; ``copy_of`` is an earlier adapter that has all of them, ``alone`` its coding by itself and
    the bytes of that.
    """

    source: Source
    new: list[Factors]
    same: dict[str, Factors]
    copy_of: Work | None = None
    alone: tuple[Items, int] | None = None

    @property
    def pairs(self) -> list[Factors]:
        """All modules that are pairs of factors."""
        return [f for f in self.source.modules if f.b]

    @property
    def parts(self) -> list[Part]:
        """The tensors of its pairs."""
        return [self.source.parts[name] for f in self.pairs for name in (f.a, f.b) if name]

    @cached_property
    def plain(self) -> int:
        """The bytes that they take without loss, as they are."""
        return sizes([(part.spec, part.tensor) for part in self.parts])

    def spec(self, name: str) -> Spec:
        return self.source.parts[name].spec

    def bytes_of(self, items: Mapping[str, Any]) -> int:
        """The bytes that items take."""
        return sizes([(self.spec(name), item) for name, item in items.items()])

    def error(self, items: Mapping[str, Any]) -> float:
        """The relative error of all pairs where the new ones are coded as ``items``."""
        lost = energy = 0.0
        for f in self.pairs:
            coded = self.same[f.name]
            assert coded.b is not None
            found = loss_of(f, items[coded.a], items[coded.b])
            lost, energy = lost + found.lost, energy + found.energy
        return (lost / energy) ** 0.5 if energy else 0.0

    def energy(self) -> float:
        """``||D||^2`` of all pairs."""
        return sum(f.scale**2 * lowrank.energy(f.A, f.B) for f in self.pairs)


@dataclass(eq=False)
class State:
    """A file in the making: its payloads, and what tensors decode to, by number."""

    stages: Stages
    tensors: dict[int, Stored] = field(default_factory=dict)

    def copied(self) -> State:
        stages = Stages(list(self.stages.payloads), dict(self.stages.numbers), dict(self.stages.depth))
        return State(stages, dict(self.tensors))

    def put(self, owner: str, items: Sequence[tuple[Spec, Any]]) -> None:
        """Add items and decode them."""
        if not items:
            return
        self.stages.add(owner, items)
        for spec, item in items:
            wide = codecs.of(item).values(item, spec.dtype)
            self.tensors[self.stages.numbers[spec.name]] = from_f32(wide, spec.dtype, spec.name)

    def put_work(self, work: Work, items: Mapping[str, Any]) -> None:
        """Add the items of one adapter."""
        self.put(work.source.name, [(work.spec(name), item) for name, item in items.items()])


def works_of(sources: Sequence[Source]) -> list[Work]:
    """What is to be coded of each adapter: every module once, and nothing of a copy of an earlier one."""
    out: list[Work] = []
    keys: list[list[tuple[Any, ...]]] = []
    for source in sources:
        first: dict[tuple[Any, ...], Factors] = {}
        same, own = {}, []
        for f in source.modules:
            if f.b is None:
                continue
            key = (*(hashing.content(source.parts[n].tensor) for n in (f.a, f.b)), *f.shapes, f.scale)
            own.append(key)
            same[f.name] = first.setdefault(key, f)
        work = Work(source, list(first.values()), same)
        if own in keys and own:
            work.copy_of = out[keys.index(own)]
        out.append(work)
        keys.append(own)
    return out
