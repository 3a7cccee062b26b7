"""The inputs of a merge, opened: checkpoints, and adapters with their module view."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from paring import adapters
from paring.adapters.view import Adapter
from paring.checkpoint import Checkpoint
from paring.errors import UnsupportedError
from paring.merging.tasks import holds_tasks, number_of
from paring.packed import Packed, open_source


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
    """Open one input; ``FILE#TASK`` is one task of a packed file. Raises BadFileError, UnsupportedError."""
    file, mark, wanted = str(path).rpartition("#")
    if mark and not Path(path).exists() and Path(file).exists():
        packed = open_source(file)
        if not isinstance(packed, Packed) or not holds_tasks(packed):
            raise UnsupportedError(f"{file} holds no tasks to choose {wanted!r} from")
        return Model(Path(file), packed, None, number_of(packed, wanted))
    checkpoint = open_source(path)
    if holds_tasks(checkpoint):
        raise UnsupportedError(f"{path} holds several tasks: name one, as in {path}#1")
    adapter = adapters.read(checkpoint)
    if adapter.dialect == "none":
        return Model(Path(path), checkpoint, None)
    adapter.refuse_problems()
    return Model(Path(path), checkpoint, adapter)


def full_tensors(model: Model) -> list[str]:
    """The names of an adapter's tensors that are no factors but mean something by themselves: no alphas."""
    carried = model.adapter.carried if model.adapter else ()
    return [tensor.name for tensor in carried if not tensor.name.endswith(".alpha")]
