"""A checkpoint that is written tensor by tensor: one file, or a folder of shards with what lies beside it.

Tensors are made in threads, each whole, and put in their places. As of every large output, what is done is
kept for the same run to go on from, and all is read again before it takes the target's name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from paring import atomic
from paring.checkpoint import Checkpoint
from paring.dtypes import Stored
from paring.errors import BadValueError
from paring.merging.record import replaceable
from paring.merging.sources import state_of
from paring.plan import refuse_sealed
from paring.resumable import Shard, Staging, index_of, shards, staged
from paring.stream import in_order

#: default size of an output file, in bytes: the Hub's habit
SHARD_BYTES = 5_000_000_000
STEM = "model"
INDEX = f"{STEM}.safetensors.index.json"


@dataclass(frozen=True, eq=False)
class Output:
    """What will be written to ``path``: tensors (name, dtype, shape) in order, and metadata.

    A ``path`` that ends in .safetensors is one file. ``names`` are files beside the tensors, other than a
    checkpoint commonly has, that a folder may hold to be replaced.
    """

    path: Path
    layout: Sequence[tuple[str, str, Sequence[int]]]
    metadata: dict[str, str]
    overwrite: bool = False
    shard_size: int = SHARD_BYTES
    names: Sequence[str] = ()

    @property
    def single(self) -> bool:
        return self.path.suffix == ".safetensors"

    @cached_property
    def files(self) -> list[Shard]:
        """The files that hold tensors."""
        return shards(self.layout, STEM, 1 << 62 if self.single else self.shard_size, self.metadata)

    @property
    def nbytes(self) -> int:
        """Bytes of all files that hold tensors."""
        return sum(shard.nbytes for shard in self.files)

    @property
    def _replaceable(self) -> list[str] | None:
        """What a folder may hold to be replaced."""
        found = replaceable(self.path, self.single)
        here = (name for name in self.names if (self.path / name).exists())
        return None if found is None else [*found, *(n + "/" * (self.path / n).is_dir() for n in here)]

    def refuse(self, inputs: Iterable[str | Path]) -> None:
        """Raise OutputError now for what writing would refuse later."""
        atomic.refuse_same_file(self.path, inputs)
        if self.single:
            atomic.refuse_existing(self.path, self.overwrite)
        else:
            target = atomic.target_of(self.path)
            with atomic.reporting(target):
                atomic.refuse_folder(target, self.overwrite, self._replaceable)
        refuse_sealed(self.path)
        if not self.path.with_name(f".{self.path.name}.resume").exists():  # which has taken its room
            atomic.check_room(self.path, self.nbytes)

    def write(
        self, read: Callable[[str], Stored], fingerprint: str, *, threads: int = 1,
        beside: Callable[[Path], None] = lambda folder: None, changed: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        """Write what ``read`` gives by name. ``beside`` writes other files in the folder; ``changed`` raises
        where an input has changed meanwhile. Raises OutputError, BadFileError, and what ``read`` raises.
        """
        with staged(
            self.path, self.files, fingerprint, single=self.single, overwrite=self.overwrite,
            replaceable=self._replaceable, threads=threads,
        ) as staging:  # fmt: skip
            self._tensors(read, staging, threads)
            if not self.single:
                beside(staging.folder)
                write_index(self.files, staging.folder)
            changed()

    def _tensors(self, read: Callable[[str], Stored], staging: Staging, threads: int) -> None:
        todo = [name for name, _, _ in self.layout if name not in staging.done]
        told = {name: (dtype, tuple(shape)) for name, dtype, shape in self.layout}

        def one(name: str) -> int:
            tensor = read(name)
            if (tensor.dtype, tensor.shape) != told[name]:
                raise BadValueError(f"{name} is {tensor.dtype} {list(tensor.shape)}, not as announced")
            return staging.write(name, 0, np.ascontiguousarray(tensor.data).reshape(-1))

        for name, checksum in zip(todo, in_order(one, todo, threads), strict=True):
            staging.complete(name, checksum)


def write_index(files: Sequence[Shard], folder: Path) -> None:
    """The index of several shards; nothing for one."""
    if len(files) > 1:
        text = json.dumps(index_of(files), indent=2) + "\n"
        (folder / INDEX).write_text(text, encoding="utf-8")


def fingerprint(told: Any, checkpoints: Iterable[Checkpoint]) -> str:
    """What tells a run from others: ``told``, and the state of every input file."""
    states = [state_of(checkpoint) for checkpoint in checkpoints]
    return hashlib.sha256(json.dumps([told, states], sort_keys=True, default=str).encode()).hexdigest()
