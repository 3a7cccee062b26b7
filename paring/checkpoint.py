"""Checkpoints of every kind, opened lazily: headers are read and checked, tensors are read one by one.

A checkpoint is a ``.safetensors`` file, a file that ``torch.save`` wrote, an index of shards, or a folder
that holds one of these. :func:`open_checkpoint` finds out which and checks everything that can be known
without reading a tensor; :meth:`Checkpoint.read` then reads one. Metadata is shown as stored: names that
``save_model`` left out as aliases (``{"b.weight": "a.weight"}``) stay there and are not made into tensors.
"""

from __future__ import annotations

import hashlib
import threading
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path, PurePath
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from paring import awaited
from paring.dtypes import Stored
from paring.errors import BadFileError, BadValueError, UnsupportedError
from paring.folders import CONFIG, INDEX, choose
from paring.safetensors_io import (
    AWAY,
    MAX_HEADER,
    TensorInfo,
    raw_bytes,
    read_contents,
    read_tensor,
    write_safetensors,
)
from paring.torch_file import SUFFIXES, open_torch_file, read_torch_tensor
from paring.untrusted import read_json

if TYPE_CHECKING:
    import torch

__all__ = ["Checkpoint", "TensorInfo", "digest", "digest_sorted", "open_checkpoint", "write_checked",
           "write_safetensors"]  # fmt: skip

MAX_CONFIG = 16_000_000  # bytes of a JSON file beside a checkpoint


@dataclass(eq=False)
class Checkpoint:
    """An open checkpoint; iterates over the names of its tensors, by file and then by offset.

    ``files`` hold the tensors, ``index`` names them where there are shards, ``nbytes`` is the tensor files'
    size as stored. ``metadata`` joins that of all files, the first file's word standing where two differ.
    ``others`` names what a PyTorch file holds beside tensors; nothing of that is read. Reading is safe from
    several threads.
    """

    path: Path
    files: tuple[Path, ...]
    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]
    nbytes: int
    others: tuple[str, ...] = ()
    index: Path | None = None
    _states: dict[Path, tuple[int, int]] = field(default_factory=dict, repr=False)
    _mapped: dict[str, torch.Tensor] = field(default_factory=dict, repr=False)
    _fetching: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def read(self, name: str) -> Stored:
        """The tensor ``name``, in memory of its own and read-only.

        Raises KeyError for an unknown name, BadFileError when the file has changed since it was opened.
        """
        self.fetch()
        info = self.tensors[name]
        if info.file.suffix in SUFFIXES:
            return read_torch_tensor(info, self._mapped[name], self._states[info.file])
        return read_tensor(info, self._states[info.file])

    def fetch(self) -> None:
        """Have all files here: those that are on the Hub still are downloaded, once.

        Raises HubError when they cannot be, BadFileError when they are not what their headers said.
        """
        if AWAY not in self._states.values():
            return
        with self._fetching:
            away = [file for file, state in self._states.items() if state == AWAY]
            awaited.bring(away)
            announced: dict[Path, list[TensorInfo]] = {file: [] for file in away}
            for info in self.tensors.values():
                if info.file in announced:
                    announced[info.file].append(info)
            for file in away:
                contents = read_contents(file)
                if contents.tensors != tuple(announced[file]):
                    raise BadFileError(f"{file} is not what its header said it is: download it again")
                self._states[file] = contents.state

    def digest(self) -> str:
        """:func:`digest` of all tensors, reading one at a time."""
        return digest_sorted((name, self.read(name)) for name in sorted(self.tensors))

    def config(self, filename: str) -> dict[str, Any] | None:
        """The JSON object in ``filename`` beside the tensors (``"adapter_config.json"``), or None.

        Raises BadFileError when it is not sound JSON, gives a key twice or is larger than ``MAX_CONFIG``.
        """
        path = self._beside(filename)
        return read_json(path, MAX_CONFIG) if path.exists() else None

    @property
    def inputs(self) -> tuple[Path, ...]:
        """Every file that this checkpoint is made of, none of which may be an output: those of the tensors,
        the index, the adapter's configuration.
        """
        rest = (self.index, self._beside(CONFIG))
        return (*self.files, *(path for path in rest if path is not None and path.exists()))

    def _beside(self, filename: str) -> Path:
        return (self.path if self.path.is_dir() else self.path.parent) / filename

    def refuse_changed(self, file: Path, state: tuple[int, int]) -> None:
        """Raise BadFileError when the state of ``file`` is not the one it was opened in."""
        if self._states.get(file, state) != state:
            raise BadFileError(f"{file} was changed after it was opened: run the command again")

    def close(self) -> None:
        """Let go of mapped files; tensors of PyTorch files can no longer be read."""
        self._mapped.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def __contains__(self, name: object) -> bool:
        return name in self.tensors


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open the checkpoint at ``path``: a file, an index of shards, or a folder that holds one.

    In a folder, ``adapter_model.safetensors`` comes first, then ``model.safetensors``, an index of shards,
    the only ``.safetensors`` file there is, ``adapter_model.bin``, ``pytorch_model.bin``, an index of such.

    Raises BadFileError for what is missing, damaged or contradicts itself, UnsupportedError for tensors of a
    kind that paring cannot hold.
    """
    path = Path(path)
    if "\0" in str(path):
        raise BadFileError(f"{str(path)!r} is not a path")
    try:
        file = path / choose(awaited.names_in(path), path) if path.is_dir() else path
        if not awaited.exists(file):
            raise BadFileError(
                f"{path} does not exist: expected a checkpoint file, or a folder that holds one"
            )
        if file.exists() and not file.is_file():
            raise BadFileError(f"{file} is not a regular file")
        opened = _open_index(file) if file.name.endswith(INDEX) else _open_file(file)
    except OSError as error:
        raise BadFileError(f"{path} cannot be read: {error.strerror}") from None
    opened.path = path
    return opened


def write_checked(
    path: str | Path,
    tensors: Iterable[tuple[str, Stored]] | Mapping[str, Stored],
    metadata: Mapping[str, str] | None = None,
    *,
    layout: Iterable[tuple[str, str, Sequence[int]]] | None = None,
    overwrite: bool = False,
) -> None:
    """:func:`write_safetensors`, and before the file takes its place every tensor is read again: its CRC-32
    must be that of what was written.

    Raises BadFileError, naming a tensor that does not read back, and what :func:`write_safetensors` raises.
    """
    sums: dict[str, int] = {}

    def stream() -> Iterator[tuple[str, Stored]]:
        for name, tensor in tensors.items() if isinstance(tensors, Mapping) else tensors:
            sums[name] = zlib.crc32(raw_bytes(tensor))
            yield name, tensor

    def check(partial: Path) -> None:
        with open_checkpoint(partial) as again:
            for name, expected in sums.items():
                if zlib.crc32(raw_bytes(again.read(name))) != expected:
                    raise BadFileError(f"{path}: {name} does not read back as written; is the disk sound?")

    write_safetensors(path, stream(), metadata, layout=layout, overwrite=overwrite, check=check)


def digest(tensors: Iterable[tuple[str, Stored]]) -> str:
    """The canonical digest of named tensors: 64 hexadecimal digits, whatever files they came in.

    It is the SHA-256 of the tensors' records one after another, in ascending order of the names' UTF-8 bytes.
    A record is, with every integer an unsigned little-endian one of 64 bits:

    1. the length in bytes of the name, then the name in UTF-8;
    2. the length in bytes of the dtype, then the dtype's safetensors code in ASCII (``BF16``);
    3. the number of axes, then the size of each;
    4. the elements in row-major order, little endian, as a safetensors file stores them.

    All tensors are held at once, to sort them; :meth:`Checkpoint.digest` needs one at a time. Raises
    BadValueError when a name is given twice.
    """
    return digest_sorted(sorted(tensors, key=itemgetter(0)))


def digest_sorted(tensors: Iterable[tuple[str, Stored]]) -> str:
    """:func:`digest` of tensors in ascending order of their names, one held at a time; raises as it does."""

    def number(value: int) -> bytes:
        return value.to_bytes(8, "little")

    state = hashlib.sha256()
    last = None
    for name, tensor in tensors:
        if name == last:
            raise BadValueError(f"tensor {name!r} is given twice")
        last = name
        for text in (name.encode(), tensor.dtype.encode()):
            state.update(number(len(text)) + text)
        state.update(b"".join(map(number, (len(tensor.shape), *tensor.shape))))
        state.update(raw_bytes(tensor))
    return state.hexdigest()


def _open_file(file: Path) -> Checkpoint:
    if file.suffix in SUFFIXES:
        infos, mapped, others, state = open_torch_file(file)
        return Checkpoint(file, (file,), infos, {}, state[0], others, _states={file: state}, _mapped=mapped)
    contents = read_contents(file)
    infos = {info.name: info for info in contents.tensors}
    return Checkpoint(
        file, (file,), infos, contents.metadata, contents.nbytes, _states={file: contents.state}
    )


def _open_index(index: Path) -> Checkpoint:
    """Open the shards that ``index`` names; it and they must agree on every tensor."""
    weight_map = read_json(index, MAX_HEADER).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise BadFileError(f"{index}: weight_map must map the names of tensors to those of files")
    if not weight_map:
        raise BadFileError(f"{index}: weight_map names no tensors")
    shards = {name: _locate_shard(index, name) for name in sorted(set(weight_map.values()))}
    for found in sorted(index.parent.glob(f"{index.name.split('.')[0]}-*-of-*.safetensors")):
        if found.name not in shards:
            raise BadFileError(f"{found} is a shard that {index.name} does not name: of another model?")
    whole = Checkpoint(index, tuple(shards.values()), {}, {}, 0, index=index)
    for file in shards.values():
        part = _open_file(file)
        for name in part:
            if name in whole.tensors:
                raise BadFileError(f"{file}: tensor {name!r} is also in {whole.tensors[name].file}")
            if name not in weight_map:
                raise BadFileError(f"{file}: tensor {name!r} is not named by {index.name}")
        whole.tensors.update(part.tensors)
        whole.metadata = part.metadata | whole.metadata
        whole.nbytes += part.nbytes
        whole.others += part.others
        whole._states.update(part._states)
        whole._mapped.update(part._mapped)
    for name, shard in weight_map.items():
        if name not in whole.tensors or whole.tensors[name].file != shards[shard]:
            raise BadFileError(
                f"{shards[shard]}: tensor {name!r} is missing, though {index.name} places it there"
            )
    return whole


def _locate_shard(index: Path, name: str) -> Path:
    """The file that ``index`` calls ``name``: below the index's folder, also after links are followed.

    One link out is known and allowed: the Hub's cache keeps ``snapshots/REVISION/FILE`` as links into
    ``blobs`` of the same repository.
    """
    inside = PurePath(name)
    if not inside.name or inside.is_absolute() or ".." in inside.parts or "\\" in name or "\0" in name:
        raise BadFileError(f"{index}: weight_map names {name!r}, which is not a file in its folder")
    file = index.parent / inside
    if not file.is_file() and awaited.awaited(file) is None:
        raise BadFileError(f"{file} is missing, though {index.name} names it: download it again")
    if file.name.endswith(INDEX) or file.suffix not in (".safetensors", *SUFFIXES):
        raise UnsupportedError(f"{index}: weight_map names {name!r}, which is not a kind of checkpoint file")
    home, real = index.parent.resolve(), file.resolve()
    roots = [home, *(parent.parent / "blobs" for parent in home.parents if parent.name == "snapshots")]
    if not any(root in real.parents for root in roots):
        raise BadFileError(f"{file} is a link that leaves its folder, to {real}: copy the file there")
    return file
