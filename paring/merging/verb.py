"""``merge``: open the inputs, see of what kind they are, and go the way of checkpoints or of adapters."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from paring.devices import pick
from paring.errors import OptionError, UnsupportedError
from paring.merging import adapters, run
from paring.merging.plan import open_model
from paring.merging.planning import PathLike, Request, check, plan_checkpoint
from paring.report import Report


def merge(
    request: Request,
    output: PathLike,
    *,
    overwrite: bool = False,
    dry_run: bool = False,
    threads: int | None = None,
    device: str = "auto",
) -> Report:
    """Carry out ``request``. Raises every ParingError; nothing is half written then."""
    _, options = check(request)
    request = replace(request, options=options)  # as they were, whatever later defaults are
    pick(device)
    if request.base is not None and request.into is not None:
        raise OptionError("--base and --into both name the base: give one of them")
    models = [open_model(path) for path in request.models]
    named = request.base if request.base is not None else request.into
    base = open_model(named) if named is not None else None
    if base is not None and base.adapter is not None:
        raise UnsupportedError(f"{base.path} is an adapter, and cannot be a base")
    try:
        if all(model.adapter is not None for model in models) and request.into is None:
            return adapters.merge(
                request, models, Path(output), overwrite=overwrite, dry_run=dry_run, threads=threads
            )
        plan = plan_checkpoint(request, models, base, output, overwrite=overwrite, threads=threads)
        return run.run(plan, dry_run=dry_run)
    finally:
        for model in (*models, *([base] if base else [])):
            model.checkpoint.close()
