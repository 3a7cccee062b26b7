"""Every kernel of pruning on every device present against the plain reference; counts as typed."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paring.dtypes import from_f32
from paring.errors import OptionError
from paring.kernels import pruning as kernels
from paring.kernels.pruning import reference
from paring.pruning import allocating, sparsity
from paring.pruning.matrix import Budget, select

DEVICES = ["cpu", "torch", pytest.param("cuda", marks=pytest.mark.gpu)]


def put(scores, device):
    """Scores as a device has them."""
    if device == "cpu":
        return scores
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.tensor(scores, device="cpu" if device == "torch" else device)


def back(mask):
    return mask if isinstance(mask, np.ndarray) else mask.cpu().numpy()


def code(device):
    """The kernels of bits as a device has them."""
    if device == "cpu":
        return kernels.counts, kernels.cut
    from paring.kernels.pruning import gpu

    put(np.zeros(1, np.float32), device)
    there = "cpu" if device == "torch" else device
    return (
        lambda bits: gpu.counts(bits, there),
        lambda bits, dtype, first, out: gpu.cut(bits, dtype, first, out, there),
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", ["BF16", "F16"])
@pytest.mark.parametrize("n", [0, 1, 511, 5000])
def test_counts_and_cuts(device, dtype, n):
    rng = np.random.default_rng(n)
    values = (rng.standard_normal(n) * 2.0 ** rng.integers(-20, 3, n)).astype(np.float32)
    values[::7] = -0.0
    bits = from_f32(values, dtype).data.view(np.uint16)
    counts, cut = code(device)
    np.testing.assert_array_equal(counts(bits), reference.counts(bits))
    middle = int(np.median(bits & 0x7FFF)) if n else 5
    for first in (0, 1, middle, 0x7FFF):
        out, expected = np.full(n, 7, np.uint16), np.empty(n, np.uint16)
        found, wanted = cut(bits, dtype, first, out), reference.cut(bits, dtype, first, expected)
        np.testing.assert_array_equal(out, expected)
        assert (found.kept, found.before, found.zeros) == (wanted.kept, wanted.before, wanted.zeros)
        assert (found.lost, found.total) == pytest.approx((wanted.lost, wanted.total), rel=1e-12)


@pytest.mark.parametrize("device", DEVICES)
def test_the_best_of_rows_and_groups(device):
    rng = np.random.default_rng(0)
    for scores in (rng.standard_normal((7, 24)).round(1), rng.random((5, 60)), np.zeros((2, 12))):
        plain = scores.astype(np.float32)
        plain[:, ::5] *= np.float32(-0.0)
        for keep in (0, 1, 5, plain.shape[1]):
            expected = reference.best(plain, keep)
            np.testing.assert_array_equal(back(kernels.best(put(plain, device), keep)), expected)
        for keep, of in ((0, 4), (2, 4), (1, 4), (4, 4), (3, 12)):
            expected = reference.grouped(plain, keep, of)
            np.testing.assert_array_equal(back(kernels.grouped(put(plain, device), keep, of)), expected)


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16"])
def test_masked_bits(dtype):
    rng = np.random.default_rng(0)
    values = rng.standard_normal(999).round(1).astype(np.float32)
    stored = from_f32(values, dtype)
    keep = rng.random(999) < 0.4
    out, expected = np.empty_like(stored.data), np.empty_like(stored.data)
    found = kernels.masked(stored.data, stored.f32(), keep, out)
    wanted = reference.masked(stored.data, stored.f32(), keep, expected)
    np.testing.assert_array_equal(out.view(np.uint8), expected.view(np.uint8))
    assert (found.kept, found.before, found.zeros) == (wanted.kept, wanted.before, wanted.zeros)
    assert (found.lost, found.total) == pytest.approx((wanted.lost, wanted.total))


def test_select_is_by_budget():
    scores = np.array([[3, 1, 2, 1], [1, 1, 1, 1]], np.float32)
    assert select(scores, Budget(3)).sum() == 3
    np.testing.assert_array_equal(select(scores, Budget(1, row=True)), [[1, 0, 0, 0], [0, 0, 0, 1]])
    np.testing.assert_array_equal(select(scores, Budget(1, of=2)), [[1, 0, 1, 0], [0, 1, 0, 1]])
    wide = scores.astype(np.float64)
    np.testing.assert_array_equal(select(wide, Budget(3)), select(scores, Budget(3)))


@pytest.mark.parametrize("device", DEVICES[1:])
@pytest.mark.parametrize("budget", [Budget(30), Budget(0), Budget(5, row=True), Budget(1, of=4)])
def test_select_finds_the_same_on_any_device(device, budget):
    put(np.zeros(1, np.float32), device)
    scores = np.random.default_rng(0).integers(0, 4, (7, 16)).astype(np.float32)[:, :12]  # not contiguous
    there = "cpu:0" if device == "torch" else device  # which torch takes for a device as any other
    np.testing.assert_array_equal(select(scores, budget, there), select(scores, budget))


@given(st.decimals(0, 1, places=4, allow_nan=False).filter(lambda x: x < 1), st.integers(1, 10**12))
def test_shares_are_exact(share, n):
    found = sparsity.fraction(str(share))
    assert (
        found
        == Fraction(str(share))
        == sparsity.fraction(float(share))
        == sparsity.fraction(sparsity.decimal(found))
    )
    assert sparsity.pruned(found, n) == int(share * n)


@pytest.mark.parametrize("text", ["1", "-0.1", "50", "half", "nan", "inf", "1/0", ""])
def test_shares_that_are_none(text):
    with pytest.raises(OptionError):
        sparsity.fraction(text)


@settings(max_examples=50, deadline=None)
@given(
    st.dictionaries(st.text(max_size=3), st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1),
    st.sampled_from(["0", ".1", ".5", ".77", ".99"]),
)
def test_erk_is_exact_and_as_published(shapes, text):
    share = Fraction(text)
    found = allocating.erk(shapes, share)
    sizes = {name: out * inn for name, (out, inn) in shapes.items()}
    n = sum(sizes.values())
    assert sum(found.values()) == n - int(share * n)
    assert all(0 <= found[name] <= sizes[name] for name in shapes)
    for name, density in published_erk(shapes, 1 - float(share)).items():
        assert abs(found[name] - density * sizes[name]) <= len(shapes)


def published_erk(shapes, density):
    """The loop of RigL's authors: the layers with the largest probability become dense, round by round."""
    dense = set()
    while True:
        divisor, rhs, raw = 0.0, 0.0, {}
        for name, (out, inn) in shapes.items():
            n = out * inn
            if name in dense:
                rhs -= n * (1 - density)
            else:
                rhs += n * density
                raw[name] = (out + inn) / n
                divisor += raw[name] * n
        if not raw:
            return dict.fromkeys(shapes, 1.0)
        eps = rhs / divisor
        largest = max(raw.values())
        if eps * largest <= 1:
            return {name: 1.0 if name in dense else eps * raw[name] for name in shapes}
        dense |= {name for name, value in raw.items() if value == largest}


@pytest.mark.parametrize("decimals", [1, None])
def test_lamp_is_as_its_loop(decimals):
    rng = np.random.default_rng(0)
    values = rng.standard_normal(300)
    values = (values if decimals is None else values.round(decimals)).astype(np.float32)
    values[:5] = 0
    if decimals is not None:
        values = from_f32(values, "BF16").f32()
    wide = values.astype(np.float64)
    expected = [w * w / (wide[np.abs(wide) >= abs(w)] ** 2).sum() for w in wide]
    np.testing.assert_allclose(allocating.lamp(values), np.float32(expected), rtol=1e-6)
    assert not allocating.lamp(np.zeros(4, np.float32)).any()


@given(st.lists(st.tuples(st.fractions(0, 50), st.integers(0, 60)), min_size=1, max_size=8), st.data())
def test_rounded_is_exact(pairs, data):
    shares, most = [float(a) for a, _ in pairs], [b for _, b in pairs]
    total = data.draw(st.integers(0, sum(most)))
    found = sparsity.rounded(shares, total, most)
    assert sum(found) == total
    assert all(0 <= x <= top for x, top in zip(found, most, strict=True))
