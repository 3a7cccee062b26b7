"""Many models in one packed file: a unified delta, and for each model a mask and a scale (EMR-Merging).

The file holds for each merged tensor ``NAME`` the unified delta and ``NAME.masks``, uint8 ``(models, ceil(n /
8))``, a bit for each entry, the lowest first; the manifest's ``tasks`` name the models and their scales.
``FILE#2`` or ``FILE#NAME`` is one of them, an update of the base like an adapter:

    merge unified.paring.safetensors#2 --method task_arithmetic --base base/ -o second/
"""

from __future__ import annotations

import json
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import numpy.typing as npt

import paring
from paring import atomic
from paring.checkpoint import digest_sorted, open_checkpoint
from paring.codecs import stored
from paring.dtypes import Stored, from_f32, numel
from paring.errors import BadFileError, UnsupportedError
from paring.merging.chunks import F32, F64, Chunk, Place
from paring.merging.models import Models
from paring.merging.sources import Bits, Entry
from paring.packed import Packed, open_packed
from paring.packing import Image, Spec
from paring.plan import SUFFIX

MASKS = ".masks"


@dataclass(frozen=True, slots=True)
class Tasks:
    """A rule that gives every model back: ``unified(chunk, place)`` is ``(k,)``, model i is ``scales[i]``
    times what of it has the sign of its own delta; ``task`` is the one that a plain output gets.
    """

    unified: Callable[[F32, Place], F32]
    scales: F64
    task: int

    def chunk(self, deltas: F32, place: Place) -> F32:
        """The delta of model ``task``, ``(k,)``."""
        found = self.unified(deltas, place)
        scale = np.float32(self.scales[self.task] * place.weights[self.task])
        out: F32 = np.where(deltas[self.task] * found > 0, scale * found, np.float32(0))
        return out


@dataclass(frozen=True, slots=True)
class _Spooled:
    """A payload that waits on disk; as :class:`paring.packing.Payload`."""

    entry: str
    codec: str
    version: int
    specs: tuple[Spec, ...]
    crc: int
    nbytes: int
    _file: BinaryIO
    _start: int

    @property
    def data(self) -> bytes:
        self._file.seek(self._start)
        return self._file.read(self.nbytes)


def write(
    models: Models,
    rule: Tasks,
    names: Sequence[str],
    carried: Iterator[tuple[str, Stored]],
    output: Path,
    facts: Mapping[str, Any],
    *,
    overwrite: bool,
) -> int:
    """Write the packed file ``output``, a tensor at a time; returns its size in bytes.

    ``carried`` are tensors that go along unchanged. What is written is read again before it takes its place.
    Raises OutputError, BadValueError, BadFileError where it does not read back.
    """
    target = atomic.target_of(output)
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic.reporting(target), tempfile.TemporaryFile(dir=target.parent) as spool:
        file = cast(BinaryIO, spool)
        payloads: list[Any] = []

        def put(name: str, parts: Sequence[tuple[Spec, Stored]]) -> None:
            data = stored.encode([part for _, part in parts])
            start = file.seek(0, 2)
            file.write(data)
            specs = tuple(spec for spec, _ in parts)
            crc = zlib.crc32(data)
            payloads.append(_Spooled(name, stored.ID, stored.VERSION, specs, crc, len(data), file, start))

        for index, goal in enumerate(models.targets):
            delta, masks = _unify(models, rule, index)
            kept = from_f32(delta.reshape(goal.shape), goal.dtype, goal.name)
            planes = Stored("U8", masks)
            put(goal.name, [(Spec(goal.name, goal.dtype, goal.shape), kept)])
            put(goal.name + MASKS, [(Spec(goal.name + MASKS, "U8", planes.shape), planes)])
        for name, tensor in carried:
            put(name, [(Spec(name, tensor.dtype, tensor.shape), tensor)])
        pairs = zip(names, rule.scales.tolist(), strict=True)
        told = {
            "tool": f"paring {paring.__version__}",
            **facts,
            "tasks": [{"name": name, "scale": scale} for name, scale in pairs],
        }
        image = Image(payloads, told)
        digest = digest_sorted(_decoded(payloads))

        def check(path: Path) -> None:
            with open_checkpoint(path) as container:
                if open_packed(container).digest() != digest:
                    raise BadFileError(f"{output} does not read back as written; is the disk sound?")

        image.write(output, digest, check, overwrite=overwrite)
        return image.nbytes


def _unify(models: Models, rule: Tasks, index: int) -> tuple[F32, npt.NDArray[np.uint8]]:
    """The unified delta of one tensor, flat, and the models' masks as bits."""
    n = models.targets[index].numel
    delta, masks = np.empty(n, np.float32), np.zeros((models.n, n), np.bool_)

    def work(chunks: Iterator[Chunk]) -> None:
        for chunk in chunks:
            here = slice(chunk.place.start, chunk.stop)
            delta[here] = rule.unified(chunk.vectors, chunk.place)
            masks[:, here] = chunk.vectors * delta[here] > 0

    for _ in models.visit(work, models.spans([index])):
        pass
    return delta, np.packbits(masks, axis=1, bitorder="little")


def _decoded(payloads: Sequence[_Spooled]) -> Iterator[tuple[str, Stored]]:
    """All tensors in order of their names, one at a time."""
    for payload in sorted(payloads, key=lambda payload: payload.entry):
        (spec,) = payload.specs
        (part,) = stored.decode(payload.data, [spec.shape], [spec.dtype])
        yield spec.name, part


def packs(output: Path) -> bool:
    """Whether an output's name is that of a packed file."""
    return output.name.endswith(SUFFIX)


def number_of(checkpoint: Packed, wanted: str) -> int:
    """Which task ``wanted`` is: a number from 1 on, or a name. Raises UnsupportedError."""
    names = [str(task["name"]) for task in checkpoint.facts["tasks"]]
    if wanted.isdecimal() and 1 <= int(wanted) <= len(names):
        return int(wanted) - 1
    if names.count(wanted) == 1:
        return names.index(wanted)
    told = ", ".join(f"{i} {name}" for i, name in enumerate(names, 1))
    raise UnsupportedError(f"{checkpoint.path}: there is no task {wanted!r}; there are {told}")


def holds_tasks(checkpoint: object) -> bool:
    """Whether this is a packed file of several tasks. Raises BadFileError for an unsound manifest."""
    if not isinstance(checkpoint, Packed) or "tasks" not in checkpoint.facts:
        return False
    tasks = checkpoint.facts["tasks"]
    if not isinstance(tasks, list) or not tasks or not all(map(_is_task, tasks)):
        told = json.dumps(tasks)[:60]
        raise BadFileError(f"{checkpoint.path}: the manifest makes no sense: tasks is {told}")
    return True


def _is_task(task: object) -> bool:
    if not isinstance(task, dict) or not isinstance(task.get("name"), str):
        return False
    return type(task.get("scale")) in (int, float) and abs(task["scale"]) < 1e30


class TaskUpdates:
    """What one task of a packed file adds to each tensor of its base, fp32."""

    def __init__(self, checkpoint: Packed, task: int) -> None:
        self._checkpoint, self._task = checkpoint, task
        self.path = checkpoint.path
        self._scale = np.float32(checkpoint.facts["tasks"][task]["scale"])
        self.tensors: Mapping[str, Entry] = entries_of(checkpoint, len(checkpoint.facts["tasks"]))
        self._lock = threading.Lock()
        self._last: tuple[str, F32] | None = None

    def read(self, name: str, start: int, stop: int, buffer: npt.NDArray[np.uint8]) -> Bits:
        with self._lock:
            if self._last is None or self._last[0] != name:
                unified = self._checkpoint.read(name).f32().reshape(-1)
                row = self._checkpoint.read(name + MASKS).data[self._task]
                kept = np.unpackbits(row, count=len(unified), bitorder="little")
                self._last = name, unified * kept * self._scale
            return self._last[1][start:stop]

    def close(self) -> None:
        with self._lock:
            self._last = None


def entries_of(checkpoint: Packed, count: int) -> dict[str, Entry]:
    """The tensors that tasks update. Raises BadFileError when masks do not fit them."""
    out = {}
    for name, info in checkpoint.tensors.items():
        masks = checkpoint.tensors.get(name + MASKS)
        if masks is None:
            continue
        if masks.dtype != "U8" or masks.shape != (count, -(-numel(info.shape) // 8)):
            raise BadFileError(f"{checkpoint.path}: {masks.name} does not fit {name}")
        out[name] = Entry(info.shape, "F32")
    return out
