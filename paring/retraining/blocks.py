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
from typing import Any

import torch
from torch import nn

from paring.errors import OptionError
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


class _Enough(Exception):  # noqa: N818  # it is no error: the states are there, the rest need not run
    pass


def reconstruct(pupil: Pupil, how: Reconstruction, part: str = "") -> list[tuple[float, float]]:
    """Reconstruct all blocks in place; by block, the relative error before and after.

    That error is ``||block - dense||^2 / ||dense||^2`` of outputs. ``part`` tells this reconstruction from
    others of the same run. Raises OptionError where there are no blocks, or the adapter is one that does not
    merge.
    """
    if how.adapter == "lora":
        raise OptionError("--adapter lora is never merged, so it reconstructs nothing: use masklora")
    path, blocks = find_blocks(pupil.model)
    pupil.model.eval()
    states, arguments = _first_inputs(pupil, blocks, how)
    errors = []
    pupil.notes["reconstructed"] = 0
    for index, block in enumerate(blocks):
        prefix = f"{path}.{index}."
        label = f"{part}block {index + 1} of {len(blocks)}"
        names = [prefix + name for name, _ in block.named_parameters()]
        dense = pupil.dense_weights(names)
        call = _caller(block, arguments[index], pupil.device)
        teacher = copy.deepcopy(block)
        with torch.no_grad():
            for name, parameter in teacher.named_parameters():
                parameter.copy_(dense[prefix + name])
        targets = _outputs(_caller(teacher, arguments[index], pupil.device), states)
        before = _error(_outputs(call, states), targets)
        if not pupil.restore(label):
            _fit_block(pupil, prefix, block, call, states, targets, how, label)
            pupil.finish(label, names)
        outputs = _outputs(call, states)
        errors.append((before, _error(outputs, targets)))
        _log.info("%s: relative error %.4f, was %.4f", label, errors[-1][1], before)
        states = outputs
    return errors


def find_blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The name and the modules of the longest list of like blocks. Raises OptionError for a model without."""
    lists = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
        and len({type(block) for block in module}) == 1
        and any(parameter.dim() > 1 for parameter in module.parameters())
    }
    if not lists:
        raise OptionError(f"{type(model).__name__} has no list of blocks to reconstruct one after another")
    name = max(lists, key=lambda each: sum(p.numel() for p in lists[each].parameters()))
    return name, lists[name]


@torch.no_grad()
def _first_inputs(
    pupil: Pupil, blocks: nn.ModuleList, how: Reconstruction
) -> tuple[States, list[tuple[tuple[Any, ...], dict[str, Any]]]]:
    """The states that enter the first block, a batch each, and what else each block is called with."""
    size = min(how.size, how.samples)
    batches = max(1, how.samples // size)
    states: States = []
    others: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        kwargs = {name: value for name, value in kwargs.items() if name != "past_key_values"}
        inside = kwargs.pop("hidden_states", None)
        others.append((args[1:] if inside is None else args, kwargs))

    def catch(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        states.append((kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]).cpu())
        raise _Enough

    def run(number: int) -> None:
        ids = text.batch(pupil.data, number, size, pupil.seed)
        pupil.model(input_ids=torch.from_numpy(ids).to(pupil.device))

    hooks = [block.register_forward_pre_hook(note, with_kwargs=True) for block in blocks]
    run(0)
    for hook in hooks:
        hook.remove()
    hook = blocks[0].register_forward_pre_hook(catch, with_kwargs=True)
    for number in range(batches):
        try:
            run(number)
        except _Enough:
            continue
    hook.remove()
    return states, others


def _caller(
    block: nn.Module, others: tuple[tuple[Any, ...], dict[str, Any]], device: str
) -> Callable[[torch.Tensor], torch.Tensor]:
    """The block as a function of states; its own further outputs are dropped."""
    args, kwargs = others

    def call(states: torch.Tensor) -> torch.Tensor:
        found = block(states.to(device), *args, **kwargs)
        out: torch.Tensor = found[0] if isinstance(found, tuple) else found
        return out

    return call


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
