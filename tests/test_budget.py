"""Budgets: what may be asked, and that what is found is the best of a family's dials."""

import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paring.budget import Budget, Dials, Trial, refuse
from paring.codecs import ternary
from paring.coding import Factors, loss_of, total_error
from paring.errors import BudgetError, OptionError
from paring.registry import load

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
    """Sizes rise to a turn and fall after it, errors fall; dials more than 3 apart are in order in both."""
    n = draw(st.integers(13, 120))
    turn = draw(st.integers(n // 2, n))
    noise = st.lists(st.integers(0, 30), min_size=n, max_size=n)
    sizes, errors = draw(noise), draw(noise)
    rise = [10 * d if d < turn else 10 * turn - 4 * (d - turn) for d in range(n)]
    sizes = [size if d < turn else size // 3 for d, size in enumerate(sizes)]
    trials = [Trial(d, 3000 + rise[d] + sizes[d], (2000 - 10 * d - errors[d]) / 2001) for d in range(n)]
    return trials, (turn,) if turn < n else ()


few_trials = st.lists(st.tuples(st.integers(100, 130), st.integers(0, 20)), min_size=1, max_size=16)


def dials(trials, scan=0, turns=()):
    """The family, and the dials that were tried."""
    tried = []

    def trial(dial):
        tried.append(dial)
        return trials[dial]

    return Dials(trial, len(trials), scan, turns), tried


def size_met(family, trials, most, slack=0.0):
    """The best there is within ``most`` bytes, but for ``slack``; None only where no trial is so small."""
    found = family.for_size(most)
    fitting = [t.error for t in trials if t.nbytes <= most]
    assert (found is not None) == bool(fitting)
    if found is not None:
        assert found.nbytes <= most
        assert found.error <= min(fitting) + slack


def error_met(family, trials, error, slack=0):
    """The smallest there is, but for ``slack`` bytes, with at most ``error``; None only where none is."""
    found = family.for_error(error)
    good = [t.nbytes for t in trials if t.error <= error]
    assert (found is not None) == bool(good)
    if found is not None:
        assert found.error <= error
        assert found.nbytes <= min(good) + slack


@few
@given(monotone(), budgets)
def test_a_size_budget_on_a_monotone_family_is_met_exactly(trials, most):
    size_met(dials(trials)[0], trials, most)


@few
@given(monotone(), st.integers(1, 999))
def test_an_error_budget_on_a_monotone_family_is_met_exactly(trials, thousandths):
    family, _ = dials(trials)
    error_met(family, trials, thousandths / 1000)
    assert family.least_error().error == min(t.error for t in trials)


@few
@given(bumpy(), budgets)
def test_a_size_budget_on_a_bumpy_family_is_met_exactly(found, most):
    trials, turns = found
    size_met(dials(trials, 3, turns)[0], trials, most)


@few
@given(bumpy(), st.integers(1, 999))
def test_an_error_budget_on_a_bumpy_family_is_met_exactly(found, thousandths):
    trials, turns = found
    error_met(dials(trials, 3, turns)[0], trials, thousandths / 1000)


@few
@given(few_trials, st.integers(95, 135), st.integers(0, 21))
def test_few_dials_are_all_tried(figures, most, error):
    trials = [Trial(dial, nbytes, loss / 20) for dial, (nbytes, loss) in enumerate(figures)]
    family, tried = dials(trials, scan=4)
    size_met(family, trials, most)
    error_met(family, trials, error / 20)
    assert sorted(tried) == list(range(len(trials))), "each once"
    assert family.least_error().error == min(t.error for t in trials)


@few
@given(st.integers(300, 3000), st.integers(0, 100), st.integers(0, 2**32), st.floats(0.001, 1))
def test_a_valley_of_loss_is_found(n, bottom, seed, share):
    # sizes rise by 1 a dial; losses fall to the bottom and rise again, with bumps of up to .002
    rng = np.random.default_rng(seed)
    valley = (np.arange(n) / n - bottom / 100) ** 2
    trials = [
        Trial(d, 100 + d, 0.1 + 0.8 * valley[d] + bump) for d, bump in enumerate(rng.uniform(0, 0.002, n))
    ]
    family, tried = dials(trials)
    size_met(family, trials, 100 + int(share * n), slack=0.003)
    assert family.least_error().error <= min(t.error for t in trials) + 0.003
    assert len(set(tried)) < 120


def test_a_dial_below_the_top_may_be_too_large():
    # dial 5 loses less than dial 6, but takes more
    trials = [Trial(d, 3000 + 10 * d, 1 - d / 200) for d in range(20)]
    trials[5] = Trial(5, 3075, 0.9675)
    assert dials(trials, scan=4)[0].for_size(3060) == trials[6]


def test_dials_beyond_the_turn_are_found():
    # size rises to dial 600 and falls to what dial 200 takes; loss falls all along
    trials = [Trial(d, 1000 + d if d < 600 else 1600 - (d - 600), 1 - d / 1001) for d in range(1001)]
    family, tried = dials(trials, turns=(600,))
    assert family.for_size(1199) == trials[199]
    assert family.for_size(1200) == trials[1000]
    assert family.for_size(1500) == trials[1000]
    assert family.for_error(0.5) == trials[1000]
    assert family.for_error(0.001) == trials[1000]
    assert family.for_error(0.9) == trials[101]
    assert len(set(tried)) < 80, "of six budgets"


def test_dials_out_of_order_are_found_as_far_as_the_scan_goes():
    trials = [Trial(d, 1000 + 10 * d, 1 - d / 100) for d in range(40)]
    trials[12:14] = [Trial(12, 1130, 0.88), Trial(13, 1101, 0.87)]
    assert dials(trials, scan=2)[0].for_size(1105) == trials[13], "11 and 12 are too large"
    # the last dial is too large, the one before it is not
    trials = [Trial(d, 1000 + d if d < 600 else 1600 - (d - 600), 1 - d / 1001) for d in range(1001)]
    trials[1000] = Trial(1000, 1202, 0.001)
    assert dials(trials, scan=2, turns=(600,))[0].for_size(1201) == trials[999]


def test_error_that_rises_again_towards_the_last_dials():
    trials = [Trial(d, 10 + d, 0.2 + ((d - 763) / 1000) ** 2) for d in range(1000)]
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
    assert family.for_error(0.2001) == trials[753]
    assert dials(trials)[0].for_error(0.2001) == trials[753]
    assert len(set(tried)) < 100


@pytest.mark.parametrize("turns", [(), (60_000,)])
def test_large_families_take_few_trials(turns):
    trials = [
        Trial(d, 100 + (d if d < 60_000 else 120_000 - d // 2), 1 - d / 1e5)
        for d in range(100_000 if turns else 60_000)
    ]
    family, tried = dials(trials, turns=turns)
    assert family.for_size(50_000) == trials[49_900]
    assert len(set(tried)) < 25
    family, tried = dials(trials, turns=turns)
    assert family.for_error(0.75) == trials[25_000]
    assert len(set(tried)) < 25


@pytest.mark.parametrize("jump", [1, 2, 3])
def test_a_budget_between_sizes_that_jump_takes_few_trials(jump):
    trials = [Trial(d, 1000 + d + 50_000 * (d // 15_000), 1 - d / 1e5) for d in range(60_000)]
    tried = []

    def trial(dial):
        tried.append(dial)
        return trials[dial]

    # the sketch knows of no jumps
    family = Dials(trial, len(trials), sketch=lambda dial: (float(dial), None))
    assert family.for_size(65_000 * jump - 20_000) == trials[15_000 * jump - 1]
    assert len(tried) < 3 * 16


# real families


def module(r, n_in, n_out, spread, name):
    """Signs at random; magnitudes uniform within ``spread`` of 1."""
    rng = np.random.default_rng([r, n_in, n_out])
    A, B = (
        rng.choice([-1, 1], shape) * rng.uniform(1 - spread, 1 + spread, shape)
        for shape in ((r, n_in), (n_out, r))
    )
    A, B = A.astype(np.float32), B.astype(np.float32) / 20
    return Factors(name, f"{name}.a", f"{name}.b", A, B, 1.0, ("F32", "F32"), (A.shape, B.shape))


def brute_force(modules, **options):
    """The family's :class:`Dials`, and all of its trials."""
    method = load("compress", "compeft")
    family = method.function(modules, 1, **method.parse({"sweeps": 2, **options}))

    def trial(dial):
        coded = family.encode(dial).tensors
        words = [-(-len(ternary.encode([item])) // 8) for item in coded.values()]
        losses = [loss_of(m, coded[m.a], coded[m.b]) for m in modules]
        return Trial(dial, 8 * sum(words), total_error(losses))

    trials = [trial(dial) for dial in range(family.dials)]
    return Dials.of(lambda dial: trials[dial], family), trials


PAPER = {"basis": "trained", "scope": "global", "alpha": 1.0}
TENSOR = {"basis": "trained", "scope": "tensor"}


@pytest.mark.parametrize(
    ("modules", "options", "worse", "larger"),
    [
        # exhausted: exact
        ([(2, 60, 50, 1.0), (2, 50, 80, 1.0)], TENSOR, 0, 0),
        ([(2, 60, 50, 1.0), (2, 50, 80, 1.0)], PAPER, 0, 0),
        ([(2, 60, 50, 0.05), (2, 50, 80, 0.05)], TENSOR, 0, 0),
        # searched
        ([(3, 60, 90, 1.0), (3, 90, 60, 1.0)], TENSOR, 0.002, 8),
        ([(3, 60, 90, 1.0), (3, 90, 60, 1.0)], PAPER, 0.002, 8),
        ([(3, 40, 30, 1.0), (3, 30, 40, 1.0)], {}, 0.002, 8),
        ([(3, 40, 30, 0.5), (3, 30, 40, 0.5)], {"basis": "svd"}, 0.002, 8),
    ],
)
def test_every_budget_of_a_small_adapter(modules, options, worse, larger):
    family, trials = brute_force([module(*m, name=f"m{i}") for i, m in enumerate(modules)], **options)
    assert (family.count <= 4 * family.scan) == (not worse)

    def afresh():  # what one search has tried may not help the next
        return replace(family)

    for nbytes in sorted({t.nbytes for t in trials}):
        size_met(afresh(), trials, nbytes, worse)
        size_met(afresh(), trials, nbytes - 1, worse)
    least = min(t.error for t in trials)
    assert afresh().least_error().error <= least + worse
    for error in np.linspace(least, 1, 60):
        error_met(afresh(), trials, error, larger)


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
