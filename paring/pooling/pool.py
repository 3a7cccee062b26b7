"""Making a pool: what is to be stored how, and the file that follows from it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import paring
from paring import adapters
from paring.checkpoint import digest, open_checkpoint
from paring.coding import Loss, measured, total_error
from paring.dtypes import Stored, numel
from paring.errors import BadFileError
from paring.packed import Packed, open_packed
from paring.packing import Image, Spec
from paring.pooling import exact, lossy, sharing
from paring.pooling.exact import Held
from paring.pooling.members import member, names_of
from paring.pooling.pile import Part, Pile, Source, layouts_of, read
from paring.pooling.plan import PoolPlan
from paring.pooling.relations import related
from paring.pooling.report import CandidateReport, PoolReport, RelationReport, SharingReport
from paring.pooling.stages import Stages, sizes
from paring.pooling.work import Coders
from paring.report import peak_rss_bytes

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


def build(
    pile: Pile, shortest: int, overlap: float, threads: int, device: str, coders: Callable[[], Coders]
) -> Made:
    """The payloads of a pool of ``pile``: without loss, or within its error; ``coders`` are for that."""
    made = Made(Stages.of(pile.pool))
    held = _held(pile)
    if pile.error is None:
        parts = [part for source in pile.sources for part in source.parts.values()]
        store_exactly(made, pile, held, parts, shortest, overlap)
    else:
        lossy.store(made, pile, held, shortest, overlap, threads, device, coders())
    return made


def _held(pile: Pile) -> Held:
    """What the file that is added to holds."""
    held = Held()
    if pile.pool is None:
        return held
    layouts = {part.name: part.layout for source in pile.kept for part in source.parts.values()}
    number = 0
    decoded = dict(pile.pool.read_all())
    for payload in pile.pool.payloads:
        for spec in payload.specs:
            root = layouts.get(spec.name, "rows") if not sharing.referring(payload) else None
            held.put(number, decoded[spec.name], root if len(spec.shape) > 1 or root is None else "whole")
            number += 1
    return held


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


def run(plan: PoolPlan, *, dry_run: bool = False) -> PoolReport:
    """Do what ``plan`` says, or with ``dry_run`` all of it but the writing.

    Raises BadValueError for NaN or infinity, BudgetError for an error that cannot be met, OutputError.
    """
    started = time.perf_counter()
    sources = []
    for name, adapter in plan.adapters.items():
        _log.info("reading %s", name)
        sources.append(read(name, adapter))
    kept = [_kept(plan.kept, name) for name in names_of(plan.kept)] if plan.kept else []
    pile = Pile(sources, kept, plan.kept, plan.error)
    made: Made = plan.method.function(pile, plan.threads, plan.device, **plan.options)
    image = Image(made.stages.payloads, {})
    decoded = image.decoded()
    told, found = _told(plan, sources, decoded)
    already = list(plan.kept.facts["adapters"]) if plan.kept else []
    facts: dict[str, Any] = {
        "tool": f"paring {paring.__version__}",
        "method": plan.method.name,
        "recipe": plan.recipe,
        "adapters": [*already, *told],
    }
    image = Image(made.stages.payloads, facts)
    if not dry_run:
        whole = digest(decoded)
        image.write(
            plan.output, whole, lambda path: _recheck(path, whole, sources, found), overwrite=plan.overwrite
        )
    data = {i: p.data for i, p in enumerate(image.payloads) if sharing.referring(p)}
    return _report(
        plan, made, image, found, sharing.measure(image.payloads, data, facts["adapters"]), started, dry_run
    )


def _kept(pool: Packed, name: str) -> Source:
    """An adapter of a pool that is added to, decoded."""
    opened = member(pool, name)
    adapter = adapters.read(opened)
    layouts = layouts_of(adapter)
    tensors = dict(opened.read_all())
    return Source(
        name, adapter, {t: Part(name, f"{name}/{t}", tensor, layouts[t]) for t, tensor in tensors.items()}
    )


def _told(
    plan: PoolPlan, sources: Sequence[Source], decoded: Sequence[tuple[str, Stored]]
) -> tuple[list[dict[str, Any]], dict[str, list[Loss]]]:
    """What the manifest tells of each adapter, measured on what decodes; and losses by adapter."""
    out, losses = [], {}
    for source in sources:
        prefix = source.name + "/"
        tensors = {n.removeprefix(prefix): t for n, t in decoded if n.startswith(prefix)}
        found = losses[source.name] = measured(source.modules, tensors)
        facts = {**plan.facts(source.name, source.digest), "digest": digest(tensors.items())}
        if facts["digest"] == source.digest:
            losses[source.name] = [replace(loss, lost=0.0) for loss in found]
            out.append({**facts, "error": 0.0})
            continue
        pairs = sorted(zip(source.modules, found, strict=True), key=lambda pair: pair[0].name)
        each = {
            "error": [round(loss.error * 10_000) for _, loss in pairs],
            "nonzero": [loss.nonzero for _, loss in pairs],
        }
        out.append({**facts, "error": round(total_error(found), 6), "modules": each})
    return out, losses


def _recheck(path: Path, expected: str, sources: Sequence[Source], found: Mapping[str, list[Loss]]) -> None:
    """Read the complete file again: the same tensors, and every adapter by itself with the loss reported."""
    with open_checkpoint(path) as container:
        opened = open_packed(container)
        if digest(opened.read_all()) != expected:
            raise BadFileError(f"{path}: what was written does not read back the same; is the disk sound?")
        for source in sources:
            tensors = dict(member(opened, source.name).read_all())
            again = total_error(measured(source.modules, tensors))
            if set(tensors) != set(source.parts) or abs(again - total_error(found[source.name])) > 1e-6:
                raise BadFileError(f"{path}: {source.name} does not decode as it should: please report this")


def _report(
    plan: PoolPlan,
    made: Made,
    image: Image,
    found: Mapping[str, list[Loss]],
    shared: SharingReport,
    started: float,
    dry_run: bool,
) -> PoolReport:
    before = sum(payload.nbytes for payload in (plan.kept.payloads if plan.kept else ()))
    gain = made.alone - (made.stages.nbytes - before)
    elements = sum(
        numel(spec.shape) for p in image.payloads for spec in p.specs if not spec.name.startswith("/")
    )
    return PoolReport(
        command="compress",
        inputs=[str(a.checkpoint.path) for a in plan.adapters.values()]
        + ([str(plan.kept.path)] if plan.kept else []),
        output=str(plan.output),
        method=plan.method.name,
        recipe=plan.recipe,
        bytes_in=plan.bytes_in,
        bytes_out=image.nbytes,
        ratio=plan.bytes_in / image.nbytes,
        ratio_fp16=2 * elements / image.nbytes,
        bits_per_param=8 * image.nbytes / elements,
        error=total_error([loss for losses in found.values() for loss in losses]),
        sharing=shared,
        relations=made.relations,
        candidates=made.candidates,
        gain=max(0, gain),
        answer="" if gain > made.alone // 200 else "no gain",
        seconds=time.perf_counter() - started,
        peak_rss_bytes=peak_rss_bytes(),
        device=plan.device,
        dry_run=dry_run or None,
    )
