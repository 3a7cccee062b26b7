"""Schedules of sparsity, and masks that move: published figures, counts, bad values."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from paring.errors import BadValueError, OptionError
from paring.pruning.growing import Updater, death_rate, drop_and_grow
from paring.pruning.schedules import (
    Gradual,
    average_density,
    count,
    cubic,
    ramp,
    token_span,
)


def test_counts_are_of_the_decimal_as_typed():
    assert count(0.29, 100) == count(".29", 100) == 29
    assert int(0.29 * 100) == 28  # what a float would give
    assert count(0.7, 10) == 7 and count(1 / 3, 9) == 2


@pytest.mark.parametrize(
    ("final", "start", "end", "density"),
    [(0.5, 0.161, 0.677, 0.645), (0.8, 0.091, 0.545, 0.364), (0.9, 0.058, 0.417, 0.233)],
)
def test_a_quarter_to_three_quarters_of_compute(final, start, end, density):
    assert average_density(final) == pytest.approx(density, abs=5e-4)
    assert token_span(final) == pytest.approx((start, end), abs=6e-4)


@pytest.mark.parametrize(("final", "density"), [(0.5, 0.688), (0.8, 0.5), (0.9, 0.438)])
def test_fractions_of_tokens_give_another_density(final, density):
    schedule = Gradual(final)
    shares = (np.arange(100_000) + 0.5) / 100_000
    mean = np.mean([1 - schedule.at(share) for share in shares])
    assert mean == pytest.approx(density, abs=6e-4)


@given(
    final=st.floats(0, 0.97), initial=st.floats(0, 1), start=st.floats(0, 1), end=st.floats(0, 1),
    prunable=st.floats(0.1, 1),
)  # fmt: skip
def test_conversion_agrees_with_the_sum_over_tokens(final, initial, start, end, prunable):
    start, end = sorted((start, end))
    initial *= final
    schedule = Gradual.over_compute(final, start, end, initial, prunable)
    shares = (np.arange(4000) + 0.5) / 4000
    densities = np.array([1 - prunable * schedule.at(share) for share in shares])
    whole = average_density(final, start, end, initial, prunable)
    assert densities.mean() == pytest.approx(whole, abs=1e-3)
    assert schedule.start * (1 - prunable * initial) / whole == pytest.approx(start, abs=1e-9)
    assert (1 - schedule.end) * (1 - prunable * final) / whole == pytest.approx(1 - end, abs=1e-9)


def test_the_cubic_schedule():
    schedule = Gradual(0.8, 0.25, 0.75, initial=0.2)
    assert [schedule.at(x) for x in (0, 0.249, 0.75, 1)] == [0.2, 0.2, 0.8, 0.8]
    assert schedule.at(0.5) == pytest.approx(0.8 - 0.6 / 8)
    assert cubic(0.5, 0.8) == pytest.approx(0.7)
    assert [ramp(epoch, 16, 0.015) for epoch in (0, 15, 16, 17, 82, 200)] == pytest.approx(
        [0, 0, 0.015, 0.03, 1, 1]
    )


def test_schedules_that_cannot_be():
    with pytest.raises(OptionError, match="rising"):
        Gradual(0.3, initial=0.5)
    with pytest.raises(OptionError, match="rising"):
        average_density(1.0)
    with pytest.raises(OptionError, match="start <= end"):
        Gradual(0.5, 0.6, 0.5)


# --- masks that move ---


def some(seed: int = 0, shape: tuple[int, int] = (8, 10)) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(shape, generator=generator) < 0.4
    return torch.randn(shape, generator=generator) * mask, mask


@given(seed=st.integers(0, 50), rate=st.floats(0, 1), ties=st.booleans(), scored=st.booleans())
def test_as_many_are_grown_as_dropped(seed, rate, ties, scored):
    weights, mask = some(seed)
    if ties:
        weights = weights.round()
    scores = torch.randn(mask.shape, generator=torch.Generator().manual_seed(seed + 1)) if scored else None
    generator = torch.Generator().manual_seed(seed)
    found = drop_and_grow(weights, mask, rate, scores=scores, generator=generator)
    number = count(rate, int(mask.sum()))
    assert int(found.dropped.sum()) == int(found.grown.sum()) == number
    assert int(found.mask.sum()) == int(mask.sum())
    assert not (found.dropped & ~mask).any()
    kept = mask & ~found.dropped
    assert (found.mask == (kept | found.grown)).all() and not (kept & found.grown).any()
    if 0 < number < int(mask.sum()):
        assert weights[found.dropped].abs().max() <= weights[kept].abs().min()
    if scores is not None and number and (~found.mask).any():
        assert scores[found.grown].min() >= scores[~found.mask].max()


def test_ties_go_in_flat_order():
    mask = torch.ones(2, 4, dtype=torch.bool)
    mask[:, 2:] = False
    found = drop_and_grow(torch.ones(2, 4), mask, 0.5, scores=torch.zeros(2, 4))
    assert found.dropped.flatten().nonzero().flatten().tolist() == [0, 1]
    assert found.grown.flatten().nonzero().flatten().tolist() == [0, 1]  # as RigL: also what was dropped


def test_unfired_entries_come_first():
    weights, mask = some(3)
    fired = mask.clone()
    fired[:4] = True  # half of what is inactive has been active once
    found = drop_and_grow(weights, mask, 0.5, fired=fired, generator=torch.Generator().manual_seed(0))
    assert not (found.grown & fired).any()
    all_fired = torch.ones_like(mask)
    again = drop_and_grow(weights, mask, 0.5, fired=all_fired, generator=torch.Generator().manual_seed(0))
    assert int(again.grown.sum()) == count(0.5, int(mask.sum()))


def test_the_rate_is_a_cosine():
    assert [death_rate(step, 100) for step in (0, 50, 100, 200)] == pytest.approx([0.5, 0.2525, 0.005, 0.005])


@pytest.mark.parametrize("grow", ["random", "unfired", "gradient", "momentum"])
def test_training_with_a_moving_mask(grow):
    torch.manual_seed(0)
    layer = nn.Linear(20, 10)
    _, mask = some(1, (10, 20))
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.01)
    updater = Updater({layer.weight: mask}, optimizer, grow)
    x, y = torch.randn(32, 20), torch.randn(32, 10)
    active = int(mask.sum())
    for step in range(9):
        optimizer.zero_grad()
        (layer(x) - y).square().mean().backward()
        if step % 3 == 2:
            before = updater.masks[layer.weight]
            assert updater.update(0.3) == count(0.3, active)
            now = updater.masks[layer.weight]
            assert not (optimizer.state[layer.weight]["exp_avg"][now & ~before]).any()
            if grow == "gradient":
                new, rest = now & ~before, ~now & ~before
                assert layer.weight.grad is not None
                assert layer.weight.grad[new].abs().min() >= layer.weight.grad[rest].abs().max()
        updater.apply(gradients=True)
        optimizer.step()
        updater.apply()
        assert not layer.weight[~updater.masks[layer.weight]].any()
        assert int(updater.masks[layer.weight].sum()) == active
    again = Updater({layer.weight: mask}, optimizer, grow)
    assert (again.masks[layer.weight] == mask).all()


def test_updates_that_cannot_be():
    weights, mask = some()
    with pytest.raises(OptionError, match="share of active"):
        drop_and_grow(weights, mask, 1.5)
    weights[0, 0] = torch.nan
    with pytest.raises(BadValueError, match="NaN"):
        drop_and_grow(weights, mask, 0.5)
    layer = nn.Linear(10, 8)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    with pytest.raises(OptionError, match="backward"):
        Updater({layer.weight: mask}, optimizer, "gradient").update(0.1)
    with pytest.raises(OptionError, match="Adam"):
        Updater({layer.weight: mask}, optimizer, "momentum").update(0.1)
