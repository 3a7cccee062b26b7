"""The ternary kernels: numba and torch against the plain reference, and the format's tables."""

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from paring.errors import BadFileError, BadValueError
from paring.kernels import ternary
from paring.kernels.ternary import cpu, gpu, reference, tables

CUDA = pytest.param(
    "cuda",
    marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")],
)
few = settings(deadline=None, max_examples=30)
#: length, density, seed
vectors = st.tuples(
    st.integers(0, 300), st.sampled_from([0.0, 0.003, 0.05, 0.3, 0.5, 0.8, 0.99, 1.0]), st.integers(0, 99)
)


def trits_of(n, density, seed):
    rng = np.random.default_rng([n, seed])
    return (rng.choice([-1, 1], n) * (rng.random(n) < density)).astype(np.int8)


@few
@given(vectors)
@example((1, 1.0, 0))
@example((0, 0.0, 0))
def test_planes_agree_with_the_reference(vector):
    trits = trits_of(*vector)
    n = len(trits)
    planes = reference.pack(trits)
    assert len(planes[0]) == (n + 7) // 8
    np.testing.assert_array_equal(cpu.pack(trits), planes)
    np.testing.assert_array_equal(reference.unpack(*planes, n), trits)
    np.testing.assert_array_equal(cpu.unpack(*planes, n), trits)
    for dtype in ("F64", "F32", "F16", "BF16"):
        expected = reference.dequantise(*planes, n, -0.3, dtype)
        actual = cpu.dequantise(*planes, n, -0.3, dtype)
        assert actual.dtype == expected.dtype
        np.testing.assert_array_equal(actual.view(np.uint8), expected.view(np.uint8))


@few
@given(vectors, st.floats(0, 3, width=32))
@example((64, 1.0, 0), 0.0)
def test_threshold_agrees_with_the_reference(vector, t):
    n, _, seed = vector
    x = np.random.default_rng(seed).standard_normal(n, np.float32)
    x[n // 2 :: 7] = np.nan
    x[n // 3 :: 5] = t
    np.testing.assert_array_equal(cpu.threshold(x, t), reference.threshold(x, t))
    kept = reference.unpack(*reference.threshold(x, t), n)
    np.testing.assert_array_equal(kept, np.where(np.abs(x) >= t, np.where(x < 0, -1, 1), 0))


@few
@given(vectors, st.integers(100, 199))
def test_popcount_arithmetic(vector, seed):
    a, b = trits_of(*vector), trits_of(vector[0], 0.4, seed)
    planes = *reference.pack(a), *reference.pack(b)
    for kernels in (reference, cpu, ternary):
        assert kernels.dot(*planes) == int(a.astype(int) @ b)
        assert kernels.hamming(*planes) == int((a != b).sum())
        norms = np.linalg.norm(a.astype(float)) * np.linalg.norm(b.astype(float))
        assert kernels.cosine(*planes) == pytest.approx(float(a.astype(int) @ b) / norms if norms else 0.0)


@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_torch_agrees_with_the_reference(device):
    for n in (0, 1, 7, 8, 1003):
        x = np.random.default_rng(n).standard_normal(n, np.float32)
        expected = reference.threshold(x, 0.7)
        planes = ternary.threshold(torch.from_numpy(x).to(device), 0.7)
        trits = ternary.unpack(*planes, n)
        for plane, want in zip((*planes, *ternary.pack(trits)), expected * 2, strict=True):
            np.testing.assert_array_equal(plane.cpu().numpy(), want)
        np.testing.assert_array_equal(trits.cpu().numpy(), reference.unpack(*expected, n))
        for dtype in ("F64", "F32", "F16", "BF16"):
            dense = ternary.dequantise(*planes, n, -0.3, dtype).cpu()
            want = reference.dequantise(*expected, n, -0.3, dtype)
            np.testing.assert_array_equal(dense.view(torch.uint8).numpy(), want.view(np.uint8))


@pytest.mark.parametrize("kernels", [reference, cpu, gpu])
def test_a_scale_that_overflows_is_refused(kernels):
    plane = np.ones(1, np.uint8)
    plane = torch.from_numpy(plane) if kernels is gpu else plane
    with pytest.raises(BadValueError):
        kernels.dequantise(plane, plane, 8, 1e6, "F16")


pieces = st.lists(
    st.tuples(st.integers(1, 120), st.sampled_from([0.0, 0.001, 0.02, 0.1, 0.5, 0.9, 1.0])),
    min_size=1,
    max_size=5,
)


def block_of(parts, seed):
    planes = [
        reference.pack(trits_of(8 * symbols, density, seed + i)) for i, (symbols, density) in enumerate(parts)
    ]
    mask, sign = (np.concatenate(side) for side in zip(*planes, strict=True))
    return mask, sign, np.cumsum([symbols for symbols, _ in parts]).tolist()


@few
@given(pieces, st.integers(0, 99))
@example([(303, 0.1), (1, 0.0), (350, 0.4)], 0)  # eight lanes
@example([(99, 0.1), (3, 0.0), (50, 0.3)], 0)  # four lanes
@example([(1, 1.0)], 0)
def test_blocks_are_coded_as_the_reference_does_and_come_back(parts, seed):
    mask, sign, ends = block_of(parts, seed)
    classes, mode, data = reference.encode_block(mask, sign, ends)
    assert cpu.encode_block(mask, sign, ends) == (classes, mode, data)
    for kernels in (reference, ternary):
        np.testing.assert_array_equal(kernels.decode_block(data, mode, ends, classes), (mask, sign))


@few
@given(pieces, st.integers(0, 99), st.data())
def test_damaged_blocks_are_refused_or_decode_as_the_reference_does(parts, seed, draw):
    mask, sign, ends = block_of(parts, seed)
    classes, mode, data = reference.encode_block(mask, sign, ends)
    broken = bytearray(data)
    for _ in range(draw.draw(st.integers(0, 3))):
        if broken:
            broken[draw.draw(st.integers(0, len(broken) - 1))] ^= draw.draw(st.integers(1, 255))
    cut = bytes(broken[: draw.draw(st.integers(0, len(broken)))] if draw.draw(st.booleans()) else broken)
    mode = draw.draw(st.sampled_from([mode, 0, 1, 2, 3]))
    outcomes = []
    for kernels in (reference, cpu):
        try:
            outcomes.append([plane.tobytes() for plane in kernels.decode_block(cut, mode, ends, classes)])
        except BadFileError:
            outcomes.append("refused")
    assert outcomes[0] == outcomes[1]


def test_all_masks_of_all_classes_come_back():
    rng = np.random.default_rng(0)
    mask = np.tile(np.arange(256, dtype=np.uint8), 30)
    mask[rng.random(len(mask)) < 0.8] = 0  # escapes, in a sparse class
    sign = mask & rng.integers(0, 256, len(mask), np.uint8)
    for flip in (0, 255):
        some = mask ^ np.uint8(flip)
        for ends in ([len(mask)], [5, 1003, len(mask)]):
            classes, mode, data = cpu.encode_block(some, sign & some, ends)
            assert mode == 3
            np.testing.assert_array_equal(cpu.decode_block(data, mode, ends, classes), (some, sign & some))


def test_a_block_by_hand():
    # Class 32 is a fair coin: all masks have frequency 16, mask m starts at 16 m. Symbols 0x0F, 0xF0; one
    # lane; the signs 1 0 1 0 0 0 0 1, lowest bit first 0x85, ride in the state at the start: 0x10085. The
    # last symbol is coded first: (0x1008 << 12) + 5 + 0xF00 = 0x1008F05. That is 16 << 20 or more, so 0x8F05
    # goes out and 0x100 stays: (0x10 << 12) + 0 + 0xF0 = 0x100F0.
    data = bytes([0xF0, 0x00, 0x01, 0x00, 0x05, 0x8F])
    mask, sign = np.array([0x0F, 0xF0], np.uint8), np.array([0b0101, 0b1000_0000], np.uint8)
    for kernels in (reference, cpu):
        np.testing.assert_array_equal(kernels.decode_block(data, 1, [2], [32]), (mask, sign))
        # the same symbols and words, but a state that does not end in 1 and sign bits
        with pytest.raises(BadFileError):
            kernels.decode_block(bytes([0xF0, 0x00, 0x02, 0x00, 0x05, 0x8F]), 1, [2], [32])
        # stored plainly, it takes three bytes fewer
        assert kernels.encode_block(mask, sign, [2]) == ([32], 0, bytes([0x0F, 0xF0, 0x85]))


def test_the_tables_are_those_of_the_format():
    f = np.array([reference.frequencies(q) for q in reference.DENSITIES[1:]], "<u2")
    assert (f.sum(1) == 4096).all()
    assert hashlib.sha256(f.tobytes()).hexdigest()[:16] == "16214da224537697"
    logistic = 65536 / (1 + np.exp((32 - np.arange(1, 64)) / 4))
    np.testing.assert_array_equal(reference.DENSITIES, [0, *np.rint(logistic)])
    slots, markers = tables.decoding_tables(range(64))
    assert slots[32, 4095] == 16
    assert [markers[j] for j in (1, 32, 63)] == [255, -1, 0]
