"""What any merging rule must do, and what each says of itself."""

import inspect

import numpy as np
import pytest

from paring import registry
from tests.helpers import merged
from tests.test_merge_rules import MODELS, SHAPES, flat

#: without what does more than make one vector of several
RULES = [rule for rule in registry.names("merge") if rule != "passthrough"]
PAIRS = ("slerp", "nuslerp")
SEEDS = ("first", "second", "third")


def some(rule):
    """Models and their seeds, as many as the rule takes."""
    n = 2 if rule in PAIRS else 3
    return MODELS[:n], SEEDS[:n]


def scaled(model, factor):
    return {name: array * np.float32(factor) for name, array in model.items()}


def same(found, expected):
    scale = np.abs(flat(expected)).max()
    np.testing.assert_allclose(flat(found), flat(expected), rtol=2e-4, atol=1e-5 * scale)


def identity(rule):
    """One model with weight 1 is itself."""
    same(merged(rule, MODELS[:1], [1.0]), MODELS[0])


def order(rule):
    """The order of models, with their weights, does not matter."""
    models, seeds = some(rule)
    weights = [1.0] * len(models) if rule == "slerp" else [0.5, 1.0, 2.0][: len(models)]
    turned = merged(rule, models[::-1], weights[::-1], seeds=seeds[::-1])
    same(turned, merged(rule, models, weights, seeds=seeds))


def cancel(rule):
    """A model with weight w and again with -w: nothing."""
    found = merged(rule, [MODELS[0], MODELS[0]], [0.7, -0.7], seeds=SEEDS[:1] * 2)
    np.testing.assert_allclose(flat(found), 0, atol=1e-6 * np.abs(flat(MODELS[0])).max())


def homogeneous(rule):
    """Scaling all vectors by a power of two scales the result."""
    models, seeds = some(rule)
    for factor in (2.0**-7, 2.0**5):
        found = merged(rule, [scaled(model, factor) for model in models], seeds=seeds)
        same(found, scaled(merged(rule, models, seeds=seeds), factor))


INVARIANTS = {
    "identity": identity,
    "order": order,
    "cancel": cancel,
    "homogeneous": homogeneous,
    "scale": homogeneous,
}
DECLARED = [(rule, name) for rule in RULES for name in registry.load("merge", rule).invariants]


@pytest.mark.parametrize(("rule", "invariant"), DECLARED)
def test_a_rule_does_what_it_declares(rule, invariant):
    INVARIANTS[invariant](rule)


@pytest.mark.parametrize("rule", RULES)
def test_results_do_not_depend_on_threads_or_runs(rule):
    models, seeds = some(rule)
    expected = merged(rule, models, seeds=seeds)
    for threads in (2, 1):
        found = merged(rule, models, threads=threads, seeds=seeds)
        for name in SHAPES:
            np.testing.assert_array_equal(found[name].view(np.uint32), expected[name].view(np.uint32))


@pytest.mark.parametrize("rule", RULES)
def test_models_that_are_zero_merge_to_zero(rule):
    n = 2 if rule in PAIRS else 3
    nothing = [{"a": np.zeros((3, 4)), "b": np.zeros(5), "c": np.zeros(())}] * n
    found = merged(rule, nothing)
    assert all(not array.any() and np.isfinite(array).all() for array in found.values())


@pytest.mark.parametrize("rule", RULES)
def test_the_inputs_are_left_alone(rule):
    models, _ = some(rule)
    before = [{name: array.copy() for name, array in model.items()} for model in models]
    merged(rule, models)
    for model, old in zip(models, before, strict=True):
        assert all((model[name] == old[name]).all() for name in SHAPES)


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_says_what_it_is(rule):
    method = registry.load("merge", rule)
    module = inspect.getmodule(method.function)
    older = ("slerp", "karcher")
    assert "arXiv" in method.reference or rule in older or not module.__name__.startswith("paring.")
    assert all(option.help for option in method.options.values())
    text = " ".join((module.__doc__ or "").split())
    assert "When not to use it" in text and ("Cost:" in text or "pass" in text)
