"""Prune and retrain in one go: the pruned model stands beside the output until the retrained one is there."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from paring.atomic import refuse_existing, refuse_folder, target_of
from paring.errors import BadFileError, OptionError
from paring.evaluating import HeldOut
from paring.hub.names import PathLike
from paring.judging import judge
from paring.language import folder_of
from paring.merging import record
from paring.pruning import masks, plan, run
from paring.pruning.report import Pruning
from paring.pruning.request import Request
from paring.pruning.statistics import open_stats
from paring.retraining import text
from paring.retraining.run import load, retrain


@dataclass(frozen=True, slots=True)
class Job:
    """What follows pruning: a recipe, its options, and the text to do it on."""

    recipe: str
    data: str
    length: int | None = None
    field: str = "text"
    seed: int = 0
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def prune_and_retrain(
    request: Request,
    output: PathLike,
    job: Job,
    *,
    save_mask: PathLike | None = None,
    held: HeldOut | None = None,
    places: Mapping[str, str] | None = None,
    expected: Mapping[str, str] | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
    threads: int | None = None,
    memory: int | None = None,
    device: str = "auto",
) -> Pruning:
    """Prune as ``request`` says, retrain as ``job`` says, and write the folder ``output``.

    ``held`` is a text to measure perplexity on, before and after each. ``places`` says where inputs are found
    that are not where ``request`` and ``job`` name them, ``expected`` what their digests have to be. With
    ``dry_run`` the report of the pruning. Killed, the same call goes on: pruning is done again, training is
    taken up. Raises every ParingError.
    """
    target = target_of(Path(output))
    if target.suffix == ".safetensors":
        raise OptionError(f"-o {output}: retraining writes a folder, with the tokenizer and configuration")
    chosen = load(job.recipe).parse(job.options)
    at = dict(places or {})
    dense, data = Path(at.get(request.model, request.model)), at.get(job.data, job.data)
    folder_of(dense)
    if not dense.is_dir():
        raise OptionError(f"{dense}: retraining takes the folder of a model, with its tokenizer")
    text.check(data)
    if held is not None:
        _refuse_seen(held, data)
    _refuse_other_masks(request, job.recipe, chosen)
    refuse_folder(target, overwrite, None)
    stage = target.with_name(f".{target.name}.pruned")
    mask = Path(save_mask) if save_mask is not None else stage.with_name(f"{stage.name}.mask.safetensors")
    own = mask if save_mask is None else None
    planned = plan.plan_prune(  # the stage is ours to replace; a mask that was asked for is not
        request, stage, save_mask=mask, overwrite=True, threads=threads, device=device, places=at
    )
    with planned.checkpoint:
        if own is None and mask.exists() and not masks.made_by(mask, run.run_of(planned)):
            refuse_existing(mask, overwrite)
        examiner = None if held is None else judge(held, dense, target, device=device, threads=threads)
        known = _digests(planned, data, job.field) if expected is not None or not dry_run else {}
        if expected is not None:
            _refuse_changed(known, expected, planned, data)
        if not dry_run:
            _clear(stage, own)
        pruned = run.run(planned, dry_run=dry_run, memory=memory, judge=examiner)
    pruned = replace(pruned, output=str(output), mask=None if save_mask is None else pruned.mask)
    if dry_run:
        return pruned
    grouped = (request.keep, request.of) if request.keep and request.of else None
    try:
        report = retrain(
            stage, target, data=data, recipe=job.recipe, options=job.options, dense=dense,
            masks=_masks(mask), pattern=grouped, length=job.length, field=job.field, seed=job.seed,
            device=device, threads=threads, overwrite=overwrite, name=job.data, judge=examiner,
            facts={"pruning": planned.recipe, "sha256": known},
        )  # fmt: skip
    finally:  # whatever came of it: the next call prunes anew
        _clear(stage, own)
    seconds = (pruned.seconds or 0) + (report.seconds or 0)
    return replace(
        pruned, retraining=report, bytes_out=report.bytes_out, seconds=seconds,
        peak_rss_bytes=report.peak_rss_bytes, warnings=[*pruned.warnings, *report.warnings],
        perplexity=None if examiner is None else examiner.report(),
    )  # fmt: skip


def _digests(planned: plan.PrunePlan, data: str, field: str) -> dict[str, str]:
    """What tells the inputs of a run from others: tensors of the model, what lies beside them, statistics,
    text.
    """
    beside = hashlib.sha256()
    for path in record.beside(planned.checkpoint.path):
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                raw = file.read_bytes()
                beside.update(f"{file.name}\0{len(raw)}\0".encode() + raw)
    found = {"model": planned.checkpoint.digest(), "beside": beside.hexdigest()}
    if planned.stats is not None:
        found["stats"] = open_stats(planned.stats).file.digest()
    return {**found, "data": text.digest(data, field=field)}


def _refuse_changed(
    found: Mapping[str, str], expected: Mapping[str, str], planned: plan.PrunePlan, data: str
) -> None:
    """Raise BadFileError for an input that is not what it was."""
    model = planned.checkpoint.path
    what = {
        "model": f"the tensors of {model}", "beside": f"the configuration or tokenizer of {model}",
        "stats": f"the statistics {planned.stats}", "data": f"the text {data}",
    }  # fmt: skip
    for key in what:
        if found.get(key) != expected.get(key):
            raise BadFileError(f"{what[key]} changed since the result was made of it: it cannot be repeated")


def _refuse_seen(held: HeldOut, data: str) -> None:
    """Raise OptionError where the text that is held out is one that is trained on."""
    if Path(held.data).resolve() in {file.resolve() for file in text.files_of(data)}:
        raise OptionError(
            f"--eval-data {held.data}: --data {data} trains on it, and its perplexity would tell nothing: "
            "give text that is held out"
        )


def _clear(stage: Path, mask: Path | None) -> None:
    """Remove what stands between pruning and retraining."""
    shutil.rmtree(stage, ignore_errors=True)
    if mask is not None:
        with suppress(OSError):
            mask.unlink()


def _refuse_other_masks(request: Request, recipe: str, options: Mapping[str, Any]) -> None:
    """Recipes that choose masks anew know whole tensors and one pattern, nothing else."""
    anew = recipe in ("pst", "pdp") or options.get("relax") or options.get("cycles", 1) > 1
    several = any(":" in str(budget) for budget in (request.budgets or {}).values())
    if anew and (request.lines or several):
        what = "whole outputs or inputs" if request.lines else "a pattern for some tensors"
        raise OptionError(f"--retrain {recipe} chooses masks anew here, and cannot keep {what}")


def _masks(path: Path) -> dict[str, npt.NDArray[np.bool_]]:
    opened = masks.open_mask(path)
    try:
        return opened.arrays()
    finally:
        opened.close()
