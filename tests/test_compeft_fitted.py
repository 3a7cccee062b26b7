"""ComPEFT by rank vectors: each with a density and a scale of its own, as the price of a bit decides."""

import numpy as np
import pytest

from paring.codecs.ternary import values
from paring.coding import Factors, loss_of, total_error
from paring.kernels.semidiscrete import SIDE_BITS, reference
from paring.lowrank import balanced, energy
from paring.registry import load

METHOD = load("compress", "compeft")
BASES = ["trained", "svd", "semidiscrete"]


def module(r, n_in, n_out, scale=1.0, name="m", seed=0, dtypes=("F32", "F32")):
    rng = np.random.default_rng([r, n_in, n_out, seed])
    A = rng.standard_normal((r, n_in), np.float32) / 3
    B = rng.standard_normal((n_out, r), np.float32) / 50
    return Factors(name, f"{name}.a", f"{name}.b", A, B, scale, dtypes, (A.shape, B.shape))


def vector(delta, dtype="F32"):
    row, one = np.asarray(delta, np.float32).reshape(1, -1), np.ones((1, 1), np.float32)
    return Factors("l", "l", None, row, one, 1.0, (dtype,), ((row.size, 1),))


@pytest.fixture(scope="module")
def modules():
    return [module(6, 40, 30, name="x", scale=2.0), module(4, 25, 50, name="y", scale=0.5)]


def family(modules, threads=1, **options):
    return METHOD.function(modules, threads, **METHOD.parse({"sweeps": 2, **options}))


def error(modules, coded):
    tensors = coded.tensors
    return total_error([loss_of(m, tensors[m.a], tensors[m.b] if m.b else None) for m in modules])


def share(modules, coded):
    kept = sum(int(np.bitwise_count(item.mask).sum()) for item in coded.tensors.values())
    return kept / sum(m.numel for m in modules)


def planes(coded):
    return {
        name: (item.layout, item.shape, item.mask.tobytes(), item.sign.tobytes(), item.scale.tobytes())
        for name, item in coded.tensors.items()
    }


def short(x):
    mantissa, exponent = np.frexp(x)
    return np.ldexp(np.round(mantissa * 32) / 32, exponent)


@pytest.mark.parametrize("basis", BASES)
def test_a_dial_is_the_reference_at_its_price(basis):
    one = module(3, 20, 15, scale=-1.5)
    found = family([one], basis=basis)
    tensors = {name: values(item, "F64") for name, item in found.encode(150).tensors.items()}
    A, B = one.A.astype(np.float64), one.B * -1.5
    if basis != "trained":
        A, B = balanced(one.A, B)
    pieces = [(A, B)] if basis == "semidiscrete" else [(A[c : c + 1], B[:, c : c + 1]) for c in range(3)]
    price = max(energy(*piece) for piece in pieces) / SIDE_BITS * 2 ** (-150 / 16)
    fits = [reference.fit(*piece, price, 2) for piece in pieces]
    P, Q, scale = (np.concatenate(parts) for parts in zip(*fits, strict=True))
    assert np.count_nonzero(scale) >= 2
    for c in range(3):
        outer = scale[c] * np.outer(P[c], Q[c])
        decoded = -1.5 * np.outer(tensors["m.b"][:, c], tensors["m.a"][c])
        np.testing.assert_array_equal(np.sign(decoded), np.sign(outer))
        np.testing.assert_allclose(decoded, outer, rtol=1 / 31)  # scales are shortened


@pytest.mark.parametrize("basis", BASES)
@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32"])
def test_scales_are_exact_in_every_dtype(modules, basis, dtype):
    for item in family(modules, basis=basis).encode(400).tensors.values():
        exact = item.scale.astype(np.float64)
        np.testing.assert_array_equal(exact, short(exact))
        np.testing.assert_array_equal(values(item, dtype), values(item, "F64"))
    of_b = family(modules, basis=basis).encode(400).tensors["x.b"].scale
    assert of_b.any()
    assert set(np.frexp(of_b)[0]) <= {0.0, 0.5}, "powers of two"


def test_factors_share_the_scale_evenly(modules):
    tensors = family(modules).encode(400).tensors
    for m in modules:
        a, b = values(tensors[m.a], "F64"), values(tensors[m.b], "F64")
        norms = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=0)
        used = norms[0] > 0
        np.testing.assert_array_equal(used, norms[1] > 0)
        ratio = norms[0][used] / norms[1][used]
        assert (ratio > 0.45).all()
        assert (ratio < 2.2).all()


@pytest.mark.parametrize("basis", BASES)
def test_error_falls_along_the_dial(modules, basis):
    found = family(modules, basis=basis)
    assert found.dials == 40 * 16 * 2
    errors = [error(modules, found.encode(dial)) for dial in (0, 150, 300, 500)]
    assert errors[0] == 1.0
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.75


def test_one_dial_differs_from_the_next_in_one_module(modules):
    found = family(modules)
    one, other = planes(found.encode(300)), planes(found.encode(301))
    assert {name[0] for name in one if one[name] != other[name]} <= {"x"}


@pytest.mark.parametrize("basis", ["svd", "semidiscrete"])
def test_the_gauge_of_the_factors_does_not_matter(modules, basis):
    rng = np.random.default_rng(7)
    turned = []
    for m in modules:
        G = np.linalg.qr(rng.standard_normal((len(m.A), len(m.A))))[0] * rng.uniform(0.3, 3, len(m.A))
        A, B = (np.linalg.inv(G) @ m.A).astype(np.float32), (m.B @ G).astype(np.float32)
        turned.append(Factors(m.name, m.a, m.b, A, B, m.scale, m.dtypes, m.shapes))
    for dial in (200, 400):
        plain, other = (error(ms, family(ms, basis=basis).encode(dial)) for ms in (modules, turned))
        assert other == pytest.approx(plain, abs=0.01)


@pytest.mark.parametrize("density", [0.1, 0.2, 0.4])
def test_a_density_is_kept_within_and_nearly_used(modules, density):
    found = family(modules, density=density)
    used = share(modules, found.encode(found.fixed))
    assert used <= density
    assert share(modules, found.encode(found.fixed + 1)) > density
    assert used > 0.6 * density


def test_planes_do_not_depend_on_threads(modules):
    for options in ({}, {"basis": "trained"}, {"basis": "svd", "scope": "tensor"}, {"density": 0.1}):
        one, two = (family(modules, threads, **options) for threads in (1, 2))
        assert one.fixed == two.fixed
        dial = 300 if one.fixed is None else one.fixed
        assert planes(one.encode(dial)) == planes(two.encode(dial))


def test_the_sign_of_a_module_goes_into_its_factors():
    one, other = module(3, 20, 15, scale=1.5), module(3, 20, 15, scale=-1.5)
    for dial in (100, 200):
        errors = [error([m], family([m]).encode(dial)) for m in (one, other)]
        assert errors[0] == pytest.approx(errors[1], rel=1e-9)
        assert errors[0] < 1


@pytest.mark.parametrize("basis", BASES)
def test_modules_that_change_nothing_take_nothing(basis):
    silent = module(2, 9, 8, scale=0.0, name="x")
    zero = module(2, 9, 8, name="y")
    zero.B[:] = 0
    loud = module(2, 9, 8, name="z")
    for modules in ([silent], [zero], [silent, zero, loud]):
        coded = family(modules, basis=basis).encode(len(modules) * 200)
        quiet = [item for name, item in coded.tensors.items() if name[0] in "xy"]
        assert not any(item.mask.any() for item in quiet)
        assert error(modules, coded) < (1 if loud in modules else 1e-9)
        assert all(np.isfinite(item.scale).all() for item in coded.tensors.values())


@pytest.mark.parametrize("basis", BASES)
def test_more_rank_than_the_shape_has(basis):
    modules = [module(8, 40, 2)]
    coded = family(modules, basis=basis).encode(300)
    assert coded.tensors["m.a"].shape == (8, 40)
    assert coded.tensors["m.b"].shape == (2, 8)
    assert error(modules, coded) < (0.75 if basis == "trained" else 0.6)


@pytest.mark.parametrize("basis", BASES)
@pytest.mark.parametrize("dtype", ["F32", "F16"])
def test_ia3_vectors(basis, dtype):
    delta = np.random.default_rng(0).standard_normal(200) / 10
    modules = [vector(delta, dtype)]
    coded = family(modules, basis=basis).encode(120)
    item = coded.tensors["l"]
    assert (item.shape, item.layout) == ((200, 1), "whole")
    decoded = values(item, "F64").reshape(-1)
    kept = decoded != 0
    np.testing.assert_array_equal(np.sign(decoded[kept]), np.sign(delta[kept]))
    assert np.abs(delta[kept]).min() > np.abs(delta[~kept]).max()
    assert item.scale[0] == short(np.abs(delta.astype(np.float32)[kept]).mean())
    found = error(modules, coded)
    assert found == pytest.approx(np.linalg.norm(decoded - delta) / np.linalg.norm(delta), rel=1e-2)
    assert found < 0.6


def test_convolutions_keep_the_shapes_of_their_tensors():
    m = module(2, 18, 5)
    conv = Factors(m.name, m.a, m.b, m.A, m.B, 1.0, m.dtypes, ((2, 2, 3, 3), (5, 2, 1, 1)))
    for options in ({}, {"basis": "trained", "scope": "global"}):
        coded, plain = (family([f], **options).encode(100) for f in (conv, m))
        assert coded.tensors["m.a"].shape == (2, 2, 3, 3)
        assert coded.tensors["m.b"].shape == (5, 2, 1, 1)
        assert error([conv], coded) == error([m], plain)
