"""Carry out a :class:`~paring.merging.plan.MergePlan`: the rule's passes, then one that writes."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from paring import atomic, describing, snippets
from paring.dtypes import TORCH, Stored, itemsize, numel
from paring.errors import UnsupportedError
from paring.merging import record, tasks
from paring.merging.keeping import Tally, refuse_products, tally_of, totals
from paring.merging.models import Mix, Models, Result
from paring.merging.modules import turned, weight_names
from paring.merging.plan import Copied, MergePlan
from paring.merging.sources import Entry, Headers, Source, Updates, Weights, state_of
from paring.merging.tasks import Tasks, TaskUpdates, packs
from paring.merging.vocabularies import files as vocabulary_files
from paring.merging.writing import Writer
from paring.outputs import write_index
from paring.packed import Packed
from paring.plan import stem
from paring.report import CarriedReport, KeptReport, Report, SparseMerge, peak_rss_bytes
from paring.resumable import Staging, staged

_log = logging.getLogger("paring")


def run(
    plan: MergePlan,
    *,
    dry_run: bool = False,
    memory: int | None = None,
    known: dict[Any, Any] | None = None,
    device: str = "cpu",
) -> Report:
    """Do what ``plan`` says in about ``memory`` bytes; with ``dry_run`` report it only.

    Raises BadValueError for NaN, infinity or overflow, with the tensor; BadFileError for an input that
    changes meanwhile; OutputError.
    """
    started = time.perf_counter()
    if memory is not None:  # too little is refused before anything is read or downloaded
        _planned(plan, device).fit(memory)
    if dry_run:
        return _report(plan, started, {}, device, dry_run=True)
    if not plan.single:  # what writing would refuse, before anything is read or downloaded
        own = record.replaceable(plan.output, plan.single)
        atomic.refuse_folder(atomic.target_of(plan.output), plan.overwrite, own)
    for model in plan.models:  # all of them before any work
        if model is not None:
            model.checkpoint.fetch()
    models = open_models(plan, {} if known is None else known, device)
    try:
        models.fit(memory)
        if packs(plan.output):
            return _report(plan, started, {}, device, nbytes=_write_tasks(plan, models))
        with staged(
            plan.output,
            plan.files,
            fingerprint(plan, device),
            single=plan.single,
            overwrite=plan.overwrite,
            replaceable=record.replaceable(plan.output, plan.single),
            threads=plan.threads,
        ) as staging:
            if staging.done:
                _log.info("resuming: %d tensors are done", len(staging.done))
            for copy in plan.copied:
                if copy.name not in staging.done:
                    bits = _copied(copy, models.sources)
                    if plan.mask is not None:
                        plan.mask.apply(copy.name, 0, bits := bits.copy())
                    staging.complete(copy.name, staging.write(copy.name, 0, bits))
            _merge(plan, models, staging)
            tallies = {target.name: tally_of(staging.done[target.name][1]) for target in plan.targets}
            if not plan.single:
                _beside(plan, staging.folder, totals(list(tallies.values())).lost)
            models.close()  # before the result takes its name: what has changed meanwhile is refused
    finally:
        models.close()
    return _report(plan, started, tallies, models.device)


def _planned(plan: MergePlan, device: str) -> Models:
    """The models as headers tell of them, with nothing opened: enough to know what memory they take."""
    sources: list[Source | None] = []
    for number, model in enumerate(plan.models):
        if model is None:
            sources.append(None)
            continue
        stored = {} if model.adapter or model.task is not None else model.checkpoint.tensors
        named = {name: t for t in plan.targets if (name := t.names[number]) is not None}
        entries = {
            name: Entry(t.shape, stored[name].dtype if name in stored else "F32") for name, t in named.items()
        }
        sources.append(Headers(model.checkpoint.path, entries))
    return Models(
        plan.targets, sources, plan.deltas, frozenset(), plan.method.unit, plan.threads, device=device
    )


def open_models(plan: MergePlan, known: dict[Any, Any], device: str) -> Models:
    """The sources of a plan as a rule sees them, and what is known of them."""
    whole = plan.donor.checkpoint.tensors
    entries = {name: Entry(info.shape, info.dtype) for name, info in whole.items()}
    sources: list[Source | None] = []
    for model in plan.models:
        if model is None:
            sources.append(None)
        elif model.task is not None:
            sources.append(TaskUpdates(cast(Packed, model.checkpoint), model.task))
        elif model.adapter is not None:
            names = weight_names(model.adapter, entries)
            sides, scaled = turned(model.adapter, names, entries), plan.keep_mask != "scale"
            sources.append(Updates(model.adapter, names, sides, scaled))
        else:
            sources.append(Weights(model.checkpoint))
    if plan.keep_mask == "scale":
        refuse_products(sources)
    updates = frozenset(i for i, source in enumerate(sources) if isinstance(source, Updates | TaskUpdates))
    if plan.vocabulary is not None:
        sources = plan.vocabulary.wrap(sources, plan.targets)
    seeds: Sequence[str] = ()
    if "seed" in plan.options:
        if "seeds" not in known:  # of whole models, once for all trials of a search
            known["seeds"] = [model.checkpoint.digest() for model in plan.models[1:] if model]
        seeds = known["seeds"]
    return Models(
        plan.targets, sources, plan.deltas, updates, plan.method.unit, plan.threads, seeds, known, device
    )


def fingerprint(plan: MergePlan, device: str) -> str:
    """What tells this run from others: recipe, device; name, size, time and header of every input file."""
    told: list[Any] = [plan.recipe, plan.options, str(plan.method.name), device]
    if plan.vocabulary is not None:
        told.append(plan.vocabulary.digest())
    if plan.mask is not None:
        told += state_of(plan.mask.checkpoint)
    for model in plan.models:
        told += state_of(model.checkpoint) if model is not None else ()
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()


def _copied(copy: Copied, sources: Sequence[Source | None]) -> npt.NDArray[Any]:
    """The bits of a tensor that is carried over; the others that have it must agree."""
    nothing = np.empty(0, np.uint8)
    source = sources[copy.source]
    assert source is not None
    bits = source.read(copy.named(copy.source), 0, copy.entry.numel, nothing)
    for other in copy.others:
        rival = sources[other]
        if rival is None:
            continue
        if bits.tobytes() != rival.read(copy.named(other), 0, copy.entry.numel, nothing).tobytes():
            raise UnsupportedError(
                f"{copy.name} ({copy.entry.dtype}) differs between {source.path} and {rival.path}: "
                "integers are carried, never merged"
            )
    return np.ascontiguousarray(bits)


def _write_tasks(plan: MergePlan, models: Models) -> int:
    """All tasks of a rule that gives every model back, in one packed file; returns its size."""
    rule = plan.method.function(models, **plan.options)
    assert isinstance(rule, Tasks), "planning has refused other rules"
    names = [stem(model.path) for model in plan.models[1:] if model is not None]
    facts = {"method": plan.method.name, "recipe": plan.recipe, "kind": "tasks"}
    carried = (
        (copy.name, Stored(copy.entry.dtype, _copied(copy, models.sources).reshape(copy.entry.shape)))
        for copy in plan.copied
    )
    return tasks.write(models, rule, names, carried, plan.output, facts, overwrite=plan.overwrite)


def _merge(plan: MergePlan, models: Models, staging: Staging) -> None:
    """Write all targets that are not done; with each, note how many updates rounding has lost."""
    todo = [index for index, target in enumerate(plan.targets) if target.name not in staging.done]
    if not todo:
        return
    _log.info("%s: reading %d tensors of %d models", plan.method.name, len(models.targets), models.n)
    rule: Result = plan.method.function(models, **plan.options)
    if isinstance(rule, Mix):
        for index in todo:  # refused before anything is written
            rule.coefficients(plan.targets[index])
    writer = Writer(plan, rule, staging)
    spans = models.spans(todo)
    left = Counter(span.index for span in spans)
    sums: Counter[int] = Counter()
    lost: defaultdict[int, Tally] = defaultdict(Tally)
    for index in todo:
        if not left[index]:
            staging.complete(plan.targets[index].name, 0)  # no entries
    found = models.visit(writer.span, spans, whole=writer.whole(models))
    merged = zip(spans, found, strict=True)
    for number, (span, (checksum, tally)) in enumerate(merged, 1):
        sums[span.index] += checksum
        lost[span.index] += tally
        left[span.index] -= 1
        if not left[span.index]:
            name = plan.targets[span.index].name
            told = lost[span.index]
            noted = told.lost if plan.keep_mask is None else told.told()
            staging.complete(name, sums[span.index] % 2**64, noted)
            _log.info("merging: %d of %d parts", number, len(spans))


def _beside(plan: MergePlan, folder: Path, unmoved: int) -> None:
    """Configuration, tokenizer, index, card."""
    if plan.donor.folder.is_dir() and plan.donor.path.is_dir():
        dtype = plan.recipe.get("dtype")
        code = {"fp64": "F64", "fp32": "F32", "fp16": "F16", "bf16": "BF16"}.get(str(dtype))
        record.copy_beside(plan.donor.folder, folder, TORCH.get(code or ""), plan.config)
    if plan.vocabulary is not None:
        vocabulary_files.write(plan.vocabulary, folder)
    write_index(plan.files, folder)
    facts = [
        ("tensors merged", f"{len(plan.targets):,}"),
        ("carried unchanged", f"{len(plan.copied):,}"),
        ("inputs", f"{plan.bytes_in:,} bytes"),
        ("result", f"{plan.bytes_out:,} bytes"),
        ("updates lost in rounding", f"{unmoved:,} of {sum(target.numel for target in plan.targets):,}"),
    ]
    text = describing.merged(
        plan.recipe, library=snippets.library_of(folder), facts=facts,
        config=snippets.config_in(folder), folders=[model.folder for model in plan.models if model],
    )  # fmt: skip
    (folder / "README.md").write_text(text, encoding="utf-8")


def _report(
    plan: MergePlan,
    started: float,
    tallies: Mapping[str, Tally],
    device: str,
    *,
    dry_run: bool = False,
    nbytes: int | None = None,
) -> Report:
    warnings, whole = list(plan.warnings), totals(list(tallies.values()))
    unmoved = whole.lost
    if unmoved and plan.keep_mask is None:
        total = sum(target.numel for target in plan.targets)
        warnings.append(
            f"{unmoved:,} of {total:,} updates ({unmoved / total:.1%}) were lost in rounding to "
            f"{plan.targets[0].dtype}; --dtype fp32 keeps them"
        )
    made: Callable[..., Report] = Report
    if plan.keep_mask is not None and tallies:
        made = partial(SparseMerge, **_kept(plan, tallies))
        if not whole.zeros:
            warnings.append(f"{plan.donor.path} has no zeros among what changes: there is no mask to keep")
    return made(
        command="merge",
        inputs=[str(model.path) for model in plan.models if model is not None],
        output=str(plan.output),
        method=plan.method.name,
        recipe={**plan.recipe, "options": plan.options},
        bytes_in=plan.bytes_in,
        bytes_out=plan.bytes_out if nbytes is None else nbytes,
        carried=[
            CarriedReport(copy.name, numel(copy.entry.shape) * itemsize(copy.entry.dtype), copy.why)
            for copy in plan.copied
        ],
        merged=len(plan.targets),
        files=[shard.name for shard in plan.files] if len(plan.files) > 1 else None,
        warnings=warnings,
        seconds=time.perf_counter() - started,
        peak_rss_bytes=peak_rss_bytes(),
        device=device,
        dry_run=dry_run or None,
    )


def _kept(plan: MergePlan, tallies: Mapping[str, Tally]) -> dict[str, Any]:
    """What keeping the base's zeros cost, by tensor and in all."""
    rows = []
    for target in plan.targets:
        own, n = tallies[target.name], target.numel
        rows.append(
            KeptReport(target.name, target.shape, own.zeros / max(1, n), own.share, own.updates, own.lost)
        )
    whole, n = totals(list(tallies.values())), sum(target.numel for target in plan.targets)
    return {
        "kept": rows, "sparsity": whole.zeros / max(1, n), "discarded": whole.share,
        "updates": whole.updates, "updates_lost": whole.lost,
    }  # fmt: skip
