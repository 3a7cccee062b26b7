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
from dataclasses import dataclass, field
from functools import cached_property, reduce
from typing import Any, Literal, TypeVar

import numpy as np

from paring import ranks
from paring.devices import free_memory
from paring.dtypes import itemsize
from paring.errors import OptionError
from paring.kernels import merging
from paring.merging.chunks import F32, F64, Chunk, Desk, Place, Span, Target
from paring.merging.sources import Source
from paring.registry import Unit
from paring.stream import CHUNK, in_order

__all__ = ["F32", "F64", "Blend", "Chunk", "Mix", "Models", "Place", "Result", "Scope", "Span", "Target"]

T = TypeVar("T")

#: entries of a tensor that are read at once
SPAN = 16 * CHUNK
#: entries of a chunk on another device: each costs some twenty calls to it, which have to be worth it
_SENT = 8 * SPAN
#: threads that feed another device
_FEEDERS = 4
#: entries that a sample takes side by side, and how many such pieces
_PIECE = 128
_PIECES = 1 << 14

Scope = Literal["model", "tensor"]


@dataclass(frozen=True, slots=True)
class Mix:
    """A rule whose result is ``sum_i coefficients(target)[i] * vector_i``; ``(models,)``, fp64."""

    coefficients: Callable[[Target], F64]

    def chunk(self, vectors: F32, place: Place) -> F32:
        """The weighted sum of a chunk, ``(k,)``."""
        return merging.weighted_sum(vectors, self.coefficients(place.target))


@dataclass(frozen=True, slots=True)
class Blend:
    """Any other rule: from a chunk ``(models, k)``, which it may change, to the merged vector ``(k,)``."""

    chunk: Callable[[F32, Place], F32]


Result = Mix | Blend


@dataclass(eq=False)
class Models:
    """The models of one merge. ``sources[0]`` is the base or None; rules see the others, ``n`` of them.

    ``deltas`` says whether vectors are differences from the base; sources in ``updates`` are differences
    already. On another ``device`` than the CPU, chunks are torch tensors there, of whole spans. ``seeds`` are
    digests that tell models apart, for random numbers.
    """

    targets: Sequence[Target]
    sources: Sequence[Source | None]
    deltas: bool
    updates: frozenset[int]
    unit: Unit = "element"
    threads: int = 1
    seeds: Sequence[str] = ()
    #: what passes found that no weight has a part in; the same models with other weights may share it
    known: dict[Any, Any] = field(default_factory=dict, repr=False)
    device: str = "cpu"
    _asked: int = field(default=0, init=False, repr=False)

    @property
    def n(self) -> int:
        """Number of models."""
        return len(self.sources) - 1

    @cached_property
    def numel(self) -> int:
        """Entries of one model's vector over all tensors."""
        return sum(target.numel for target in self.targets)

    def desk_bytes(self) -> int:
        """The most memory that one thread works in: a span of every source as stored and of the result, and
        a chunk of every vector in fp32, with room for what a rule makes of it.
        """
        spare = 8 if self.unit == "tensor" else 3  # decompositions work in fp64
        most = 0
        for target in self.targets:
            chunk, span = (min(size, target.numel) for size in self.grain(target))
            stored = itemsize(target.dtype)
            for source, name in zip(self.sources, target.names, strict=True):
                if source is not None and name is not None:
                    stored += itemsize(source.tensors[name].dtype)
            most = max(most, span * stored + 4 * chunk * (len(self.sources) + spare))
        return most

    def fit(self, memory: int | None) -> None:
        """Let no more threads work at once than fit ``memory`` bytes, by default half of what is free.

        Raises OptionError when one alone does not fit what was asked.
        """
        need = self.desk_bytes()
        if memory is not None and need > memory:
            raise OptionError(f"--memory {memory}: a tensor of this merge takes {need} bytes to work on")
        if self.device != "cpu":
            self.threads = min(self.threads, _FEEDERS)
        room = memory if memory is not None else free_memory() // 2
        self.threads = max(1, min(self.threads, room // max(1, need)))

    def grain(self, target: Target) -> tuple[int, int]:
        """Entries of a chunk and of a span of this tensor, by the rule's unit."""
        if self.unit == "tensor":
            return max(1, target.numel), max(1, target.numel)
        if self.unit == "row" and target.shape:
            row = max(1, target.shape[-1])
            chunk = max(1, CHUNK // row) * row
            return chunk, max(1, SPAN // chunk) * chunk
        return (CHUNK, SPAN) if self.device == "cpu" else (_SENT, _SENT)

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

    def close(self) -> None:
        """Close all sources. Raises BadFileError when a file has changed since it was opened."""
        for source in self.sources:
            if source is not None:
                source.close()

    def visit(
        self, work: Callable[[Iterator[Chunk]], T], spans: Sequence[Span], threads: int | None = None, *,
        whole: Callable[[Desk, Span], T | None] | None = None,
    ) -> Iterator[T]:  # fmt: skip
        """``work`` done on the chunks of each span, in threads; results come in order of the spans.

        A span's chunks share memory: each is gone when the next is asked for. ``whole`` may do the work on a
        span without them; where it returns None they are made.
        """
        desks = threading.local()

        def one(span: Span) -> T:
            if not hasattr(desks, "own"):
                desks.own = self._desk()
            done = whole(desks.own, span) if whole else None
            return work(self._chunks(desks.own, span)) if done is None else done

        return in_order(one, spans, threads or self.threads)

    def _desk(self, device: str | None = None) -> Desk:
        return Desk(self.sources, self.deltas, self.updates, device or self.device)

    def _chunks(self, desk: Desk, span: Span) -> Iterator[Chunk]:
        target = self.targets[span.index]
        return desk.chunks(target, span, self.grain(target)[0])

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
        numbers = range(len(self.targets))

        def found() -> F32:
            if scope == "model":
                return self._ranked(positions, numbers, of, signed, self.threads)
            each = in_order(lambda i: self._ranked(positions, [i], of, signed, 1), numbers, self.threads)
            nothing = np.zeros((0, self.n, len(positions(1))), np.float32)
            return np.stack(list(each)) if self.targets else nothing

        known: F32 = self._once((tuple(positions(max(1, self.numel))), signed, scope), found)
        return known

    def _once(self, what: Any, find: Callable[[], Any]) -> Any:
        """What ``find`` gives, found once: a rule asks the same questions in the same order each time."""
        self._asked += 1
        key = (self._asked, what)
        if key not in self.known:
            self.known[key] = find()
        return self.known[key].copy()

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
        """Pieces of 128 entries at even distances over all tensors, ``(models, s)``; each somewhere in its
        stretch, so that it does not always meet the same columns."""
        step = max(_PIECE, self.numel // _PIECES)
        ends = np.cumsum([target.numel for target in self.targets])
        places = np.arange(0, self.numel - step + 1, step)
        places += (places // step * 40_503) % max(1, step - _PIECE)
        indices = np.searchsorted(ends, places, side="right")
        desk = self._desk("cpu")  # pieces are too small to send
        pieces: list[F32] = []
        for index in np.unique(indices).tolist():
            first = int(ends[index]) - self.targets[index].numel
            starts = (places[indices == index] - first).tolist()
            pieces.append(desk.pieces(self.targets[index], index, starts, _PIECE))
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
            made = ((chunk.place.index, of(chunk.vectors, chunk.place)) for chunk in chunks)
            return [(index, np.asarray(value, np.float64)) for index, value in made]

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

        def find() -> F64:
            return self.totals(lambda chunk, place: merging.gram(chunk), scope=scope)

        found: F64 = self._once(("gram", scope), find)
        return found
