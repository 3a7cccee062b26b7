"""ComPEFT as published, against vectors that the authors' code made, and in its other scopes and bases."""

from pathlib import Path

import numpy as np
import pytest

from paring import lowrank
from paring.codecs.ternary import encode, values
from paring.coding import Factors, loss_of, total_error
from paring.compress import _ternary
from paring.errors import OptionError
from paring.registry import load

ORACLES = Path(__file__).parent.parent / "fixtures" / "oracles"
METHOD = load("compress", "compeft")


def module(A, B, scale=1.0, name="m", dtype="F32"):
    A, B = np.asarray(A, np.float32), np.asarray(B, np.float32)
    return Factors(name, f"{name}.a", f"{name}.b", A, B, scale, (dtype, dtype), (A.shape, B.shape))


def vector(delta, name="l", dtype="F32"):
    row, one = np.asarray(delta, np.float32).reshape(1, -1), np.ones((1, 1), np.float32)
    return Factors(name, f"{name}.l", None, row, one, 1.0, (dtype,), ((row.size, 1),))


def random_module(r, n_in, n_out, seed=0, **more):
    rng = np.random.default_rng([r, n_in, n_out, seed])
    return module(rng.standard_normal((r, n_in)) / 3, rng.standard_normal((n_out, r)) / 50, **more)


def family(modules, threads=1, **options):
    return METHOD.function(modules, threads, **METHOD.parse(options))


def paper(modules, **options):
    return family(modules, **{**METHOD.presets["paper"], **options})


def dense(coded, dtype="F32"):
    return {name: values(item, dtype) for name, item in coded.tensors.items()}


def flat(coded, modules):
    """The whole adapter as one vector, A then B of each module."""
    tensors = dense(coded)
    return np.concatenate([tensors[name].reshape(-1) for m in modules for name in (m.a, m.b) if name])


def error(modules, coded):
    tensors = coded.tensors
    return total_error([loss_of(m, tensors[m.a], tensors[m.b] if m.b else None) for m in modules])


# as published


@pytest.mark.parametrize("percent", [5, 10, 20, 50])
def test_the_published_rule_makes_what_the_published_code_made(percent):
    v = np.load(ORACLES / "input_gauss.npy")[0]
    expected = np.load(ORACLES / f"compeft_gauss_K{percent}.npy")
    modules = [module(v[:240].reshape(4, 60), v[240:400].reshape(40, 4), name="x"),
               module(v[400:700].reshape(3, 100), v[700:].reshape(100, 3), name="y")]  # fmt: skip
    found = paper(modules, density=percent / 100)
    ours = flat(found.encode(found.fixed), modules)
    np.testing.assert_array_equal(np.sign(ours), np.sign(expected))
    assert np.count_nonzero(ours) == int(1000 * percent / 100) + 1
    np.testing.assert_array_max_ulp(ours.astype(np.float32), expected, maxulp=1)
    # the dial that a budget would find is the same rule
    by_dial = flat(paper(modules).encode(int(1000 * percent / 100)), modules)
    np.testing.assert_array_equal(by_dial, ours)


def test_ties_with_the_last_are_kept():
    v = np.float32([9, -5, 5, 5, 1, -5, 0.5, 0.25])
    modules = [module(v[:4].reshape(1, 4), v[4:].reshape(4, 1))]
    kept = flat(paper(modules, density=0.13).encode(1), modules)  # int(8 * .13) + 1 = 2, and three more
    np.testing.assert_array_equal(np.sign(kept), [1, -1, 1, 1, 0, -1, 0, 0])
    np.testing.assert_allclose(np.abs(kept[kept != 0]), v.std(ddof=1), rtol=1e-6)


def test_all_may_be_kept_and_zeros_stay():
    modules = [random_module(3, 20, 11)]
    modules[0].A[1, 5:] = 0
    found = paper(modules, density=1.0)
    original = np.concatenate([modules[0].A.reshape(-1), modules[0].B.reshape(-1)])
    np.testing.assert_array_equal(np.sign(flat(found.encode(found.fixed), modules)), np.sign(original))


def test_the_count_is_the_published_product_of_floats():
    modules = [random_module(1, 60, 40)]
    found = paper(modules, density=0.29)
    assert found.fixed == int(100 * 0.29) == 28
    assert np.count_nonzero(flat(found.encode(found.fixed), modules)) == 29


def test_threshold_and_scale_ignore_the_scale_of_the_module():
    one, other = random_module(2, 30, 20), random_module(2, 30, 20, scale=-0.25)
    assert flat(paper([one]).encode(9), [one]).tolist() == flat(paper([other]).encode(9), [other]).tolist()


def test_ia3_vectors_are_taken_as_what_they_add_to_one():
    v = np.random.default_rng(0).standard_normal(80).astype(np.float32) / 10
    modules = [vector(v[:50], "p"), vector(v[50:], "q")]
    found = paper(modules, density=0.2)
    coded = found.encode(found.fixed)
    t = np.sort(np.abs(v))[-17]
    expected = np.where(np.abs(v) >= t, np.sign(v), 0) * v.std(ddof=1)
    np.testing.assert_allclose(flat(coded, modules), expected, rtol=1e-6)
    assert coded.tensors["p.l"].shape == (50, 1)
    assert error(modules, coded) == pytest.approx(np.linalg.norm(expected - v) / np.linalg.norm(v), rel=1e-4)


# other scopes, scales and bases


@pytest.mark.parametrize("alpha", [1.0, 2.5, "lsq"])
@pytest.mark.parametrize("scope", ["global", "factor", "tensor"])
def test_scopes_and_scales_by_the_book(scope, alpha):
    modules = [random_module(2, 30, 20, name="x"), random_module(3, 10, 40, name="y")]
    found = family(modules, basis="trained", scope=scope, alpha=alpha, density=0.15)
    tensors = dense(found.encode(found.fixed))
    x, y = modules
    groups = {
        "global": [[(x.a, x.A), (x.b, x.B), (y.a, y.A), (y.b, y.B)]],
        "factor": [[(x.a, x.A), (y.a, y.A)], [(x.b, x.B), (y.b, y.B)]],
        "tensor": [[(x.a, x.A)], [(x.b, x.B)], [(y.a, y.A)], [(y.b, y.B)]],
    }[scope]
    for group in groups:
        v = np.concatenate([part.reshape(-1) for _, part in group]).astype(np.float64)
        t = np.sort(np.abs(v))[-int(v.size * 0.15) - 1]
        keep = np.abs(v) >= t
        scale = np.abs(v[keep]).mean() if alpha == "lsq" else alpha * v.std(ddof=1)
        ours = np.concatenate([tensors[name].reshape(-1) for name, _ in group])
        np.testing.assert_allclose(ours, np.where(keep, np.sign(v), 0) * scale, rtol=1e-6)


def test_a_dial_of_scoped_families_shares_out_evenly():
    modules = [random_module(2, 50, 50, name="x"), random_module(2, 100, 100, name="y")]
    coded = family(modules, basis="trained", scope="tensor").encode(60)
    kept = {name: np.count_nonzero(part) for name, part in dense(coded).items()}
    assert kept == {"x.a": 11, "x.b": 11, "y.a": 21, "y.b": 21}


def test_the_dial_runs_to_all_of_nearly_equal_magnitudes():
    rng = np.random.default_rng(0)
    A, B = (rng.choice([-1, 1], shape) * rng.uniform(0.95, 1.05, shape) for shape in ((4, 300), (300, 4)))
    modules = [module(A, B)]
    found = family(modules, basis="trained", scope="tensor")
    assert found.turns == (int(2400 * 43 / 64),)
    assert error(modules, found.encode(found.turns[0])) > 0.5
    last = found.encode(found.dials - 1)
    assert np.count_nonzero(flat(last, modules)) == 2400
    assert error(modules, last) < 0.1
    all_kept = family(modules, basis="trained", scope="tensor", density=1.0)
    np.testing.assert_array_equal(flat(last, modules), flat(all_kept.encode(all_kept.fixed), modules))


def test_the_turns_are_where_sizes_turn():
    # one threshold: every entry of A is kept before the first of B
    rng = np.random.default_rng(0)
    modules = [module(rng.uniform(1, 2, (4, 3000)), rng.uniform(0.1, 0.2, (3000, 4)))]
    found = paper(modules)
    peak_a, valley, peak_b = found.turns
    assert valley == 12000
    size = [len(encode(found.encode(dial).tensors.values())) for dial in range(0, 24000, 1500)]
    turns = [d * 1500 for d in range(1, 15) if (size[d] - size[d - 1]) * (size[d + 1] - size[d]) < 0]
    assert turns == [round(turn / 1500) * 1500 for turn in (peak_a, valley, peak_b)]


def test_the_svd_basis_is_another_gauge_of_the_same_update():
    one = random_module(4, 30, 20)
    a, b = _ternary._parts([one], "svd")
    np.testing.assert_allclose(b.values @ a.values, one.B @ one.A, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(a.values, axis=1), np.linalg.norm(b.values, axis=0), rtol=1e-5)


def test_a_small_b_survives_in_the_scopes_that_mend_it():
    # A at its random start, B small: the whole vector's threshold keeps entries of A alone
    rng = np.random.default_rng(0)
    modules = [module(rng.uniform(-1, 1, (8, 64)), rng.standard_normal((48, 8)) / 100)]
    assert error(modules, paper(modules).encode(90)) == 1.0
    assert error(modules, family(modules, basis="trained", scope="factor").encode(300)) < 0.9
    assert error(modules, family(modules, basis="svd", scope="global").encode(300)) < 0.9


@pytest.mark.parametrize(("basis", "scope"), [("svd", "tensor"), ("trained", "global")])
def test_error_falls_along_the_dial(basis, scope):
    modules = [random_module(3, 60, 40, name="x"), random_module(3, 60, 40, name="y", scale=2.0)]
    found = family(modules, basis=basis, scope=scope)
    assert found.fixed is None
    errors = [error(modules, found.encode(dial)) for dial in (0, found.dials // 6, found.dials // 2)]
    assert errors == sorted(errors, reverse=True)
    assert found.dials == 600


def test_the_loss_is_that_of_the_dense_update():
    one = random_module(3, 20, 30, scale=0.7)
    coded = family([one], basis="svd", scope="tensor").encode(40)
    tensors = dense(coded)
    M, N = (0.7 * B.astype(np.float64) @ A for A, B in ((one.A, one.B), (tensors["m.a"], tensors["m.b"])))
    loss = loss_of(one, coded.tensors["m.a"], coded.tensors["m.b"])
    assert loss.error == pytest.approx(np.linalg.norm(M - N) / np.linalg.norm(M), rel=1e-9)
    assert loss.energy == pytest.approx(lowrank.energy(one.A, one.B) * 0.49, rel=1e-9)
    assert loss.nonzero == np.count_nonzero(tensors["m.a"]) + np.count_nonzero(tensors["m.b"])


def test_tensors_without_entries():
    modules = [module(np.zeros((0, 9)), np.zeros((7, 0)), name="e"), random_module(2, 9, 7)]
    found = family(modules, basis="trained", scope="global")
    assert found.dials == 32
    assert dense(found.encode(5))["e.a"].shape == (0, 9)


def test_constant_and_zero_tensors():
    zeros = [module(np.zeros((2, 9)), np.zeros((7, 2)))]
    ones = [module(np.ones((2, 9)), np.ones((7, 2)))]
    for basis, scope in (("trained", "global"), ("trained", "tensor"), ("svd", "factor")):
        found = family(zeros, basis=basis, scope=scope, density=0.5)
        coded = found.encode(found.fixed)
        assert not flat(coded, zeros).any()
        assert error(zeros, coded) == 0.0
    kept = flat(family(ones, basis="trained", scope="global").encode(3), ones)
    np.testing.assert_array_equal(kept, np.ones(32))  # all tie
    assert not flat(paper(ones).encode(3), ones).any()  # their standard deviation is 0: so published


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"density": 0.0}, "--density 0.0: a density is a fraction in (0, 1]"),
        ({"density": 1.5}, "--density 1.5: a density is a fraction in (0, 1]"),
        ({"density": "nan"}, "--density nan: a density is a fraction in (0, 1]"),
        (
            {"alpha": -1.0, "scope": "tensor"},
            "--alpha -1.0: the scale's multiple must be positive and finite",
        ),
        ({"alpha": "inf"}, "--alpha inf: the scale's multiple must be positive and finite"),
        ({"sweeps": -1}, "--sweeps -1: must not be negative"),
        ({"scope": "tensor"}, "choose --basis trained or svd"),
        ({"alpha": 2.0}, "--scope component takes least-squares scales: --alpha 2.0 needs"),
        ({"basis": "qr"}, "--basis qr: expected trained or svd or semidiscrete"),
    ],
)
def test_what_cannot_be_meant_is_refused(options, message):
    with pytest.raises(OptionError) as caught:
        family([random_module(1, 4, 4)], **options)
    assert message in str(caught.value)
