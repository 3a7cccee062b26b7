"""The inputs of a merge, opened: checkpoints, and adapters with their module view."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from paring import adapters
from paring.adapters.view import Adapter
from paring.checkpoint import Checkpoint
from paring.errors import UnsupportedError
from paring.folders import CONFIG
from paring.merging.tasks import holds_tasks, number_of
from paring.packed import Packed, open_source
from paring.pooling.members import holds_adapters

#: names of tensors of adapters whose update is not ``scale * B @ A``, and of the bias of one that is
_FOREIGN = re.compile(
    r"\.(hada_|lokr_|oft_|vera_|vblora_|boft_|fourierft_|randlora_|lily_|ln_tuning)|prompt_embeddings|lora_B\.bias$"
)


@dataclass(frozen=True, slots=True)
class Model:
    """One input, opened: a checkpoint, an adapter with its module view, or one ``task`` of a packed file."""

    path: Path
    checkpoint: Checkpoint
    adapter: Adapter | None
    task: int | None = None

    @property
    def updates(self) -> bool:
        """Whether it holds an update of a base rather than weights."""
        return self.adapter is not None or self.task is not None

    @property
    def folder(self) -> Path:
        """Where its configuration lies."""
        return self.path if self.path.is_dir() else self.path.parent


def open_model(path: str | Path) -> Model:
    """Open one input; ``FILE#NAME`` is one task or adapter of a packed file. Raises BadFileError,
    UnsupportedError.
    """
    file, mark, wanted = str(path).rpartition("#")
    if mark and not Path(path).exists() and Path(file).exists():
        packed = open_source(file, whole=True)
        if isinstance(packed, Packed) and holds_tasks(packed):
            return Model(Path(file), packed, None, number_of(packed, wanted))
        if not isinstance(packed, Packed) or not holds_adapters(packed):
            raise UnsupportedError(f"{file} holds no tasks or adapters to choose {wanted!r} from")
    checkpoint = open_source(path)
    if holds_tasks(checkpoint):
        raise UnsupportedError(f"{path} holds several tasks: name one, as in {path}#1")
    adapter = adapters.read(checkpoint, derived=True)
    if adapter.dialect == "none":
        _refuse_foreign(Path(path), checkpoint)
        return Model(Path(path), checkpoint, None)
    adapter.refuse_problems()
    return Model(Path(path), checkpoint, adapter)


def full_tensors(model: Model) -> list[str]:
    """The names of an adapter's tensors that are no factors but mean something by themselves: no alphas."""
    carried = model.adapter.carried if model.adapter else ()
    return [tensor.name for tensor in carried if not tensor.name.endswith((".alpha", ".scalar"))]


def refuse_kinds(model: Model) -> None:
    """Raise UnsupportedError for an adapter with parts whose update is no plain product."""
    assert model.adapter is not None
    for module, reason in model.adapter.refused:
        raise UnsupportedError(f"{model.path}: {module} cannot be merged: {reason}")
    for tensor in model.adapter.carried:
        if _FOREIGN.search(tensor.name):
            raise UnsupportedError(f"{model.path}: {tensor.name} cannot be merged: {tensor.why}")


def _refuse_foreign(path: Path, checkpoint: Checkpoint) -> None:
    """Raise UnsupportedError for an adapter of a kind that is not read, lest it be taken for a checkpoint."""
    config = checkpoint.config(CONFIG) if checkpoint.files[0].stem.startswith("adapter_") else None
    kind = (config or {}).get("peft_type")
    foreign = next((name for name in checkpoint if _FOREIGN.search(name)), None)
    if kind or foreign:
        raise UnsupportedError(f"{path} is an adapter ({kind or foreign}) of a kind that cannot be merged")


def different_bases(models: Sequence[Model]) -> list[str]:
    """A warning of adapters that were made for different bases."""
    bases = {model.adapter.base: model.path for model in models if model.adapter and model.adapter.base}
    if len(bases) < 2:
        return []
    (one, a), (two, b), *_ = bases.items()
    return [f"{a} was made for {one}, {b} for {two}: merging adapters of different bases makes no sense"]


def assumed_scales(models: Sequence[Model]) -> list[str]:
    """Warnings of adapters whose scale is not told and taken to be 1."""
    told = [(model.path, module) for model in models if model.adapter for module in model.adapter.modules[:1]]
    return [f"{path}: scale {m.scale_source}" for path, m in told if m.scale_source.startswith("assumed")]
