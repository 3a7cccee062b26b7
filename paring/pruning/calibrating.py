"""Calibration: what each matrix of a model is given on a text, block after block.

The model is cut where its blocks begin. States at that place are made for all windows once, then each block
is run on all of them, its linear layers watched, and its outputs are the next block's inputs: so of all sums
only one block's are held, and each state is computed once. *Sequential* statistics, as Wanda and SparseGPT
publish them, are those of a block whose predecessors are pruned already: after a block is measured it is
pruned as asked, rounded as the file would be, and run again.

How a model is cut, and that it can be, is :mod:`paring.pruning.chain`."""

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
from paring.pruning import chain as chains
from paring.pruning.chain import Chain
from paring.pruning.layers import is_turned
from paring.pruning.matrix import Inputs

_log = logging.getLogger("paring")
T = torch.Tensor
#: what becomes of a block that was measured: its linear layers by name, and what they were given
Prune = Callable[[Mapping[str, nn.Module], Mapping[str, Inputs]], None]


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
class Layered(Chain):
    """A chain with the ``linears`` of each block by name, and those ``outside`` of all, but for the head.
    ``leaders`` are, by layer, the first that is given the same input."""

    linears: Sequence[Mapping[str, nn.Module]]
    outside: Mapping[str, nn.Module]
    leaders: Mapping[str, str]


def inputs_of(layer: nn.Module) -> int:
    """How many inputs a linear layer has."""
    if isinstance(layer, nn.Linear):
        return layer.in_features
    weight: T = layer.weight  # type: ignore[assignment]
    return weight.shape[0]


def cut(model: nn.Module, windows: Sequence[T]) -> Layered:
    """Cut a model into blocks, and see on ``windows (tokens,)``, the first and the last, that it works.

    Raises UnsupportedError for models that are no stack of blocks, each run on what the last one made.
    """
    chain = chains.cut(model, windows[0][None], windows[-1][None])
    everywhere = chains.linears(model)
    head = getattr(model, "get_output_embeddings", lambda: None)()
    linears = [_below(everywhere, f"{chain.name}.{i}.") for i in range(len(chain.blocks))]
    outside = {
        each: layer for each, layer in everywhere.items()
        if layer is not head and not any(each in group for group in linears)
    }  # fmt: skip
    leaders = _leaders(chain, everywhere, windows[0])
    return Layered(**vars(chain), linears=linears, outside=outside, leaders=leaders)


def measure(
    chain: Layered, windows: Sequence[T], *, gram: bool, prune: Prune | None = None
) -> Iterator[tuple[str, Inputs]]:
    """What each input is, by the name of the first layer that has it, block after block.

    With ``prune`` each block is pruned once it is measured. Raises BadValueError for NaN.
    """
    states = [chain.begin(window[None]).cpu() for window in windows]
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
def _watched(chain: Layered, linears: Mapping[str, nn.Module], gram: bool) -> Iterator[dict[str, Sums]]:
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


def _below(named: Mapping[str, nn.Module], prefix: str) -> dict[str, nn.Module]:
    return {name: each for name, each in named.items() if name.startswith(prefix)}


def _leaders(chain: Chain, linears: Mapping[str, nn.Module], window: T) -> dict[str, str]:
    """Which layers share an input, within a block: by layer, the first of those, in a run of the model."""
    leaders: dict[str, str] = {}
    held: list[tuple[T, str]] = []

    def linear(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def seen(_: nn.Module, given: tuple[Any, ...]) -> None:
            leader = next((first for each, first in held if each is given[0]), name)
            leaders.setdefault(name, leader)
            held.append((given[0], leader))

        return seen

    hooks = [each.register_forward_pre_hook(lambda *_: held.clear()) for each in chain.blocks]
    hooks += [each.register_forward_hook(lambda *_: held.clear()) for each in chain.blocks]
    hooks += [each.register_forward_pre_hook(linear(name)) for name, each in linears.items()]
    try:
        chain.model(input_ids=window[None])
    finally:
        for hook in hooks:
            hook.remove()
    return leaders


def weights_of(layer: nn.Module) -> np.ndarray[Any, np.dtype[np.float32]]:
    """A linear layer's weights ``(out, in)``, fp32, in memory of their own."""
    weight = layer.weight.detach().float().cpu()  # type: ignore[operator]
    return np.array((weight.T if is_turned(layer) else weight).numpy(), np.float32, order="C")


def set_weights(layer: nn.Module, weights: np.ndarray[Any, np.dtype[np.float32]]) -> None:
    """Give a linear layer ``weights (out, in)``, in its own dtype and place."""
    found = torch.from_numpy(weights.T if is_turned(layer) else weights)
    layer.weight.copy_(found)  # type: ignore[operator]
