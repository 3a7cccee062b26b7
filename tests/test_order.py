"""Histograms of magnitudes and exact order statistics: numba and torch against numpy."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paring.kernels import order
from paring.kernels.machine import folder
from paring.kernels.order import cpu, gpu, reference
from paring.stream import Item, Magnitudes

CUDA = pytest.param(
    "cuda",
    marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")],
)
few = settings(deadline=None, max_examples=40)
finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
#: few distinct values, so that most are tied: zeros of both signs, subnormals, the largest number
tied = st.sampled_from([0.0, -0.0, 1.0, -1.0, 1.0000001, 1e-40, -1e-40, 1e-45, 3.4028235e38, -0.5])
vectors = (st.lists(finite, max_size=60) | st.lists(tied, max_size=60)).map(lambda v: np.array(v, np.float32))


@few
@given(vectors)
def test_counts_agree_on_every_device(values):
    sent = gpu.send(values, "cpu")
    expected = reference.high(values)
    assert expected.sum() == len(values)
    np.testing.assert_array_equal(cpu.high(values), expected)
    np.testing.assert_array_equal(gpu.high(sent).numpy(), expected)
    for bucket in {0, order.HIGH - 1, int(expected.argmax())}:
        inside = reference.low(values, bucket)
        assert inside.sum() == expected[bucket]
        np.testing.assert_array_equal(cpu.low(values, bucket), inside)
        np.testing.assert_array_equal(gpu.low(sent, bucket).numpy(), inside)


@few
@given(vectors.filter(len), st.data())
def test_kth_largest_is_the_one_that_sorting_finds(values, data):
    k = data.draw(st.integers(1, len(values)))
    found = order.kth_largest(order.high(values), lambda bucket: order.low(values, bucket), k)
    expected = np.sort(np.abs(values))[-k]
    assert found.dtype == np.float32
    assert found.view(np.uint32) == expected.view(np.uint32)


def test_histograms_of_chunks_add_up():
    values = np.random.default_rng(0).standard_normal(5000).astype(np.float32)
    parts = np.split(values, [7, 1000, 1001])
    np.testing.assert_array_equal(sum(order.high(part) for part in parts), order.high(values))


def test_a_strided_view_is_counted_like_its_copy():
    values = np.arange(20, dtype=np.float32)[::2]
    np.testing.assert_array_equal(cpu.high(values), reference.high(values.copy()))
    np.testing.assert_array_equal(gpu.high(gpu.send(values, "cpu")).numpy(), reference.high(values.copy()))


def test_magnitudes_over_tensors_of_massive_ties():
    rng = np.random.default_rng(1)
    tensors = [rng.choice(np.float32([0, 0.25, -0.25, 1]), size) for size in (1, 70_000, 333)]
    everything = np.sort(np.abs(np.concatenate(tensors)))[::-1]
    found = Magnitudes(
        [Item(str(i), t.nbytes, lambda t=t: t) for i, t in enumerate(tensors)], threads=2, memory=300_000
    )
    assert found.n == len(everything)
    for k in (1, 17_000, 18_000, 40_000, found.n):
        assert found.kth_largest(k) == everything[k - 1]
    for k in (0, found.n + 1):
        with pytest.raises(ValueError, match="outside 1"):
            found.kth_largest(k)


@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_any_device_counts_the_same(device):
    values = np.random.default_rng(2).standard_normal(100_000).astype(np.float32)
    np.testing.assert_array_equal(order.high(values, device), reference.high(values))
    np.testing.assert_array_equal(order.low(values, 0x7F00, device), reference.low(values, 0x7F00))


@pytest.mark.skipif("NUMBA_CACHE_DIR" in os.environ, reason="numba is told where to keep machine code")
def test_machine_code_is_not_kept_beside_the_sources():
    """What an installer does not know of it leaves behind, and it hides the next installation."""
    kept = Path(cpu._high._cache.cache_path)
    assert not kept.is_relative_to(Path(cpu.__file__).parents[2])
    assert kept.parent == folder()
