"""OWL: what blocks keep."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paring.errors import OptionError
from paring.pruning.outliers import block_of, check, outliers, share_out, total

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


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("model.layers.3.mlp.up_proj.weight", "model.layers.3"),
        ("h.11.attn.c_attn.weight", "h.11"),
        ("layers.0.experts.7.w1.weight", "layers.0"),
        ("0.weight", "0"),
        ("pooler.dense.weight", "pooler.dense.weight"),
        ("l2norm.weight", "l2norm.weight"),
    ],
)
def test_blocks_are_numbered_in_names(name, block):
    assert block_of(name) == block


@pytest.mark.parametrize(
    ("above", "spread", "said"), [(0, 0.1, "--outliers"), (5, -0.1, "--spread"), (5, 1, "--spread")]
)
def test_options_that_cannot_be_meant(above, spread, said):
    with pytest.raises(OptionError, match=said):
        check(above, spread)
