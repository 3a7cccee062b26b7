"""Carry out a :class:`~paring.pruning.plan.PrunePlan`: passes that find what stays, then one that writes."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import astuple, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from paring import atomic, describing
from paring.devices import free_memory
from paring.dtypes import STORAGE, itemsize
from paring.errors import OptionError
from paring.kernels.pruning import Sums
from paring.merging import record
from paring.merging.models import SPAN
from paring.outputs import fingerprint, write_index
from paring.pruning import masks
from paring.pruning.allocating import BY_DATA
from paring.pruning.deciding import decider, pieces_of
from paring.pruning.plan import PrunePlan
from paring.pruning.reading import Piece, Reader
from paring.pruning.report import Pruning
from paring.pruning.statistics import Statistics, open_stats
from paring.report import CarriedReport, ModuleReport, peak_rss_bytes
from paring.resumable import Staging, staged
from paring.stream import in_order

if TYPE_CHECKING:
    from paring.judging import Judge

_log = logging.getLogger("paring")


def run(
    plan: PrunePlan, *, dry_run: bool = False, memory: int | None = None, judge: Judge | None = None
) -> Pruning:
    """Do what ``plan`` says in about ``memory`` bytes; with ``dry_run`` report it only. ``judge`` measures
    the model before, and what is written before it takes its place.

    Raises BadValueError for NaN or infinity, with the tensor; BadFileError for a model that changes
    meanwhile, or statistics of another one; OutputError.
    """
    started = time.perf_counter()
    threads = fitting(plan, memory)
    if dry_run:
        _statistics(plan)
        return _report(plan, started, None, dry_run=True)
    name = run_of(plan)
    mask = plan.mask if plan.mask is None or not masks.made_by(plan.mask, name) else None
    if mask is not None:
        atomic.refuse_existing(mask, plan.overwrite)
    stats = _statistics(plan)
    if judge is not None:
        judge.measure("dense", plan.checkpoint.path)
    reader = Reader(plan.checkpoint, plan.targets, threads)
    try:
        with ExitStack() as opened:
            ours = record.replaceable(plan.output, plan.single)
            how: dict[str, Any] = {"overwrite": plan.overwrite, "threads": plan.threads}
            whole = staged(plan.output, plan.files, name, single=plan.single, replaceable=ours, **how)
            staging, kept = opened.enter_context(whole), None
            if mask is not None:
                shard = masks.layout(mask, plan.targets, {"run": name, **_pattern(plan)})
                kept = opened.enter_context(staged(mask, [shard], name, single=True, replaceable=None, **how))
            if staging.done:
                _log.info("resuming: %d tensors are done", len(staging.done))
            _carry(plan, reader, staging)
            _prune(plan, reader, staging, kept, stats)
            sums = {target.name: Sums(*staging.done[target.name][1]) for target in plan.targets}
            if not plan.single:
                _beside(plan, staging, sums, judge)
            reader.close()  # before the result takes its name: what has changed meanwhile is refused
    finally:
        reader.close()
    report = _report(plan, started, sums)
    return report if judge is None else replace(report, perplexity=judge.report())


def run_of(plan: PrunePlan) -> str:
    """What tells this run from others: recipe, device, mask; what there is to know of every input file."""
    told = [plan.recipe, plan.options, plan.method.name, plan.device, str(plan.mask)]
    stats = None if plan.stats is None else open_stats(plan.stats).file
    mask = None if plan.given is None else plan.given.checkpoint
    inputs = (plan.checkpoint, stats, mask)
    return fingerprint(told, [checkpoint for checkpoint in inputs if checkpoint is not None])


def fitting(plan: PrunePlan, memory: int | None) -> int:
    """How many threads may work at once within ``memory`` bytes, by default half of what is free.

    Raises OptionError when one alone does not fit what was asked.
    """
    need = 0
    for index, target in enumerate(plan.targets):
        stored, size = itemsize(target.dtype), min(target.size, SPAN)
        if plan.given is not None or (plan.by_bits and plan.request.allocate not in BY_DATA):
            each = 2 * stored + 8
        elif plan.method.unit == "tensor" or plan.request.refit:
            size, each = target.size, 2 * stored + 40 + 24 * target.inn // max(1, target.out)
        else:
            size, each = min(target.size, _largest(plan, index)), 2 * stored + 24
        need = max(need, size * each)
    if memory is not None and need > memory:
        raise OptionError(f"--memory {memory}: a matrix of this model takes {need} bytes to work on")
    room = memory if memory is not None else free_memory() // 2
    return max(1, min(plan.threads, room // max(1, need)))


def _largest(plan: PrunePlan, index: int) -> int:
    if plan.request.scope == "global" or plan.request.allocate in BY_DATA:
        return plan.targets[index].size
    return max(piece.stop - piece.start for piece in pieces_of(plan, index))


def _statistics(plan: PrunePlan) -> Statistics | None:
    if plan.stats is None:
        return None
    found = open_stats(plan.stats)
    found.check(plan.checkpoint)
    return found


def _carry(plan: PrunePlan, reader: Reader, staging: Staging) -> None:
    """Copy what is left alone, bit for bit, by spans."""
    todo = [left.name for left in plan.left if left.name not in staging.done]
    parts: list[tuple[str, int, int]] = []
    for name in todo:
        info = plan.checkpoint.tensors[name]
        step = SPAN * 2 // itemsize(info.dtype)
        parts += [(name, start, min(start + step, info.numel)) for start in range(0, info.numel, step)]

    def copy(part: tuple[str, int, int]) -> int:
        bits = reader.source.read(*part, reader.buffer("read", SPAN * 2))
        return staging.write(part[0], part[1], np.ascontiguousarray(bits))

    sums = dict.fromkeys(todo, 0)
    for (name, _, _), checksum in zip(parts, in_order(copy, parts, reader.threads), strict=True):
        sums[name] += checksum
    for name, total in sums.items():
        staging.complete(name, total % 2**64)


def _prune(
    plan: PrunePlan, reader: Reader, staging: Staging, kept: Staging | None, stats: Statistics | None
) -> None:
    """Write all targets that are not done; with each, note what was done to it."""
    todo = [
        index for index, target in enumerate(plan.targets)
        if target.name not in staging.done or (kept is not None and target.name not in kept.done)
    ]  # fmt: skip
    if not todo:
        return
    _log.info("%s: looking at %d tensors", plan.method.name, len(plan.targets))
    decide = decider(plan, reader, stats, todo, masked=kept is not None)

    def one(piece: Piece) -> tuple[int, int, Sums]:
        target = plan.targets[piece.index]
        bits = reader.bits(piece)
        out = reader.buffer("write", piece.nbytes(target.dtype)).view(STORAGE[target.dtype])
        keep, sums = decide.work(piece, bits, out)
        part = 0
        if kept is not None:
            assert keep is not None, "a mask is asked for"
            place = masks.place(target.size, piece.number, piece.start)
            part = kept.write(target.name, place, np.packbits(keep, bitorder="little"))
        return staging.write(target.name, piece.start, out), part, sums

    pieces = [decide.pieces(index) for index in todo]
    found = reader.visit(one, [piece for some in pieces for piece in some])
    for number, (index, some) in enumerate(zip(todo, pieces, strict=True), 1):
        total, checksum, part = Sums(), 0, 0
        for _ in some:
            written, packed, sums = next(found)
            total, checksum, part = total + sums, checksum + written, part + packed
        name = plan.targets[index].name
        if kept is not None:
            kept.complete(name, part % 2**64)
        staging.complete(name, checksum % 2**64, list(astuple(total)))
        _log.info("pruning: %d of %d tensors", number, len(todo))


def _pattern(plan: PrunePlan) -> dict[str, str]:
    request = plan.request
    return {} if request.of is None else {"pattern": f"{request.keep}:{request.of}"}


def _beside(plan: PrunePlan, staging: Staging, sums: Mapping[str, Sums], judge: Judge | None) -> None:
    """Configuration, tokenizer, index, card."""
    folder = staging.folder
    if plan.checkpoint.path.is_dir():
        record.copy_beside(plan.checkpoint.path, folder, None)
    write_index(plan.files, folder)
    total = sum(sums.values(), Sums())
    elements = sum(target.numel for target in plan.targets)
    facts = [
        ("zero entries", f"{total.zeros:,} of {elements:,} ({total.zeros / elements:.2%})"),
        ("tensors pruned", f"{len(plan.targets):,}"),
        ("tensors unchanged", f"{len(plan.left):,}"),
        ("relative error of the pruned weights", f"{_error(total):.4f}"),
    ]
    if plan.request.of:
        facts.append(("of neighbours along the inputs", f"keeps {plan.request.keep} of {plan.request.of}"))
    if judge is not None:
        judge.measure("pruned", folder)
    found = None if judge is None else judge.report()
    text = describing.pared(plan.recipe, folder, facts, plan.checkpoint.path, found)
    (folder / "README.md").write_text(text, encoding="utf-8")


def _error(sums: Sums) -> float:
    return float(np.sqrt(sums.lost / sums.total)) if sums.total else 0.0


def _report(
    plan: PrunePlan, started: float, sums: Mapping[str, Sums] | None, *, dry_run: bool = False
) -> Pruning:
    request = plan.request
    total = sum(sums.values(), Sums()) if sums is not None else None
    elements = sum(target.numel for target in plan.targets)
    warnings = list(plan.warnings)
    modules = []
    for target in plan.targets:
        own = (sums or {}).get(target.name)
        module = ModuleReport(target.name, (target.out, target.inn))
        if own is not None:
            density = 1 - own.zeros / target.numel
            module = replace(module, density=density, error=_error(own), zeros=own.zeros)
        modules.append(module)
    already = [
        target.name for target in plan.targets
        if (own := (sums or {}).get(target.name)) and own.before > target.numel - own.kept
    ]  # fmt: skip
    if already and plan.given is None:
        more = f" and {len(already) - 1} more tensors" if len(already) > 1 else ""
        warnings.append(f"{already[0]}{more} had more zeros already than were to be made")
    return Pruning(
        command="prune",
        inputs=[str(plan.checkpoint.path)],
        output=str(plan.output),
        method=plan.method.name if plan.given is None else "mask",
        recipe={**plan.recipe, "options": plan.options},
        bytes_in=plan.checkpoint.nbytes,
        bytes_out=plan.bytes_out,
        error=None if total is None else _error(total),
        modules=modules,
        carried=[CarriedReport(left.name, left.nbytes, left.why) for left in plan.left],
        files=[shard.name for shard in plan.files] if len(plan.files) > 1 else None,
        elements=elements,
        kept=None if total is None else total.kept,
        zeros=None if total is None else total.zeros,
        zeros_before=None if total is None else total.before,
        sparsity=None if total is None else total.zeros / elements,
        pattern=None if request.of is None else f"keeps {request.keep} of {request.of}",
        mask=None if plan.mask is None else str(plan.mask),
        warnings=warnings,
        seconds=time.perf_counter() - started,
        peak_rss_bytes=peak_rss_bytes(),
        device=plan.device,
        dry_run=dry_run or None,
    )
