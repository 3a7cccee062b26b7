"""Writing packed files: tensors to payloads, payloads and facts to a file. ``docs/format.md`` is the
specification.

Headers would outweigh small tensors, so tensors share payloads: those whose coding takes 64 KiB or more get
one of their own, named after them; the rest of a codec's tensors are packed together.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from paring import codecs, manifest
from paring.codecs.deflated import written
from paring.dtypes import Stored, cast, from_f32
from paring.safetensors_io import header_bytes, write_safetensors

FORMAT, VERSION = "paring", "1"
MANIFEST = "manifest"
#: bytes of a file that lies beside the source, at most
MAX_BESIDE = 256 << 20
OWN_PAYLOAD = 65_536  # bytes from which a tensor gets a payload of its own
_ALIGN = 8


@dataclass(frozen=True, slots=True)
class Spec:
    """A tensor as a reader will see it, and how its payload holds it.

    ``stored_as`` is the dtype in the payload where that differs; ``ones`` says that the decoded values are
    added to one, as for (IA)^3 vectors.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    stored_as: str | None = None
    ones: bool = False

    @property
    def payload_dtype(self) -> str:
        """The dtype that the codec decodes to."""
        return "F64" if self.ones else self.stored_as or self.dtype

    def finish(self, part: Stored) -> Stored:
        """What the codec decoded, made the tensor that a reader sees."""
        if self.ones:
            return from_f32(part.data + 1.0, self.dtype, self.name)
        return cast(part, self.dtype, self.name)


@dataclass(frozen=True, eq=False)
class Payload:
    """Bytes of one codec that hold the tensors ``specs``, in order. ``entry`` names it in the container."""

    entry: str
    codec: str
    version: int
    data: bytes
    specs: tuple[Spec, ...]

    @property
    def nbytes(self) -> int:
        return len(self.data)

    @cached_property
    def crc(self) -> int:
        """The CRC-32 of the data, taken once: a carried payload is in every trial of a budget."""
        return zlib.crc32(self.data)


@dataclass(frozen=True, eq=False)
class Deferred:
    """As a :class:`Payload`, of ``nbytes`` bytes with the checksum ``crc``, which ``fetch`` gives when they
    are written.
    """

    entry: str
    codec: str
    version: int
    nbytes: int
    crc: int
    specs: tuple[Spec, ...]
    fetch: Callable[[], bytes]

    @property
    def data(self) -> bytes:
        return self.fetch()


@dataclass(frozen=True, eq=False)
class Beside:
    """A file that lies beside the source: its name there, its bytes deflated, and how many it has."""

    name: str
    data: bytes
    size: int

    @classmethod
    def of(cls, name: str, content: bytes) -> Beside:
        return cls(name, written(content), len(content))


def payloads(items: Sequence[tuple[Spec, Any]]) -> list[Payload]:
    """Payloads of tensors: of each codec's items one that they share, and one each for the large ones.

    Large tensors that are alike share theirs, where their codec keeps such only once.
    """
    shared: dict[ModuleType, list[tuple[Spec, Any]]] = {}
    large: dict[Hashable, list[tuple[Spec, Any]]] = {}
    for spec, item in items:
        codec = codecs.of(item)
        if codec.most_bytes(item) < OWN_PAYLOAD:
            shared.setdefault(codec, []).append((spec, item))
        else:
            large.setdefault(codec.key(item) if hasattr(codec, "key") else id(item), []).append((spec, item))
    alone = []
    for alike in large.values():
        codec = codecs.of(alike[0][1])
        data = codec.encode([item for _, item in alike])
        if len(data) >= OWN_PAYLOAD:
            specs = tuple(spec for spec, _ in alike)
            alone.append(Payload(specs[0].name, codec.ID, codec.VERSION, data, specs))
        else:
            shared.setdefault(codec, []).extend(alike)
    packs = [
        Payload(
            codec.PACK, codec.ID, codec.VERSION, codec.encode([item for _, item in small]),
            tuple(spec for spec, _ in small),
        )
        for codec, small in shared.items()
    ]  # fmt: skip
    return packs + alone


@dataclass(frozen=True, eq=False)
class Image:
    """A packed file before it is written: ``facts`` are what the manifest says beside the tensors;
    ``beside``, where it is not None, are files that lay beside the source.
    """

    payloads: Sequence[Payload | Deferred]
    facts: dict[str, Any]
    beside: Sequence[Beside] | None = None

    @cached_property
    def _names(self) -> list[str]:
        """The container's entry of each payload, then of each file."""
        taken = {MANIFEST, "__metadata__"}
        names = []
        files = (f"file:{file.name}" for file in self.beside or ())
        for entry in (*(payload.entry for payload in self.payloads), *files):
            while entry in taken:  # a tensor may bear any name
                entry += "_"
            taken.add(entry)
            names.append(entry)
        return names

    @cached_property
    def _manifest(self) -> bytes:
        specs = [spec for payload in self.payloads for spec in payload.specs]
        table: dict[tuple[str, tuple[int, ...], str | None], int] = {}
        index = []
        for spec in specs:
            key = (spec.dtype, spec.shape, spec.stored_as)
            index.append(table.setdefault(key, len(table)))
        told = {
            **self.facts,
            "names": [spec.name for spec in specs],
            "specs": [[dtype, list(shape), *([as_] if as_ else [])] for dtype, shape, as_ in table],
            "tensors": index,
            "payloads": [
                [entry, p.codec, p.version, p.crc, p.nbytes, len(p.specs)]
                for entry, p in zip(self._names, self.payloads, strict=False)
            ],
        }
        if self.beside is not None:
            told["beside"] = [
                [file.name, entry, zlib.crc32(file.data), len(file.data), file.size]
                for file, entry in zip(self.beside, self._names[len(self.payloads) :], strict=True)
            ]
        if ones := [i for i, spec in enumerate(specs) if spec.ones]:
            told["ones"] = ones
        return manifest.dump(told)

    @cached_property
    def layout(self) -> list[tuple[str, str, tuple[int]]]:
        """Name, dtype and shape of the container's entries: the manifest and the payloads, padded."""
        sizes = [len(self._manifest), *(payload.nbytes for payload in self.payloads)]
        sizes += [len(file.data) for file in self.beside or ()]
        names = [MANIFEST, *self._names]
        return [(name, "U8", (padded(size),)) for name, size in zip(names, sizes, strict=True)]

    def entries(self) -> Iterator[tuple[str, Stored]]:
        """The container's entries, in the order of ``layout``; each is padded as it is asked for."""
        files = (file.data for file in self.beside or ())
        blobs = itertools.chain([self._manifest], (payload.data for payload in self.payloads), files)
        for (name, dtype, (size,)), data in zip(self.layout, blobs, strict=True):
            whole = data + bytes(size - len(data)) if len(data) < size else data
            yield name, Stored(dtype, np.frombuffer(whole, np.uint8))

    @cached_property
    def nbytes(self) -> int:
        """The size of the whole file in bytes; needs no payload but its length."""
        return header_bytes(self.layout, _metadata("0" * 64)) + sum(size for _, _, (size,) in self.layout)

    def decoded(self) -> list[tuple[str, Stored]]:
        """The tensors as a reader will decode them, in memory."""
        out: list[tuple[str, Stored]] = []

        def look(numbers: Sequence[int]) -> dict[int, Stored]:
            return {number: out[number][1] for number in numbers}

        for payload in self.payloads:
            codec = codecs.find(payload.codec, payload.version)
            assert codec is not None, "wrote with a codec that cannot be found"
            dtypes = [spec.payload_dtype for spec in payload.specs]
            shapes = [spec.shape for spec in payload.specs]
            parts = codecs.decode(codec, payload.data, shapes, dtypes, range(len(shapes)), 1, look)
            out += [(spec.name, spec.finish(part)) for spec, part in zip(payload.specs, parts, strict=True)]
        return out

    def write(
        self, path: Path, digest: str, check: Callable[[Path], None], *, overwrite: bool = False
    ) -> None:
        """Write the file, whole or not at all. ``digest`` is the canonical one of the decoded tensors;
        ``check`` reads the complete file again before it takes its place, and refuses it by raising.
        """
        told = _metadata(digest)
        write_safetensors(path, self.entries(), told, layout=self.layout, overwrite=overwrite, check=check)


def _metadata(digest: str) -> dict[str, str]:
    return {"format": FORMAT, "version": VERSION, "digest": digest}


def padded(nbytes: int) -> int:
    """The size of a container entry that holds ``nbytes`` bytes."""
    return nbytes + -nbytes % _ALIGN
