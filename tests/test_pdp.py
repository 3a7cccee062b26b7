"""PDP: the published formulas, exact counts, gradients, and what the temperature does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from paring.errors import OptionError
from paring.prune.pdp import attach
from paring.pruning.relaxing import PUBLISHED_TAU
from paring.pruning.soft import SoftMask, threshold


def weights(*shape: int, seed: int = 0, std: float = 0.02) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * std


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 8, bias=False))


def plain_mask(w: np.ndarray, drop: int, tau: float) -> np.ndarray:
    """The softmax of [t^2, w^2] / tau, t half way between what is kept and dropped, in fp64."""
    order = np.sort(np.abs(w.astype(np.float64)).ravel())
    t = (order[drop] + order[drop - 1]) / 2
    two = np.stack([np.full(w.shape, t**2), w.astype(np.float64) ** 2]) / tau
    two = np.exp(two - two.max(0))
    return two[1] / two.sum(0)


def test_the_mask_is_the_published_softmax():
    w = weights(20, 30)
    mask = SoftMask(tau=PUBLISHED_TAU)
    mask.drop = 421
    np.testing.assert_allclose(mask.mask(w).numpy(), plain_mask(w.numpy(), 421, 1e-4), rtol=2e-6)
    np.testing.assert_allclose(mask(w), mask.mask(w) * w)


def test_the_relative_temperature_follows_the_scale():
    for scale in (1e-3, 1.0, 50.0):
        mask = SoftMask(relative=0.1)
        mask.drop = 300
        w = weights(20, 30) * scale
        t = float(threshold(w.abs().flatten(), 300))
        np.testing.assert_allclose(mask.mask(w), plain_mask(w.numpy(), 300, 0.1 * t * t), atol=3e-6)


def test_gradients_are_those_of_a_constant_threshold():
    w = weights(6, 10).requires_grad_()
    mask = SoftMask(tau=1e-4)
    mask.drop = 30
    upstream = weights(6, 10, seed=3)
    (mask(w) * upstream).sum().backward()
    m = mask.mask(w).detach()
    expected = upstream * (m + 2 * w.detach() ** 2 / 1e-4 * m * (1 - m))
    assert w.grad is not None
    torch.testing.assert_close(w.grad, expected)


@pytest.mark.parametrize("turned", [False, True])
def test_patterns_have_thresholds_of_their_own_in_each_group(turned):
    w = weights(6, 8)
    mask = SoftMask(of=4, relative=0.05, turned=turned)
    mask.drop = 2
    given = w.T.contiguous() if turned else w
    soft, hard = mask.mask(given), mask.exact(given)
    if turned:
        soft, hard = soft.T, hard.T
    for row in range(6):
        for group in (slice(0, 4), slice(4, 8)):
            part = w[row, group].numpy()
            t = np.sort(np.abs(part))[1:3].mean()
            np.testing.assert_allclose(soft[row, group], plain_mask(part, 2, 0.05 * t * t), atol=1e-5)
            assert int(hard[row, group].sum()) == 2
    assert ((soft > 0.5) == hard).all()


def test_channels_go_whole():
    w = weights(8, 5)
    mask = SoftMask(channels=True)
    mask.drop = 3
    hard, soft = mask.exact(w), mask.mask(w)
    gone = w.norm(dim=1).argsort()[:3]
    assert set(np.flatnonzero(~hard[:, 0].numpy())) == set(gone.tolist())
    assert (hard == hard[:, :1]).all() and (soft == soft[:, :1]).all()


def test_groups_of_zeros_give_no_nan():
    w = torch.zeros(2, 8)
    w[0, 0] = 1.0
    w.requires_grad_()
    mask = SoftMask(of=4)
    mask.drop = 2
    mask(w).sum().backward()
    assert w.grad is not None and w.grad.isfinite().all() and mask.mask(w).isfinite().all()


def test_one_ranking_gives_every_layer_its_own_target():
    model = net()
    with torch.no_grad():
        model[2].weight.mul_(3)
    flat = np.concatenate([model[i].weight.detach().abs().numpy().ravel() for i in (0, 2)])
    cut = np.sort(flat)[int(len(flat) * 0.7)]
    expected = {f"{i}.weight": int((model[i].weight.detach().abs().numpy() < cut).sum()) for i in (0, 2)}
    pdp = attach(model, sparsity=0.7, warmup=2, rate=0.25)
    pdp.epoch(1)
    assert all(mask.drop == 0 for mask in pdp.masks.values()) and pdp.targets is None
    pdp.epoch(2)
    assert pdp.targets == expected
    assert {name: mask.drop for name, mask in pdp.masks.items()} == {
        name: target // 4 for name, target in expected.items()
    }
    pdp.epoch(5)
    assert {name: mask.drop for name, mask in pdp.masks.items()} == expected


def test_the_automatic_warm_up_waits_for_five_epochs_above_half_of_the_bound():
    pdp = attach(net(), sparsity=0.5, warmup=None, rate=0.5, bound=80.0)
    accuracies = [None, 41, 60, 60, 60, 40, 41, 41, 41, 41, 41, 10, 10]  # 40 is not above half of 80
    shares = []
    for epoch, accuracy in enumerate(accuracies):
        pdp.epoch(epoch, accuracy)
        shares.append(sum(mask.drop for mask in pdp.masks.values()) / (0.5 * (12 * 16 + 16 * 8)))
    assert shares == pytest.approx([0.0] * 10 + [0.5, 1.0, 1.0], abs=0.01)
    late = attach(net(), sparsity=0.5, warmup=None)
    late.epoch(0)
    with pytest.raises(OptionError, match="needs the held-out accuracy"):
        late.epoch(1)
    with pytest.raises(OptionError, match="a bound above 0"):
        attach(net(), sparsity=0.5, warmup=None, bound=0)


@pytest.mark.parametrize("sparsity", [".29", 0.5, 0.9])
def test_hardening_is_exact_with_massive_ties(sparsity):
    model = net()
    with torch.no_grad():
        for i in (0, 2):
            model[i].weight.copy_(weights(*model[i].weight.shape).mul(100).round().div(100))
    total = sum(model[i].weight.numel() for i in (0, 2))
    pdp = attach(model, sparsity=sparsity, warmup=0, rate=1)
    masks = pdp.harden()
    assert sum(int((~mask).sum()) for mask in masks.values()) == int(float(sparsity) * total + 1e-9)
    pdp.bake()
    assert type(model[0]) is nn.Linear
    for i in (0, 2):
        assert not model[i].weight[~masks[f"{i}.weight"]].any()


def test_training_crosses_the_border_and_fine_tuning_keeps_the_zeros():
    model = net()
    x = torch.randn(64, 12, generator=torch.Generator().manual_seed(1))
    y = torch.randn(64, 8, generator=torch.Generator().manual_seed(2))
    first = attach(model, sparsity=0.6, warmup=0, rate=1)
    first.progress(1.0)
    before = {name: mask.exact(first.layers[name].original) for name, mask in first.masks.items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)

    def step() -> float:
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        optimizer.step()
        return loss.item()

    start = step()
    for _ in range(40):
        end = step()
    assert end < 0.9 * start
    gaps = first.gap()
    masks = first.harden()
    assert any((masks[name] != before[name]).any() for name in masks)
    assert all(0 < gap < 0.5 for gap in gaps.values())
    for _ in range(3):
        step()
    first.bake()
    assert all(not model[i].weight[~masks[f"{i}.weight"]].any() for i in (0, 2))


def test_the_published_constant_leaves_small_weights_soft():
    """On weights as language models have them the published tau hardly prunes; the relative one does."""
    model = nn.Linear(256, 256)
    with torch.no_grad():
        model.weight.copy_(weights(256, 256, std=0.01))
    published = attach(model, sparsity=0.5, tau=PUBLISHED_TAU)
    published.progress(1.0)
    gap = published.gap()["weight"]
    assert 0.24 < gap < 0.26
    published.harden()
    published.bake()
    with torch.no_grad():
        model.weight.copy_(weights(256, 256, std=0.01))
    relative = attach(model, sparsity=0.5)
    relative.progress(1.0)
    assert relative.gap()["weight"] < 0.06


def test_conv1d_is_turned_and_heads_are_left():
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=32, n_embd=16, n_layer=1, n_head=2, n_positions=16))
    pdp = attach(model, keep=2, of=4)
    assert not any("lm_head" in name or "wte" in name for name in pdp.layers)
    masks = pdp.harden()
    kept = masks["transformer.h.0.attn.c_attn.weight"]  # (in, out): groups run along the first axis
    assert (kept.reshape(4, 4, -1).sum(1) == 2).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "needs one of"),
        ({"sparsity": 1.0}, "fraction in"),
        ({"keep": 2}, "keeping 2 of None"),
        ({"keep": 2, "of": 5}, "12 inputs do not divide"),
        ({"sparsity": 0.5, "tau": 0.0}, "above 0"),
        ({"sparsity": 0.5, "only": lambda name: False}, "no matrices"),
        ({"targets": {"9.weight": 3}}, "9.weight"),
    ],
)
def test_what_cannot_be_meant_is_refused(options, message):
    model = net()
    with pytest.raises(OptionError, match=message):
        attach(model, **options)
    assert type(model[0]) is nn.Linear


def test_bake_needs_hard_masks():
    pdp = attach(net(), sparsity=0.5)
    with pytest.raises(OptionError, match="harden"):
        pdp.bake()
