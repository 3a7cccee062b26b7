"""Kernels of the merging rules: numba against numpy."""

import numpy as np
import pytest

from paring.kernels import masks, merging, polynomials
from paring.kernels.jit import jit
from paring.kernels.masks import cpu as masks_cpu
from paring.kernels.masks import reference as masks_reference
from paring.kernels.merging import cpu, reference

WEIGHTS = np.array([1.0, -0.5, 2.0, 0.3])
#: entries: none, one, a block of the kernels and its neighbours, several
SIZES = (0, 1, 2047, 2048, 2049, 7000)


def vectors(k, seed=0):
    """Of many scales, with zeros, equal magnitudes and cancellations."""
    rng = np.random.default_rng(seed)
    out = (rng.standard_normal((4, k)) * rng.exponential(size=(4, 1))).astype(np.float32)
    out[:, rng.random(k) < 0.1] = 0
    out[1, rng.random(k) < 0.1] = 0.25
    out[2, rng.random(k) < 0.1] = -0.25
    return out


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("k", SIZES)
def test_sums_and_inner_products(k):
    x = vectors(k)
    close(cpu.weighted_sum(x, WEIGHTS), reference.weighted_sum(x, WEIGHTS))
    np.testing.assert_allclose(cpu.gram(x), reference.gram(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("k", SIZES)
@pytest.mark.parametrize("sign", ["mass", "count"])
def test_ties(k, sign):
    x, t = vectors(k), np.float32([0.1, 0.25, 0.25, 0])
    np.testing.assert_array_equal(cpu.elected(x, t, WEIGHTS, sign), reference.elected(x, t, WEIGHTS, sign))
    for combine in ("mean", "sum", "max"):
        for cancelled in (-1.0, 0.0, 1.0):
            args = (x, t, WEIGHTS, sign, combine, cancelled)
            found, expected = cpu.ties(*args), reference.ties(*args)
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("k", SIZES)
@pytest.mark.parametrize("rule", ["E", "A", "N", "V"])
def test_pcb(k, rule):
    x = vectors(k)
    low, high = np.float32([0.01, 0, 0.1, 0]), np.float32([2, 0.5, 1, 0])
    scores = reference.pcb_scores(x, low, high, rule)
    np.testing.assert_allclose(cpu.pcb_scores(x, low, high, rule), scores, rtol=1e-5, atol=1e-5)
    t, top = np.float32([0, 0.1, 0.01, 0]), np.float32([3, 1, 1, 0])
    args = (x, low, high, t, top, WEIGHTS, rule)
    np.testing.assert_allclose(cpu.pcb(*args), reference.pcb(*args), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("k", SIZES)
def test_masks(k):
    x = vectors(k)
    low, high = np.float32([0, 0.25, 0.1, 9]), np.float32([np.inf, 0.25, 1, 1])
    close(masks.band_sum(x, low, high, WEIGHTS), masks_reference.band_sum(x, low, high, WEIGHTS))
    signs = np.sign(vectors(k, 1)[0])
    for found, expected in zip(
        masks_cpu.erased_sum(x, signs, WEIGHTS), masks_reference.erased_sum(x, signs, WEIGHTS), strict=True
    ):
        close(found, expected)
    close(masks_cpu.variance(x), masks_reference.variance(x))
    for agree in range(6):
        close(masks_cpu.consensus(x, WEIGHTS, 0.4, agree), masks_reference.consensus(x, WEIGHTS, 0.4, agree))


def test_the_front_doors_lead_to_the_kernels():
    x = vectors(100)
    np.testing.assert_array_equal(merging.weighted_sum(x, WEIGHTS), cpu.weighted_sum(x, WEIGHTS))
    np.testing.assert_array_equal(masks.variance(x), masks_cpu.variance(x))


@jit()
def _each(function, x, out):
    for p in range(len(x)):
        out[p] = function(x[p])


@pytest.mark.parametrize(("name", "far"), [("exp", 87), ("tanh", 20), ("tanh_of_unit", 1)])
def test_polynomials_are_within_two_units_in_the_last_place(name, far):
    x = np.concatenate([np.linspace(-far, far, 100_001), np.geomspace(1e-30, 1, 10_001)]).astype(np.float32)
    out = np.empty_like(x)
    _each(getattr(polynomials, name), x, out)
    expected = getattr(np, name.partition("_")[0])(x.astype(np.float64))
    assert (np.abs(out - expected) / np.spacing(np.abs(expected).astype(np.float32))).max() <= 2
