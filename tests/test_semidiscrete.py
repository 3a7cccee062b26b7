"""Semidiscrete fits: the fast kernel against the reference, and what any fit must do."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paring import adapters, lowrank
from paring.checkpoint import open_checkpoint
from paring.factors import read_factors
from paring.kernels import semidiscrete
from paring.kernels.semidiscrete import SIDE_BITS, cpu, reference

TRAINED = Path(__file__).parent.parent / "fixtures" / "adapters" / "rotten"
few = settings(deadline=None, max_examples=25)
#: r, in, out, halvings of the price, seed
cases = st.tuples(
    st.integers(1, 6), st.integers(1, 40), st.integers(1, 40), st.integers(0, 14), st.integers(0, 99)
)


def module(r, n_in, n_out, seed):
    """Factors (fp64) in the balanced gauge, of an uneven spectrum."""
    rng = np.random.default_rng([r, n_in, n_out, seed])
    return lowrank.balanced(rng.standard_normal((r, n_in)) * rng.exponential(size=(r, 1)),
                            rng.standard_normal((n_out, r)))  # fmt: skip


def price(A, B, halvings):
    return lowrank.energy(A, B) / SIDE_BITS * 2.0**-halvings


def error(A, B, terms):
    P, Q, scale = terms
    return np.linalg.norm(B @ A - (P.T * scale) @ Q) / np.linalg.norm(B @ A)


def test_the_kernel_does_what_the_reference_says():
    # a tie between two thresholds may be broken either way by rounding: allowed, but never seen so far
    same = 0
    for seed in range(25):
        r, n_in, n_out, halvings = (int(x) for x in np.random.default_rng(seed).integers(1, [7, 40, 40, 14]))
        A, B = module(r, n_in, n_out, seed)
        slope = price(A, B, halvings)
        fast, plain = cpu.fit(A, B, slope, 2), reference.fit(A, B, slope, 2)
        if all(np.array_equal(x, y) for x, y in zip(fast[:2], plain[:2], strict=True)):
            same += 1
            np.testing.assert_allclose(fast[2], plain[2], rtol=1e-9)
            assert abs(error(A, B, fast) - error(A, B, plain)) < 1e-9
    assert same >= 23


def test_the_kernel_does_what_the_reference_says_on_trained_modules():
    adapter = adapters.read(open_checkpoint(TRAINED))
    for factors in read_factors(adapter)[3:22:9]:
        A, B = lowrank.balanced(factors.A, factors.B * np.float64(factors.scale))
        fast, plain = (fit(A, B, price(A, B, 13), 1) for fit in (cpu.fit, reference.fit))
        assert np.count_nonzero(plain[2]) > 2
        assert error(A, B, fast) == pytest.approx(error(A, B, plain), rel=1e-6)


@few
@given(cases, st.integers(0, 3))
def test_any_fit(case, sweeps):
    r, n_in, n_out, halvings, seed = case
    A, B = module(r, n_in, n_out, seed)
    P, Q, scale = terms = semidiscrete.fit(A, B, price(A, B, halvings), sweeps)
    assert (P.shape, Q.shape, scale.shape) == ((r, n_out), (r, n_in), (r,))
    assert P.dtype == Q.dtype == np.int8
    assert set(np.unique(P)) | set(np.unique(Q)) <= {-1, 0, 1}
    assert error(A, B, terms) <= 1 + 1e-12
    used = scale > 0
    np.testing.assert_array_equal(used, P.any(axis=1))
    np.testing.assert_array_equal(used, Q.any(axis=1))
    energy = scale**2 * np.abs(P).sum(axis=1) * np.abs(Q).sum(axis=1)
    assert (energy[:-1] >= energy[1:]).all()
    # scales are those of least squares: what is left is orthogonal to every term
    left = B @ A - (P.T * scale) @ Q
    assert np.abs(np.einsum("co,oi,ci->c", P, left, Q)).max() <= 1e-6 * np.linalg.norm(B @ A) * n_in * n_out


def test_error_falls_with_the_price():
    A, B = module(6, 60, 50, 0)
    errors = [error(A, B, semidiscrete.fit(A, B, price(A, B, h), 4)) for h in (0, 3, 6, 9, 12)]
    assert errors[0] == 1.0
    assert all(b < a for a, b in pairwise(errors[1:]))
    assert errors[-1] < 0.55


def test_more_sweeps_do_not_raise_the_objective():
    for seed in range(5):
        A, B = module(5, 40, 30, seed)
        slope = price(A, B, 8)

        def objective(sweeps, A=A, B=B, slope=slope):
            P, Q, _ = terms = semidiscrete.fit(A, B, slope, sweeps)
            rate = sum(reference.bits(len(v), np.abs(v).sum()) for X in (P, Q) for v in X)
            return error(A, B, terms) ** 2 * lowrank.energy(A, B) + slope * rate

        assert objective(8) <= objective(0) * (1 + 1e-9)


@pytest.mark.parametrize("r", [1, 3])
def test_a_planted_ternary_sum_is_recovered(r):
    rng = np.random.default_rng(r)
    # terms on rows and columns of their own
    P, Q = np.zeros((r, 24)), np.zeros((r, 48))
    for c in range(r):
        P[c, 8 * c : 8 * c + 6] = rng.choice([-1, 1], 6)
        Q[c, 16 * c : 16 * c + 11] = rng.choice([-1, 1], 11)
    scale = 0.5 ** np.arange(r)
    A, B = lowrank.balanced(Q, P.T * scale)
    terms = semidiscrete.fit(A, B, price(A, B, 20), 4)
    assert error(A, B, terms) < 1e-12
    np.testing.assert_allclose(terms[2], scale)
    np.testing.assert_array_equal(np.abs(terms[0]), np.abs(P))
    np.testing.assert_array_equal(np.abs(terms[1]), np.abs(Q))


@pytest.mark.parametrize("fit", [cpu.fit, reference.fit])
def test_a_zero_matrix_has_no_terms(fit):
    for A, B in ((np.zeros((2, 5)), np.ones((3, 2))), (np.ones((1, 1)), np.zeros((1, 1)))):
        assert not any(part.any() for part in fit(A, B, 1.0, 2))


@pytest.mark.parametrize("shape", [(1, 1, 1), (4, 1, 1), (3, 2, 5), (3, 5, 2), (1, 7, 1)])
def test_tiny_shapes(shape):
    A, B = module(*shape, 0)
    assert error(A, B, semidiscrete.fit(A, B, price(A, B, 30), 4)) < 0.5


def test_one_entry_is_exact():
    P, Q, scale = semidiscrete.fit(np.array([[2.0]]), np.array([[-1.5]]), 1e-9, 1)
    assert (int(P[0, 0] * Q[0, 0]), scale[0]) == (-1, 3.0)


def test_a_module_of_low_true_rank_may_take_more_terms_than_that():
    A, B = module(8, 64, 2, 0)
    terms = semidiscrete.fit(A, B, price(A, B, 14), 8)
    assert np.count_nonzero(terms[2]) > 2
    assert error(A, B, terms) < 0.7 * error(A, B, semidiscrete.fit(A[:2], B[:, :2], price(A, B, 14), 8))


def test_a_price_above_all_energy_buys_nothing():
    A, B = module(3, 20, 20, 1)
    assert not semidiscrete.fit(A, B, lowrank.energy(A, B), 3)[2].any()
