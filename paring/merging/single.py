"""One merge, of inputs that are there: opened, seen of what kind they are, and merged to that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paring import atomic
from paring.errors import OptionError, UnsupportedError
from paring.merging import adapters, run
from paring.merging.inputs import open_model
from paring.merging.planning import plan_checkpoint
from paring.merging.request import Request
from paring.merging.tasks import packs
from paring.pruning.masks import open_mask
from paring.report import Report


@dataclass(frozen=True, slots=True)
class How:
    """How a merge is run; none of it changes a bit of the result. ``memory`` is in bytes; ``known`` is what
    earlier merges of the same models by the same rule have found out (:attr:`Models.known`).
    """

    overwrite: bool = False
    dry_run: bool = False
    threads: int | None = None
    memory: int | None = None
    known: dict[Any, Any] | None = None
    device: str = "cpu"


def merge_one(request: Request, output: Path, how: How, places: Mapping[str, str]) -> Report:
    """Merge what is there: stages, if the request has any, are in ``places``. Raises every ParingError."""
    models = [open_model(places.get(path, path)) for path in request.models]
    named = request.base if request.base is not None else request.into
    base = open_model(places.get(named, named)) if named is not None else None
    if base is not None and base.updates:
        raise UnsupportedError(f"{base.path} is an adapter or a task, and cannot be a base")
    try:
        for model in models:
            atomic.refuse_same_file(output, [model.path, *model.checkpoint.inputs])
        if all(model.adapter is not None for model in models) and request.into is None:
            if request.keep_mask is not None:
                raise OptionError(f"--keep-mask {request.keep_mask}: adapters are folded in with --into BASE")
            if request.mask is not None:
                raise OptionError("--mask is for merged checkpoints, and these are adapters: add --into BASE")
            if packs(output):
                raise OptionError(f"-o {output}: tasks of adapters are packed with --into BASE only")
            return adapters.merge(
                request, models, output, overwrite=how.overwrite, dry_run=how.dry_run, threads=how.threads,
                known=how.known, device=how.device, memory=how.memory,
            )  # fmt: skip
        mask = None if request.mask is None else open_mask(places.get(request.mask, request.mask))
        if mask is not None:
            atomic.refuse_same_file(output, [mask.path])
        plan = plan_checkpoint(
            request, models, base, output, overwrite=how.overwrite, threads=how.threads, mask=mask
        )
        return run.run(plan, dry_run=how.dry_run, memory=how.memory, known=how.known, device=how.device)
    finally:
        for model in (*models, *([base] if base else [])):
            model.checkpoint.close()
