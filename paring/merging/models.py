"""What a merging rule sees: the vectors of all models, tensor by tensor, and passes over them.

A rule is given :class:`Models` and hands back either coefficients (:class:`Mix`: a weighted sum whose weights
may differ by tensor, which adapters can evaluate without leaving their factors) or a function of chunks
(:class:`Blend`). Before that it may ask for what it must know of all entries: :meth:`Models.ranked`,
:meth:`Models.totals`, :meth:`Models.gram`.

A vector is a model's weights, or with a base its delta; a rule does not know which. Chunks are fp32
``(models, k)``: 65,536 entries of one flat tensor, or whole rows where the rule says ``unit="row"``, or one
whole tensor for ``unit="tensor"``. Sums run over chunks in fp64 and combine in order of names and chunks, so
no result depends on threads, shards or memory.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from paring import ranks
from paring.dtypes import itemsize, numel
from paring.errors import BadValueError
from paring.kernels import elementwise, merging
from paring.merging.sources import Source
from paring.registry import Unit
from paring.stream import CHUNK, in_order

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
T = TypeVar("T")

#: entries of a tensor that are read at once
SPAN = 16 * CHUNK
#: entries that a sample takes side by side
_PIECE = 64

Scope = Literal["model", "tensor"]
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


@dataclass(frozen=True, slots=True)
class Mix:
    """A rule whose result is ``sum_i coefficients(target)[i] * vector_i``; ``(models,)``, fp64."""

    coefficients: Callable[[Target], F64]


@dataclass(frozen=True, slots=True)
class Blend:
    """Any other rule: from a chunk ``(models, k)``, which it may change, to the merged vector ``(k,)``."""

    chunk: Callable[[F32, Place], F32]


Result = Mix | Blend


@dataclass(slots=True)
class Chunk:
    """One chunk being read: ``vectors (models, k)``, ``base (k,)`` or None, ``bits`` of the base."""

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


@dataclass(eq=False)
class Models:
    """The models of one merge. ``sources[0]`` is the base or None; rules see the others, ``n`` of them.

    ``deltas`` says whether vectors are differences from the base; sources in ``updates`` are differences
    already. ``seeds`` are digests that tell models apart, for random numbers.
    """

    targets: Sequence[Target]
    sources: Sequence[Source | None]
    deltas: bool
    updates: frozenset[int]
    unit: Unit = "element"
    threads: int = 1
    seeds: Sequence[str] = ()

    @property
    def n(self) -> int:
        """Number of models."""
        return len(self.sources) - 1

    @cached_property
    def numel(self) -> int:
        """Entries of one model's vector over all tensors."""
        return sum(target.numel for target in self.targets)

    def grain(self, target: Target) -> tuple[int, int]:
        """Entries of a chunk and of a span of this tensor, by the rule's unit."""
        if self.unit == "tensor":
            return max(1, target.numel), max(1, target.numel)
        if self.unit == "row" and target.shape:
            row = max(1, target.shape[-1])
            chunk = max(1, CHUNK // row) * row
            return chunk, max(1, SPAN // chunk) * chunk
        return CHUNK, SPAN

    def spans(self, chosen: Sequence[int] | None = None) -> list[Span]:
        """All spans, in order of tensors and entries."""
        out = []
        for index in range(len(self.targets)) if chosen is None else chosen:
            target = self.targets[index]
            size = self.grain(target)[1]
            out += [
                Span(index, start, min(start + size, target.numel)) for start in range(0, target.numel, size)
            ]
        return out

    def visit(
        self, work: Callable[[Iterator[Chunk]], T], spans: Sequence[Span], threads: int | None = None
    ) -> Iterator[T]:
        """``work`` done on the chunks of each span, in threads; results come in order of the spans.

        The chunks of a span share memory: each is gone when the next is asked for.
        """
        desks = threading.local()

        def one(span: Span) -> T:
            if not hasattr(desks, "own"):
                desks.own = _Desk(self)
            return work(desks.own.chunks(span))

        return in_order(one, spans, threads or self.threads)

    def ranked(
        self,
        positions: Callable[[int], Sequence[int]],
        *,
        of: Callable[[F32], F32] | None = None,
        signed: bool = False,
        scope: Scope = "model",
    ) -> F32:
        """Exact order statistics of every model's values.

        ``positions(d)`` are 0-based ascending ranks among ``d`` values, m of them; ``of`` makes the values
        ``(models, k)`` from vectors, entry by entry (by default they are the vectors); ``signed`` orders
        numbers, else magnitudes. Returns fp32 ``(models, m)`` over the whole model or, with
        ``scope="tensor"``, ``(tensors, models, m)``; zeros where there are no entries.
        """
        if scope == "model":
            return self._ranked(positions, range(len(self.targets)), of, signed, self.threads)
        numbers = range(len(self.targets))
        found = in_order(lambda i: self._ranked(positions, [i], of, signed, 1), numbers, self.threads)
        return np.stack(list(found)) if self.targets else np.zeros((0, self.n, 0), np.float32)

    def _ranked(
        self,
        positions: Callable[[int], Sequence[int]],
        chosen: Sequence[int],
        of: Callable[[F32], F32] | None,
        signed: bool,
        threads: int,
    ) -> F32:
        spans, n = self.spans(chosen), sum(self.targets[index].numel for index in chosen)
        places = positions(max(n, 1))
        if not n:
            return np.zeros((self.n, len(places)), np.float32)
        wanted = [ranks.Wanted(row, place) for row in range(self.n) for place in places]
        whole = len(chosen) == len(self.targets)
        sample = self._sample if whole and n > ranks.FEW else None
        if sample is not None and of is not None:
            sample = of(sample.copy())

        def run(tally: Callable[[F32], list[ranks.Tally]]) -> list[ranks.Tally]:
            def work(chunks: Iterator[Chunk]) -> list[ranks.Tally]:
                total: list[ranks.Tally] | None = None
                for chunk in chunks:
                    found = tally(chunk.vectors if of is None else of(chunk.vectors))
                    total = found if total is None else ranks.merge(total, found)
                assert total is not None, "a span has chunks"
                return total

            return reduce(ranks.merge, self.visit(work, spans, threads))

        return ranks.find(wanted, n, sample, run, signed=signed).reshape(self.n, len(places))

    @cached_property
    def _sample(self) -> F32:
        """Pieces of 64 entries at even distances over all tensors, ``(models, s)``; each somewhere in its
        stretch, so that it does not always meet the same columns."""
        step = max(_PIECE, min(CHUNK // 4, self.numel // 4096))
        ends = np.cumsum([target.numel for target in self.targets])
        places = np.arange(0, self.numel - step + 1, step)
        places += (places // step * 40_503) % max(1, step - _PIECE)
        indices = np.searchsorted(ends, places, side="right")
        desk = _Desk(self)
        pieces = []
        for place, index in zip(places.tolist(), indices.tolist(), strict=True):
            start = place - int(ends[index]) + self.targets[index].numel
            span = Span(index, start, min(start + _PIECE, self.targets[index].numel))
            pieces += [chunk.vectors.copy() for chunk in desk.chunks(span)]
        return np.concatenate(pieces, axis=1)

    def totals(
        self,
        of: Callable[[F32, Place], F64],
        *,
        scope: Scope = "model",
        join: Callable[[Any, Any], Any] = np.add,
    ) -> F64:
        """Sums over chunks of ``of(chunk, place)``, fp64 of any shape: one for the model, or ``(tensors,
        ...)`` with ``scope="tensor"``. ``join`` may be another fold of two values: np.minimum, np.maximum.
        """

        def work(chunks: Iterator[Chunk]) -> list[tuple[int, F64]]:
            return [
                (chunk.place.index, np.asarray(of(chunk.vectors, chunk.place), np.float64))
                for chunk in chunks
            ]

        by_tensor: dict[int, F64] = {}
        total: Any = None
        for found in self.visit(work, self.spans()):
            for index, value in found:
                total = value if total is None else join(total, value)
                by_tensor[index] = join(by_tensor[index], value) if index in by_tensor else value
        if scope == "model":
            return np.asarray(0.0 if total is None else total)
        like = np.zeros_like(next(iter(by_tensor.values()))) if by_tensor else np.zeros(0)
        return np.stack([by_tensor.get(index, like) for index in range(len(self.targets))])

    def gram(self, *, scope: Scope = "tensor") -> F64:
        """Inner products of the models' vectors: ``(tensors, models, models)``, or ``(models, models)``."""
        return self.totals(lambda chunk, place: merging.gram(chunk), scope=scope)


class _Desk:
    """The memory that one thread works in."""

    def __init__(self, models: Models) -> None:
        self._models = models
        self._raw: list[npt.NDArray[np.uint8]] = [np.empty(0, np.uint8) for _ in models.sources]
        self._vectors = np.empty(0, np.float32)
        self._base = np.empty(0, np.float32)

    def chunks(self, span: Span) -> Iterator[Chunk]:
        """Read a span, then hand out its chunks."""
        models, target = self._models, self._models.targets[span.index]
        bits = [self._read(number, name, span) for number, name in enumerate(target.names)]
        size = min(models.grain(target)[0], span.stop - span.start)
        if len(self._base) < size:
            self._vectors, self._base = np.empty(models.n * size, np.float32), np.empty(size, np.float32)
        for begin in range(0, span.stop - span.start, size):
            end = min(begin + size, span.stop - span.start)
            yield self._chunk(target, span, bits, begin, end)

    def _read(self, number: int, name: str | None, span: Span) -> Read | None:
        source = self._models.sources[number]
        if source is None or name is None:
            return None
        dtype = source.tensors[name].dtype
        nbytes = (span.stop - span.start) * itemsize(dtype)
        if len(self._raw[number]) < nbytes:
            self._raw[number] = np.empty(-(-nbytes // 4096) * 4096, np.uint8)
        return source.read(name, span.start, span.stop, self._raw[number]), dtype

    def _chunk(
        self,
        target: Target,
        span: Span,
        bits: Sequence[Read | None],
        begin: int,
        end: int,
    ) -> Chunk:
        models = self._models
        place = Place(target, span.index, span.start + begin)
        base = self._widened(0, bits[0], target, begin, end, self._base[: end - begin])
        vectors = self._vectors[: models.n * (end - begin)].reshape(models.n, end - begin)
        for i in range(models.n):
            row = self._widened(i + 1, bits[i + 1], target, begin, end, vectors[i])
            if row is None:
                vectors[i] = 0.0  # an update that leaves this tensor alone
            elif models.deltas and i + 1 not in models.updates:
                assert base is not None, "deltas of weights need a base"
                np.subtract(row, base, out=row)
        raw = bits[0][0][begin:end] if bits[0] is not None else None
        return Chunk(place, vectors, base, raw)

    def _widened(
        self,
        number: int,
        bits: Read | None,
        target: Target,
        begin: int,
        end: int,
        out: F32,
    ) -> F32 | None:
        if bits is None:
            return None
        if not elementwise.widen(bits[0][begin:end], bits[1], out):
            source = self._models.sources[number]
            assert source is not None
            raise BadValueError(
                f"{source.path}: {target.names[number]} holds NaN, infinity or a value too large for fp32: "
                "this model is broken, get or train it again"
            )
        return out
