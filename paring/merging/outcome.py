"""A merged adapter on disk: factors under the first model's names, and a configuration that fits them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paring import atomic, describing
from paring.adapters import embedded
from paring.adapters.peft_config import exact
from paring.adapters.view import LowRank
from paring.checkpoint import write_checked
from paring.dtypes import Stored, parse_dtype
from paring.folders import CONFIG, WEIGHTS
from paring.merging import record
from paring.merging.inputs import Model
from paring.merging.modules import Joint
from paring.plan import refuse_sealed
from paring.report import ModuleReport

if TYPE_CHECKING:
    from paring.merging.request import Request

_OURS = (WEIGHTS, CONFIG, "README.md")


@dataclass(frozen=True, slots=True)
class Outcome:
    """Where a merged adapter goes, and whose names and configuration it bears."""

    donor: Model
    output: Path
    overwrite: bool
    request: Request

    @property
    def single(self) -> bool:
        return self.output.suffix == ".safetensors"

    def refuse(self) -> None:
        """Raise OutputError now for what writing would refuse later."""
        if self.single:
            atomic.refuse_existing(self.output, self.overwrite)
        else:
            atomic.refuse_folder(atomic.target_of(self.output), self.overwrite, _OURS)
        refuse_sealed(self.output)

    def dtype(self, joint: Joint) -> list[str]:
        """The dtypes of a module's tensors: ``--dtype``, or those of the first model that has it."""
        wanted = parse_dtype(self.request.dtype)
        infos = self.donor.checkpoint.tensors
        return [wanted or (infos[name].dtype if name in infos else "F32") for name in joint.tensors]

    def nbytes(self) -> int:
        return (self.output if self.single else self.output / WEIGHTS).stat().st_size


def write(
    outcome: Outcome,
    joints: Sequence[Joint],
    tensors: Mapping[str, Stored],
    ranks: Mapping[str, int],
    carried: Mapping[str, Stored],
    modules: Sequence[ModuleReport],
    error: float,
    folders: Sequence[Path],
) -> None:
    """Write factors and carried tensors, whole or not at all, and read them again; ``modules`` and ``error``
    are what the card tells of the loss, ``folders`` are those of the inputs, whose cards state licences.
    """
    whole = dict(carried)
    for joint in joints:
        whole |= _shaped(outcome, joint, tensors)
    recipe = outcome.request.recipe()
    metadata = record.metadata(_metadata(outcome.donor, ranks), recipe)
    if outcome.single:
        write_checked(outcome.output, whole, metadata, overwrite=outcome.overwrite)
        return
    config = _config(outcome.donor, joints, ranks, outcome.request.carried == "drop")
    with atomic.atomic_folder(outcome.output, outcome.overwrite, _OURS) as folder:
        write_checked(folder / WEIGHTS, whole, metadata)
        if config is not None:
            text = json.dumps(config, indent=2, sort_keys=True) + "\n"
            (folder / CONFIG).write_text(text, encoding="utf-8")
        facts = [
            ("modules", f"{len(joints):,}"),
            ("ranks", f"{min(ranks.values())} to {max(ranks.values())}"),
            ("size", f"{(folder / WEIGHTS).stat().st_size:,} bytes"),
            ("relative error against the exact merge", f"{error:.2g}"),
        ]
        text = describing.merged(
            recipe, library="peft" if config is not None else None, facts=facts,
            modules=modules, base=(config or {}).get("base_model_name_or_path"),
            folders=folders,
        )  # fmt: skip
        (folder / "README.md").write_text(text, encoding="utf-8")


def _shaped(outcome: Outcome, joint: Joint, tensors: Mapping[str, Stored]) -> dict[str, Stored]:
    """The tensors of one module in the shapes of their kind: factors of convolutions have trailing axes."""
    out = {}
    for number, name in enumerate(joint.tensors):
        tensor, own = tensors[name], _stored_shape(outcome, joint, number)
        shape = tensor.shape
        if own and len(joint.tensors) == 1:
            shape = own
        elif own and len(own) > 2:
            shape = (shape[0], *(own[1:] if number == 0 else (shape[1], *own[2:])))
        out[name] = Stored(tensor.dtype, tensor.data.reshape(shape))
    return out


def _stored_shape(outcome: Outcome, joint: Joint, number: int) -> tuple[int, ...] | None:
    """The shape of the donor's tensor, of a derived module that of a plain LoRA; None where it has none."""
    first = joint.parts[0]
    if isinstance(first, LowRank) and first.derived is not None:
        return first.derived.shapes[number]
    info = outcome.donor.checkpoint.tensors.get(joint.tensors[number])
    return None if info is None else info.shape


def _metadata(donor: Model, ranks: Mapping[str, int]) -> dict[str, str]:
    """The donor's, with the ranks that cloneofsimo's format keeps there; no scale: it is in the factors."""
    told = {key: text for key, text in donor.checkpoint.metadata.items() if key != embedded.KEY}
    for module, rank in ranks.items():
        if f"{module}:rank" in told:
            told[f"{module}:rank"] = str(rank)
    return told


def _config(
    donor: Model, joints: Sequence[Joint], ranks: Mapping[str, int], dropped: bool
) -> dict[str, Any] | None:
    """PEFT's configuration: the scale is in the factors, so alpha equals the rank everywhere."""
    assert donor.adapter is not None
    config = donor.adapter.plain_config()
    if config is None:
        return None
    if dropped:
        config |= {"modules_to_save": None, "bias": "none", "trainable_token_indices": None}
    lowrank = [joint for joint in joints if any(isinstance(part, LowRank) for part in joint.parts)]
    if not lowrank:
        return config
    common = Counter(ranks[joint.name] for joint in lowrank).most_common(1)[0][0]
    names = [joint.name for joint in lowrank]
    pattern = {exact(name, names): ranks[name] for name in names if ranks[name] != common}
    config |= {"r": common, "lora_alpha": common, "use_rslora": False}
    config |= {"rank_pattern": pattern, "alpha_pattern": dict(pattern)}
    own = {module.name for module in donor.adapter.modules}
    if own != {joint.name for joint in lowrank}:
        config["target_modules"] = sorted(joint.name for joint in lowrank)
        config["layers_to_transform"] = config["layers_pattern"] = config["exclude_modules"] = None
    return config
