"""Calibration: what each matrix of a model is given on a text, block after block.

The model is cut where its blocks begin. States at that place are made for all windows once, then each block
is run on all of them, its linear layers watched, and its outputs are the next block's inputs: so of all sums
only one block's are held, and each state is computed once. *Sequential* statistics, as Wanda and SparseGPT
publish them, are those of a block whose predecessors are pruned already: after a block is measured it is
pruned as asked, rounded as the file would be, and run again.

What a block is given beside states (masks, positions) is taken from the first window. That a model can be run
so is checked on the last window, against the model itself, before anything is measured."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from paring.errors import BadValueError, UnsupportedError
from paring.pruning.layers import is_turned
from paring.pruning.matrix import Inputs

_log = logging.getLogger("paring")
T = torch.Tensor
#: what becomes of a block that was measured: its linear layers by name, and what they were given
Prune = Callable[[Mapping[str, nn.Module], Mapping[str, Inputs]], None]


class _CaughtError(Exception):
    """Ends a forward pass where the blocks begin."""


@dataclass(eq=False)
class Sums:
    """What a layer was given so far: tokens, squares ``(n,)`` and products ``(n, n)``, fp64."""

    n: int
    gram: bool
    tokens: int = 0
    squares: T | None = None
    products: T | None = None
    last: T | None = field(default=None, repr=False)

    def add(self, given: T) -> None:
        """Tokens ``(..., n)``; products of one call in fp32."""
        self.last = given
        x = given.detach().reshape(-1, self.n).float()
        self.tokens += len(x)
        squares = x.square().sum(0, dtype=torch.float64)
        self.squares = squares if self.squares is None else self.squares.add_(squares)
        if self.gram:
            products = x.T @ x
            self.products = products.double() if self.products is None else self.products.add_(products)

    def finish(self, name: str) -> Inputs:
        """Raises BadValueError for NaN and infinity."""
        count = max(1, self.tokens)
        zeros = torch.zeros(self.n, dtype=torch.float64)
        squares = zeros if self.squares is None else self.squares / count
        products = zeros.diag() if self.products is None else self.products / count
        if not (squares.isfinite().all() and products.isfinite().all()):
            raise BadValueError(
                f"{name} was given NaN or infinity: is the model sound? in fp16, try --dtype fp32"
            )
        gram = products.float().cpu().numpy() if self.gram else None
        return Inputs(squares.sqrt().float().cpu().numpy(), self.tokens, gram)


@dataclass(frozen=True, eq=False)
class Chain:
    """A model cut into blocks. ``linears`` are the linear layers of each block by name, ``outside`` those of
    none but for the output head; ``calls`` is what each block is given beside states."""

    model: nn.Module
    blocks: Sequence[nn.Module]
    linears: Sequence[Mapping[str, nn.Module]]
    outside: Mapping[str, nn.Module]
    calls: Sequence[tuple[tuple[Any, ...], dict[str, Any]]]
    leaders: Mapping[str, str]

    def run(self, number: int, states: T) -> T:
        """States after block ``number``."""
        rest, named = self.calls[number]
        out: Any = self.blocks[number](states, *rest, **named)
        made: T = out[0] if isinstance(out, tuple) else out
        return made


def inputs_of(layer: nn.Module) -> int:
    """How many inputs a linear layer has."""
    if isinstance(layer, nn.Linear):
        return layer.in_features
    weight: T = layer.weight  # type: ignore[assignment]
    return weight.shape[0]


def cut(model: nn.Module, windows: Sequence[T]) -> Chain:
    """Cut a model into blocks, and see on ``windows (tokens,)``, the first and the last, that it works.

    Raises UnsupportedError for models that are no stack of blocks, each run on what the last one made.
    """
    name, blocks = _stack(model)
    everywhere = _linears(model)
    head = getattr(model, "get_output_embeddings", lambda: None)()
    linears = [_below(everywhere, f"{name}.{i}.") for i in range(len(blocks))]
    outside = {
        each: layer for each, layer in everywhere.items()
        if layer is not head and not any(each in group for group in linears)
    }  # fmt: skip
    calls, leaders = _seen(model, blocks, everywhere, windows[0])
    chain = Chain(model, blocks, linears, outside, calls, leaders)
    _check(chain, windows[-1])
    return chain


def measure(
    chain: Chain, windows: Sequence[T], *, gram: bool, prune: Prune | None = None
) -> Iterator[tuple[str, Inputs]]:
    """What each input is, by the name of the first layer that has it, block after block.

    With ``prune`` each block is pruned once it is measured. Raises BadValueError for NaN.
    """
    states = [_begin(chain, window).cpu() for window in windows]
    device = windows[0].device
    for number, linears in enumerate(chain.linears):
        _log.info("block %d of %d", number + 1, len(chain.linears))
        with _watched(chain, linears, gram) as sums:
            after = [chain.run(number, each.to(device)).cpu() for each in states]
        found = {name: each.finish(name) for name, each in sums.items()}
        del sums
        if prune is not None:
            prune(linears, {name: found[chain.leaders.get(name, name)] for name in linears})
            after = [chain.run(number, each.to(device)).cpu() for each in states]
        states = after
        yield from found.items()
        del found
    if chain.outside:
        with _watched(chain, chain.outside, gram) as sums:
            for window in windows:
                chain.model(input_ids=window[None])
        yield from ((name, each.finish(name)) for name, each in sums.items())


@contextmanager
def _watched(chain: Chain, linears: Mapping[str, nn.Module], gram: bool) -> Iterator[dict[str, Sums]]:
    """While in it, what ``linears`` are given is added up, once for those that share it."""
    sums = {
        name: Sums(inputs_of(layer), gram)
        for name, layer in linears.items()
        if chain.leaders.get(name, name) == name
    }

    def watch(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        leader = chain.leaders.get(name, name)

        def seen(_: nn.Module, given: tuple[Any, ...]) -> None:
            if leader == name:
                sums[name].add(given[0])
            elif sums[leader].last is not given[0]:
                raise UnsupportedError(f"{name} does not always share its input with {leader}")

        return seen

    hooks = [layer.register_forward_pre_hook(watch(name)) for name, layer in linears.items()]
    try:
        yield sums
    finally:
        for hook in hooks:
            hook.remove()
        for each in sums.values():
            each.last = None


def _stack(model: nn.Module) -> tuple[str, Sequence[nn.Module]]:
    """The list of modules that holds most of the linear layers. Raises UnsupportedError."""
    found = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    counts = [len(_linears(module)) for _, module in found]
    if not counts or not max(counts):
        raise UnsupportedError(f"{type(model).__name__} is no stack of blocks with linear layers in them")
    name, blocks = found[counts.index(max(counts))]
    return name, list(blocks)


def _linears(module: nn.Module) -> dict[str, nn.Module]:
    from transformers.pytorch_utils import Conv1D

    return {name: each for name, each in module.named_modules() if isinstance(each, nn.Linear | Conv1D)}


def _below(named: Mapping[str, nn.Module], prefix: str) -> dict[str, nn.Module]:
    return {name: each for name, each in named.items() if name.startswith(prefix)}


def _seen(
    model: nn.Module, blocks: Sequence[nn.Module], linears: Mapping[str, nn.Module], window: T
) -> tuple[list[tuple[tuple[Any, ...], dict[str, Any]]], dict[str, str]]:
    """One run of the whole model: what blocks are given beside states, and which layers share an input."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    leaders: dict[str, str] = {}
    held: list[tuple[T, str]] = []

    def block(_: nn.Module, rest: tuple[Any, ...], named: dict[str, Any]) -> None:
        held.clear()
        calls.append((rest[1:], {key: value for key, value in named.items() if key != "hidden_states"}))

    def linear(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def seen(_: nn.Module, given: tuple[Any, ...]) -> None:
            leader = next((first for each, first in held if each is given[0]), name)
            leaders.setdefault(name, leader)
            held.append((given[0], leader))

        return seen

    hooks = [each.register_forward_pre_hook(block, with_kwargs=True) for each in blocks]
    hooks += [each.register_forward_hook(lambda *_: held.clear()) for each in blocks]
    hooks += [each.register_forward_pre_hook(linear(name)) for name, each in linears.items()]
    try:
        model(input_ids=window[None])
    finally:
        for hook in hooks:
            hook.remove()
    if len(calls) != len(blocks):
        raise UnsupportedError(
            f"{type(model).__name__} runs {len(calls)} blocks of {len(blocks)}: it is no plain stack"
        )
    return calls, leaders


def _begin(chain: Chain, window: T) -> T:
    """States where the blocks begin, ``(1, tokens, hidden)``."""
    caught: list[T] = []

    def catch(_: nn.Module, rest: tuple[Any, ...], named: dict[str, Any]) -> None:
        caught.append(rest[0] if rest else named["hidden_states"])
        raise _CaughtError

    hook = chain.blocks[0].register_forward_pre_hook(catch, with_kwargs=True)
    try:
        chain.model(input_ids=window[None])
    except _CaughtError:
        pass
    finally:
        hook.remove()
    return caught[0]


def _check(chain: Chain, window: T) -> None:
    """Run the blocks one by one, and compare with the model. Raises UnsupportedError."""
    made: list[T] = []

    def keep(_: nn.Module, __: tuple[Any, ...], out: Any) -> None:
        made.append(out[0] if isinstance(out, tuple) else out)

    hook = chain.blocks[-1].register_forward_hook(keep)
    try:
        chain.model(input_ids=window[None])
    finally:
        hook.remove()
    states = _begin(chain, window)
    for number in range(len(chain.blocks)):
        states = chain.run(number, states)
    scale = float(made[0].float().abs().max())
    if states.shape != made[0].shape or float((states - made[0]).float().abs().max()) > 1e-3 * scale:
        raise UnsupportedError(
            f"{type(chain.model).__name__} cannot be run block by block: its blocks see more than what the "
            "last one made"
        )


def weights_of(layer: nn.Module) -> np.ndarray[Any, np.dtype[np.float32]]:
    """A linear layer's weights ``(out, in)``, fp32, in memory of their own."""
    weight = layer.weight.detach().float().cpu()  # type: ignore[operator]
    return np.array((weight.T if is_turned(layer) else weight).numpy(), np.float32, order="C")


def set_weights(layer: nn.Module, weights: np.ndarray[Any, np.dtype[np.float32]]) -> None:
    """Give a linear layer ``weights (out, in)``, in its own dtype and place."""
    found = torch.from_numpy(weights.T if is_turned(layer) else weights)
    layer.weight.copy_(found)  # type: ignore[operator]
