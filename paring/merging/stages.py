"""Merges of several stages: intermediate results in a folder beside the output, removed at the end.

The folder is called ``.NAME.stages``. A killed run leaves it to the next, which takes up the stages that
were finished, if their recipes and inputs are the same.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from paring import atomic
from paring.errors import OutputError
from paring.merging.recipes.stored import inputs_of, request_of
from paring.merging.request import Request
from paring.merging.single import How, merge_one
from paring.packed import open_source
from paring.plan import refuse_sealed
from paring.report import Report


def merge(request: Request, output: Path, how: How, places: Mapping[str, str]) -> Report:
    """Carry out the stages, then ``request`` itself, whose ``models`` and ``base`` may name them."""
    started = time.perf_counter()
    stages = {name: request_of(recipe, f"stage {name}") for name, recipe in (request.stages or {}).items()}
    target = atomic.target_of(output)
    _refuse(target, how.overwrite)
    sizes: dict[str, int] = {}
    for stage in (*stages.values(), request):
        for name in inputs_of(stage):
            if name not in stages:
                path = places.get(name, name)
                with open_source(path) as source:
                    atomic.refuse_same_file(target, [path, *source.inputs])
                    sizes[path] = source.nbytes
    home = target.with_name(f".{target.name}.stages")
    for stage in stages.values():  # what can be refused is refused before any work
        if not stages.keys() & set(inputs_of(stage)):
            merge_one(stage, home / "none", replace(how, overwrite=False, dry_run=True), places)
    told: dict[str, Any] = {"inputs": list(sizes), "bytes_in": sum(sizes.values())}
    if how.dry_run:
        warning = "what is made of stages is checked when they are there, not in a dry run"
        return Report(
            command="merge", output=str(output), method=request.method, recipe=request.recipe(), device="cpu",
            warnings=[warning], seconds=time.perf_counter() - started, dry_run=True, **told,
        )  # fmt: skip
    found, warnings = dict(places), []
    try:
        with atomic.reporting(target):
            home.mkdir(parents=True, exist_ok=True)
        for name, stage in stages.items():
            found[name] = str(home / name)
            warnings += [f"stage {name}: {text}" for text in _stage(stage, home / name, how, found)]
        report = merge_one(request, output, how, found)
    except Exception:
        shutil.rmtree(home, ignore_errors=True)
        raise
    shutil.rmtree(home, ignore_errors=True)
    warnings += report.warnings
    return replace(report, warnings=warnings, seconds=time.perf_counter() - started, **told)


def _stage(stage: Request, folder: Path, how: How, places: Mapping[str, str]) -> list[str]:
    """Make one intermediate result, or find it made; returns warnings."""
    key = _key(stage, places)
    note = folder.with_name(f"{folder.name}.done")
    with suppress(OSError, ValueError):
        if json.loads(note.read_text(encoding="utf-8")) == key and folder.is_dir():
            return []
    note.unlink(missing_ok=True)
    report = merge_one(stage, folder, replace(how, overwrite=folder.exists()), places)
    note.write_text(json.dumps(key), encoding="utf-8")
    return report.warnings


def _key(stage: Request, places: Mapping[str, str]) -> str:
    """What tells a finished stage from another: its recipe, and size and time of every input file."""
    told: list[Any] = [stage.recipe()]
    for name in inputs_of(stage):
        with open_source(places.get(name, name)) as source:
            source.fetch()
            for file in source.inputs:
                status = file.stat()
                told.append([str(file.absolute()), status.st_size, status.st_mtime_ns])
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _refuse(target: Path, overwrite: bool) -> None:
    """Raise OutputError now for what writing would refuse after all stages."""
    if target.suffix == ".safetensors":
        atomic.refuse_existing(target, overwrite)
    elif target.exists() and not target.is_dir():
        raise OutputError(f"{target} exists and is not a folder: choose another -o")
    else:
        atomic.refuse_folder(target, overwrite, None)
    refuse_sealed(target)
