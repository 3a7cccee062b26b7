"""Making a pool: what is to be stored how, and the file that follows from it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import paring
from paring import adapters
from paring.checkpoint import digest, open_checkpoint
from paring.coding import Loss, measured, total_error
from paring.dtypes import Stored, numel
from paring.errors import BadFileError
from paring.packed import Packed, open_packed
from paring.packing import Image
from paring.pooling import lossy, sharing
from paring.pooling.exact import Held
from paring.pooling.members import member, names_of
from paring.pooling.pile import Part, Pile, Source, layouts_of, read
from paring.pooling.plan import PoolPlan
from paring.pooling.report import PoolReport, SharingReport
from paring.pooling.stages import Stages
from paring.pooling.storing import Made, store_exactly
from paring.pooling.work import Coders
from paring.report import peak_rss_bytes

_log = logging.getLogger("paring")


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
