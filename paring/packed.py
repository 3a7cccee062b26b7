"""Reading packed files: a packed file is a checkpoint whose tensors are decoded as they are read.

The container is an ordinary ``.safetensors`` file, already checked by :mod:`paring.checkpoint`. Its
manifest says what is in it; each payload carries a CRC-32, checked whenever it is read. An unknown codec
refuses only the tensors that need it. ``docs/format.md`` is the specification.
"""

from __future__ import annotations

import os
import threading
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from paring import codecs, manifest, mos
from paring.bitmasks import has_bitmasks, open_bitmasks
from paring.checkpoint import Checkpoint, open_checkpoint
from paring.codecs import ternary
from paring.codecs.deflated import exactly
from paring.codecs.ternary import Ternary
from paring.contents import Held, read_contents
from paring.dtypes import Stored, itemsize, numel
from paring.errors import BadFileError, UnsupportedError
from paring.folders import CONFIG
from paring.packing import FORMAT, MANIFEST, MAX_BESIDE, VERSION, padded
from paring.safetensors_io import raw_bytes

_BATCH = 32 << 20  # bytes; tensors of a shared payload are decoded and kept in batches of about this size
_KEPT = 2  # batches: modules often alternate between coded factors and carried scalars
_DEEPEST = 8  # tensors told by others, which are told by others, ...


@dataclass(frozen=True, slots=True, eq=False)
class _Batch:
    """Tensors of one payload that are decoded together: numbers in ``held.specs``."""

    held: Held
    numbers: tuple[int, ...]


@dataclass(eq=False)
class Packed(Checkpoint):
    """An open packed file. ``tensors`` and ``metadata`` are those of what it decodes to; ``nbytes`` is its
    own size.

    ``facts`` is the manifest, ``digest_recorded`` the canonical digest of the decoded tensors as written.

    Tensors that share a payload are decoded some 32 MiB at once, and the last two such batches are kept: who
    reads name by name, in whatever order, does not decode a payload again for each of its tensors.
    """

    container: Checkpoint = field(kw_only=True)
    facts: Mapping[str, Any] = field(kw_only=True)
    payloads: tuple[Held, ...] = field(kw_only=True)
    digest_recorded: str = field(kw_only=True)
    threads: int = 1

    def __post_init__(self) -> None:
        self._batches = [batch for held in self.payloads for batch in _batches(held)]
        self._places = {
            batch.held.specs[number].name: (batch, at)
            for batch in self._batches
            for at, number in enumerate(batch.numbers)
        }
        self._names = [spec.name for held in self.payloads for spec in held.specs]
        self._lock = threading.RLock()  # entered again for tensors that others are told by
        self._references: dict[int, Stored] = {}
        self._depth = 0
        self._decode_kept = lru_cache(maxsize=_KEPT)(self._decode)
        self._payload_kept = lru_cache(maxsize=_KEPT)(self.payload)

    def read(self, name: str) -> Stored:
        """Decode one tensor, in the dtype of the source; read-only. Reads only its payload.

        Raises KeyError for an unknown name, and what :meth:`read_all` raises.
        """
        batch, at = self._places[name]
        if len(batch.numbers) == 1:
            return self._decode(batch)[0]
        with self._lock:  # so that threads wait for one decoding rather than hold several
            return self._decode_kept(batch)[at]

    def read_all(self, names: list[str] | None = None) -> Iterator[tuple[str, Stored]]:
        """Decode many tensors, payload by payload; keeps none of them.

        Raises BadFileError for damage, naming the payload, and UnsupportedError for a codec of a newer
        paring.
        """
        wanted = set(self.tensors if names is None else names)
        if unknown := wanted - self.tensors.keys():
            raise KeyError(min(unknown))
        for batch in self._batches:
            held = batch.held
            chosen = tuple(number for number in batch.numbers if held.specs[number].name in wanted)
            if chosen:
                found = [held.specs[number].name for number in chosen]
                yield from zip(found, self._decode(_Batch(held, chosen)), strict=True)

    def planes(self, name: str) -> Ternary:
        """One tensor as bit planes and scales, not dequantised. Raises KeyError for an unknown name,
        UnsupportedError for other codecs.
        """
        batch, at = self._places[name]
        held, number = batch.held, batch.numbers[at]
        if held.codec != ternary.ID or held.specs[number].ones:
            raise UnsupportedError(
                f"{self.path}: {name} is not held as plain ternary planes but as {held.codec}"
            )
        codec = self._codec(held)
        found: Ternary = codec.planes(self.payload(held), [spec.shape for spec in held.specs], number)
        return found

    def close(self) -> None:
        """Let go of what was kept for the next read."""
        super().close()
        self._decode_kept.cache_clear()
        self._payload_kept.cache_clear()
        self._references.clear()

    def _decode(self, batch: _Batch) -> list[Stored]:
        """The tensors of a batch, read-only."""
        held = batch.held
        codec = self._codec(held)
        # a payload of several batches is read and checked once for all of them
        several = len(batch.numbers) < len(held.specs)
        raw = self._payload_kept(held) if several else self.payload(held)
        shapes, dtypes = [spec.shape for spec in held.specs], [spec.payload_dtype for spec in held.specs]

        def look(numbers: Sequence[int]) -> dict[int, Stored]:
            return self._look(held, numbers)

        parts = codecs.decode(codec, raw, shapes, dtypes, batch.numbers, self.threads, look)
        return [_sealed(held.specs[i].finish(part)) for i, part in zip(batch.numbers, parts, strict=True)]

    def _look(self, held: Held, numbers: Sequence[int]) -> dict[int, Stored]:
        """The tensors by which those of ``held`` are told: earlier ones, so that this ends, and few deep."""
        with self._lock:
            if max(numbers, default=-1) >= held.first or self._depth >= _DEEPEST:
                raise BadFileError(
                    f"{self.path}: payload {held.entry!r} is damaged: it refers to tensors behind it, or "
                    "through too many others"
                )
            if not self._depth and sum(tensor.nbytes for tensor in self._references.values()) > _BATCH:
                self._references.clear()
            self._depth += 1
            try:
                for number in numbers:
                    if number not in self._references:
                        self._references[number] = self.read(self._names[number])
                return {number: self._references[number] for number in numbers}
            finally:
                self._depth -= 1

    def config(self, filename: str) -> dict[str, Any] | None:
        """The adapter's configuration as packed; None for any other file."""
        found = self.facts.get("config")
        return dict(found) if filename == CONFIG and isinstance(found, dict) else None

    def beside(self) -> Iterator[tuple[str, bytes]]:
        """The files that lay beside the source, by name. Raises BadFileError for damage."""
        for name, entry, crc, nbytes, size in self.facts.get("beside", ()):
            info = self.container.tensors.get(entry)
            if info is None or info.dtype != "U8" or info.nbytes != padded(nbytes) or size > MAX_BESIDE:
                raise BadFileError(f"{self.path}: the file {name!r} in it is missing, or of another size")
            raw = raw_bytes(self.container.read(entry))[:nbytes]
            if zlib.crc32(raw) != crc:
                raise BadFileError(f"{self.path}: the file {name!r} in it is damaged: get the file again")
            yield name, exactly(raw, size, f"{self.path}: the file {name!r}").tobytes()

    def payload(self, held: Held) -> memoryview:
        """The bytes of a payload. Raises BadFileError when they are not those that were written."""
        raw = raw_bytes(self.container.read(held.entry))[: held.nbytes]
        if zlib.crc32(raw) != held.crc:
            raise BadFileError(
                f"{self.path}: payload {held.entry!r} is damaged (its checksum differs): get the file again"
            )
        return raw

    def _codec(self, held: Held) -> ModuleType:
        codec = codecs.find(held.codec, held.version)
        if codec is None:
            raise UnsupportedError(
                f"{self.path}: tensor {held.specs[0].name} is coded with {held.codec} version "
                f"{held.version}, which this paring does not know: upgrade it"
            )
        return codec


def open_source(path: str | os.PathLike[str], threads: int = 1, *, whole: bool = False) -> Checkpoint:
    """Open any checkpoint, packed files included; ``FILE#NAME`` is one adapter of a pool, by name or number.

    A compact MoS file opens as the LoRA that it expands to, a checkpoint with the bitmasks of
    compressed-tensors as the dense one.

    Of a pool of one adapter, ``FILE`` is that; of several it is refused, unless it is wanted ``whole``: as a
    packed file of tensors ``NAME/TENSOR``. Raises what :func:`open_checkpoint` raises, BadFileError or
    UnsupportedError for a packed file that is damaged or newer than this paring.
    """
    file, mark, wanted = str(path).rpartition("#")
    chosen = bool(mark and file) and not Path(path).exists() and Path(file).exists()
    container = open_checkpoint(Path(file if chosen else path))
    if container.metadata.get("format") == mos.FORMAT:
        from paring.mos.file import open_mos

        return open_mos(container)
    if has_bitmasks(container):
        return open_bitmasks(container)
    opened = open_packed(container, threads) if is_packed(container) else container
    if isinstance(opened, Packed) and (chosen or not whole):
        from paring.pooling.members import holds_adapters, member

        if holds_adapters(opened):
            return member(opened, wanted if chosen else None)
    if chosen:
        raise UnsupportedError(f"{file} is no pool of adapters to choose {wanted!r} from")
    return opened


def is_packed(checkpoint: Checkpoint) -> bool:
    """Whether this is the container of a packed file."""
    return checkpoint.metadata.get("format") == FORMAT


def open_packed(container: Checkpoint, threads: int = 1) -> Packed:
    """The packed file in ``container``, with its manifest read and checked. Raises BadFileError,
    UnsupportedError for a newer format version.
    """
    where = str(container.path)
    version = container.metadata.get("version")
    if version != VERSION:
        raise UnsupportedError(
            f"{where} is a packed file of format version {version}; this paring reads {VERSION}: upgrade it"
        )
    if MANIFEST not in container.tensors:
        raise BadFileError(f"{where} calls itself a packed file but has no manifest")
    facts = manifest.load(raw_bytes(container.read(MANIFEST)), where)
    try:
        tensors, payloads = read_contents(container, facts)
        recorded = container.metadata["digest"]
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise BadFileError(
            f"{where}: the manifest makes no sense ({type(error).__name__}: {error})"
        ) from None
    return Packed(
        container.path, container.files, tensors, facts.get("metadata", {}), container.nbytes,
        index=container.index, container=container, facts=facts, payloads=payloads,
        digest_recorded=recorded, threads=threads,
    )  # fmt: skip


def _sealed(tensor: Stored) -> Stored:
    data = np.asarray(tensor.data).view()
    data.flags.writeable = False
    return Stored(tensor.dtype, data)


def _batches(held: Held) -> Iterator[_Batch]:
    """The tensors of a payload in runs that decode to at most ``_BATCH`` bytes, a larger one alone."""
    run: list[int] = []
    size = 0
    for number, spec in enumerate(held.specs):
        nbytes = numel(spec.shape) * max(itemsize(spec.dtype), itemsize(spec.payload_dtype))
        if run and size + nbytes > _BATCH:
            yield _Batch(held, tuple(run))
            run, size = [], 0
        run.append(number)
        size += nbytes
    if run:
        yield _Batch(held, tuple(run))
