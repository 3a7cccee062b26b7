"""The algebra of products of factors, against the dense product."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paring import lowrank

few = settings(deadline=None, max_examples=30)
#: r, in, out, seed; r may exceed both axes
shapes = st.tuples(st.integers(1, 7), st.integers(1, 9), st.integers(1, 9), st.integers(0, 99))


def factors(shape, dtype=np.float32):
    r, n_in, n_out, seed = shape
    rng = np.random.default_rng([r, n_in, n_out, seed])
    return rng.standard_normal((r, n_in)).astype(dtype), rng.standard_normal((n_out, r)).astype(dtype)


def dense(A, B):
    return B.astype(np.float64) @ A.astype(np.float64)


@few
@given(shapes, st.integers(1, 7))
def test_inner_energy_and_distance(shape, other_rank):
    A, B = factors(shape)
    C, D = factors((other_rank, *shape[1:3], shape[3] + 1))
    M, N = dense(A, B), dense(C, D)
    bound = np.linalg.norm(M) * np.linalg.norm(N)
    assert lowrank.inner(A, B, C, D) == pytest.approx((M * N).sum(), abs=1e-12 * bound)
    assert lowrank.energy(A, B) == pytest.approx((M * M).sum(), rel=1e-10)
    assert lowrank.distance(A, B, C, D) == pytest.approx(((M - N) ** 2).sum(), rel=1e-10)


def test_distance_of_near_equal_products_does_not_cancel():
    A, B = factors((4, 30, 20, 0), np.float64)
    step = 1e-9 * np.ones_like(B)
    expected = (dense(A, step) ** 2).sum()
    assert lowrank.distance(A, B, A, B + step) == pytest.approx(expected, rel=1e-5)
    assert lowrank.distance(A, B, A, B) < 1e-26


@few
@given(shapes)
def test_svd(shape):
    A, B = factors(shape)
    U, s, V = lowrank.svd(A, B)
    k = min(shape[:3])
    assert (U.shape, s.shape, V.shape) == ((len(B), k), (k,), (k, A.shape[1]))
    np.testing.assert_allclose((U * s) @ V, dense(A, B), atol=1e-12)
    np.testing.assert_allclose(U.T @ U, np.eye(k), atol=1e-12)
    np.testing.assert_allclose(V @ V.T, np.eye(k), atol=1e-12)
    assert (s[:-1] >= s[1:]).all()
    assert (s >= 0).all()
    assert (U[np.abs(U).argmax(axis=0), np.arange(k)] > 0).all()


@few
@given(shapes)
def test_balanced(shape):
    A, B = factors(shape)
    A2, B2 = lowrank.balanced(A, B)
    assert (A2.shape, B2.shape) == (A.shape, B.shape)
    np.testing.assert_allclose(B2 @ A2, dense(A, B), atol=1e-12)
    norms = np.linalg.norm(A2, axis=1)
    np.testing.assert_allclose(norms, np.linalg.norm(B2, axis=0), atol=1e-12)
    assert (norms[:-1] >= norms[1:] - 1e-12).all()
    assert not A2[min(shape[:3]) :].any()


def test_zero_factors_have_no_energy():
    A, B = np.zeros((2, 5), np.float32), np.ones((3, 2), np.float32)
    assert lowrank.energy(A, B) == lowrank.distance(A, B, A, -B) == 0.0
    for balanced in lowrank.balanced(A, B):
        assert np.isfinite(balanced).all()
        assert not balanced.any()
