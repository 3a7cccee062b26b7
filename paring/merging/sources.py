"""What a merge reads: tensors by spans of entries, from checkpoints as stored or adapters as updates."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from paring.adapters.view import Adapter
from paring.checkpoint import Checkpoint
from paring.coding import Factors
from paring.dtypes import STORAGE, itemsize, numel
from paring.errors import BadFileError, BadValueError
from paring.factors import read_factors
from paring.safetensors_io import file_state
from paring.torch_file import SUFFIXES

Bits = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor that a source can read: shape and dtype as it is read."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def numel(self) -> int:
        return numel(self.shape)


class Source(Protocol):
    """Tensors by name, read by spans. Reading is safe from several threads."""

    path: Path
    tensors: Mapping[str, Entry]

    def read(self, name: str, start: int, stop: int, buffer: npt.NDArray[np.uint8]) -> Bits:
        """Entries ``start:stop`` of the flat tensor, ``(stop - start,)``, in the storage of its dtype; in
        ``buffer`` if they fit.

        The same span has the same bits whoever asks. Raises BadFileError when the file has changed.
        """
        ...

    def close(self) -> None: ...


@dataclass(slots=True)
class Headers:
    """What is known of tensors before any is read; reading them is a mistake."""

    path: Path
    tensors: Mapping[str, Entry]

    def read(self, name: str, start: int, stop: int, buffer: npt.NDArray[np.uint8]) -> Bits:
        raise AssertionError(f"{self.path}: {name} is read before its file is opened")

    def close(self) -> None:
        """Nothing is open."""


class Weights:
    """The tensors of a checkpoint, as stored. Files stay open: a span is one ``pread``."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint, self.path = checkpoint, checkpoint.path
        self.tensors: Mapping[str, Entry] = {
            name: Entry(info.shape, info.dtype) for name, info in checkpoint.tensors.items()
        }
        plain = type(checkpoint) is Checkpoint  # what is decoded or expanded has no bytes to read
        #: tensors that are bytes in a file: where, and their dtype
        self._stored = {
            name: (info.file, info.start, itemsize(info.dtype), STORAGE[info.dtype])
            for name, info in checkpoint.tensors.items()
            if plain and info.file.suffix not in SUFFIXES
        }
        self._open: dict[Path, int] = {}
        self._lock = threading.Lock()
        self._last: tuple[str, Bits] | None = None

    def read(self, name: str, start: int, stop: int, buffer: npt.NDArray[np.uint8]) -> Bits:
        if name not in self._stored:
            return self._whole(name)[start:stop]
        file, at, size, storage = self._stored[name]
        raw = buffer[: (stop - start) * size]
        if len(raw) < (stop - start) * size:
            raw = np.empty((stop - start) * size, np.uint8)
        descriptor, done = self._open.get(file) or self._descriptor(file), 0
        while done < len(raw):
            count = os.preadv(descriptor, [raw[done:].data], at + start * size + done)
            if not count:
                raise BadFileError(f"{file} was changed after it was opened: run the command again")
            done += count
        return raw.view(storage)

    def _whole(self, name: str) -> Bits:
        """A tensor of a packed or PyTorch file, flat; the last one is kept for its next span."""
        with self._lock:
            if self._last is None or self._last[0] != name:
                self._last = name, self.checkpoint.read(name).data.reshape(-1)
            return self._last[1]

    def _descriptor(self, file: Path) -> int:
        self.checkpoint.fetch()
        with self._lock:
            if file not in self._open:
                try:
                    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
                except OSError as error:
                    raise BadFileError(f"{file} cannot be read: {error.strerror}") from None
                self._open[file] = descriptor
                self.checkpoint.refuse_changed(file, file_state(descriptor))
            return self._open[file]

    def close(self) -> None:
        """Close all files. Raises BadFileError when one has changed since it was opened."""
        with self._lock:
            opened, self._open, self._last = self._open, {}, None
        states = {file: file_state(descriptor) for file, descriptor in opened.items()}
        for descriptor in opened.values():
            os.close(descriptor)
        for file, state in states.items():
            self.checkpoint.refuse_changed(file, state)


class Updates:
    """What an adapter adds to the weight of each module: ``scale * B @ A``, fp32, made span by span.

    Tensors are named by ``names`` (module -> name of its weight, stored as (in, out) for the modules in
    ``turned``); an (IA)^3 vector is the update ``l - 1`` of shape (1, n). Products are made of whole rows, as
    many as the span touches, one matrix product each. With ``scaled`` off the scale is left out of them.
    """

    def __init__(
        self, adapter: Adapter, names: Mapping[str, str], turned: frozenset[str] = frozenset(),
        scaled: bool = True,
    ) -> None:  # fmt: skip
        self.adapter, self.path = adapter, adapter.checkpoint.path
        found = read_factors(adapter)
        for f in found:
            for name, values in ((f.a, f.A), (f.b, f.B)):
                if name is not None and not np.isfinite(values).all():
                    raise BadValueError(f"{self.path}: {name} holds NaN or infinity: get or train it again")
        self.modules: dict[str, Factors] = {names[f.name]: f for f in found if f.name in names}
        #: name -> left (rows, r) with the scale in it, right (r, columns)
        self._products: dict[str, tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]] = {}
        for name, f in self.modules.items():
            left, right = (f.A.T, f.B.T) if f.name in turned else (f.B, f.A)
            self._products[name] = (
                np.ascontiguousarray(left * np.float32(f.scale if scaled else 1.0)),
                np.ascontiguousarray(right),
            )
        self.tensors: Mapping[str, Entry] = {
            name: Entry((len(left), right.shape[1]), "F32") for name, (left, right) in self._products.items()
        }

    def mean(self) -> float:
        """The mean entry of all products."""
        total = sum(
            float(left.sum(axis=0, dtype=np.float64) @ right.sum(axis=1, dtype=np.float64))
            for left, right in self._products.values()
        )
        return total / max(1, sum(entry.numel for entry in self.tensors.values()))

    def read(self, name: str, start: int, stop: int, buffer: npt.NDArray[np.uint8]) -> Bits:
        left, right = self._products[name]
        width = right.shape[1]
        first, last = start // width, -(-stop // width)
        rows = left[first:last] @ right
        return rows.reshape(-1)[start - first * width : stop - first * width]

    def close(self) -> None:
        """Nothing is held open."""


def state_of(checkpoint: Checkpoint) -> list[Any]:
    """What tells the files of a checkpoint from others: name, size, times and header of each, as JSON."""
    checkpoint.fetch()
    told: list[Any] = []
    for file in checkpoint.inputs:
        status = file.stat()
        told.append([file.name, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino])
    tensors = checkpoint.tensors.values()
    return [*told, [[info.name, info.dtype, info.shape, info.start] for info in tensors]]
