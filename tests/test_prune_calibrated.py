"""Methods that are functions of weights and statistics, against plain loops."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paring import registry
from paring.errors import BadValueError, OptionError
from paring.kernels.reconstruction import cpu, reference
from paring.pruning.matrix import Budget, Inputs, Matrix, select
from paring.pruning.refitting import damped, lost, refit
from tests.pruning import case, pruned

NAMES = ("wanda", "ri", "ria", "sparsegpt", "alps")
BUDGETS = (Budget(300), Budget(13, row=True), Budget(2, of=4), Budget(1, of=4))


def kept_right(mask, budget):
    if budget.of:
        return (mask.reshape(-1, budget.of).sum(axis=1) == budget.keep).all()
    if budget.row:
        return (mask.sum(axis=1) == budget.keep).all()
    return mask.sum() == budget.keep


# --- plain loops, as the papers have them ---


def loop_wanda(W, X, keep):
    scaler = [sum(x * x for x in row) / X.shape[1] for row in X.tolist()]
    mask = np.ones(W.shape, bool)
    for i, row in enumerate(W.tolist()):
        scores = [abs(w) * s**0.5 for w, s in zip(row, scaler, strict=True)]
        for j in sorted(range(len(row)), key=lambda j: scores[j])[: len(row) - keep]:
            mask[i, j] = False
    return mask


def loop_ria(W, X, keep, a):
    rows, columns = W.shape
    norm = np.sqrt((X**2).mean(axis=1))
    scores = {}
    for i in range(rows):
        for j in range(columns):
            size = abs(float(W[i, j]))
            relative = size / np.abs(W[i].astype(float)).sum() + size / np.abs(W[:, j].astype(float)).sum()
            scores[i, j] = relative * norm[j] ** a
    mask = np.ones(W.shape, bool)
    for place in sorted(scores, key=scores.__getitem__)[: rows * columns - keep]:
        mask[place] = False
    return mask


def loop_sparsegpt(W, X, budget, block, damp=0.01):
    """Column by column with the inverse's own elimination, in place of Cholesky factors."""
    W, columns = W.astype(np.float64).copy(), W.shape[1]
    H = (X @ X.T / X.shape[1]).astype(np.float32).astype(np.float64)
    H += damp * np.diag(H).mean() * np.eye(columns)
    inverse = np.linalg.inv(H)
    mask = np.ones(W.shape, bool)
    factors = np.zeros(columns)  # squares of the Cholesky factor's diagonal
    found = inverse.copy()
    for j in range(columns):
        factors[j] = found[j, j]
        found -= np.outer(found[:, j], found[j]) / found[j, j]
    for start in range(0, columns, block):
        stop = min(start + block, columns)
        if not budget.of:
            share = budget.keep * stop // columns - budget.keep * start // columns
            mask[:, start:stop] = select(
                W[:, start:stop] ** 2 / factors[start:stop], Budget(share, budget.row)
            )
        for j in range(start, stop):
            if budget.of and j % budget.of == 0:
                group = slice(j, j + budget.of)
                mask[:, group] = select(W[:, group] ** 2 / factors[group], Budget(budget.keep, True))
            error = np.where(mask[:, j], 0.0, W[:, j]) / inverse[j, j]
            W[:, j:] -= error[:, None] * inverse[j, j:]
            inverse -= np.outer(inverse[:, j], inverse[j]) / inverse[j, j]
    return mask, np.where(mask, W, 0)


def loop_alps(W, X, budget, rho=0.1, damp=0.01):
    """Algorithm 1 as the paper has it, of (in, out), with an inverse a round; the mask."""
    H = (X @ X.T / X.shape[1]).astype(np.float32).astype(np.float64)
    H += damp * np.diag(H).mean() * np.eye(len(H))
    scale = np.sqrt(np.diag(H))
    H, dense = H / np.outer(scale, scale), (W * scale).T.astype(np.float64)

    def best(values):
        return select(np.abs(values.T).astype(np.float32), budget).T

    def begin():
        mask = best(dense)
        return np.where(mask, dense, 0), np.zeros_like(dense), mask

    D, V, last = begin()
    settled, kept = False, last.sum()
    for i in range(300):
        B = np.linalg.solve(H + rho * np.eye(len(H)), H @ dense - V + rho * D)
        D = np.where(best(B + V / rho), B + V / rho, 0)
        V = V + rho * (B - D)
        if (i + 1) % 3 == 0:
            mask = D != 0
            change, last = (mask ^ last).sum(), mask
            if change > 0.1 * kept:
                rho, settled = rho * 1.3, True
            elif change > 0.005 * kept:
                rho, settled = rho * 1.2, True
            elif not settled:
                rho /= 5
                D, V, last = begin()
            elif change > 0:
                rho *= 1.1
            else:
                break
            if settled and i + 1 >= 30 and change < 3e-4 * kept:
                break
    return last.T


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("seed", [0, 1])
def test_alps_is_the_papers_loop(budget, seed):
    matrix, X = case(seed=seed)
    mask, weights = pruned("alps", matrix, budget, steps=200)
    np.testing.assert_array_equal(mask, loop_alps(matrix.weights, X, budget))
    best = refit(weights, matrix.weights, mask, matrix.inputs.gram, tolerance=1e-8)
    np.testing.assert_allclose(weights, best, rtol=1e-2, atol=1e-2)


def test_wanda_is_the_papers_loop():
    matrix, X = case()
    mask, weights = pruned("wanda", matrix, Budget(13, row=True))
    np.testing.assert_array_equal(mask, loop_wanda(matrix.weights, X, 13))
    np.testing.assert_array_equal(weights, np.where(mask, matrix.weights, 0))


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0])
def test_ria_is_the_papers_loop(exponent):
    matrix, X = case()
    mask, _ = pruned("ria", matrix, Budget(300), exponent=exponent)
    np.testing.assert_array_equal(mask, loop_ria(matrix.weights, X, 300, exponent))


def test_ri_is_ria_without_inputs():
    matrix, X = case()
    mask, _ = pruned("ri", Matrix("bare", matrix.weights), Budget(300))
    np.testing.assert_array_equal(mask, loop_ria(matrix.weights, X, 300, 0.0))


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("block", [8, 12, 128])
def test_sparsegpt_is_the_papers_loop(budget, block):
    matrix, X = case()
    mask, weights = pruned("sparsegpt", matrix, budget, block=block)
    expected, values = loop_sparsegpt(matrix.weights, X, budget, block)
    np.testing.assert_array_equal(mask, expected)
    np.testing.assert_allclose(weights, values, rtol=1e-4, atol=1e-4)


# --- all of them ---


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("grid", [None, 0.5])
def test_counts_are_exact_also_with_ties_and_dead_inputs(name, budget, grid):
    matrix, _ = case(grid=grid, dead=(0, 5, 6, 7))
    before = matrix.weights.copy()
    mask, weights = pruned(name, matrix, budget)
    assert kept_right(mask, budget)
    assert weights.dtype == np.float32 and not weights[~mask].any()
    assert np.isfinite(weights).all()
    np.testing.assert_array_equal(matrix.weights, before)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("keep", [0, 24 * 32])
def test_nothing_and_everything_can_be_kept(name, keep):
    matrix, _ = case()
    mask, weights = pruned(name, matrix, Budget(keep))
    assert mask.sum() == keep
    np.testing.assert_allclose(weights, matrix.weights if keep else 0 * weights, atol=1e-5)


@pytest.mark.parametrize("name", ["wanda", "sparsegpt"])
def test_dead_inputs_are_pruned_first(name):
    matrix, _ = case(dead=(3, 4))
    mask, _ = pruned(name, matrix, Budget(28, row=True), **({"block": 32} if name == "sparsegpt" else {}))
    assert not mask[:, [3, 4]].any() and mask[:, :3].any()


@pytest.mark.parametrize("name", ["wanda", "sparsegpt", "alps"])
def test_dead_inputs_that_are_kept_stay_as_they_were(name):
    matrix, _ = case(dead=(3, 4))
    mask, weights = pruned(name, matrix, Budget(31, row=True))
    kept = mask[:, 4]
    assert kept.any()
    np.testing.assert_allclose(weights[kept, 4], matrix.weights[kept, 4], rtol=1e-5)


def test_damping_is_a_share_of_living_inputs():
    gram = np.diag(np.array([4, 0, 0, 2], np.float32))
    np.testing.assert_allclose(np.diag(damped(gram, 0.1)), [4.3, 0.3, 0.3, 2.3])


def test_sparsegpt_without_damping_takes_dead_inputs_too():
    matrix, _ = case(tokens=400, dead=(3, 4))
    mask, weights = pruned("sparsegpt", matrix, Budget(31, row=True), damp=0.0)
    assert kept_right(mask, Budget(31, row=True)) and np.isfinite(weights).all()


def test_who_loses_less():
    """Of methods that see the same, those that also update survivors, and those that search longer, lose
    less."""
    wins = np.zeros(3)
    for seed in range(5):
        matrix, _ = case(48, 64, 400, seed=seed)
        gram = matrix.inputs.gram
        error = {
            name: lost(pruned(name, matrix, Budget(64 * 24), **options)[1], matrix.weights, gram)
            for name, options in (("wanda", {}), ("sparsegpt", {}), ("alps", {"steps": 100}))
        }
        mask, weights = pruned("wanda", matrix, Budget(64 * 24))
        error["refit"] = lost(refit(weights, matrix.weights, mask, gram), matrix.weights, gram)
        wins += [
            error["sparsegpt"] < error["wanda"],
            error["refit"] < error["wanda"],
            error["alps"] < error["sparsegpt"],
        ]
    assert (wins == 5).all()


@pytest.mark.parametrize("name", ["wanda", "ria", "sparsegpt", "alps"])
def test_statistics_are_asked_for(name):
    matrix, _ = case()
    with pytest.raises(OptionError, match="paring calibrate"):
        pruned(name, Matrix("layer.weight", matrix.weights), Budget(9))
    unseen = Inputs(np.zeros(32, np.float32), 0, np.zeros((32, 32), np.float32))
    with pytest.raises(BadValueError, match=r"layer\.weight.* zeros"):
        pruned(name, Matrix("layer.weight", matrix.weights, unseen), Budget(9))
    assert registry.load("prune", name).sees == ("norms" if name in ("wanda", "ria") else "grams")


@pytest.mark.parametrize("name", ["sparsegpt", "alps"])
def test_products_are_asked_for_and_must_be_products(name):
    matrix, _ = case(gram=False)
    with pytest.raises(OptionError, match="--gram"):
        pruned(name, matrix, Budget(9))
    matrix, _ = case()
    gram = matrix.inputs.gram - 0.5 * np.trace(matrix.inputs.gram) / 32 * np.eye(32, dtype=np.float32)
    forged = Inputs(matrix.inputs.norms, 200, gram.astype(np.float32))
    with pytest.raises(BadValueError, match=r"layer\.weight"):
        pruned(name, Matrix("layer.weight", matrix.weights, forged), Budget(9))


@pytest.mark.parametrize(
    ("name", "options", "budget"),
    [
        ("ria", {"exponent": -1.0}, Budget(9)),
        ("ria", {"exponent": float("nan")}, Budget(9)),
        ("sparsegpt", {"block": 0}, Budget(9)),
        ("sparsegpt", {"block": 6}, Budget(2, of=4)),
        ("sparsegpt", {"damp": -0.1}, Budget(9)),
        ("alps", {"damp": 2.0}, Budget(9)),
        ("alps", {"rho": 0.0}, Budget(9)),
        ("alps", {"steps": -1}, Budget(9)),
    ],
)
def test_options_that_cannot_be_meant(name, options, budget):
    with pytest.raises(OptionError, match=f"--{next(iter(options))}"):
        pruned(name, case()[0], budget, **options)


# --- kernels, masks, refitting ---


@settings(deadline=None)
@given(st.integers(0, 99), st.integers(0, 5), st.sampled_from([1, 2, 4, 8]), st.data())
def test_kernels_are_the_reference(seed, rows, of, data):
    rng = np.random.default_rng(seed)
    keep, columns = data.draw(st.integers(0, of)), of * data.draw(st.integers(1, 4))
    upper = np.triu(rng.standard_normal((columns, columns))) + 3 * np.eye(columns)
    block = rng.integers(-2, 3, (rows, columns)).astype(np.float64)  # with ties
    for run in (
        lambda kernels, part: kernels.sweep_groups(part, upper, keep, of),
        lambda kernels, part: (None, kernels.sweep(part, upper, block > 0)),
    ):
        parts = block.copy(), block.copy()
        (mask, errors), (expected, wanted) = run(cpu, parts[0]), run(reference, parts[1])
        np.testing.assert_array_equal(mask, expected)
        np.testing.assert_allclose(errors, wanted, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(parts[0], parts[1], rtol=1e-9, atol=1e-9)


@given(st.integers(0, 999), st.sampled_from(["whole", "row", "groups"]), st.data())
def test_selection_sorts_with_ties_in_flat_order(seed, kind, data):
    rng = np.random.default_rng(seed)
    rows, columns = data.draw(st.integers(0, 4)), 4 * data.draw(st.integers(1, 3))
    width = {"whole": rows * columns, "row": columns, "groups": 4}[kind]
    keep = data.draw(st.integers(0, width))
    budget = {"whole": Budget(keep), "row": Budget(keep, row=True), "groups": Budget(keep, of=4)}[kind]
    scores = rng.integers(0, 3, (rows, columns)).astype(np.float32)
    expected = np.zeros(scores.size, bool)
    for begin in range(0, scores.size, width or 1):
        places = range(begin, begin + width)
        expected[sorted(places, key=lambda p: scores.flat[p])[width - keep :]] = True
    np.testing.assert_array_equal(select(scores, budget), expected.reshape(scores.shape))


@given(st.integers(0, 99))
def test_refitting_solves_each_rows_own_system(seed):
    matrix, _ = case(6, 12, 40, seed=seed)
    W, gram = matrix.weights, matrix.inputs.gram
    mask = np.random.default_rng(seed).random(W.shape) < 0.5
    found = refit(np.where(mask, W, 0), W, mask, gram, tolerance=1e-9)
    G = gram.astype(np.float64) + 0.01 * np.diag(gram).astype(np.float64).mean() * np.eye(12)
    for row, target, kept in zip(found, W.astype(np.float64), mask, strict=True):
        best = np.zeros(12)
        best[kept] = np.linalg.solve(G[np.ix_(kept, kept)], (G @ target)[kept])
        np.testing.assert_allclose(row, best, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("iterations", [0, 1, 3])
def test_refitting_never_loses_more(iterations):
    matrix, _ = case(dead=(2,))
    mask, weights = pruned("sparsegpt", matrix, Budget(300))
    found = refit(weights, matrix.weights, mask, matrix.inputs.gram, damp=0.0, iterations=iterations)
    before, after = (lost(w, matrix.weights, matrix.inputs.gram) for w in (weights, found))
    assert after <= before and not found[~mask].any()
    assert (after < before) == (iterations > 0)


def test_refitting_begins_where_it_is_told():
    matrix, _ = case()
    mask = np.ones(matrix.weights.shape, bool)
    start = np.zeros_like(matrix.weights)
    np.testing.assert_array_equal(refit(start, start, mask, matrix.inputs.gram), start)
    found = refit(start, matrix.weights, mask, matrix.inputs.gram, tolerance=1e-9)
    np.testing.assert_allclose(found, matrix.weights, atol=1e-3)
