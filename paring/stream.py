"""Passes over tensors within a byte budget, in threads, with results that depend on neither.

A pass reduces (thresholds, norms, histograms). A reduction is mergeable: each tensor gets a state of its own,
fed in fixed chunks of 64 Ki elements, and the states merge in order of the tensors' names. So any thread
count, shard layout and memory budget give the same bits.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from paring.kernels import order

CHUNK = 65_536  # elements
F32 = npt.NDArray[np.float32]

A = TypeVar("A")
R = TypeVar("R")
S = TypeVar("S")
T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Item:
    """One tensor of a pass: ``read()`` gives its values, flat and in fp32; ``nbytes`` is what that takes."""

    name: str
    nbytes: int
    read: Callable[[], F32]


class Reduction(Protocol, Generic[S, T_co]):
    """``start`` makes a state, ``update`` feeds it a chunk ``(k,)``, ``merge`` joins two in order, ``finish``
    ends.
    """

    def start(self) -> S: ...
    def update(self, state: S, values: F32) -> S: ...
    def merge(self, first: S, second: S) -> S: ...
    def finish(self, state: S) -> T_co: ...


def reduce(
    items: Sequence[Item], reduction: Reduction[S, T_co], *, threads: int = 1, memory: int = 1 << 30
) -> T_co:
    """Run one pass; tensors held at a time take at most ``memory`` bytes, or are a single larger one."""
    gate = _Gate(memory)

    def visit(item: Item) -> S:
        with gate.holding(item.nbytes):
            values = item.read().reshape(-1)
            state = reduction.start()
            for begin in range(0, len(values), CHUNK):
                state = reduction.update(state, values[begin : begin + CHUNK])
            return state

    ordered = sorted(items, key=lambda item: item.name)
    total = reduction.start()
    if threads == 1:
        states: Iterator[S] = map(visit, ordered)
        for state in states:
            total = reduction.merge(total, state)
    else:
        with ThreadPoolExecutor(threads) as pool:
            for state in pool.map(visit, ordered):
                total = reduction.merge(total, state)
    return reduction.finish(total)


def in_order(work: Callable[[A], R], items: Sequence[A], threads: int) -> Iterator[R]:
    """``work`` done on all ``items`` in threads; results come in order, at most four a thread ahead."""
    if threads == 1 or len(items) == 1:
        yield from map(work, items)
        return
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[R]] = deque()
        try:
            for item in items:
                if len(waiting) == 4 * threads:
                    yield waiting.popleft().result()
                waiting.append(pool.submit(work, item))
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


class _Gate:
    """A byte budget: ``holding(n)`` waits until n more bytes fit, or nothing else is held."""

    def __init__(self, limit: int) -> None:
        self._limit, self._held = limit, 0
        self._changed = threading.Condition()

    @contextmanager
    def holding(self, nbytes: int) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: self._held == 0 or self._held + nbytes <= self._limit)
            self._held += nbytes
        try:
            yield
        finally:
            with self._changed:
                self._held -= nbytes
                self._changed.notify_all()


Chunks = list[tuple[int, float, float]]


class Moments:
    """Count, mean and unbiased standard deviation, in fp64: ``(n, mean, std)``; std is 0 below two values."""

    def start(self) -> Chunks:
        return []

    def update(self, state: Chunks, values: F32) -> Chunks:
        wide = values.astype(np.float64)
        mean = float(wide.mean())
        state.append((len(wide), mean, float(((wide - mean) ** 2).sum())))
        return state

    def merge(self, first: Chunks, second: Chunks) -> Chunks:
        return first + second

    def finish(self, state: Chunks) -> tuple[int, float, float]:
        n, mean, squares = 0, 0.0, 0.0
        for m, chunk_mean, chunk_squares in state:
            shift = chunk_mean - mean
            squares += chunk_squares + shift * shift * n * m / (n + m)
            mean += shift * m / (n + m)
            n += m
        return n, mean, math.sqrt(squares / (n - 1)) if n > 1 else 0.0


class _Counts:
    """Adds up histograms; ``count`` makes one of a chunk."""

    def __init__(self, size: int, count: Callable[[F32], Any]) -> None:
        self._size, self._count = size, count

    def start(self) -> order.Counts:
        return np.zeros(self._size, np.int64)

    def update(self, state: order.Counts, values: F32) -> order.Counts:
        state += self._count(values)
        return state

    def merge(self, first: order.Counts, second: order.Counts) -> order.Counts:
        first += second
        return first

    def finish(self, state: order.Counts) -> order.Counts:
        return state


class Magnitudes:
    """Exact order statistics of ``|x|`` over many tensors: one pass at first, then one for each rank asked.

    ``device`` (``"cpu"`` or a torch device) is where chunks are counted; counts do not depend on it.
    """

    def __init__(
        self, items: Sequence[Item], *, threads: int = 1, memory: int = 1 << 30, device: str = "cpu"
    ) -> None:
        self._items, self._threads, self._memory, self._device = items, threads, memory, device
        high = self._run(_Counts(order.HIGH, lambda x: order.high(x, device)))
        # there may be many of these at a time, and nearly all buckets are empty
        self._buckets = np.flatnonzero(high)
        self._counts = high[self._buckets]

    def _run(self, counts: _Counts) -> order.Counts:
        return reduce(self._items, counts, threads=self._threads, memory=self._memory)

    @property
    def n(self) -> int:
        """How many values there are."""
        return int(self._counts.sum())

    def kth_largest(self, k: int) -> np.float32:
        """The k-th largest magnitude, ``1 <= k <= n``, exactly, however many are tied."""
        if not 1 <= k <= self.n:
            raise ValueError(f"k = {k} is outside 1..{self.n}")

        def refine(bucket: int) -> order.Counts:
            return self._run(_Counts(order.LOW, lambda x: order.low(x, bucket, self._device)))

        high = np.zeros(order.HIGH, np.int64)
        high[self._buckets] = self._counts
        return order.kth_largest(high, refine, k)
