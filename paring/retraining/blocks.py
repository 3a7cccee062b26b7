"""Block-wise reconstruction: each pruned block learns to do what its dense original does.

Block after block, the dense block's outputs **on the inputs that the pruned and already reconstructed blocks
before it give** are the targets, and the mean squared error the loss (as in PERP's code, arXiv:2312.15230).
One block's optimizer state and two blocks' weights are in use at a time. A window of one block holds
attention and a feed-forward part, so never a single matrix: reconstruction matrix by matrix is worse
(arXiv:2510.14444).
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from paring.errors import OptionError
from paring.pruning.chain import Chain, cut
from paring.retraining import text
from paring.retraining.fitting import Fit, Loss, fit
from paring.retraining.kinds import Kind
from paring.retraining.pupil import Pupil
from paring.retraining.soft import attached
from paring.retraining.subsets import Subset, choose

_log = logging.getLogger("paring")
States = list[torch.Tensor]


@dataclass(frozen=True, slots=True)
class Reconstruction:
    """``samples`` windows in batches of ``size``; ``train`` names the subset of a block that is trained.

    With ``relax`` the masks are learned too: all weights of a block, also those that were pruned, are trained
    under PDP's soft masks, whose temperature falls, and hardened to the same counts before the last third.
    """

    fit: Fit
    samples: int = 128
    size: int = 4
    train: tuple[str, ...] = ("all",)
    adapter: Kind = "masklora"
    rank: int = 16
    alpha: float = 32.0
    relax: bool = False


#: PDP's relative temperature at the first step of a block and when its masks are hardened, and when that is
SOFTEST, HARDEST, SOFT_SHARE = 0.5, 0.02, 2 / 3


def reconstruct(pupil: Pupil, how: Reconstruction, part: str = "") -> list[tuple[float, float]]:
    """Reconstruct all blocks in place; by block, the relative error before and after.

    That error is ``||block - dense||^2 / ||dense||^2`` of outputs. ``part`` tells this reconstruction from
    others of the same run. Raises OptionError where the adapter is one that does not merge, UnsupportedError
    for models that are no plain stack of blocks.
    """
    if how.adapter == "lora":
        raise OptionError("--adapter lora is never merged, so it reconstructs nothing: use masklora")
    pupil.model.eval()
    chain, states = _begun(pupil, how)
    errors = []
    pupil.notes["reconstructed"] = 0
    for index, block in enumerate(chain.blocks):
        prefix = f"{chain.name}.{index}."
        label = f"{part}block {index + 1} of {len(chain.blocks)}"
        names = [prefix + name for name, _ in block.named_parameters()]
        dense = pupil.dense_weights(names)
        call = partial(_run, pupil, chain, index, block)
        teacher = copy.deepcopy(block)
        with torch.no_grad():
            for name, parameter in teacher.named_parameters():
                parameter.copy_(dense[prefix + name])
        targets = _outputs(partial(_run, pupil, chain, index, teacher), states)
        before = _error(_outputs(call, states), targets)
        if not pupil.restore(label):
            _fit_block(pupil, prefix, block, call, states, targets, how, label)
            pupil.finish(label, names)
        outputs = _outputs(call, states)
        errors.append((before, _error(outputs, targets)))
        _log.info("%s: relative error %.4f, was %.4f", label, errors[-1][1], before)
        states = outputs
    return errors


@torch.no_grad()
def _begun(pupil: Pupil, how: Reconstruction) -> tuple[Chain, States]:
    """The model cut into blocks, and the states that enter the first, a batch each."""
    size = min(how.size, how.samples)
    batches = [
        torch.from_numpy(text.batch(pupil.data, number, size, pupil.seed)).to(pupil.device)
        for number in range(max(1, how.samples // size))
    ]
    chain = cut(pupil.model, batches[0], batches[-1])
    return chain, [chain.begin(ids).cpu() for ids in batches]


def _run(pupil: Pupil, chain: Chain, index: int, block: nn.Module, states: torch.Tensor) -> torch.Tensor:
    """What ``block``, in the place of number ``index``, makes of a batch of states."""
    return chain.run(index, states.to(pupil.device), block)


@torch.no_grad()
def _outputs(call: Callable[[torch.Tensor], torch.Tensor], states: States) -> States:
    return [call(batch).cpu() for batch in states]


def _error(found: States, targets: States) -> float:
    wrong = sum(float((a - b).square().sum(dtype=torch.float64)) for a, b in zip(found, targets, strict=True))
    return wrong / sum(float(b.square().sum(dtype=torch.float64)) for b in targets)


def _fit_block(
    pupil: Pupil,
    prefix: str,
    block: nn.Module,
    call: Callable[[torch.Tensor], torch.Tensor],
    states: States,
    targets: States,
    how: Reconstruction,
    label: str,
) -> None:
    def loss(number: int) -> torch.Tensor:
        which = number % len(states)
        return (call(states[which]) - targets[which].to(pupil.device)).square().mean()

    if how.relax:
        _relaxed(pupil, prefix, block, how, loss, label)
        return
    subset = choose(
        pupil.model, how.train, pupil.layers, pupil.masks, adapter=how.adapter, rank=how.rank,
        alpha=how.alpha, seed=pupil.seed, within=prefix,
    )  # fmt: skip
    held = pupil.held(subset.own.items())
    fit(subset.parameters, loss, how.fit, held=held, keeper=pupil.keeper, label=label)
    pupil.changed |= subset.changed()
    _count(pupil, subset)
    subset.merge()


def _relaxed(
    pupil: Pupil,
    prefix: str,
    block: nn.Module,
    how: Reconstruction,
    loss: Loss,
    label: str,
) -> None:
    """Train a block under soft masks that begin from the dense weights; new masks of the same counts.

    It is taken up again from its beginning: masks that were hardened cannot be told from the weights later.
    """
    drop = {name: int((~mask).sum()) for name, mask in pupil.masks.items() if name.startswith(prefix)}
    inside = {name.removeprefix(prefix): number for name, number in drop.items()}
    pupil.undo(drop)
    subset = choose(pupil.model, ["all"], {}, {}, within=prefix)
    pdp = attached(pupil, block, inside)
    pdp.progress(1.0)
    hard_from = round(SOFT_SHARE * how.fit.steps)

    def anneal(step: int) -> None:
        share = min(1.0, step / max(1, hard_from - 1))
        for mask in pdp.masks.values():
            mask.relative = SOFTEST * (HARDEST / SOFTEST) ** share
        if step == hard_from:
            pdp.harden()

    fit(subset.parameters, loss, how.fit, label=label, before_step=anneal)
    for name, mask in pdp.harden().items():
        pupil.masks[prefix + name] = mask
    pdp.bake()
    pupil.changed |= set(subset.own)
    _count(pupil, subset)


def _count(pupil: Pupil, subset: Subset) -> None:
    pupil.notes["reconstructed"] += subset.count
