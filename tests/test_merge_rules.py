"""Merging rules, entry by entry: each against the same in plain numpy, and against the authors' results."""

from pathlib import Path

import numpy as np
import pytest

from paring.errors import OptionError
from paring.kernels import random
from paring.kernels.random import reference as random_reference
from tests.helpers import merged

ORACLES = Path(__file__).parent.parent / "fixtures" / "oracles"
#: of every number of axes; one of no entries, and one of more than a chunk and than a row of kernels' blocks
SHAPES = {
    "bias": (7,), "empty": (0, 5), "wide": (250, 300), "conv": (6, 4, 3, 3), "scalar": (), "tall": (40, 9),
}  # fmt: skip
WEIGHTS = [1.0, 0.5, 2.0]
W = np.array(WEIGHTS)[:, None]


def models(n=3, seed=0):
    """Deltas that share something, of uneven scales, with zeros."""
    rng = np.random.default_rng(seed)
    shared = {name: rng.standard_normal(shape) for name, shape in SHAPES.items()}
    out = []
    for _ in range(n):
        model = {}
        for name, shape in SHAPES.items():
            delta = (shared[name] + rng.standard_normal(shape)) * rng.exponential() * 0.01
            model[name] = np.asarray(delta * (rng.random(shape) > 0.1)).astype(np.float32)
        out.append(model)
    return out


MODELS = models()


def flat(model):
    """All entries of a model, in fp64."""
    return np.concatenate([np.asarray(array, np.float64).reshape(-1) for array in model.values()])


def by_tensor(rule, arrays=MODELS):
    """``rule (models, shape) -> shape`` of every tensor, flat and joined."""
    return np.concatenate(
        [
            np.asarray(rule(np.stack([m[name] for m in arrays]).astype(np.float64))).reshape(-1)
            for name in SHAPES
        ]
    )


def check(found, expected, rtol=1e-5):
    for name, shape in SHAPES.items():
        assert found[name].shape == shape and found[name].dtype == np.float32
    scale = np.abs(expected).max()
    np.testing.assert_allclose(flat(found), expected, rtol=rtol, atol=1e-6 * scale)


X = np.stack([flat(model) for model in MODELS])


def largest(x, k):
    """The k-th largest magnitude of each row."""
    return np.sort(np.abs(x), axis=1)[:, -k, None]


def averaged(x, gamma):
    """The weighted mean of what has the sign ``gamma``, zero where there is none."""
    agree = (np.sign(x) == gamma) & (x != 0)
    share = (W * agree).sum(0)
    return np.divide((W * x * agree).sum(0), share, out=np.zeros(x.shape[1]), where=share > 0)


def test_linear():
    check(merged("linear", MODELS, WEIGHTS), (W * X).sum(0) / W.sum())
    check(merged("linear", MODELS, WEIGHTS, normalise=False), (W * X).sum(0))
    with pytest.raises(OptionError, match="sum to zero"):
        merged("linear", MODELS, [1, 1, -2])


def test_task_arithmetic():
    check(merged("task_arithmetic", MODELS, WEIGHTS), (W * X).sum(0))


@pytest.mark.parametrize("density", [0.2, 1.0])
def test_ties(density):
    d = X.shape[1]
    trimmed = X * (np.abs(X) >= largest(X, min(d, int(d * density) + 1)))
    gamma = np.sign((W * trimmed).sum(0))
    gamma[gamma == 0] = np.sign(gamma.sum())
    check(merged("ties", MODELS, WEIGHTS, density=density), averaged(trimmed, gamma))


def test_pcb():
    d, density = X.shape[1], 0.1
    size = np.sort(np.abs(X), axis=1)
    low, high = size[:, int(d * 0.01), None], size[:, int(d * 0.99) - 1, None]
    clipped = np.clip(np.abs(X), low, high)
    own = np.sign(X) * (clipped - low) / (high - low)
    score = np.exp(3 * own**2) * np.tanh(own[:, None] * own[None]).sum(1)
    order = np.sort(score, axis=1)
    t, top = order[:, int(d * (1 - density)), None], order[:, -1, None]
    share = np.maximum(score - t, 0) / (top - t)
    total = (W * np.sign(X) * clipped * share).sum(0)
    # where a lone score is barely above the threshold, rounding may take it below
    sure = share.sum(0) > 1e-5
    found = flat(merged("pcb", MODELS, WEIGHTS, density=density))
    np.testing.assert_allclose(found[sure], (total / share.sum(0).clip(1e-12))[sure], rtol=1e-5)


def numbers(seed=0, digests="xyz"):
    """The random numbers that the models get."""
    rows = []
    for name, shape in SHAPES.items():
        keys = np.array([random.key(seed, digest, name) for digest in digests], np.uint64)
        rows.append(random_reference.uniform(keys, 0, int(np.prod(shape))))
    return np.concatenate(rows, axis=1)


def test_dare():
    kept = X * (numbers(5) < np.float32(0.3))
    for rescale, gain in ((True, 1 / 0.3), (False, 1.0)):
        options = {"density": 0.3, "rescale": rescale, "seed": 5}
        check(merged("dare", MODELS, WEIGHTS, seeds="xyz", **options), (W * kept).sum(0) * gain)
        gamma = np.sign((W * kept).sum(0))
        found = merged("dare", MODELS, WEIGHTS, seeds="xyz", combine="ties", **options)
        check(found, averaged(kept, gamma) * gain)
    check(merged("dare", MODELS, WEIGHTS, density=1.0), (W * X).sum(0))


def test_masks_belong_to_models_wherever_they_stand():
    one, two, three = MODELS
    found = merged("dare", [three, one, two], WEIGHTS, seeds="zxy")
    same = [{"t": np.ones(100_000, np.float32)}] * 3
    kept = [merged("dare", same, w, seeds=("a", "b", "a"))["t"] for w in np.eye(3).tolist()]
    np.testing.assert_array_equal(kept[0], kept[2])
    assert 0.24 < np.mean((kept[0] > 0) & (kept[1] > 0)) < 0.26
    again = merged("dare", MODELS, [WEIGHTS[1], WEIGHTS[2], WEIGHTS[0]], seeds="xyz")
    check(found, flat(again))
    assert any((found[n] != merged("dare", MODELS, WEIGHTS, seeds="xyz", seed=1)[n]).any() for n in SHAPES)


def test_della():
    density, epsilon = 0.4, 0.2

    def keep(x):
        rows = x.reshape(-1, x.shape[-1] if x.ndim else 1)
        ranks = np.argsort(np.argsort(np.abs(rows), axis=1, kind="stable"), axis=1)
        width = rows.shape[1]
        r = ranks / (width - 1) if width > 1 else np.full(rows.shape, 0.5)
        return (density - epsilon + 2 * epsilon * r).reshape(x.shape)

    q = np.stack([by_tensor(lambda x: keep(x[0]), [model]) for model in MODELS])
    kept = X * (numbers(0) < q) / q
    gamma = np.sign((W * kept).sum(0))
    options = {"density": density, "epsilon": epsilon}
    check(merged("della", MODELS, WEIGHTS, seeds="xyz", **options), averaged(kept, gamma))
    alone = [merged("della", MODELS[:1], seed=seed, **options)["wide"] for seed in range(100)]
    away = np.mean(alone, axis=0) - MODELS[0]["wide"]
    assert np.abs(away).mean() < 0.2 * np.abs(MODELS[0]["wide"]).mean(), "unbiased"
    for bad in ({"epsilon": 0.5}, {"density": 0.9, "epsilon": 0.2}, {"epsilon": -0.1}, {"density": 0}):
        with pytest.raises(OptionError, match="--density"):
            merged("della", MODELS, **bad)


def test_breadcrumbs():
    def rule(x, gamma=0.01):
        """Of (models, rows, d)."""
        d = x.shape[-1]
        if not x.size:
            return x[0]
        size = np.sort(np.abs(x), axis=-1)
        top = d - int(d * gamma)
        low, high = size[..., max(0, top - max(1, int(d * 0.15))), None], size[..., top - 1, None]
        kept = (np.abs(x) >= low) & (np.abs(x) <= high)
        return (W.reshape(3, 1, 1) * x * kept).sum(0)

    expected = by_tensor(lambda x: rule(x.reshape(3, 1, -1)))
    check(merged("breadcrumbs", MODELS, WEIGHTS), expected)
    expected = by_tensor(lambda x: rule(x.reshape(3, -1, x.shape[-1] if x.ndim > 1 else 1), 0.2))
    check(merged("breadcrumbs", MODELS, WEIGHTS, per="row", gamma=0.2), expected)


@pytest.mark.parametrize("per", ["tensor", "row"])
@pytest.mark.parametrize("gamma", [0, 0.01, 0.5])
def test_breadcrumbs_leave_something_of_every_tensor(per, gamma):
    for size, density in ((1, 0.1), (2, 0.01), (50, 0.15), (50, 0.5), (100, 0.29)):
        x = np.random.default_rng(size).standard_normal(size).astype(np.float32)
        out = merged("breadcrumbs", [{"t": x}], per=per, gamma=gamma, density=density)["t"]
        assert np.count_nonzero(out) == max(1, round(size * density * 1e6) // 10**6)
        assert (out[np.argmax(np.abs(x))] == 0) == (int(size * gamma) > 0)
    everything = merged("breadcrumbs", [{"t": x}], per=per, gamma=0, density=1.0)["t"]
    np.testing.assert_array_equal(everything, x)


def sce(x, density, normalise):
    x, d = x.reshape(3, -1), x[0].size
    if not d:
        return x[0]
    variance = x.var(axis=0)
    x = x * (variance >= np.sort(variance)[-max(1, int(d * density))])
    energy = (x**2).sum(axis=1, keepdims=True)
    eta = W * (energy / energy.sum() if energy.sum() else 1 / 3)
    agree = np.sign(x) * np.sign((W * x).sum(0)) > 0
    total, share = (eta * x * agree).sum(0), (eta * agree).sum(0)
    return np.divide(total, share, out=np.zeros(d), where=share > 0) if normalise else total


@pytest.mark.parametrize("density", [0.1, 1.0])
@pytest.mark.parametrize("normalise", [False, True])
def test_sce(density, normalise):
    found = merged("sce", MODELS, WEIGHTS, density=density, normalise=normalise)
    check(found, by_tensor(lambda x: sce(x, density, normalise)))


def test_consensus():
    parts = W * X
    total = parts.sum(0)
    votes = (np.abs(parts) > 0.4 * np.abs(total - parts)).sum(0)
    check(merged("consensus", MODELS, WEIGHTS), total * (votes >= 2))
    check(merged("consensus", MODELS, WEIGHTS, agree=3), total * (votes >= 3))
    check(merged("consensus", MODELS, WEIGHTS, agree=0), total)
    alone = merged("consensus", MODELS[:1])
    check(alone, X[0])


def test_sft():
    k = int(X.shape[1] * 0.1)
    kept = X * (np.abs(X) >= largest(X, k))
    check(merged("sft", MODELS, WEIGHTS), (W * kept).sum(0))
    assert np.count_nonzero(flat(merged("sft", MODELS[:1]))) == k


GAUSS = np.load(ORACLES / "input_gauss.npy")


def cut(cuts):
    """The published input as models of several tensors: thresholds are those of whole models."""
    ends = np.cumsum([0, *cuts])
    return [{str(i): row[ends[i] : ends[i + 1]] for i in range(len(cuts))} for row in GAUSS]


@pytest.mark.parametrize("cuts", [(1000,), (300, 1, 699)], ids=["whole", "cut"])
@pytest.mark.parametrize("file", sorted(p.name for p in ORACLES.glob("[pt]*_gauss_*.npy")))
def test_results_are_those_of_the_authors_code(file, cuts):
    rule, _, share, *variant = file.removesuffix(".npy").split("_")
    options, weights = {}, None
    if rule == "ties":
        options = {"density": float(share[1:]) / 100, "combine": variant[0].removeprefix("dis-")}
    else:
        options = {"density": float(share[1:]), "rule": {"P": "paper"}.get(variant[0], variant[0])}
        weights = [0.9, 1.0, 1.2] if variant[-1] == "lam" else None
    expected = np.load(ORACLES / file)
    found = flat(merged(rule, cut(cuts), weights, **options))
    np.testing.assert_array_equal(found != 0, expected != 0)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("rule", ["ties", "breadcrumbs", "sce"])
def test_tensors_without_entries_have_no_thresholds(rule):
    arrays = [{"a": np.zeros((0, 3), np.float32), "b": np.arange(6, dtype=np.float32) + i} for i in range(2)]
    options = {"trim": "tensor"} if rule == "ties" else {}
    found = merged(rule, arrays, [1.0, 1.0], **options)
    assert found["a"].size == 0 and found["b"].any()


@pytest.mark.parametrize("task", [1, 2, 3])
def test_emr_gives_each_model_back_by_mask_and_scale(task):
    found = flat(merged("emr", MODELS, task=task))
    tau = np.stack([flat(model) for model in MODELS]).astype(np.float64)
    gamma = np.where(tau.sum(axis=0) > 0, 1.0, -1.0)
    unified = gamma * np.where(tau * gamma > 0, np.abs(tau), 0).max(axis=0)
    mask = tau[task - 1] * gamma > 0
    scale = np.abs(tau[task - 1]).sum() / np.abs(mask * unified).sum()
    np.testing.assert_allclose(found, scale * mask * unified, rtol=1e-4, atol=1e-6)
    own = [np.linalg.norm(found - t) for t in tau]
    assert int(np.argmin(own)) == task - 1, "nearest to its own model"


def test_emr_counts_tasks_from_one():
    for task in (0, 4):
        with pytest.raises(OptionError, match=f"--task {task}: there are 3 models"):
            merged("emr", MODELS, task=task)


@pytest.mark.parametrize("combine", ["mean", "sum", "max"])
def test_a_negative_weight_turns_its_model_round(combine):
    turned = [{name: -array for name, array in MODELS[0].items()}, MODELS[1]]
    found = merged("ties", MODELS[:2], [-1.0, 2.0], density=0.5, combine=combine)
    expected = merged("ties", turned, [1.0, 2.0], density=0.5, combine=combine)
    np.testing.assert_allclose(flat(found), flat(expected), rtol=1e-6)
    near = merged("ties", [MODELS[0], MODELS[0]], [1.0, -0.999], density=1.0, combine=combine)
    assert np.abs(flat(near)).max() <= 1.001 * np.abs(flat(MODELS[0])).max()
