"""OWL: what blocks keep."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paring.errors import OptionError
from paring.pruning.outliers import outliers, share_out, total, whole

shares = st.lists(st.floats(0, 100), min_size=1, max_size=8)


@given(shares, st.data(), st.sampled_from(["0", ".29", ".5", ".7", ".99"]), st.floats(0, 0.99))
def test_the_total_is_exact_on_blocks_of_unequal_size(found, data, sparsity, spread):
    sizes = data.draw(st.lists(st.integers(0, 5000), min_size=len(found), max_size=len(found)))
    keeps = share_out(found, sizes, Fraction(sparsity), spread)
    assert sum(keeps) == sum(sizes) - int(Fraction(sparsity) * sum(sizes))
    assert all(0 <= keep <= size for keep, size in zip(keeps, sizes, strict=True))


def test_blocks_that_are_alike_get_the_same():
    assert share_out([3.0] * 4, [1000] * 4, Fraction(".29"), 0.08) == [710] * 4
    assert share_out([1.0, 9.0], [1000] * 2, Fraction(".29"), 0.0) == [710] * 2


def test_the_formula():
    """The authors', with the parameters of each block as its weight."""
    D, sizes, spread = np.array([1.0, 2, 5]), np.array([1000, 3000, 1000]), 0.08
    scaled = (D - D.min()) / (D.max() - D.min()) * 2 * spread
    expected = scaled - (scaled * sizes).sum() / sizes.sum() + 0.3
    np.testing.assert_allclose(
        np.array(share_out(D, sizes.tolist(), Fraction(".7"), spread)) / sizes, expected, atol=1e-3
    )


def test_outliers_are_counted():
    W = np.array([[1, -2, 0], [10, 1, 1]], np.float32)
    norms = np.array([1, 1, 2], np.float32)
    assert total(W, norms) == 16
    assert outliers(W, norms, 16 / 6) == 1
    assert outliers(W, norms, 1.5) == 3


def test_remainders_go_to_the_largest():
    assert whole(np.array([0.5, 0.9, 0.6]), [3, 3, 3], 6) == [1, 3, 2]
    assert whole(np.array([0.5, 0.5]), [3, 3], 3) == [2, 1]


def test_spreads_that_cannot_be_meant():
    with pytest.raises(OptionError, match="spread"):
        share_out([1.0], [10], Fraction(1, 2), -0.1)
