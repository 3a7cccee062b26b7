"""From a model in memory to its folder: laid out as the source is, rounded once, zeros checked as written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from paring.checkpoint import Checkpoint, TensorInfo, open_checkpoint, write_safetensors
from paring.dtypes import Stored, from_f32
from paring.errors import BadFileError, BadValueError, UnsupportedError
from paring.folders import CONFIG, WEIGHTS
from paring.merging import record
from paring.retraining.pupil import Pupil


def write(pupil: Pupil, folder: Path, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Write the model into ``folder`` as its source is laid out, and check its zeros where they lie.

    What was not trained is carried bit for bit; the rest is rounded once. Returns the counts of pruned
    entries, of survivors that rounded to zero and of updates lost in rounding. Raises BadValueError for NaN,
    UnsupportedError for what was trained under a name that the file has not.
    """
    named = dict(pupil.model.named_parameters())
    if untraced := pupil.changed - set(pupil.files.values()):
        raise UnsupportedError(
            f"{sorted(untraced)[0]} is in the file under another name or layout: it cannot be written back"
        )
    totals = {"pruned": 0, "zeros": 0, "prunable": 0, "lost": 0, "trained": 0}
    metadata = record.metadata(pupil.source.metadata, recipe)
    for place, infos in _places(pupil.source).items():
        target = folder / place

        def tensors() -> Iterable[tuple[str, Stored]]:
            for info in infos:  # noqa: B023  # consumed within this round
                old = pupil.source.read(info.name)
                name = pupil.files.get(info.name)
                if name not in pupil.changed:
                    yield info.name, old
                    continue
                values = named[name].detach().float().cpu().numpy()
                if not np.isfinite(values).all():
                    raise BadValueError(f"{name} holds NaN or infinity after retraining: lower --lr")
                new = from_f32(values, info.dtype, info.name)
                totals["trained"] += new.numel
                totals["lost"] += int(((new.data == old.data) & (values != old.f32())).sum())
                yield info.name, new

        layout = [(info.name, info.dtype, info.shape) for info in infos]
        write_safetensors(target, tensors(), metadata, layout=layout)
        _check_zeros(pupil, target, totals)
    record.copy_beside(pupil.source.files[0].parent, folder, None)
    if pupil.source.index is not None and pupil.source.files[0].suffix == ".safetensors":
        shutil.copyfile(pupil.source.index, folder / pupil.source.index.name)
    if pupil.beside:
        _write_adapter(pupil, folder / "adapter")
    return totals


def _places(source: Checkpoint) -> dict[str, list[TensorInfo]]:
    """The tensors of each file that is written: as the source has them; those of PyTorch's files in one."""
    found: dict[str, list[TensorInfo]] = {}
    for file in source.files:
        place = file.name if file.suffix == ".safetensors" else "model.safetensors"
        found.setdefault(place, []).extend(info for info in source.tensors.values() if info.file == file)
    return found


def _check_zeros(pupil: Pupil, target: Path, totals: dict[str, int]) -> None:
    """Read the written file: every pruned entry must be zero; count what else is."""
    with open_checkpoint(target) as written:
        for name in written:
            mask = pupil.masks.get(pupil.files.get(name, ""))
            if mask is None:
                continue
            zero = written.read(name).f32() == 0
            pruned = ~mask.cpu().numpy()
            if not zero[pruned].all():
                raise BadFileError(f"{target.name}: {name} is not zero where it was pruned")
            totals["pruned"] += int(pruned.sum())
            totals["zeros"] += int(zero.sum())
            totals["prunable"] += zero.size


def _write_adapter(pupil: Pupil, folder: Path) -> None:
    """LoRA factors that stay beside the sparse weights, as PEFT has them."""
    folder.mkdir()
    tensors, targets, rank = {}, [], 1
    for name, factors in pupil.beside.items():
        module = name.rpartition(".")[0]
        targets.append(module)
        rank = factors["A"].shape[0]
        for factor in "AB":
            values = factors[factor].cpu().numpy()
            tensors[f"base_model.model.{module}.lora_{factor}.weight"] = from_f32(values, "F32")
    write_safetensors(folder / WEIGHTS, tensors, {"format": "pt"})
    config = {
        "peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": targets, "bias": "none",
        "fan_in_fan_out": any(layer.turned for layer in pupil.layers.values()),
        "task_type": "CAUSAL_LM" if pupil.objective == "causal" else None,
    }  # fmt: skip
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
