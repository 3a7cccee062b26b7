"""Prune and retrain in one go: the pruned model stands beside the output until the retrained one is there."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from paring.atomic import refuse_existing, refuse_folder, target_of
from paring.errors import OptionError
from paring.language import folder_of
from paring.loading import PathLike
from paring.pruning import masks, plan, run
from paring.pruning.request import Request
from paring.report import Pruning
from paring.retraining import text
from paring.retraining.run import load, retrain


@dataclass(frozen=True, slots=True)
class Job:
    """What follows pruning: a recipe, its options, and the text to do it on."""

    recipe: str
    data: str | Path
    length: int = 512
    field: str = "text"
    seed: int = 0
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def prune_and_retrain(
    request: Request,
    output: PathLike,
    job: Job,
    *,
    save_mask: PathLike | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
    threads: int | None = None,
    memory: int | None = None,
    device: str = "auto",
) -> Pruning:
    """Prune as ``request`` says, retrain as ``job`` says, and write the folder ``output``.

    With ``dry_run`` the report of the pruning. Killed, the same call goes on: pruning is done again, training
    is taken up. Raises ParingError.
    """
    target = target_of(Path(output))
    if target.suffix == ".safetensors":
        raise OptionError(f"-o {output}: retraining writes a folder, with the tokenizer and configuration")
    chosen = load(job.recipe).parse(job.options)
    folder_of(request.model)
    text.check(job.data)
    _refuse_other_masks(request, job.recipe, chosen)
    refuse_folder(target, overwrite, None)
    stage = target.with_name(f".{target.name}.pruned")
    mask = Path(save_mask) if save_mask is not None else stage.with_name(f"{stage.name}.mask.safetensors")
    own = mask if save_mask is None else None
    planned = plan.plan_prune(  # the stage is ours to replace; a mask that was asked for is not
        request, stage, save_mask=mask, overwrite=True, threads=threads, device=device
    )
    with planned.checkpoint:
        if own is None and mask.exists() and not masks.made_by(mask, run.run_of(planned)):
            refuse_existing(mask, overwrite)
        if not dry_run:
            _clear(stage, own)
        pruned = run.run(planned, dry_run=dry_run, memory=memory)
    pruned = replace(pruned, output=str(output), mask=None if save_mask is None else pruned.mask)
    if dry_run:
        return pruned
    grouped = (request.keep, request.of) if request.keep and request.of else None
    try:
        report = retrain(
            stage, target, data=job.data, recipe=job.recipe, options=job.options, dense=request.model,
            masks=_masks(mask), pattern=grouped, length=job.length, field=job.field, seed=job.seed,
            device=device, threads=threads, overwrite=overwrite, facts={"pruning": planned.recipe},
        )  # fmt: skip
    finally:  # whatever came of it: the next call prunes anew
        _clear(stage, own)
    seconds = (pruned.seconds or 0) + (report.seconds or 0)
    return replace(
        pruned, retraining=report, bytes_out=report.bytes_out, seconds=seconds,
        peak_rss_bytes=report.peak_rss_bytes, warnings=[*pruned.warnings, *report.warnings],
    )  # fmt: skip


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
