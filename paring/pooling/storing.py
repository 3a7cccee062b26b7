"""Adapters stored in a pool bit for bit: shards in common first, then repeats, then differences."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from paring.dtypes import Stored
from paring.packing import Spec
from paring.pooling import exact
from paring.pooling.exact import Held
from paring.pooling.pile import Part, Pile, Source
from paring.pooling.relations import related
from paring.pooling.report import CandidateReport, RelationReport
from paring.pooling.stages import Stages, sizes

_log = logging.getLogger("paring")


@dataclass(eq=False)
class Made:
    """What a method made of a pile: ``stages`` hold the payloads; ``alone`` are the bytes of the payloads
    that the same adapters take one by one, at the same error.
    """

    stages: Stages
    relations: list[RelationReport] = field(default_factory=list)
    candidates: list[CandidateReport] = field(default_factory=list)
    alone: int = 0


def store_exactly(
    made: Made, pile: Pile, held: Held, parts: Sequence[Part], shortest: int, overlap: float
) -> None:
    """Store ``parts`` of the sources bit for bit."""
    stages = made.stages
    new, repeats = exact.split(parts, held)
    by_owner = _by_owner(pile, parts)
    made.alone += sum(sizes([(part.spec, part.tensor) for part in own]) for own in by_owner.values() if own)
    _log.info("looking for shards in common among %d tensors", len(new))
    pooled: set[str] = set()
    gathered: dict[str, list[tuple[Part, Any]]] = {source.name: [] for source in pile.sources}
    found = list(exact.pools(new, held, shortest))
    first = len(stages.numbers)
    hidden = []
    for place, pool in enumerate(found):
        if len(pool.found.pool):
            tensor = Stored(pool.dtype, pool.found.pool)
            hidden.append((Spec(f"/{first + place}", tensor.dtype, tensor.shape), tensor))
    if hidden:
        stages.add("", hidden)
    for spec, tensor in hidden:
        held.put(stages.numbers[spec.name], tensor, "rows")
    for place, pool in enumerate(found):
        what = f"{len(pool.parts)} tensors in shards of {pool.found.length}"
        made.candidates.append(CandidateReport(f"{what}, exactly", pool.pooled, pool.plain, True))
        added = stages.numbers.get(f"/{first + place}")
        for part, item in zip(
            pool.parts, exact.gathers(pool.parts, pool.found, pool.owned, added), strict=True
        ):
            gathered[part.owner].append((part, item))
            pooled.add(part.name)
    for source in pile.sources:
        _emit(stages, held, source.name, gathered[source.name], False)
    rest = [part for part in new if part.name not in pooled]
    for place, source in enumerate(pile.sources):
        own = {p.name.removeprefix(source.name + "/"): p for p in rest if p.owner == source.name}
        others = [*pile.kept, *pile.sources[:place]]
        differs = _differences(made, source, others, own, held, overlap)
        _emit(stages, held, source.name, [(p, p.tensor) for n, p in own.items() if n not in differs], True)
        _emit(stages, held, source.name, [(own[n], item) for n, item in differs.items()], False)
    for source in pile.sources:
        mine = [part for part in repeats if part.owner == source.name]
        _emit(stages, held, source.name, [(part, exact.repeat(part, held)) for part in mine], False)


def _differences(
    made: Made, source: Source, others: Sequence[Source], own: Mapping[str, Part], held: Held, overlap: float
) -> dict[str, Any]:
    """Which parts of an adapter are stored as differences from the nearest other one."""
    found = related(source, others)
    made.relations += found
    near = [known for known in found if known.most >= overlap]
    if not near or not own:
        return {}
    other = next(one for one in others if one.name == near[0].first)
    items, less, alone = exact.differences(source, other, own, made.stages, held)
    what = f"{source.name} as difference from {other.name}, exactly"
    why = f"overlap {near[0].overlap_a:.2f} of A, {near[0].overlap_b:.2f} of B; {len(items)} tensors"
    if items:
        made.candidates.append(CandidateReport(what, less, alone, True, why))
    return items


def _emit(stages: Stages, held: Held, owner: str, items: Sequence[tuple[Part, Any]], root: bool) -> None:
    if not items:
        return
    stages.add(owner, [(part.spec, item) for part, item in items])
    for part, _ in items:
        held.put(stages.numbers[part.name], part.tensor, part.layout if root else None)


def _by_owner(pile: Pile, parts: Sequence[Part]) -> dict[str, list[Part]]:
    return {s.name: [part for part in parts if part.owner == s.name] for s in pile.sources}
