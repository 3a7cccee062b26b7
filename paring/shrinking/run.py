"""Make a model smaller, file to file: plan, score, check that the result loads, write."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from paring import adapters, describing, outputs
from paring.checkpoint import Checkpoint
from paring.devices import free_memory
from paring.dtypes import Stored, numel, refuse_nonfinite
from paring.errors import BadFileError, OptionError, UnsupportedError
from paring.merging import record
from paring.packed import Packed, open_source
from paring.plan import thread_count
from paring.report import Shrinking, peak_rss_bytes
from paring.shrinking import families
from paring.shrinking.checking import refuse_unloadable
from paring.shrinking.cuts import Request, Sizes, config_changes, cut_sizes, sizes_of
from paring.shrinking.parts import Kept, Part, left, parts_of, renamed, shape_left
from paring.shrinking.scores import choose, choose_layers, scores_of

KEPT = "shrink.json"
_EVEN = 8  # 16 bytes of 16-bit numbers


@dataclass(frozen=True, eq=False)
class _Plan:
    """All that is known before a weight is read."""

    asked: Request
    source: Checkpoint
    fisher: Checkpoint | None
    family: families.Family
    config: dict[str, Any]
    before: Sizes
    after: Sizes
    parts: list[Part]
    threads: int


def shrink(
    asked: Request,
    output: str | Path,
    *,
    overwrite: bool = False,
    dry_run: bool = False,
    threads: int | None = None,
    places: Mapping[str, str] | None = None,
) -> Shrinking:
    """Carry out ``asked``. Raises every ParingError; nothing has been written then.

    ``places`` says where its ``model`` and ``fisher`` are found, if not where it names them.
    """
    started = time.perf_counter()
    if Path(output).suffix == ".safetensors":
        raise OptionError(f"-o {output}: config.json changes with the weights: name a folder")
    there = {"model": asked.model, "fisher": asked.fisher, **(places or {})}
    plan = _plan(asked, there, threads)
    inputs = [plan.source.path, *plan.source.inputs]
    if plan.fisher is not None:
        inputs += [plan.fisher.path, *plan.fisher.inputs]
    try:
        # what writing would refuse, before weights are read
        outputs.Output(Path(output), (), {}, overwrite, names=(KEPT,)).refuse(inputs)
        kept, changes = _kept(plan)
        config = {**plan.config, **changes}
        names = {
            part.name: name for part in plan.parts if (name := renamed(part, kept, plan.family)) is not None
        }
        layout = [
            (names[part.name], part.info.dtype, shape_left(part, plan.after))
            for part in plan.parts
            if part.name in names
        ]
        told = record.metadata(plan.source.metadata, asked.recipe())
        target = outputs.Output(Path(output), layout, told, overwrite, asked.shard_size, (KEPT,))
        target.refuse(inputs)
        own = [(part.name, part.info.dtype, part.info.shape) for part in plan.parts]
        unchecked = refuse_unloadable(config, layout, plan.config, own, str(plan.source.path))
        if not dry_run:
            _write(plan, target, kept, names, changes, layout)
    finally:
        plan.source.close()
        if plan.fisher is not None:
            plan.fisher.close()
    return _report(plan, target, layout, unchecked, started, dry_run=dry_run)


def _plan(asked: Request, there: Mapping[str, str | None], threads: int | None) -> _Plan:
    source = open_source(str(there["model"]))
    if isinstance(source, Packed):
        raise UnsupportedError(f"{asked.model} is packed: `paring decompress` it first")
    if adapters.read(source, derived=True).dialect != "none":
        raise UnsupportedError(f"{asked.model} is an adapter: shrink takes the model that it adapts")
    config = source.config("config.json")
    if config is None:
        raise BadFileError(f"{asked.model}: no config.json beside the weights, which says what they are")
    family = families.find(config.get("model_type"))
    if family is None:
        raise UnsupportedError(
            f"{asked.model}: models of type {config.get('model_type')!r} are not known; known are "
            + ", ".join(families.known_types())
        )
    if config.get("quantization_config"):
        raise UnsupportedError(
            f"{asked.model} is quantised, says its config.json: give the weights it was made of"
        )
    before = sizes_of(family, config, str(asked.model))
    after = cut_sizes(family, before, asked, str(config["model_type"]))
    parts = parts_of(source, family, before, after)
    fisher = None
    if asked.fisher is not None:
        if after.told() == {**before.told(), "layers": after.layers} and asked.layers_by != "score":
            raise OptionError("--fisher: nothing that is cut is chosen by scores; leave it out")
        fisher = open_source(str(there["fisher"]))
    return _Plan(asked, source, fisher, family, config, before, after, parts, _threads(parts, threads))


def _threads(parts: list[Part], threads: int | None) -> int:
    """Threads that work at once within half of the memory that is free; scores are fp64."""
    largest = max((part.info.numel for part in parts), default=1)
    return max(1, min(thread_count(threads), free_memory() // 2 // max(1, 24 * largest)))


def _kept(plan: _Plan) -> tuple[Kept, dict[str, Any]]:
    """What stays, and what changes in the configuration."""
    asked, before, after = plan.asked, plan.before, plan.after
    by_score = asked.layers_by == "score" and not asked.drop_layers and after.layers < before.layers
    scores = scores_of(plan.source, plan.fisher, plan.parts, before, after, plan.threads, layers=by_score)
    layers = choose_layers(
        asked.drop_layers, after.layers, before.layers, asked.layers_by, lambda: scores.layers
    )
    kept = choose(scores, before, after, layers, products=plan.fisher is None)
    where = str(plan.source.path)
    return kept, config_changes(plan.family, plan.config, before, after, layers, where)


def _write(
    plan: _Plan, target: outputs.Output, kept: Kept, names: Mapping[str, str], changes: dict[str, Any],
    layout: list[tuple[str, str, tuple[int, ...]]],
) -> None:  # fmt: skip
    by_name = {names[part.name]: part for part in plan.parts if part.name in names}

    def read(name: str) -> Stored:
        part = by_name[name]
        stored = plan.source.read(part.name)
        refuse_nonfinite(stored, part.name, plan.source.path)
        return left(part, stored, kept, plan.before)

    def beside(folder: Path) -> None:
        home = plan.source.path if plan.source.path.is_dir() else plan.source.path.parent
        record.copy_beside(home, folder, None, changes)
        (folder / KEPT).write_text(json.dumps(_told(kept), separators=(",", ":")) + "\n", encoding="utf-8")
        facts = [(name, f"{was} → {now}") for name, was, now in _changes(plan.before, plan.after)]
        text = describing.pared(plan.asked.recipe(), folder, facts, home)
        (folder / "README.md").write_text(text, encoding="utf-8")

    inputs = [plan.source, *([plan.fisher] if plan.fisher is not None else [])]
    mark = outputs.fingerprint([plan.asked.recipe(), layout, _told(kept)], inputs)
    target.write(read, mark, threads=plan.threads, beside=beside)


def _changes(before: Sizes, after: Sizes) -> list[tuple[str, int, int]]:
    was, now = before.told(), after.told()
    return [(name, was[name], now[name]) for name in was if was[name] != now[name]]


def _told(kept: Kept) -> dict[str, Any]:
    """What stays, as JSON: numbers of the source, by its layers."""

    def rows(found: Mapping[int, Any]) -> dict[str, list[int]]:
        return {str(layer): indices.tolist() for layer, indices in found.items()}

    neurons = {
        f"{layer}" if expert is None else f"{layer}.{expert}": indices.tolist()
        for (layer, expert), indices in sorted(
            kept.neurons.items(), key=lambda item: (item[0][0], item[0][1] or 0)
        )
        if expert is None or expert in kept.experts.get(layer, np.array([expert]))
    }
    told = {
        "layers": list(kept.layers),
        "width": None if kept.hidden is None else kept.hidden.tolist(),
        "heads": rows(kept.heads), "kv_heads": rows(kept.kv_heads), "experts": rows(kept.experts),
        "neurons": neurons,
    }  # fmt: skip
    return {key: value for key, value in told.items() if value}


def _report(
    plan: _Plan, target: outputs.Output, layout: list[tuple[str, str, tuple[int, ...]]],
    unchecked: str | None, started: float, *, dry_run: bool,
) -> Shrinking:  # fmt: skip
    warnings = [] if unchecked is None else [unchecked]
    if plan.before.hidden != plan.after.hidden:
        warnings.append("a narrower model is a start for training: its norms see fewer entries than before")
    after = plan.after
    if after.experts and (after.neurons % _EVEN or after.hidden % _EVEN):
        warnings.append(
            f"experts of {after.neurons} neurons in a width of {after.hidden}: torch's grouped kernels "
            f"want multiples of {_EVEN} of both"
        )
    return Shrinking(
        command="shrink",
        inputs=[plan.asked.model, *([plan.asked.fisher] if plan.asked.fisher else [])],
        output=str(target.path),
        recipe=plan.asked.recipe(),
        bytes_in=plan.source.nbytes,
        bytes_out=target.nbytes,
        before=plan.before.told(),
        after=plan.after.told(),
        elements=sum(part.info.numel for part in plan.parts),
        elements_left=sum(numel(shape) for _, _, shape in layout),
        checked=unchecked is None,
        files=[shard.name for shard in target.files] if len(target.files) > 1 else None,
        warnings=warnings,
        seconds=time.perf_counter() - started,
        peak_rss_bytes=peak_rss_bytes(),
        device="cpu",
        dry_run=dry_run or None,
    )
