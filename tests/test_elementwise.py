"""Stored bits to fp32 and back: numba against the plain reference, bit for bit."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paring.dtypes import STORAGE, Stored, from_f32
from paring.errors import UnsupportedError
from paring.kernels import elementwise
from paring.kernels.elementwise import cpu, reference

few = settings(deadline=None, max_examples=50)
FLOATS = ("F64", "F32", "F16", "BF16")


def every_bit_pattern(dtype):
    """All 65,536 of a 16-bit dtype; of wider ones, as many at random."""
    bits = np.arange(1 << 16, dtype=np.uint16)
    if dtype in ("F32", "F64"):
        kind = np.dtype(f"u{STORAGE[dtype].itemsize}")
        bits = np.random.default_rng(0).integers(0, np.iinfo(kind).max, 1 << 16, kind, endpoint=True)
    return bits.view(STORAGE[dtype])


@pytest.mark.parametrize("dtype", FLOATS)
def test_widening_is_exact(dtype):
    bits = every_bit_pattern(dtype)
    with np.errstate(over="ignore", invalid="ignore"):  # infinities, signalling NaN
        finite = np.isfinite(Stored(dtype, bits).f32())
    sound, mixed = bits[finite], bits
    ours, theirs = np.empty((2, len(sound)), np.float32)
    assert cpu.widen(sound, dtype, ours) and reference.widen(sound, dtype, theirs)
    assert (ours.view(np.uint32) == theirs.view(np.uint32)).all()
    less = np.random.default_rng(1).standard_normal(len(sound)).astype(np.float32)
    assert cpu.widen(sound, dtype, ours, less) and reference.widen(sound, dtype, theirs, less)
    assert (ours == theirs).all()
    out = np.empty(len(mixed), np.float32)
    assert not cpu.widen(mixed, dtype, out) and not cpu.widen(mixed, dtype, out, out.copy())
    for bad in bits[~finite][:: max(1, (~finite).sum() // 50)]:
        assert not cpu.widen(np.array([bad]), dtype, out[:1])


@pytest.mark.parametrize("dtype", FLOATS)
def test_narrowing_rounds_once_to_nearest_even(dtype):
    rng = np.random.default_rng(1)
    values = rng.integers(0, 1 << 32, 1 << 16, np.uint32).view(np.float32)
    values = np.concatenate(
        [values[np.isfinite(values)], every_bit_pattern("BF16").astype(np.uint32).view(np.float32)]
    )
    values = values[np.abs(values) < (60000 if dtype == "F16" else 3e38)]
    # halfway between two neighbours, and next to it
    half = np.float32(1) + np.float32(2.0**-8) * np.arange(-3, 4, dtype=np.float32)
    values = np.concatenate(
        [values, half, np.nextafter(half, np.float32(2)), np.nextafter(half, np.float32(0))]
    )
    out = np.empty(len(values), STORAGE[dtype])
    assert cpu.narrow(values, dtype, out)
    assert out.tobytes() == from_f32(values, dtype).tobytes()


@pytest.mark.parametrize(
    ("dtype", "big"), [("F16", 65520.0), ("BF16", 3.4e38), ("F32", np.inf), ("F64", np.nan)]
)
def test_overflow_is_told(dtype, big):
    values = np.array([1, -big, 2], np.float32)
    out = np.empty(3, STORAGE[dtype])
    assert not cpu.narrow(values, dtype, out)
    assert not reference.narrow(values, dtype, out)
    assert cpu.narrow(values[[0, 2]], dtype, out[:2])


def test_integers_hold_no_values():
    for work in (cpu.widen, cpu.narrow, reference.widen):
        with pytest.raises(UnsupportedError):
            work(np.zeros(2, np.int32), "I32", np.zeros(2, np.float32))


@few
@given(st.integers(0, 300), st.integers(0, 2**32))
def test_updates_that_rounding_loses(n, seed):
    rng = np.random.default_rng(seed)
    update = rng.choice([0, 1, -1], n).astype(np.float32)
    before, after = rng.integers(0, 3, (2, n)).astype(np.uint16)
    expected = sum(u != 0 and b == a for u, b, a in zip(update, before, after, strict=True))
    assert elementwise.unmoved(update, before, after) == expected == reference.unmoved(update, before, after)


@few
@given(st.binary(max_size=100), st.lists(st.integers(0, 100), max_size=4), st.integers(0, 64))
def test_checksums_of_pieces_add_up(data, cuts, start):
    whole = np.frombuffer(data, np.uint8)
    ends = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    parts = sum(elementwise.checksum(whole[a:b], start + a) for a, b in pairwise(ends))
    assert parts % 2**64 == elementwise.checksum(whole, start) == reference.checksum(whole, start)


@few
@given(st.binary(min_size=1, max_size=200), st.data())
def test_checksums_notice_changes(data, draw):
    at = draw.draw(st.integers(0, len(data) - 1))
    other = bytearray(data)
    other[at] ^= draw.draw(st.integers(1, 255))
    first, second = (np.frombuffer(bytes(x), np.uint8) for x in (data, other))
    assert elementwise.checksum(first) != elementwise.checksum(second)
    long = np.frombuffer(data * 8, np.uint8).copy()
    swapped = long.reshape(-1, 8)[::-1].reshape(-1) if len(long) % 8 == 0 else long
    if (swapped != long).any():
        assert elementwise.checksum(np.ascontiguousarray(swapped)) != elementwise.checksum(long)
