"""Budgets: what may be asked, and that what is found is the best of a family's dials."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paring.budget import Budget, Dials, Trial, refuse
from paring.errors import BudgetError, OptionError

few = settings(deadline=None, max_examples=100)
budgets = st.integers(0, 4000)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"ratio": 0.0}, "--ratio 0: must be a positive number"),
        ({"ratio": float("inf")}, "--ratio inf: must be a positive number"),
        ({"bits_per_param": float("nan")}, "--bits-per-param nan: must be a positive number"),
        ({"error": -0.5}, "--error -0.5: must be a positive number"),
        ({"error": 1.0}, "--error 1: a relative error lies between 0 and 1 (1 loses everything)"),
        (
            {"ratio": 20.0, "error": 0.5},
            "--ratio and --error state the budget in different ways: give one of them",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused(given, message):
    with pytest.raises(OptionError) as caught:
        Budget(**given)
    assert str(caught.value) == message


def test_sizes_are_those_of_the_decimals_typed():
    assert Budget(ratio=20.0).most_bytes(1999, 1) == 99
    assert Budget(ratio=0.07).most_bytes(7, 1) == 100  # 7 / .07 is less in floating point
    assert Budget(bits_per_param=1.13).most_bytes(0, 800) == 113
    assert Budget().most_bytes(123456, 800) == 100  # 16 times smaller than fp16
    assert Budget(error=0.5).most_bytes(1, 1) is None


def test_a_budget_can_be_read():
    assert str(Budget(bits_per_param=0.5)) == "--bits-per-param 0.5"
    assert str(Budget(ratio=20)) == "--ratio 20"
    assert "16 times" in str(Budget())


@st.composite
def monotone(draw):
    """Sizes rise and errors fall, with plateaus."""
    steps = draw(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 9)), min_size=1, max_size=60))
    size, error, out = 20, 1000, []
    for dial, (more, less) in enumerate(steps):
        size, error = size + more, error - less
        out.append(Trial(dial, size, error / 1000))
    return out


@st.composite
def bumpy(draw):
    """Sizes rise, but up to three dials in a row may take no more than one before them; so with errors."""
    n = draw(st.integers(1, 80))
    noise = st.lists(st.integers(0, 30), min_size=n, max_size=n)
    sizes, errors = draw(noise), draw(noise)
    return [Trial(d, 3000 + 10 * d + sizes[d], (2000 - 10 * d - errors[d]) / 2001) for d in range(n)]


def dials(trials, scan=0):
    """The family, and the dials that were tried."""
    tried = []

    def trial(dial):
        tried.append(dial)
        return trials[dial]

    return Dials(trial, len(trials), scan), tried


@few
@given(monotone(), budgets)
def test_a_size_budget_on_a_monotone_family_is_met_exactly(trials, most):
    family, _ = dials(trials)
    fitting = [t for t in trials if t.nbytes <= most]
    found = family.for_size(most)
    if not fitting:
        assert found is None
    else:
        assert found is not None
        assert found.nbytes <= most
        assert found.error == min(t.error for t in fitting)


@few
@given(monotone(), st.integers(1, 999))
def test_an_error_budget_on_a_monotone_family_is_met_exactly(trials, thousandths):
    error = thousandths / 1000
    family, _ = dials(trials)
    good = [t for t in trials if t.error <= error]
    found = family.for_error(error)
    if not good:
        assert found is None
        assert family.least_error().error == min(t.error for t in trials)
    else:
        assert found is not None
        assert found.error <= error
        assert found.nbytes == min(t.nbytes for t in good)


@few
@given(bumpy(), budgets)
def test_a_size_budget_on_a_bumpy_family_is_nearly_met(trials, most):
    family, _ = dials(trials, scan=4)
    found = family.for_size(most)
    if found is None:
        assert trials[0].nbytes > most
    else:
        assert found.nbytes <= most
        # a perfect search finds at most six dials' and a bump's worth less
        assert found.error <= min(t.error for t in trials if t.nbytes <= most) + 91 / 2001


def test_a_dial_below_the_top_may_be_too_large():
    # dial 5 loses less than dial 6, but takes more
    trials = [Trial(d, 3000 + 10 * d, 1 - d / 200) for d in range(20)]
    trials[5] = Trial(5, 3075, 0.9675)
    assert dials(trials, scan=4)[0].for_size(3060) == trials[6]


@few
@given(bumpy(), st.integers(1, 999))
def test_an_error_budget_on_a_bumpy_family_is_nearly_met(trials, thousandths):
    error = thousandths / 1000
    family, _ = dials(trials, scan=4)
    good = [t for t in trials if t.error <= error]
    found = family.for_error(error)
    if found is None:
        assert family.least_error().error > error
    else:
        assert found.error <= error
        assert found.nbytes <= min(t.nbytes for t in good) + 61


def test_error_that_rises_again_towards_the_last_dials():
    trials = [Trial(d, 10 + d, 0.2 + ((d - 700) / 1000) ** 2) for d in range(1000)]
    family, tried = dials(trials)
    assert family.least_error().error < 0.2001
    best = family.for_size(10**6)
    assert best is not None
    assert best.error < 0.2001
    assert family.for_error(0.19) is None
    found = family.for_error(0.25)
    assert found is not None
    assert found.error <= 0.25
    assert found.dial == min(t.dial for t in trials if t.error <= 0.25)
    assert len(set(tried)) < 100


def test_large_families_take_few_trials():
    tried = []

    def trial(dial):
        tried.append(dial)
        return Trial(dial, 100 + dial, 1 - dial / 1e6)

    found = Dials(trial, 1_000_000, 16).for_size(500_000)
    assert found is not None
    assert found.nbytes == 500_000
    assert len(tried) < 80


@few
@given(st.integers(1, 10**9), st.integers(1, 10**7), st.integers(1, 10**9))
def test_the_best_that_can_be_had_can_be_had(source_bytes, nbytes, elements):
    best = Trial(0, nbytes, 0.3)
    for budget, named in ((Budget(ratio=1e12), "ratio"), (Budget(bits_per_param=1e-9), "bits_per_param")):
        raised = refuse(budget, best, source_bytes, elements, ": too large")
        text = re.search(r"best that can be had is --[a-z-]+ (\S+)$", str(raised))
        assert text
        if float(text[1]) > 0:
            most = Budget(**{named: float(text[1])}).most_bytes(source_bytes, elements)
            assert most is not None
            assert most >= nbytes


@few
@given(st.floats(1e-4, 0.9998))
def test_the_least_error_that_can_be_had_can_be_had(error):
    raised = refuse(Budget(error=1e-5), Trial(0, 10, error), 100, 100, "")
    best = float(str(raised).rsplit(" ", 1)[1])
    assert error <= Budget(error=best).error <= error + 1e-4  # type: ignore[operator]


def test_a_refusal_in_words():
    best = Trial(0, 300, 0.123451)
    with pytest.raises(BudgetError) as caught:
        raise refuse(Budget(ratio=50), best, 3700, 1000, ": the head takes 200 bytes")
    assert str(caught.value) == (
        "--ratio 50 cannot be met: the head takes 200 bytes; the best that can be had is --ratio 12.33"
    )
    assert str(refuse(Budget(error=0.1), best, 3700, 1000, "")).endswith("--error 0.1235")
    assert str(refuse(Budget(bits_per_param=0.1), best, 3700, 1000, "")).endswith("--bits-per-param 2.4")
    assert str(refuse(Budget(), best, 3700, 1000, "")).endswith("--bits-per-param 2.4")
