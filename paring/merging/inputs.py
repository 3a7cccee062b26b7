"""The inputs of a merge, opened: checkpoints, and adapters with their module view."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from paring import adapters
from paring.adapters.view import Adapter
from paring.checkpoint import Checkpoint
from paring.packed import open_source


@dataclass(frozen=True, slots=True)
class Model:
    """One input, opened: a checkpoint, or an adapter with its module view."""

    path: Path
    checkpoint: Checkpoint
    adapter: Adapter | None

    @property
    def folder(self) -> Path:
        """Where its configuration lies."""
        return self.path if self.path.is_dir() else self.path.parent


def open_model(path: str | Path) -> Model:
    """Open one input. Raises BadFileError, UnsupportedError."""
    checkpoint = open_source(path)
    adapter = adapters.read(checkpoint)
    if adapter.dialect == "none":
        return Model(Path(path), checkpoint, None)
    adapter.refuse_problems()
    return Model(Path(path), checkpoint, adapter)
