"""The safetensors container: a header that is checked in full before anything is believed, and a writer.

A file is 8 bytes of header length (little endian), a JSON header, and the tensors' bytes without holes. The
format is small enough to read here in full, which buys what a library would not give: every refusal says
what is wrong and where, no dtype goes through another library's types, and a tensor is read straight into
the array it stays in.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from paring.atomic import atomic_file, check_room
from paring.awaited import awaited
from paring.dtypes import STORAGE, Stored, from_bytes, itemsize
from paring.errors import BadFileError, BadValueError, UnsupportedError
from paring.untrusted import disguise, parse_json

#: longest header that is read or written, in bytes; the reference implementation has the same limit
MAX_HEADER = 100_000_000
MAX_AXES = 64  # numpy's own limit
#: the state of a file that is not here yet
AWAY = (-1, -1)
_CHUNK = 1 << 30  # some systems read or write less than 2 GiB at a time


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor lies: bytes ``start`` to ``stop`` of ``file``, counted from the beginning of the file.

    ``dtype`` is a safetensors code. PyTorch files tell no offsets: there ``start`` is 0.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    stop: int

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Contents:
    """What one file holds: its tensors by offset, its metadata, its size in bytes, and its state (see
    :func:`file_state`; ``AWAY`` for one that is not here yet).
    """

    tensors: tuple[TensorInfo, ...]
    metadata: dict[str, str]
    nbytes: int
    state: tuple[int, int]


def file_state(descriptor: int) -> tuple[int, int]:
    """Size in bytes and mtime in ns of an open file: what tells whether it was changed since."""
    status = os.fstat(descriptor)
    return status.st_size, status.st_mtime_ns


def read_contents(path: Path) -> Contents:
    """Read and check the header of the safetensors file ``path``, which may be awaited; no tensor is read.

    Raises BadFileError for whatever contradicts the format, UnsupportedError for a dtype that paring cannot
    hold.
    """
    try:
        coming = awaited(path)
        with path.open("rb") if coming is None else BytesIO(coming.head) as file:
            state = file_state(file.fileno()) if coming is None else AWAY
            nbytes = state[0] if coming is None else coming.nbytes
            header, begin = _read_header(file, path, nbytes)
    except OSError as error:
        raise BadFileError(f"{path} cannot be read: {error.strerror}") from None
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise BadFileError(f"{path}: __metadata__ must map names to text")
    infos = [_parse_entry(path, name, entry, begin) for name, entry in header.items()]
    infos.sort(key=lambda info: (info.start, info.stop))
    _check_layout(path, infos, begin, nbytes)
    return Contents(tuple(infos), metadata, nbytes, state)


def read_tensor(info: TensorInfo, state: tuple[int, int]) -> Stored:
    """Read one tensor; its array is read-only.

    It is read, not mapped: a map of a file that is cut short meanwhile kills the process (SIGBUS), and its
    pages escape a memory budget. The copy costs less than any work that follows. The file is opened for each
    read, so that a checkpoint of hundreds of shards holds no descriptors. Raises BadFileError when the file
    has changed.
    """
    raw = np.empty(info.nbytes, np.uint8)
    try:
        with info.file.open("rb", buffering=0) as file:
            file.seek(info.start)
            done = 0
            while done < raw.size:
                count = file.readinto(raw.data[done : done + _CHUNK])
                if not count:
                    break
                done += count
            changed = done < raw.size or file_state(file.fileno()) != state
    except OSError as error:
        raise BadFileError(f"{info.file}: tensor {info.name!r} cannot be read: {error.strerror}") from None
    if changed:
        raise BadFileError(f"{info.file} was changed after it was opened: run the command again")
    raw.flags.writeable = False
    return from_bytes(info.dtype, info.shape, raw)


def write_safetensors(
    path: str | Path,
    tensors: Iterable[tuple[str, Stored]] | Mapping[str, Stored],
    metadata: Mapping[str, str] | None = None,
    *,
    layout: Iterable[tuple[str, str, Sequence[int]]] | None = None,
    overwrite: bool = False,
    check: Callable[[Path], None] | None = None,
) -> None:
    """Write ``tensors`` to the safetensors file ``path``, whole or not at all.

    ``layout`` (name, dtype code, shape for each tensor) makes it a stream: the header is written first, then
    each tensor at its place as it comes, in any order, one in memory at a time. Without it all are held at
    once. As the reference library does, the file has wide dtypes first, then names in order, so that every
    tensor is aligned; the same tensors and metadata give the same bytes in whatever order they come.
    ``check`` is called with the complete file before it takes its place, and may refuse it by raising.

    Raises OutputError, BadValueError when the tensors are not those of ``layout``, UnsupportedError for a
    dtype that has no place in the container.
    """
    stream: Iterable[tuple[str, Stored]] = tensors.items() if isinstance(tensors, Mapping) else tensors
    if layout is None:
        stream = list(stream)
        layout = [(name, tensor.dtype, tensor.shape) for name, tensor in stream]
    head, places = plan_file(Path(path), layout, metadata or {})
    check_room(path, max([len(head), *(place.stop for place in places.values())]))
    with atomic_file(path, overwrite) as file:
        file.write(head)
        for name, tensor in stream:
            place = places.pop(name, None)
            if place is None:
                raise BadValueError(f"{path}: tensor {name!r} is written twice, or was never announced")
            _write_tensor(file, place, tensor)
        if places:
            raise BadValueError(f"{path}: tensor {next(iter(places))!r} was announced but never written")
        if check is not None:
            file.flush()
            check(Path(file.name))


def header_bytes(layout: Iterable[tuple[str, str, Sequence[int]]], metadata: Mapping[str, str]) -> int:
    """The bytes that :func:`write_safetensors` puts before the tensors' own."""
    return len(plan_file(Path(), layout, metadata)[0])


def _read_header(file: BinaryIO, path: Path, size: int) -> tuple[dict[str, Any], int]:
    """The header, and the offset at which the tensors begin."""
    head = file.read(64)
    if not head:
        raise BadFileError(f"{path} is empty: download or save it again")
    if len(head) < 8:
        raise BadFileError(f"{path} is {len(head)} bytes long, too short to be a safetensors file")
    length = int.from_bytes(head[:8], "little")
    if length > min(size - 8, MAX_HEADER):
        what = disguise(head) if head[8:9] != b"{" else None
        if what:
            raise BadFileError(f"{path} {what}")
        if length > MAX_HEADER:
            raise BadFileError(
                f"{path}: a header of {length} bytes is over the limit of {MAX_HEADER}: not safetensors"
            )
        raise BadFileError(
            f"{path} is truncated: the file ends {length + 8 - size} bytes early, within its header: "
            "download it again"
        )
    file.seek(8)
    raw = file.read(length)
    if not raw.startswith(b"{"):
        raise BadFileError(f"{path} {disguise(head) or 'has no JSON header: it is not a safetensors file'}")
    return parse_json(raw, f"{path}: the header"), 8 + length


def _parse_entry(path: Path, name: str, entry: object, begin: int) -> TensorInfo:
    def bad(why: str) -> BadFileError:
        return BadFileError(f"{path}: tensor {name!r} {why}")

    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise bad("must be described by its dtype, shape and data_offsets, and nothing else")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str):
        raise bad("has a dtype that is not text")
    if dtype not in STORAGE:
        raise UnsupportedError(f"{path}: tensor {name!r} has the unknown dtype {dtype[:40]!r}")
    if not _is_counts(shape):
        raise bad("has a shape that is not a list of whole numbers, 0 or more")
    if len(shape) > MAX_AXES:
        raise bad(f"has {len(shape)} axes, more than {MAX_AXES}")
    if math.prod(axis for axis in shape if axis) * itemsize(dtype) >= 1 << 63:
        raise bad(f"has a shape whose size overflows: {shape}")
    if not _is_counts(offsets) or len(offsets) != 2:
        raise bad("has data_offsets that are not two whole numbers, 0 or more")
    start, stop = offsets
    if stop - start != (needed := math.prod(shape) * itemsize(dtype)):
        raise bad(f"takes {needed} bytes as {dtype} {shape}, but its data_offsets span {stop - start}")
    return TensorInfo(name, dtype, tuple(shape), path, begin + start, begin + stop)


def _is_counts(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _check_layout(path: Path, infos: Sequence[TensorInfo], begin: int, size: int) -> None:
    """Tensors, sorted by offset, must fill the file from ``begin`` to its end without holes or overlaps."""
    end, last = begin, "the header"
    for info in infos:
        if info.start > end:
            raise BadFileError(f"{path}: a hole of {info.start - end} bytes between {last} and {info.name!r}")
        if info.start < end:
            raise BadFileError(f"{path}: tensor {info.name!r} overlaps {last}")
        end, last = info.stop, repr(info.name)
    if end > size:
        raise BadFileError(f"{path} is truncated: the file ends {end - size} bytes early: download it again")
    if end < size:
        raise BadFileError(f"{path}: {size - end} bytes follow {last}, the last that its header names")


def plan_file(
    path: Path, layout: Iterable[tuple[str, str, Sequence[int]]], metadata: Mapping[str, str]
) -> tuple[bytes, dict[str, TensorInfo]]:
    """The first bytes of a file (length and header), and the place of each tensor in it. Raises BadValueError
    for names and metadata that no file can hold, UnsupportedError for unknown dtypes and headers that are too
    large.
    """
    specs = list(layout)
    for name, dtype, _ in specs:
        if dtype not in STORAGE:
            raise UnsupportedError(f"{path}: tensor {name!r} has the unknown dtype {dtype!r}")
    if len({name for name, _, _ in specs}) < len(specs) or any(
        name == "__metadata__" for name, _, _ in specs
    ):
        raise BadValueError(f"{path}: two tensors of one name, or one named __metadata__")
    if not all(isinstance(text, str) for pair in metadata.items() for text in pair):
        raise BadValueError(f"{path}: metadata must map names to text")
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    relative: list[tuple[str, str, tuple[int, ...], int, int]] = []
    end = 0
    for name, dtype, shape in sorted(specs, key=lambda spec: (-itemsize(spec[1]), spec[0])):
        start, end = end, end + math.prod(shape) * itemsize(dtype)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
        relative.append((name, dtype, tuple(shape), start, end))
    try:
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeError:
        raise BadValueError(f"{path}: a name or the metadata is not valid text") from None
    text += b" " * (-len(text) % 8)  # so that the tensors begin aligned
    if len(text) > MAX_HEADER:
        raise UnsupportedError(f"{path}: names and metadata take {len(text)} bytes, more than {MAX_HEADER}")
    begin = 8 + len(text)
    places = {
        name: TensorInfo(name, dtype, shape, path, begin + start, begin + stop)
        for name, dtype, shape, start, stop in relative
    }
    return len(text).to_bytes(8, "little") + text, places


def _write_tensor(file: BinaryIO, place: TensorInfo, tensor: Stored) -> None:
    if (tensor.dtype, tensor.shape, tensor.data.dtype) != (place.dtype, place.shape, STORAGE[place.dtype]):
        raise BadValueError(
            f"{place.file}: tensor {place.name!r} is {tensor.dtype} {tensor.shape} "
            f"(held as {tensor.data.dtype}), but was announced as {place.dtype} {place.shape}"
        )
    file.seek(place.start)
    view = raw_bytes(tensor)
    for first in range(0, len(view), _CHUNK):
        file.write(view[first : first + _CHUNK])


def raw_bytes(tensor: Stored) -> memoryview:
    """The tensor's little-endian bytes; a view, without a copy."""
    return np.ascontiguousarray(tensor.data).reshape(-1).view(np.uint8).data
