"""The one training loop: optimizer, schedule, masks, checkpoints, progress, and what to do about NaN.

A loss is a function of the number of a micro-batch, counted over the whole run, so that a run that is taken
up again sees what it would have seen. State is saved only once the loss it gives is known to be finite.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from paring.atomic import sync
from paring.errors import BadValueError, OptionError
from paring.pruning.growing import hold
from paring.retraining.apollo import Apollo
from paring.retraining.kinds import Optimizer

_log = logging.getLogger("paring")
#: micro-batch number -> its loss, a scalar
Loss = Callable[[int], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Fit:
    """How to train: ``steps`` updates of ``accumulate`` micro-batches each.

    The learning rate rises over the ``warmup`` share of the steps and falls to zero, both linearly. ``clip``
    bounds the gradient's norm. Checkpoints are written every ``save_every`` steps.
    """

    steps: int
    lr: float
    accumulate: int = 1
    warmup: float = 0.1
    weight_decay: float = 0.0
    optimizer: Optimizer = "adamw"
    rank: int = 256
    clip: float | None = 1.0
    seed: int = 0
    save_every: int = 50

    def __post_init__(self) -> None:
        for name in ("steps", "accumulate", "save_every"):
            if getattr(self, name) < 1:
                raise OptionError(f"--{name.replace('_', '-')} {getattr(self, name)}: expected at least 1")
        if not (self.lr > 0 and math.isfinite(self.lr)):
            raise OptionError(f"--lr {self.lr}: a learning rate is above 0")
        if not 0 <= self.warmup <= 1:
            raise OptionError(f"--warmup {self.warmup}: expected a share of the steps, in [0, 1]")
        if not self.weight_decay >= 0:
            raise OptionError(f"--weight-decay {self.weight_decay}: expected at least 0")

    def part(self, cycles: int) -> Fit:
        """The same for one of so many cycles."""
        return replace(self, steps=max(1, self.steps // cycles))

    def rate(self, step: int) -> float:
        """The learning rate of update ``step``, counted from 0."""
        rising = math.ceil(self.warmup * self.steps)
        if step < rising:
            return self.lr * (step + 1) / rising
        return self.lr * (self.steps - step) / max(1, self.steps - rising)


class Keeper:
    """Checkpoints of one run in a folder: the latest state of its current part, and parts that are done.

    A run is a sequence of parts (cycles, blocks), each known by its ``label``. Files are whole or absent.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.file = folder, folder / "state.pt"

    def load(self, label: str) -> dict[str, Any] | None:
        """The state saved last, if it is of this part."""
        state = self._read(self.file)
        return state if state is not None and state["label"] == label else None

    def save(self, label: str, state: dict[str, Any]) -> None:
        """Replace the state saved before."""
        self._write(self.file, {"label": label, **state})

    def finished(self, label: str) -> dict[str, Any] | None:
        """What :meth:`finish` kept of a part."""
        return self._read(self.folder / f"{label.replace(' ', '-')}.pt")

    def finish(self, label: str, state: dict[str, Any]) -> None:
        """Keep what a part came to."""
        self._write(self.folder / f"{label.replace(' ', '-')}.pt", state)

    def _read(self, file: Path) -> dict[str, Any] | None:
        if not file.exists():
            return None
        found: dict[str, Any] = torch.load(file, weights_only=True, map_location="cpu")
        return found

    def _write(self, file: Path, state: dict[str, Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial")
        torch.save(state, partial)
        sync(partial)
        partial.replace(file)


def fit(
    parameters: Sequence[nn.Parameter],
    loss: Loss,
    how: Fit,
    *,
    held: Mapping[nn.Parameter, torch.Tensor] | None = None,
    keeper: Keeper | None = None,
    label: str = "training",
    before_step: Callable[[int], None] | None = None,
) -> list[float]:
    """Train ``parameters`` and return the loss of each step (the mean of its micro-batches).

    ``held`` maps parameters to masks (bool, in their shapes, true where trained): the rest stays exactly
    zero. ``before_step`` is called with each step's number, for schedules of other things. Raises
    BadValueError for a loss or gradient that is NaN or infinite; what was saved last stays.
    """
    optimizer = _optimizer(parameters, how)
    losses: list[float] = []
    hold(held or {})
    if keeper is not None and (state := keeper.load(label)) is not None:
        losses = list(state["losses"])
        with torch.no_grad():
            for parameter, saved in zip(parameters, state["parameters"], strict=True):
                parameter.copy_(saved)
        optimizer.load_state_dict(state["optimizer"])
        _log.info("%s: going on after step %d of %d", label, len(losses), how.steps)
    started, first = time.perf_counter(), len(losses)
    for step in range(first, how.steps):
        if before_step is not None:
            before_step(step)
        optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for micro in range(step * how.accumulate, (step + 1) * how.accumulate):
            found = loss(micro) / how.accumulate
            total += found.item()
            found.backward()  # type: ignore[no-untyped-call]
        _refuse_nonfinite(total, "loss", step, how, keeper, label)
        hold(held or {}, gradients=True)
        norm = float(nn.utils.clip_grad_norm_(parameters, how.clip or math.inf))
        _refuse_nonfinite(norm, "gradient", step, how, keeper, label)
        if keeper is not None and step > first and step % how.save_every == 0:
            _save(keeper, label, parameters, optimizer, losses)  # before the step: known to be good
        for group in optimizer.param_groups:
            group["lr"] = how.rate(step)
        optimizer.step()  # which moves nothing whose gradients have all been zero
        losses.append(total)
        left = (time.perf_counter() - started) / (step + 1 - first) * (how.steps - step - 1)
        _log.info("%s: step %d of %d, loss %.4f, %s left", label, step + 1, how.steps, total, _spoken(left))
    if keeper is not None and len(losses) > first:
        _save(keeper, label, parameters, optimizer, losses)
    return losses


def _optimizer(parameters: Sequence[nn.Parameter], how: Fit) -> torch.optim.Optimizer:
    if how.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=how.lr, weight_decay=how.weight_decay)
    return Apollo(
        parameters,
        lr=how.lr,
        rank=how.rank,
        mini=how.optimizer == "apollo-mini",
        weight_decay=how.weight_decay,
        seed=how.seed,
    )


def _save(
    keeper: Keeper,
    label: str,
    parameters: Sequence[nn.Parameter],
    optimizer: torch.optim.Optimizer,
    losses: list[float],
) -> None:
    values = [parameter.detach() for parameter in parameters]
    keeper.save(label, {"losses": losses, "parameters": values, "optimizer": optimizer.state_dict()})


def _refuse_nonfinite(
    value: float, what: str, step: int, how: Fit, keeper: Keeper | None, label: str
) -> None:
    if math.isfinite(value):
        return
    kept = ""
    if keeper is not None and (state := keeper.load(label)) is not None:
        kept = f"; the state after step {len(state['losses'])} is kept in {keeper.file}"
    raise BadValueError(
        f"{label}: the {what} of step {step + 1} is {value}: lower --lr (now {how.lr:g}), or look at the "
        f"data{kept}"
    )


def _spoken(seconds: float) -> str:
    """A duration for people: 40 s, 12 min, 3.4 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
