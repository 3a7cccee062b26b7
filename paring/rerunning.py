"""Repeat what made a file, from the recipe that it holds, bit for bit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import paring
from paring import atomic, compressing
from paring.budget import Budget
from paring.checkpoint import Checkpoint
from paring.errors import BadFileError, OptionError, UnsupportedError
from paring.finetuned.run import compress
from paring.finetuned.table import holds_delta
from paring.hub.names import parse
from paring.hub.reading import located
from paring.merging import verb
from paring.merging.recipes.stored import inputs_of, request_of
from paring.merging.record import RECIPE
from paring.merging.request import check
from paring.merging.single import How
from paring.packed import Packed, open_source
from paring.plan import plan_compress
from paring.pruning import plan as pruning
from paring.pruning import run as pruned
from paring.pruning import stored
from paring.pruning.request import inputs_of as inputs_to_prune
from paring.report import Report
from paring.shrinking.cuts import request_from
from paring.shrinking.run import shrink
from paring.untrusted import parse_json

_BLOCK = 1 << 20  # bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Repeated(Report):
    """What :func:`rerun` made; ``same`` says whether all bytes of its tensor files are those of the first."""

    same: bool | None = None


def rerun(
    made: Path, output: Path, how: How, *, source: Path | None = None, device: str = "auto"
) -> Repeated:
    """Make ``made`` again as ``output``. Inputs are looked for where the recipe has them, from the current
    folder and then from that of ``made``; ``source`` is a packed file's, where it has moved.

    Raises BadFileError, UnsupportedError, OptionError and what the command raises that is repeated.
    """
    with open_source(made) as opened:
        _refuse_kind(made, output)
        atomic.refuse_same_file(output, [made, *opened.inputs])
        if isinstance(opened, Packed):
            version = str(opened.facts.get("tool", "")).removeprefix("paring ")
            report = _compress(opened, made, output, how, source, device)
        else:
            version, report = _repeat(opened, made, output, how, device)
        told = {item.name: getattr(report, item.name) for item in fields(Report)}
        told["warnings"] = list(report.warnings)
        if version != paring.__version__:
            text = f"{made} was made by paring {version or '?'}, this is {paring.__version__}"
            told["warnings"].append(text)
        difference = None if how.dry_run else _difference(opened, output)
        if difference:
            told["warnings"].append(difference)
    told |= {"command": "rerun"}
    return Repeated(**told, same=None if how.dry_run else difference is None)


def _refuse_kind(made: Path, output: Path) -> None:
    single = made.is_file() and made.suffix == ".safetensors"
    if single != (output.suffix == ".safetensors"):
        what = "one file: name one that ends in .safetensors" if single else "a folder: name a folder"
        raise OptionError(f"-o {output}: {made} is {what}")


def _repeat(opened: Checkpoint, made: Path, output: Path, how: How, device: str) -> tuple[str, Report]:
    text = opened.metadata.get(RECIPE)
    if text is None:
        raise UnsupportedError(f"{made} holds no recipe: paring did not make it, or it was saved again since")
    recipe = parse_json(text.encode(), f"{made}: its recipe")
    if recipe.get("command") == "shrink":
        return str(recipe.get("paring", "")), _shrink(recipe, made, output, how)
    if recipe.get("command") == "prune":
        return str(recipe.get("paring", "")), _prune(recipe, made, output, how, device)
    if recipe.get("command") == "retrain":
        return str(recipe.get("paring", "")), _retrain(recipe, made, output, how, device)
    if recipe.get("command") != "merge":
        raise UnsupportedError(f"{made} was made by {recipe.get('command')}, which cannot be repeated")
    request = request_of(recipe, str(made))
    stages = {
        name: request_of(told, f"{made}, stage {name}") for name, told in (request.stages or {}).items()
    }
    for stage in (*stages.values(), request):
        check(stage)
    names = {name for stage in (*stages.values(), request) for name in inputs_of(stage)} - stages.keys()
    places = {name: str(_find(made, [Path(name)], name)) for name in sorted(names)}
    report = verb.merge(
        request, output, overwrite=how.overwrite, dry_run=how.dry_run, threads=how.threads, memory=how.memory,
        device=device, places=places,
    )  # fmt: skip
    return str(recipe.get("paring", "")), report


def _shrink(recipe: Mapping[str, Any], made: Path, output: Path, how: How) -> Report:
    """A model that parts were taken out of."""
    asked = request_from(recipe, str(made))
    places = {
        key: str(_find(made, [Path(name)], name))
        for key, name in (("model", asked.model), ("fisher", asked.fisher))
        if name is not None
    }
    return shrink(
        asked, output, overwrite=how.overwrite, dry_run=how.dry_run, threads=how.threads, places=places
    )


def _prune(recipe: Mapping[str, Any], made: Path, output: Path, how: How, device: str) -> Report:
    request = stored.request_of(recipe, str(made))
    places = {name: str(_find(made, [Path(name)], name)) for name in inputs_to_prune(request)}
    planned = pruning.plan_prune(
        request, output, overwrite=how.overwrite, threads=how.threads, device=device, places=places
    )
    with planned.checkpoint:
        return pruned.run(planned, dry_run=how.dry_run, memory=how.memory)


def _retrain(recipe: Mapping[str, Any], made: Path, output: Path, how: How, device: str) -> Report:
    """A model that was pruned and retrained; with as many threads, and on the CPU if it was that."""
    from paring.retraining import stored as retrained
    from paring.retraining import text, whole

    found = retrained.made_of(recipe, str(made))
    places = {name: str(_find(made, [Path(name)], name)) for name in inputs_to_prune(found.request)}
    data = found.job.data
    here = any((home / data).exists() for home in _homes(made))
    places[data] = str(_find(made, [Path(data)], data)) if here or not text.on_hub(data) else data
    threads, device = found.threads(how.threads), found.device(device)
    report = whole.prune_and_retrain(
        found.request, output, found.job, places=places, expected=found.sha256, overwrite=how.overwrite,
        dry_run=how.dry_run, threads=threads, memory=how.memory, device=device,
    )  # fmt: skip
    return replace(report, warnings=[*report.warnings, *found.warnings(made, device, threads)])


def _compress(opened: Packed, made: Path, output: Path, how: How, source: Path | None, device: str) -> Report:
    facts = opened.facts
    origin, method = facts.get("source"), facts.get("method")
    options = dict(facts.get("recipe") or {})
    repository = options.pop("source", None)
    if not isinstance(origin, dict) or not isinstance(method, str) or "carry" not in options:
        raise UnsupportedError(f"{made} does not say how it was made")
    file = Path(origin["name"])
    stem = made.name.removesuffix(".safetensors").removesuffix(".paring")
    where = Path(located(source)) if source else None
    if where is None and repository is not None:
        where = Path(located(repository))
    path = where or _find(made, [file, Path(stem) / file, Path(stem)], origin["name"])
    budget = Budget(*(options.pop(name, None) for name in ("ratio", "error", "bits_per_param")))
    carry = options.pop("carry")
    if holds_delta(opened):
        return _delta(path, made, output, how, (budget, method, options, carry, device), origin["sha256"])
    plan = plan_compress(
        path, output, budget=budget, method=method, options=options, carry=carry,
        overwrite=how.overwrite, threads=how.threads, device=device,
    )  # fmt: skip
    with plan.source:
        if plan.source.digest() != origin["sha256"]:
            raise BadFileError(
                f"{path} is not what {made} was made of: its tensors differ; name its source (--source)"
            )
        return compressing.run(plan, dry_run=how.dry_run)


def _delta(path: Path, made: Path, output: Path, how: How, asked: Sequence[Any], sha256: str) -> Report:
    """A full fine-tune; its base is where it was."""
    budget, method, options, carry, device = asked
    base = _find(made, [Path(str(options["base"]))], str(options.pop("base")))
    with open_source(path) as opened:
        if opened.digest() != sha256:
            raise BadFileError(f"{path} is not what {made} was made of: its tensors differ")
    return compress(
        path, base, output, dry_run=how.dry_run, budget=budget, method=method, options=options, carry=carry,
        overwrite=how.overwrite, threads=how.threads, device=device,
    )  # fmt: skip


def _homes(made: Path) -> tuple[Path, Path]:
    """Where inputs are looked for, in order."""
    return Path(), made.absolute().parent


def _find(made: Path, candidates: Sequence[Path], name: str) -> Path:
    """The first that is there, from the current folder or from that of ``made``."""
    homes = _homes(made)
    for home in homes:
        for candidate in candidates:
            if (home / candidate).exists():
                return home / candidate
    if parse(name) is not None:
        return Path(located(name))
    where = "there" if Path(name).is_absolute() else f"here or in {homes[1]}"
    raise BadFileError(
        f"{made} was made of {name}, which is not {where} any more: put it back, or link to it"
    )


def _difference(before: Checkpoint, output: Path) -> str | None:
    """What sets the new files apart from the old ones; None when all bytes are the same."""
    with open_source(output) as after:
        old, new = (_tensor_files(whole) for whole in (before, after))
        if len(old) == len(new) and all(_same(a, b) for a, b in zip(old, new, strict=True)):
            return None
        beside = [[file.read_bytes() for file in _adapter(whole)] for whole in (before, after)]
        if before.digest() == after.digest() and beside[0] == beside[1]:
            return f"{output} has the same tensors as {before.path}, in other files or beside other metadata"
        return (
            f"{output} differs from {before.path}: an input has changed since, or the version, "
            "the device or, for rules that decompose matrices, the number of BLAS threads"
        )


def _tensor_files(whole: Checkpoint) -> list[Path]:
    return [*(whole.container.files if isinstance(whole, Packed) else whole.files), *_adapter(whole)]


def _adapter(whole: Checkpoint) -> list[Path]:
    """The files of an adapter that retraining left beside a model."""
    return sorted((whole.path / "adapter").glob("*.safetensors"))


def _same(a: Path, b: Path) -> bool:
    if a.stat().st_size != b.stat().st_size:
        return False
    with a.open("rb") as one, b.open("rb") as other:
        while (block := one.read(_BLOCK)) == other.read(_BLOCK):
            if not block:
                return True
    return False
