"""Retraining from folder to folder: checked first, trained with checkpoints, written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import paring
from paring import describing, outputs, registry
from paring.atomic import atomic_folder, refuse_folder, refuse_same_file, target_of
from paring.checkpoint import Checkpoint, open_checkpoint
from paring.devices import to_run
from paring.errors import OptionError, OutputError, ParingError
from paring.language import config_of, folder_of, torch_threads, window_of
from paring.plan import thread_count
from paring.pruning.report import Retraining
from paring.report import peak_rss_bytes
from paring.retraining.text import files_of

if TYPE_CHECKING:
    from paring.judging import Judge
    from paring.retraining.pupil import Pupil

_log = logging.getLogger("paring")
_RECIPE = "recipe.json"
_WINDOW = 512  # tokens


def load(name: str) -> registry.Method:
    """The recipe ``name``. Raises OptionError for what there is not, or does not retrain."""
    found = registry.load("prune", name)
    if found.sees != "model":
        raise OptionError(
            f"--retrain {name} is a way to prune, not to retrain: expected {', '.join(names())}"
        )
    return found


def names() -> list[str]:
    """The recipes there are."""
    return [name for name in registry.names("prune") if registry.load("prune", name).sees == "model"]


def retrain(
    pruned: str | Path,
    output: str | Path,
    *,
    data: str | Path,
    recipe: str = "perp",
    options: Mapping[str, Any] | None = None,
    dense: str | Path | None = None,
    masks: Mapping[str, np.ndarray[Any, Any]] | None = None,
    pattern: tuple[int, int] | None = None,
    length: int | None = None,
    field: str = "text",
    seed: int = 0,
    device: str = "auto",
    threads: int | None = None,
    overwrite: bool = False,
    facts: Mapping[str, Any] | None = None,
    name: str | None = None,
    judge: Judge | None = None,
) -> Retraining:
    """Retrain the pruned model of a folder on text, inside its masks, and write the folder ``output``.

    Args:
        pruned: a folder that transformers loads; dense: the one it was pruned from, where the recipe needs it
        data: a text file, a folder of them, or a data set on the Hub; see :mod:`.text`
        recipe: perp, reconstruct, pst or pdp; options: its own
        masks: by tensor of the file, true where kept; by default what is exactly zero was pruned
        pattern: (keep, of) where the masks are N:M; length: tokens of a window, by default 512 or the
            most that the model takes
        facts: what the result's recipe tells in place of ``pruned`` and ``dense``: how the one was just made
            of the other
        name: what the recipe calls ``data``, where that is elsewhere now
        judge: measures the result before it takes its place

    A run that was killed is taken up again by the same call; its checkpoints are in ``.OUTPUT.retraining``.
    Raises ParingError; nothing is left half written.
    """
    started = time.perf_counter()
    method = load(recipe)
    chosen = method.parse(options or {})
    place = to_run(device)
    target = target_of(output)
    refuse_folder(target, overwrite, None)
    if length is None:
        length = window_of(None, config_of(folder_of(pruned)), _WINDOW)
    sources = [open_checkpoint(path) for path in (pruned, dense) if path is not None]
    refuse_same_file(target, [file for source in sources for file in source.inputs])
    told = {
        "paring": paring.__version__, "command": "retrain", "method": recipe, "data": name or str(data),
        "field": field, "length": length, "seed": seed, "options": chosen, "pattern": pattern,
        **(facts or {"pruned": str(pruned), "dense": None if dense is None else str(dense)}),
    }  # fmt: skip
    told = {key: value for key, value in told.items() if value is not None}

    from paring.retraining import text
    from paring.retraining.fitting import Keeper
    from paring.retraining.pupil import open_pupil
    from paring.retraining.writing import write

    home = target.with_name(f".{target.name}.retraining")
    stated = sources[1:] if facts else sources  # what was just pruned is told by the facts
    fingerprint = _fingerprint(told, data, stated, place, masks)
    with _claimed(home, fingerprint, target, overwrite), torch_threads(threads):
        pupil = open_pupil(
            pruned, text.read(data, field=field), length=length, dense=dense, masks=masks, pattern=pattern,
            seed=seed, device=place,
        )  # fmt: skip
        pupil.keeper = Keeper(home)
        told["made_with"] = made_with(place, threads)
        _log.info("%s: %d windows of %d tokens", recipe, *pupil.data.shape)
        method.function(pupil, **chosen)
        with atomic_folder(target, overwrite) as folder:
            counts = write(pupil, folder, told)
            inputs = [str(path) for path in (pruned, dense) if path is not None]
            size = sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
            report = replace(
                _report(pupil, counts, told), inputs=inputs, output=str(output), bytes_in=sources[0].nbytes,
                bytes_out=size, device=place,
            )  # fmt: skip
            del pupil  # makes room
            if judge is not None:
                judge.measure("retrained", folder)
            found = None if judge is None else judge.report()
            donor = sources[-1].path
            card = describing.pared(told, folder, _facts(report), donor if donor.is_dir() else None, found)
            (folder / "README.md").write_text(card, encoding="utf-8")
    return replace(report, seconds=time.perf_counter() - started, peak_rss_bytes=peak_rss_bytes())


def made_with(device: str, threads: int | None) -> dict[str, Any]:
    """What the bits of a result depend on beside its recipe."""
    import torch
    import transformers

    return {
        "device": device, "threads": thread_count(threads), "torch": torch.__version__,
        "transformers": transformers.__version__,
    }  # fmt: skip


def _report(pupil: Pupil, counts: Mapping[str, int], told: dict[str, Any]) -> Retraining:
    """What the recipe noted, and what was found in the files that were written."""
    warnings = []
    if counts["lost"]:
        share = counts["lost"] / counts["trained"]
        warnings.append(f"{counts['lost']:,} updates ({share:.1%}) were lost in rounding to the file's dtype")
    if extra := counts["zeros"] - counts["pruned"]:
        warnings.append(f"{extra:,} entries that were not pruned are zero too")
    return Retraining(
        command="retrain",
        inputs=[],
        method=told["method"],
        recipe=told,
        warnings=warnings,
        parameters=pupil.parameters,
        trained=pupil.notes.get("trained"),
        reconstructed=pupil.notes.get("reconstructed"),
        tokens=pupil.data.size,
        losses=pupil.notes.get("losses"),
        block_errors=pupil.notes.get("block_errors"),
        gaps=pupil.notes.get("gaps"),
        sparsity=counts["zeros"] / counts["prunable"] if counts["prunable"] else 0.0,
        pruned=counts["pruned"],
    )


def _facts(report: Retraining) -> list[tuple[str, str]]:
    """Rows of the card."""
    rows = [*describing.retrained(report), ("entries pruned", f"{report.pruned or 0:,}")]
    pattern = (report.recipe or {}).get("pattern")
    return [*rows, ("of neighbours along the inputs", "keeps {} of {}".format(*pattern))] if pattern else rows


def _fingerprint(
    told: Mapping[str, Any],
    data: str | Path,
    sources: list[Checkpoint],
    device: str,
    masks: Mapping[str, np.ndarray[Any, Any]] | None,
) -> str:
    """What tells this run from others: options, text, masks, and the state of the models it reads."""
    texts = [[str(f), f.stat().st_size, f.stat().st_mtime_ns] for f in files_of(data)]
    digest = hashlib.sha256()
    for name in sorted(masks or {}):
        digest.update(name.encode() + np.packbits((masks or {})[name]).tobytes())
    return outputs.fingerprint([dict(told), device, texts, digest.hexdigest()], sources)


@contextmanager
def _claimed(home: Path, fingerprint: str, target: Path, overwrite: bool) -> Iterator[None]:
    """``home`` for the checkpoints of this run: they stay where it is cut off, or fails with some in it."""
    _claim(home, fingerprint, target, overwrite)
    try:
        yield
    except ParingError:
        if not any(home.glob("*.pt")):
            shutil.rmtree(home, ignore_errors=True)
        raise
    shutil.rmtree(home, ignore_errors=True)


def _claim(home: Path, fingerprint: str, target: Path, overwrite: bool) -> None:
    """Checkpoints of another run are refused, or with ``overwrite`` removed."""
    note = home / _RECIPE
    if home.exists():
        if note.exists() and json.loads(note.read_text(encoding="utf-8")) == {"fingerprint": fingerprint}:
            return
        if not overwrite and any(home.glob("*.pt")):
            raise OutputError(
                f"{target} was begun by a run with other inputs or options, whose checkpoints are in {home}: "
                "run that one again, or add --overwrite to start afresh"
            )
        shutil.rmtree(home)
    home.mkdir(parents=True)
    note.write_text(json.dumps({"fingerprint": fingerprint}), encoding="utf-8")
