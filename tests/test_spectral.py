"""Spectral coding: near the bound, budgets met, whatever the gauge, dtype or kind of adapter."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.bound import bound_bytes
from paring import adapters, lowrank
from paring.api import compress, load
from paring.checkpoint import open_checkpoint
from paring.codecs.trellis import values
from paring.coding import Factors, loss_of, total_error
from paring.compress import _spectral
from paring.compress._spectral import Spectral
from paring.compress._trellis import PLAN, SIDE_BITS, worth
from paring.dtypes import from_f32
from paring.errors import BudgetError, OptionError
from paring.factors import read_factors
from tests import pooling
from tests.helpers import put_adapter

ROTTEN = Path(__file__).parent.parent / "fixtures" / "adapters" / "rotten"


def factors_of(A, B, scale=1.0, name="m"):
    """A module; without B a vector."""
    if B is None:
        return Factors(name, f"{name}.a", None, A, np.ones((1, 1), np.float32), 1.0, ("F32",), ((A.size,),))
    return Factors(name, f"{name}.a", f"{name}.b", A, B, scale, ("F32", "F32"), (A.shape, B.shape))


def spectral(modules, states=256, norm=0.0, threads=1, device="cpu"):
    return Spectral(modules, states, norm, threads, device)


def error_of(family, modules, dial):
    coded = family.encode(dial).tensors
    return total_error([loss_of(f, coded[f.a], coded[f.b] if f.b else None) for f in modules])


@pytest.fixture(scope="module")
def rotten():
    return read_factors(adapters.read(open_checkpoint(ROTTEN)))


@pytest.mark.parametrize(
    ("ratio", "error", "over"), [(8, 0.184, 1.045), (16, 0.36, 1.07), (20, 0.42, 1.08), (32, 0.53, 1.1)]
)
def test_a_real_adapter_comes_near_the_bound(tmp_path, rotten, ratio, error, over):
    report = compress(ROTTEN, tmp_path / "x", method="spectral", norm=0.0, bits_per_param=16 / ratio)
    assert report.ratio_fp16 >= ratio
    assert report.error <= error
    assert report.bytes_out <= over * bound_bytes(rotten, report.error)


def test_what_one_side_loses_the_other_is_fitted_to(monkeypatch, rotten):
    dial = 320 * 24
    fitted = error_of(spectral(rotten), rotten, dial)
    monkeypatch.setattr(_spectral, "fitted", lambda levels, mine, theirs: mine[: len(levels)])
    alone = error_of(spectral(rotten), rotten, dial)
    assert 0.01 < fitted < 0.999 * alone


def test_norm_given_back_lengthens_updates_and_costs_little_error(tmp_path):
    short, long = (
        compress(ROTTEN, tmp_path / f"{norm}", method="spectral", norm=norm, ratio=64) for norm in (0.0, 0.6)
    )
    sizes = [
        sum(
            float((tensor.double() ** 2).sum())
            for name, tensor in load(report.output).items()
            if "lora_A" in name
        )
        for report in (short, long)
    ]
    assert sizes[1] > 1.1 * sizes[0]
    assert short.error < long.error < 1.05 * short.error


def test_the_gauge_of_an_adapter_does_not_matter(rotten):
    rng = np.random.default_rng(0)
    module = rotten[2]
    G = rng.standard_normal((8, 8)) + 3 * np.eye(8)
    turned = factors_of(
        (np.linalg.inv(G) @ module.A).astype(np.float32), (module.B @ G).astype(np.float32), module.scale
    )
    for dial in (400, 440):
        ours, theirs = (error_of(spectral([m]), [m], dial) for m in (module, turned))
        assert ours == pytest.approx(theirs, abs=0.01)


def test_bits_go_where_they_pay(rotten):
    """At any price no other pair of rows of the plan would be better, by the plan's own figures."""
    table = worth(384, 1536)
    bits, kept = PLAN[:, 3], 1 - PLAN[:, 4]
    cost = 384 * bits[:, None] + 1536 * bits[None] + SIDE_BITS
    loss = 1 - kept[:, None] * kept[None]
    for place in range(0, len(table.bits), 7):
        value = 2.0 ** (place / 16)
        best = min(float((value * loss + cost).min()), value)
        assert value * table.lost[place] + table.bits[place] == pytest.approx(best, rel=1e-9)


def test_scales_of_one_side_are_a_power_of_four(rotten):
    coded = spectral(rotten).encode(480 * 24).tensors
    for module in rotten:
        a, b = coded[module.a], coded[module.b]
        assert (a.classes > 0).tolist() == (b.classes > 0).tolist()
        used = a.classes > 0
        assert used.any()
        half = np.log2(b.scale[used]) / 2
        assert (half == half.round()).all() and (half == half[0]).all()
        sides = np.sqrt([(values(b, "F64") ** 2).sum(axis=0)[0], (values(a, "F64") ** 2).sum(axis=1)[0]])
        assert 1 / 4.1 < sides[0] / sides[1] < 4.1  # of the strongest component


def test_sketches_are_near_what_is_measured(rotten):
    family = spectral(rotten)
    for dial in (400 * 24, 450 * 24, 500 * 24):
        nbytes, error = family.sketch(dial)
        assert error_of(family, rotten, dial) == pytest.approx(error, rel=0.05)
        assert nbytes > 0


@given(seed=st.integers(0, 1000), rank=st.integers(1, 5), n_in=st.integers(1, 40), n_out=st.integers(1, 40))
@settings(max_examples=25, deadline=None)
def test_any_shape_loses_less_at_a_lower_price(seed, rank, n_in, n_out):
    rng = np.random.default_rng(seed)
    module = factors_of(
        rng.standard_normal((rank, n_in)).astype(np.float32),
        rng.standard_normal((n_out, rank)).astype(np.float32),
    )
    family = spectral([module], states=8)
    errors = [error_of(family, [module], dial) for dial in range(0, family.dials, 90)]
    assert errors[0] == pytest.approx(1)
    assert errors[-1] < 0.05
    assert all(b <= a + 0.1 for a, b in pairwise(errors))


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16", "F64"])
def test_every_dtype(tmp_path, dtype):
    rng = np.random.default_rng(1)
    shapes = {"lora_A": (4, 60), "lora_B": (50, 4)}
    tensors = {
        f"base_model.model.l.{i}.q.{part}.weight": from_f32(
            rng.standard_normal(shape).astype(np.float32), dtype
        )
        for i in range(3)
        for part, shape in shapes.items()
    }
    folder = put_adapter(tmp_path / "lora", tensors)
    report = compress(folder, tmp_path / "out", method="spectral", error=0.3)
    assert report.error <= 0.3
    tensors = load(report.output)
    assert {str(tensor.dtype) for tensor in tensors.values()} == {
        {"F32": "torch.float32", "F16": "torch.float16", "BF16": "torch.bfloat16", "F64": "torch.float64"}[
            dtype
        ]
    }


def test_modules_of_nothing_and_vectors(tmp_path):
    zero = factors_of(np.zeros((2, 9), np.float32), np.ones((7, 2), np.float32), name="zero")
    rng = np.random.default_rng(0)
    vector = factors_of(0.1 * rng.standard_normal((1, 300)).astype(np.float32), None, name="vector")
    unscaled = factors_of(np.ones((2, 9), np.float32), np.ones((7, 2), np.float32), scale=0.0, name="still")
    family = spectral([zero, vector, unscaled])
    errors = [error_of(family, [zero, vector, unscaled], dial) for dial in (0, 900, 1800)]
    assert errors[0] == 1 and errors[1] < 0.6 and errors[2] < 0.1
    coded = family.encode(1800).tensors
    assert not coded["zero.a"].classes.any() and not coded["still.a"].classes.any()
    assert coded["vector.a"].classes.all()


def test_threads_and_devices_agree(rotten):
    one, two = (spectral(rotten[:4], states=16, threads=threads).encode(1700).tensors for threads in (1, 2))
    assert all(
        (one[name].k == two[name].k).all() and (one[name].scale == two[name].scale).all() for name in one
    )
    for module in rotten[:2]:
        U, s, V = lowrank.components(module.A, module.B)
        for device in ("cpu", "cpu:0"):
            U2, s2, V2 = lowrank.components(module.A, module.B, device)
            np.testing.assert_allclose(s2, s, rtol=1e-6)
            np.testing.assert_allclose((U2 * s2) @ V2, (U * s) @ V, atol=1e-5 * s[0])
        exact = lowrank.svd(module.A, module.B)
        np.testing.assert_allclose(s, exact[1], rtol=1e-6)
        np.testing.assert_allclose((U * s) @ V, module.B @ module.A, atol=1e-5 * s[0])


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"states": 12}, "--states 12: a power of two"),
        ({"norm": 1.5}, "--norm 1.5: a number from 0 to 1"),
    ],
)
def test_options_that_cannot_be_meant(tmp_path, options, match):
    with pytest.raises(OptionError, match=match):
        compress(ROTTEN, tmp_path / "x", method="spectral", **options)


def test_a_budget_below_all_names_the_best(tmp_path):
    with pytest.raises(BudgetError, match="the best that can be had is --ratio"):
        compress(ROTTEN, tmp_path / "x", method="spectral", ratio=5000)
    report = compress(ROTTEN, tmp_path / "x", method="spectral", error=0.01)
    assert report.error <= 0.01


def test_a_small_adapter_fills_a_large_budget(tmp_path):
    source = pooling.put(tmp_path / "a", pooling.gaussian(1))
    report = compress(source, tmp_path / "out", method="spectral", ratio=4, threads=1)
    assert report.ratio < 4.1 and report.error < 0.05
