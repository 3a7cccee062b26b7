"""Chunks of many models at once: where they stand, and the memory that a thread reads them into."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from paring.dtypes import itemsize, numel
from paring.errors import BadValueError
from paring.kernels import elementwise
from paring.merging.sources import Source

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
#: entries as stored, flat, and their dtype
Read = tuple[npt.NDArray[Any], str]


@dataclass(frozen=True, slots=True)
class Target:
    """A tensor of the result, and its name in each model; ``names[0]`` is the base's, None without one."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    names: tuple[str | None, ...]
    weights: tuple[float, ...]

    @property
    def numel(self) -> int:
        return numel(self.shape)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a chunk stands: in ``target``, from flat entry ``start`` on; ``index`` numbers the tensor."""

    target: Target
    index: int
    start: int

    @property
    def weights(self) -> F64:
        """The models' weights for this tensor ``(models,)``."""
        return np.array(self.target.weights)


@dataclass(slots=True)
class Chunk:
    """One chunk being read: ``vectors (models, k)``, ``base (k,)`` or None, ``base_bits (k,)`` as stored."""

    place: Place
    vectors: F32
    base: F32 | None
    base_bits: npt.NDArray[Any] | None

    @property
    def stop(self) -> int:
        return int(self.place.start + self.vectors.shape[1])


@dataclass(frozen=True, slots=True)
class Span:
    """Entries ``start:stop`` of the tensor number ``index``: what one thread works on."""

    index: int
    start: int
    stop: int


class Desk:
    """The memory that one thread works in.

    ``sources[0]`` is the base or None. With ``deltas``, vectors are differences from it, but for sources in
    ``updates``, which are differences already.
    """

    def __init__(
        self, sources: Sequence[Source | None], deltas: bool, updates: frozenset[int], device: str
    ) -> None:
        self._sources, self._deltas, self._updates, self._device = sources, deltas, updates, device
        self._raw = np.empty((len(sources), 0), np.uint8)
        self._vectors = np.empty(0, np.float32)
        self._base = np.empty(0, np.float32)

    def chunks(self, target: Target, span: Span, size: int) -> Iterator[Chunk]:
        """Read a span, then hand out its chunks of ``size`` entries."""
        bits = self._span(target, span)
        size = min(size, span.stop - span.start)
        self._room(size)
        for begin in range(0, span.stop - span.start, size):
            end = min(begin + size, span.stop - span.start)
            place = Place(target, span.index, span.start + begin)
            make = self._chunk if self._device == "cpu" else self._sent
            yield make(place, bits, begin, end)

    def rows(self, target: Target, span: Span) -> npt.NDArray[np.uint16] | None:
        """The bits of a span in all models, a base first ``(models, n or more)``; None where not all are
        bf16.
        """
        first = int(self._sources[0] is None)
        if set(self._dtypes(target)[first:]) != {"BF16"}:
            return None
        bits = self._span(target, span)
        rows = self._raw.view(np.uint16)
        for row, read in zip(rows[first:], bits[first:], strict=True):
            if read is not None and read[0].ctypes.data != row.ctypes.data:  # read to memory of its own
                row[: len(read[0])] = read[0]
        return rows[first:]

    def pieces(self, target: Target, index: int, starts: Sequence[int], size: int) -> F32:
        """Vectors ``(models, k)`` of the pieces of up to ``size`` entries that begin at ``starts``."""
        spans = [(start, min(start + size, target.numel)) for start in starts]
        total = sum(stop - start for start, stop in spans)
        bits: list[Read | None] = []
        for source, name, dtype in zip(self._sources, target.names, self._dtypes(target), strict=True):
            if source is None or name is None or dtype is None:
                bits.append(None)
                continue
            width, parts, at = itemsize(dtype), [], 0
            raw = np.empty(total * width, np.uint8)
            for start, stop in spans:
                parts.append(source.read(name, start, stop, raw[at:]))
                at += (stop - start) * width
            bits.append((np.concatenate(parts), dtype))
        self._room(total)
        return self._chunk(Place(target, index, 0), bits, 0, total).vectors.copy()

    def _room(self, size: int) -> None:
        if len(self._base) < size:
            self._vectors = np.empty((len(self._sources) - 1) * size, np.float32)
            self._base = np.empty(size, np.float32)

    def _dtypes(self, target: Target) -> list[str | None]:
        """How each model stores a tensor; None where it has none."""
        return [
            None if source is None or name is None else source.tensors[name].dtype
            for source, name in zip(self._sources, target.names, strict=True)
        ]

    def _span(self, target: Target, span: Span) -> list[Read | None]:
        dtypes = self._dtypes(target)
        nbytes = (span.stop - span.start) * max((itemsize(dtype) for dtype in dtypes if dtype), default=0)
        if self._raw.shape[1] < nbytes:
            self._raw = np.empty((len(self._sources), -(-nbytes // 4096) * 4096), np.uint8)
        bits: list[Read | None] = []
        for source, name, dtype, raw in zip(self._sources, target.names, dtypes, self._raw, strict=True):
            if source is None or name is None or dtype is None:
                bits.append(None)
            else:
                bits.append((source.read(name, span.start, span.stop, raw), dtype))
        return bits

    def _chunk(self, place: Place, bits: Sequence[Read | None], begin: int, end: int) -> Chunk:
        n, target = len(self._sources) - 1, place.target
        base = self._widened(0, bits[0], target, begin, end, self._base[: end - begin])
        vectors = self._vectors[: n * (end - begin)].reshape(n, end - begin)
        for i in range(n):
            less = base if self._deltas and i + 1 not in self._updates else None
            if self._widened(i + 1, bits[i + 1], target, begin, end, vectors[i], less) is None:
                vectors[i] = 0.0  # an update that leaves this tensor alone
        raw = bits[0][0][begin:end] if bits[0] is not None else None
        return Chunk(place, vectors, base, raw)

    def _sent(self, place: Place, bits: Sequence[Read | None], begin: int, end: int) -> Chunk:
        """The chunk on another device, as torch tensors."""
        import torch

        from paring.kernels.elementwise import gpu

        target = place.target
        rows = []
        for number, read in enumerate(bits):
            row, finite = (None, True)
            if read is not None:
                row, finite = gpu.widen(read[0][begin:end], read[1], self._device)
            if not finite:
                raise self._broken(number, target)
            rows.append(row)
        base, *vectors = rows
        for i, row in enumerate(vectors, 1):
            if row is None:
                vectors[i - 1] = torch.zeros(end - begin, device=self._device)
            elif self._deltas and i not in self._updates and base is not None:
                row -= base
        raw = bits[0][0][begin:end] if bits[0] is not None else None
        stacked: Any = torch.stack([row for row in vectors if row is not None])
        there: Any = base
        return Chunk(place, stacked, there, raw)

    def _broken(self, number: int, target: Target) -> BadValueError:
        source = self._sources[number]
        assert source is not None
        return BadValueError(
            f"{source.path}: {target.names[number]} holds NaN, infinity or a value too large for fp32: "
            "this model is broken, get or train it again"
        )

    def _widened(
        self,
        number: int,
        bits: Read | None,
        target: Target,
        begin: int,
        end: int,
        out: F32,
        less: F32 | None = None,
    ) -> F32 | None:
        if bits is None:
            return None
        if not elementwise.widen(bits[0][begin:end], bits[1], out, less):
            raise self._broken(number, target)
        return out


def on_cpu(vectors: Any) -> F32:
    """A copy of a chunk's vectors ``(models, k)`` as a numpy array."""
    found: F32 = vectors.cpu().numpy() if hasattr(vectors, "is_cuda") else vectors.copy()
    return found
