"""Merging rules by angles and singular vectors, against the same in plain numpy."""

import numpy as np
import pytest

from paring.errors import OptionError
from paring.merge._spectral import decomposed, left, orthogonal
from paring.merge._sphere import centre
from paring.merge.knots import _left
from tests.helpers import merged
from tests.test_merge_rules import MODELS, SHAPES, WEIGHTS, by_tensor, check, flat

W = np.array(WEIGHTS)


def turned(a, b, t):
    if not a.ndim or not np.linalg.norm(a) * np.linalg.norm(b):
        return (1 - t) * a + t * b
    angle = np.arccos(np.sum(a * b) / np.linalg.norm(a) / np.linalg.norm(b))
    return (np.sin((1 - t) * angle) * a + np.sin(t * angle) * b) / np.sin(angle)


def test_slerp():
    two = [{**model, "scalar": np.float32(1 + i)} for i, model in enumerate(MODELS[:2])]
    for t in (0.0, 0.3, 1.0):
        check(merged("slerp", two, t=t), by_tensor(lambda x, t=t: turned(*x, t), two))
    check(merged("nuslerp", two, [0.7, 0.3]), flat(merged("slerp", two, t=0.3)))


def test_slerp_of_parallel_opposite_and_zero_vectors_is_linear():
    for factor in (1, 2, -1, 0):
        two = [{"a": np.float32([1, 2, 3])}, {"a": np.float32([1, 2, 3]) * factor}]
        for rule in ("slerp", "nuslerp"):
            expected = (0.5 + 0.5 * factor) * np.array([1, 2, 3])
            np.testing.assert_allclose(merged(rule, two)["a"], expected, atol=1e-6)
    near = [{"a": np.float32([1, 0])}, {"a": np.float32([1, 0.03])}]
    assert merged("slerp", near)["a"][0] == 1  # beyond a cosine of .9995; on the circle it would be longer
    assert merged("nuslerp", near)["a"][0] > 1.0001


def test_nuslerp_by_rows():
    two = [{**model, "scalar": np.float32(2)} for model in MODELS[:2]]

    def rule(x):
        rows = x.reshape(2, -1, x.shape[-1] if x.ndim > 1 else 1)
        if rows.shape[-1] == 1:
            return x[0]
        return np.array([turned(a, b, 0.25) for a, b in zip(*rows, strict=True)])

    check(merged("nuslerp", two, [3, 1], per="row"), by_tensor(rule, two))


@pytest.mark.parametrize("rule", ["slerp", "nuslerp"])
def test_great_circles_join_two_models(rule):
    for n in (1, 3):
        with pytest.raises(OptionError, match=f"{rule} merges two models, not {n}"):
            merged(rule, MODELS[:n])


def test_slerp_refuses_what_it_would_ignore():
    with pytest.raises(OptionError, match="nuslerp takes weights"):
        merged("slerp", MODELS[:2], [1, 2])
    with pytest.raises(OptionError, match=r"--t 1\.5"):
        merged("slerp", MODELS[:2], t=1.5)
    with pytest.raises(OptionError, match="sum to zero"):
        merged("nuslerp", MODELS[:2], [1, -1])


def test_karcher_of_two_is_slerp_of_directions():
    two = MODELS[:2]
    found = merged("karcher", two, [0.7, 0.3])

    def rule(x):
        norms = np.array([np.linalg.norm(v) for v in x])
        if x.ndim == 1 or not norms.all():
            return 0.7 * x[0] + 0.3 * x[1]
        return turned(x[0] / norms[0], x[1] / norms[1], 0.3) * ([0.7, 0.3] @ norms)

    found["scalar"] = two[0]["scalar"]  # one entry has two directions, and no circle
    check(found, by_tensor(rule, [{**model, "scalar": found["scalar"]} for model in two]))


def test_karcher_balances_the_logarithms():
    found, w = merged("karcher", MODELS, WEIGHTS), W / W.sum()
    for name in ("wide", "conv", "tall"):
        x = np.stack([m[name].astype(np.float64).reshape(-1) for m in MODELS])
        norms = np.linalg.norm(x, axis=1)
        mean = found[name].astype(np.float64).reshape(-1)
        length = np.linalg.norm(mean)
        np.testing.assert_allclose(length, w @ norms, rtol=1e-5)
        unit, directions = mean / length, x / norms[:, None]
        along = directions @ unit
        logs = (np.arccos(along) / np.sqrt(1 - along**2))[:, None] * (directions - along[:, None] * unit)
        assert np.linalg.norm(w @ logs) < 1e-5
    with pytest.raises(OptionError, match="negative weight"):
        merged("karcher", MODELS, [1, 1, -0.5])


def test_karcher_where_there_is_no_direction():
    opposite = np.array([[1.0, -2.0], [-2.0, 4.0]])
    np.testing.assert_array_equal(centre(opposite, np.array([0.5, 0.5])), [0.5, 0.5])
    np.testing.assert_array_equal(centre(np.zeros((2, 2)), np.array([0.5, 0.5])), [0, 0])
    # two directions, one opposite to the other two: it shortens nothing and turns nothing
    line = np.array([1.0, -1.0, 1.0])
    np.testing.assert_allclose(centre(np.outer(line, line), np.full(3, 1 / 3)) @ line, 1)
    # a model that is zero shortens the mean and does not turn it
    np.testing.assert_allclose(centre(np.diag([4.0, 0.0]), np.array([0.5, 0.5])), [0.5, 0])


def test_model_stock():
    def rule(x):
        pairs = [(0, 1), (0, 2), (1, 2)]
        if not x.size:
            return x[0]
        units = [v / (np.linalg.norm(v) or 1) for v in x]
        c = max(0, np.mean([np.sum(units[i] * units[j]) for i, j in pairs]))
        return 3 * c / (1 + 2 * c) * np.tensordot(W / W.sum(), x, 1)

    check(merged("model_stock", MODELS, WEIGHTS), by_tensor(rule))
    apart = merged("model_stock", [{"a": np.float32([1, 0])}, {"a": np.float32([-1, 0.1])}])["a"]
    np.testing.assert_array_equal(apart, [0, 0])


def test_isotropic():
    def rule(x):
        x = x * W.reshape(3, *[1] * (x.ndim - 1))
        if x.ndim != 3 or not x.size:
            return x.mean(axis=0) if x.size else x[0]
        u, s, vt = np.linalg.svd(x.sum(axis=0), full_matrices=False)
        return s.mean() * u @ vt

    check(merged("iso_c", MODELS, WEIGHTS), by_tensor(rule), rtol=1e-4)


def polar(columns):
    u, _, vt = np.linalg.svd(columns, full_matrices=False)
    return u @ vt


def test_isotropic_with_directions_of_each_model():
    def rule(x, common=0.62):
        x = x * W.reshape(3, *[1] * (x.ndim - 1))
        if x.ndim != 3 or not x.size:
            return x.mean(axis=0) if x.size else x[0]
        u, s, vt = np.linalg.svd(x.sum(axis=0), full_matrices=False)
        own = round((len(s) - int(len(s) * common)) / 3)
        most = len(s) - 3 * own
        us, ss, vts = [u[:, :most]], [s[:most]], [vt[:most]]
        for part in x:
            a, b, c = np.linalg.svd(part - us[0] @ us[0].T @ part, full_matrices=False)
            us, ss, vts = [*us, a[:, :own]], [*ss, b[:own]], [*vts, c[:own]]
        return np.concatenate(ss).mean() * polar(np.hstack(us)) @ polar(np.vstack(vts))

    check(merged("iso_c", MODELS, WEIGHTS, cts=True, common=0.62), by_tensor(rule), rtol=1e-4)


def test_task_singular_vectors():
    def rule(x):
        if x.ndim != 3 or not x.size:
            return (x * W.reshape(3, *[1] * (x.ndim - 1))).mean(axis=0) if x.size else x[0]
        found = [np.linalg.svd(part, full_matrices=False) for part in x]
        k = min(x.shape[1:]) // 3
        s = np.concatenate([w * s[:k] for (_, s, _), w in zip(found, W, strict=True)])
        u = np.hstack([u[:, :k] for u, _, _ in found])
        return polar(u) * s @ polar(np.vstack([vt[:k] for _, _, vt in found]))

    check(merged("tsv", MODELS, WEIGHTS), by_tensor(rule), rtol=1e-4)


def test_tsv_of_more_models_than_directions():
    many = [{"a": model["tall"][:, :2]} for model in MODELS]
    assert np.isfinite(merged("tsv", many)["a"]).all()
    twice = merged("tsv", [MODELS[0], MODELS[0]], [0.5, 0.5])
    u, s, vt = np.linalg.svd(MODELS[0]["tall"].astype(np.float64), full_matrices=False)
    np.testing.assert_allclose(twice["tall"], u[:, :4] * s[:4] / 2 @ vt[:4], atol=1e-6 * s[0])


@pytest.mark.parametrize("rank", [None, 4], ids=["full", "low rank"])
@pytest.mark.parametrize("room", [1 << 30, 0], ids=["kept", "made anew"])
def test_knots(rank, room, monkeypatch):
    monkeypatch.setattr("paring.merge.knots._KEPT_BYTES", room)
    models = [dict(model) for model in MODELS]
    if rank:
        rng = np.random.default_rng(3)
        for model in models:
            b, a = rng.standard_normal((250, rank)), rng.standard_normal((rank, 300))
            model["wide"] = (b @ a * 0.01).astype(np.float32)
    bases, coordinates = {}, []
    for name, shape in SHAPES.items():
        x = np.stack([m[name] for m in models]).astype(np.float64)
        if len(shape) == 2 and x.size:
            u, s, _ = np.linalg.svd(np.hstack(list(x)), full_matrices=False)
            bases[name] = u[:, s > 1e-5]
            x = np.einsum("or,moi->mri", bases[name], x)
        coordinates.append(x.reshape(3, -1))
    joint = np.hstack(coordinates)
    k = int(joint.shape[1] * 0.2) + 1
    trimmed = joint * (np.abs(joint) >= np.sort(np.abs(joint), axis=1)[:, -k, None])
    gamma = np.sign((W[:, None] * trimmed).sum(0))
    agree = (np.sign(trimmed) == gamma) & (trimmed != 0)
    share = (W[:, None] * agree).sum(0)
    mean = (W[:, None] * trimmed * agree).sum(0) / np.where(share > 0, share, 1)
    ends = np.cumsum([c.shape[1] for c in coordinates])[:-1]
    made = []
    monkeypatch.setattr("paring.merge.knots._left", lambda parts: made.append(0) or _left(parts))
    found = merged("knots", models, WEIGHTS)
    visits = 4 if joint.shape[1] > 65_536 else 3  # as few as that are ranked in one
    assert len(made) == len(bases) * (1 if room else visits)
    for (name, shape), part in zip(SHAPES.items(), np.split(mean, ends), strict=True):
        if name in bases:
            part = bases[name] @ part.reshape(-1, shape[1])
        scale = np.abs(mean).max()
        assert found[name].shape == shape
        # rounding takes a few coordinates across the threshold
        away = np.abs(found[name] - part.reshape(shape))
        assert np.linalg.norm(away) <= 1e-3 * max(np.linalg.norm(part), scale)


@pytest.mark.parametrize("shape", [(5, 30), (30, 5), (20, 20), (1, 4), (0, 3)])
def test_singular_vectors_are_those_of_an_svd(shape):
    matrix = np.random.default_rng(0).standard_normal(shape) * np.logspace(0, -3, shape[1])
    u, s, vt = decomposed(matrix)
    np.testing.assert_allclose(s, np.linalg.svd(matrix, compute_uv=False), rtol=1e-9)
    np.testing.assert_allclose((u * s) @ vt, matrix, atol=1e-9)
    np.testing.assert_allclose(u.T @ u, np.eye(len(s)), atol=1e-7)
    np.testing.assert_allclose(vt @ vt.T, np.eye(len(s)), atol=1e-7)


def test_what_is_rounding_has_no_singular_vectors():
    rng = np.random.default_rng(0)
    product = rng.standard_normal((40, 3)) @ rng.standard_normal((3, 50))
    assert decomposed(product.astype(np.float32).astype(np.float64))[0].shape == (40, 3)
    assert decomposed(np.zeros((4, 6)))[0].shape == (4, 0)
    columns = rng.standard_normal((10, 2))
    twice = orthogonal(np.hstack([columns, columns]))
    np.testing.assert_allclose(twice, np.hstack([polar(columns)] * 2) / np.sqrt(2), atol=1e-9)


def test_knots_of_a_long_matrix_is_that_of_a_wide_one():
    """Both Gram matrices give the same basis: an embedding takes no matrix of its vocabulary squared."""
    rng = np.random.default_rng(0)
    long = [rng.standard_normal((300, 5)).astype(np.float32) for _ in range(2)]
    side = np.concatenate(long, axis=1).astype(np.float64)
    short = _left(long)
    np.testing.assert_allclose(short @ (short.T @ side), side, atol=1e-9)
    assert short.shape == (300, 10)
    whole = left(side @ side.T)
    np.testing.assert_allclose(short @ short.T, whole @ whole.T, atol=1e-9)
