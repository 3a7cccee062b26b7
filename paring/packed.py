"""Reading packed files: a packed file is a checkpoint whose tensors are decoded as they are read.

The container is an ordinary ``.safetensors`` file, already checked by :mod:`paring.checkpoint`. Its
manifest says what is in it; each payload carries a CRC-32, checked whenever it is read. An unknown codec
refuses only the tensors that need it. ``docs/format.md`` is the specification.
"""

from __future__ import annotations

import os
import threading
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from paring import codecs, manifest
from paring.checkpoint import Checkpoint, TensorInfo, open_checkpoint
from paring.codecs import ternary
from paring.codecs.ternary import Ternary
from paring.dtypes import FLOATS, STORAGE, Stored, itemsize, numel
from paring.errors import BadFileError, UnsupportedError
from paring.packing import FORMAT, MANIFEST, VERSION, Spec, padded
from paring.safetensors_io import MAX_AXES, raw_bytes

_BATCH = 32 << 20  # bytes; tensors of a shared payload are decoded and kept in batches of about this size
_KEPT = 2  # batches: modules often alternate between coded factors and carried scalars
_MOST_ELEMENTS = 1 << 60  # of a tensor, empty axes left out: sizes in bytes then fit 63 bits


@dataclass(frozen=True, slots=True, eq=False)
class Held:
    """One payload: its container entry, codec, checksum, bytes, and the tensors in it."""

    entry: str
    codec: str
    version: int
    crc: int
    nbytes: int
    specs: tuple[Spec, ...]


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
        self._lock = threading.Lock()
        self._decode_kept = lru_cache(maxsize=_KEPT)(self._decode)
        self._payload_kept = lru_cache(maxsize=1)(self.payload)

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

    def _decode(self, batch: _Batch) -> list[Stored]:
        """The tensors of a batch, read-only."""
        held = batch.held
        codec = self._codec(held)
        # a payload of several batches is read and checked once for all of them
        several = len(batch.numbers) < len(held.specs)
        raw = self._payload_kept(held) if several else self.payload(held)
        shapes, dtypes = [spec.shape for spec in held.specs], [spec.payload_dtype for spec in held.specs]
        parts = codec.decode(raw, shapes, dtypes, batch.numbers, self.threads)
        return [_sealed(held.specs[i].finish(part)) for i, part in zip(batch.numbers, parts, strict=True)]

    def config(self, filename: str) -> dict[str, Any] | None:
        """The adapter's configuration as packed; None for any other file."""
        found = self.facts.get("config")
        return dict(found) if filename == "adapter_config.json" and isinstance(found, dict) else None

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


def open_source(path: str | os.PathLike[str], threads: int = 1) -> Checkpoint:
    """Open any checkpoint, packed files included. Raises what :func:`open_checkpoint` raises, and
    BadFileError or UnsupportedError for a packed file that is damaged or newer than this paring.
    """
    container = open_checkpoint(Path(path))
    return open_packed(container, threads) if is_packed(container) else container


def is_packed(checkpoint: Checkpoint) -> bool:
    """Whether this is the container of a packed file."""
    return checkpoint.metadata.get("format") == FORMAT


def open_packed(container: Checkpoint, threads: int = 1) -> Packed:
    """The packed file in ``container``, with its manifest read and checked."""
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
        tensors, payloads = _contents(container, facts)
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


def _contents(
    container: Checkpoint, facts: Mapping[str, Any]
) -> tuple[dict[str, TensorInfo], tuple[Held, ...]]:
    """The tensors and payloads that a manifest names, checked against each other and the container."""
    ones = {_count(index) for index in facts.get("ones", ())}
    specs = [
        _spec(name, facts["specs"][_count(index)], i in ones)
        for i, (name, index) in enumerate(zip(facts["names"], facts["tensors"], strict=True))
    ]
    tensors = {
        spec.name: TensorInfo(
            spec.name, spec.dtype, spec.shape, container.files[0], 0, numel(spec.shape) * itemsize(spec.dtype)
        )
        for spec in specs
    }
    payloads: list[Held] = []
    first = 0
    for entry, codec, version, crc, nbytes, count in facts["payloads"]:
        info = container.tensors.get(entry)
        if info is None or entry == MANIFEST or not isinstance(codec, str):
            raise ValueError(f"payload {entry!r} is missing")
        if info.dtype != "U8" or info.nbytes != padded(_count(nbytes)):
            raise ValueError(f"payload {entry!r} has another size or dtype than its entry")
        held = tuple(specs[first : first + _count(count)])
        payloads.append(Held(entry, codec, _count(version), _count(crc), nbytes, held))
        first += count
    if first != len(specs) or len(tensors) != len(specs) or max(ones, default=-1) >= len(specs):
        raise ValueError("names, tensors and payloads do not agree")
    if len({held.entry for held in payloads}) < len(payloads):
        raise ValueError("two payloads share an entry")
    return tensors, tuple(payloads)


def _spec(name: object, spec: list[Any], ones: bool) -> Spec:
    dtype, shape, stored_as = spec[0], tuple(map(_count, spec[1])), spec[2] if len(spec) > 2 else None
    floats = dtype in FLOATS and stored_as in (None, *FLOATS)
    if not isinstance(name, str) or not (floats or (dtype in STORAGE and stored_as is None and not ones)):
        raise ValueError(f"tensor {name!r} has no sound dtype")
    if len(shape) > MAX_AXES or numel([axis for axis in shape if axis]) >= _MOST_ELEMENTS:
        raise ValueError(f"tensor {name!r} has no sound shape")
    name.encode()  # a lone surrogate, which no file can hold, is a ValueError
    return Spec(name, dtype, shape, stored_as, ones)


def _count(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is not a count")
    return value
