"""A model cut into blocks, each run on what the last one made.

What a block is given beside states (masks, positions) is taken from the first batch. That a model can be run
so is checked on the last one, against the model itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from paring.errors import UnsupportedError

T = torch.Tensor


class _CaughtError(Exception):
    """Ends a forward pass where the blocks begin."""


@dataclass(frozen=True, eq=False)
class Chain:
    """``model`` has a list of ``blocks``, called ``name``; ``calls`` is what each is given beside states."""

    model: nn.Module
    name: str
    blocks: Sequence[nn.Module]
    calls: Sequence[tuple[tuple[Any, ...], dict[str, Any]]]

    def run(self, number: int, states: T, block: nn.Module | None = None) -> T:
        """States after block ``number``, or after ``block`` in its place."""
        rest, named = self.calls[number]
        return _states((block or self.blocks[number])(states, *rest, **named))

    def begin(self, ids: T) -> T:
        """States where the blocks begin, ``(batch, tokens, hidden)``, of ``ids (batch, tokens)``."""
        caught: list[T] = []

        def catch(_: nn.Module, rest: tuple[Any, ...], named: dict[str, Any]) -> None:
            caught.append(named["hidden_states"] if "hidden_states" in named else rest[0])
            raise _CaughtError

        hook = self.blocks[0].register_forward_pre_hook(catch, with_kwargs=True)
        try:
            self.model(input_ids=ids)
        except _CaughtError:
            pass
        finally:
            hook.remove()
        return caught[0]


@torch.no_grad()
def cut(model: nn.Module, first: T, last: T) -> Chain:
    """Cut a model into blocks, and see on batches of ``(batch, tokens)``, of one shape, that it works.

    Raises UnsupportedError for models that are no stack of blocks, each run on what the last one made.
    """
    name, blocks = _stack(model)
    chain = Chain(model, name, blocks, _calls(model, blocks, first))
    _check(chain, last)
    return chain


def linears(module: nn.Module) -> dict[str, nn.Module]:
    """The linear layers in a module, by name."""
    from transformers.pytorch_utils import Conv1D

    return {name: each for name, each in module.named_modules() if isinstance(each, nn.Linear | Conv1D)}


def _stack(model: nn.Module) -> tuple[str, Sequence[nn.Module]]:
    """The list of modules that holds most of the linear layers. Raises UnsupportedError."""
    found = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    counts = [len(linears(module)) for _, module in found]
    if not counts or not max(counts):
        raise UnsupportedError(f"{type(model).__name__} is no stack of blocks with linear layers in them")
    name, blocks = found[counts.index(max(counts))]
    return name, list(blocks)


def _calls(
    model: nn.Module, blocks: Sequence[nn.Module], ids: T
) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """What blocks are given beside states, and but for caches, in one run of the whole model."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def note(_: nn.Module, rest: tuple[Any, ...], named: dict[str, Any]) -> None:
        others = {
            key: value for key, value in named.items() if key not in ("hidden_states", "past_key_values")
        }
        calls.append((rest if "hidden_states" in named else rest[1:], others))

    hooks = [each.register_forward_pre_hook(note, with_kwargs=True) for each in blocks]
    try:
        model(input_ids=ids)
    finally:
        for hook in hooks:
            hook.remove()
    if len(calls) != len(blocks):
        raise UnsupportedError(
            f"{type(model).__name__} runs {len(calls)} blocks of {len(blocks)}: it is no plain stack"
        )
    return calls


def _check(chain: Chain, ids: T) -> None:
    """Run the blocks one by one, and compare with the model. Raises UnsupportedError."""
    made: list[T] = []
    hook = chain.blocks[-1].register_forward_hook(lambda _, __, out: made.append(_states(out)))
    try:
        chain.model(input_ids=ids)
    finally:
        hook.remove()
    states = chain.begin(ids)
    for number in range(len(chain.blocks)):
        states = chain.run(number, states)
    scale = float(made[0].float().abs().max())
    if states.shape != made[0].shape or float((states - made[0]).float().abs().max()) > 1e-3 * scale:
        raise UnsupportedError(
            f"{type(chain.model).__name__} cannot be run block by block: its blocks see more than what the "
            "last one made"
        )


def _states(out: Any) -> T:
    """What a block makes, without what else it returns."""
    made: T = out[0] if isinstance(out, tuple) else out
    return made
