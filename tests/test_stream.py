"""Passes: the same bits whatever the threads, the memory and the order; the memory never exceeded."""

import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paring.stream import CHUNK, Item, Magnitudes, Moments, reduce

few = settings(deadline=None, max_examples=20)


def items_of(tensors):
    return [Item(name, values.nbytes, lambda values=values: values) for name, values in tensors.items()]


@pytest.fixture(scope="module")
def tensors():
    rng = np.random.default_rng(0)
    sizes = {"a": CHUNK + 1, "b": 1, "c": 0, "d": 3 * CHUNK, "e": 12_345}
    return {name: (rng.standard_normal(n) * 10).astype(np.float32) for name, n in sizes.items()}


def test_moments_are_those_of_fp64(tensors):
    everything = np.concatenate(list(tensors.values())).astype(np.float64)
    n, mean, std = reduce(items_of(tensors), Moments())
    assert n == everything.size
    assert mean == pytest.approx(everything.mean(), rel=1e-12)
    assert std == pytest.approx(everything.std(ddof=1), rel=1e-13)


def test_moments_far_from_zero_do_not_cancel():
    values = (1e6 + np.arange(2 * CHUNK) % 2).astype(np.float32)
    assert reduce(items_of({"x": values}), Moments())[2] == pytest.approx(
        values.std(ddof=1, dtype="f8"), rel=1e-12
    )


@pytest.mark.parametrize("values", [[], [3.0], [5.0, 5.0]])
def test_moments_of_almost_nothing(values):
    n, mean, std = reduce(items_of({"x": np.array(values, np.float32)}), Moments())
    assert (n, mean, std) == (len(values), values[0] if values else 0.0, 0.0)


@few
@given(st.permutations("abcde"), st.integers(1, 4), st.sampled_from([1, 100_000, 600_000, 1 << 30]))
def test_the_same_bits_for_any_threads_memory_and_order(tensors, names, threads, memory):
    items = items_of({name: tensors[name] for name in names})
    alone = items_of(tensors)
    assert reduce(items, Moments(), threads=threads, memory=memory) == reduce(alone, Moments())
    found = Magnitudes(items, threads=threads, memory=memory)
    assert found.kth_largest(1000) == Magnitudes(alone).kth_largest(1000)


@pytest.mark.parametrize("threads", [1, 4])
def test_the_memory_is_never_exceeded_but_by_one_tensor_alone(threads):
    lock, held, most, alone = threading.Lock(), set(), 0, []
    sizes = {f"{i:02}": size for i, size in enumerate([30, 50, 10, 400, 60, 5, 90, 20, 45, 45] * 3)}

    class Watched:
        """Says when a tensor's pass is over: its only update, after which nothing of it is held."""

        def start(self):
            return 0

        def update(self, state, values):
            time.sleep(0.001)  # let others in, if they are let in
            with lock:
                held.discard(f"{int(values[0]):02}")
            return state + 1

        def merge(self, first, second):
            return first + second

        def finish(self, state):
            return state

    def read(name):
        nonlocal most
        with lock:
            held.add(name)
            total = sum(sizes[other] for other in held)
            if total > 100:
                alone.append(len(held))
            else:
                most = max(most, total)
        return np.full(sizes[name] // 4, float(name), np.float32)

    items = [Item(name, size, lambda name=name: read(name)) for name, size in sizes.items()]
    assert reduce(items, Watched(), threads=threads, memory=100) == len(items)
    assert alone == [1, 1, 1]  # the tensors of 400 bytes, each with nothing beside it
    assert most <= 100


@pytest.mark.parametrize("threads", [1, 3])
def test_an_error_in_reading_comes_through_and_nothing_hangs(threads):
    def broken():
        raise OSError("gone")

    items = [Item(str(i), 80, broken if i == 2 else lambda: np.zeros(20, np.float32)) for i in range(8)]
    with pytest.raises(OSError, match="gone"):
        reduce(items, Moments(), threads=threads, memory=100)
