"""``calibrate``: from a model and a text to a file of statistics, everything checked before the model
runs."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import paring
from paring import atomic
from paring.checkpoint import Checkpoint, open_checkpoint
from paring.devices import to_run
from paring.dtypes import from_f32
from paring.errors import OptionError, UnsupportedError
from paring.language import (
    Text,
    begins,
    folder_of,
    load_model,
    read_text,
    spread,
    stored_name,
    torch_threads,
    window_of,
)
from paring.pruning import sparsity as counting
from paring.pruning.matrix import Budget, Inputs, Matrix, select
from paring.pruning.request import method_of
from paring.pruning.statistics import Measured, write_stats
from paring.registry import Method
from paring.report import Jsonable

if TYPE_CHECKING:
    import torch
    from torch import nn

    from paring.pruning.calibrating import Layered

SAMPLES = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration(Jsonable):
    """What ``calibrate`` measured: ``measured`` inputs of ``matrices`` matrices, over ``tokens`` tokens."""

    command: str = "calibrate"
    inputs: list[str]
    data: str
    output: str
    measured: int
    matrices: int
    windows: int
    window: int
    tokens: int
    gram: bool
    sequential: dict[str, Any] | None = None
    bytes_out: int | None = None
    dtype: str
    device: str
    seconds: float
    dry_run: bool | None = None
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Pruning:
    """How a sequential calibration prunes each block: a method with its options, and a sparsity or groups."""

    method: Method
    options: Mapping[str, Any]
    share: Fraction | None
    keep: int | None
    of: int | None

    def budget(self, rows: int, columns: int) -> Budget:
        """What a matrix ``(rows, columns)`` keeps."""
        if self.of is not None and self.keep is not None:
            return Budget(self.keep, of=self.of)
        share = self.share or Fraction(0)
        if self.method.unit == "row":
            return Budget(columns - counting.pruned(share, columns), row=True)
        return Budget(rows * columns - counting.pruned(share, rows * columns))

    def run(self, matrix: Matrix) -> Any:
        """The matrix's weights once pruned, fp32 ``(out, in)``."""
        budget = self.budget(*matrix.weights.shape)
        if self.method.unit == "tensor":
            return self.method.function(matrix, budget, **self.options).weights
        mask = select(self.method.function(matrix, **self.options), budget)
        return np.where(mask, matrix.weights, np.float32(0))

    def recipe(self) -> dict[str, Any]:
        told = {
            "method": self.method.name, "keep": self.keep, "of": self.of, "options": dict(self.options),
            "sparsity": None if self.share is None else counting.decimal(self.share),
        }  # fmt: skip
        return {key: value for key, value in told.items() if value not in (None, {})}


def calibrate(
    model: str | os.PathLike[str],
    data: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    gram: bool = False,
    samples: int = SAMPLES,
    window: int | None = None,
    how: Pruning | None = None,
    dtype: str = "fp32",
    device: str = "auto",
    threads: int | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
) -> Calibration:
    """:func:`paring.api.calibrate`; ``how`` to prune blocks makes it sequential. Raises every ParingError."""
    begun = time.perf_counter()
    device = to_run(device)
    target = Path(output)
    home = folder_of(model)
    with open_checkpoint(home) as checkpoint:
        if target.suffix != ".safetensors":
            raise OptionError(f"-o {target}: name a file that ends in .safetensors")
        atomic.refuse_same_file(target, [*checkpoint.inputs, Path(data)])
        atomic.refuse_existing(target, overwrite)
        text = read_text(data, home)
        with torch_threads(threads):
            loaded = load_model(home, dtype=dtype, device=device)
            length = window_of(window, loaded.config)
            windows, warnings = _windows(text, length, samples)
            report = Calibration(
                inputs=[os.fspath(model)], data=text.name, output=str(target), measured=0, matrices=0,
                windows=len(windows), window=length, tokens=len(windows) * length, gram=gram,
                sequential=None if how is None else how.recipe(), dtype=dtype, device=device,
                seconds=0.0, dry_run=dry_run or None, warnings=warnings,
            )  # fmt: skip
            run = _Run(checkpoint, loaded, text, [each.to(device) for each in windows], report, how)
            measured = run.measure(target, overwrite=overwrite, dry_run=dry_run)
    return replace(
        report, measured=len(measured), matrices=sum(len(each.tensors) for each in measured),
        bytes_out=None if dry_run else target.stat().st_size, seconds=time.perf_counter() - begun,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Run:
    """One calibration, with all that it needs at hand."""

    checkpoint: Checkpoint
    model: nn.Module
    text: Text
    windows: list[torch.Tensor]
    report: Calibration
    pruning: Pruning | None

    def measure(self, target: Path, *, overwrite: bool, dry_run: bool) -> list[Measured]:
        import torch

        from paring.pruning import calibrating

        with torch.inference_mode():
            chain = calibrating.cut(self.model, self.windows)
            names = self._names(chain)
            measured = _inputs(chain, names, self.checkpoint)
            if self.pruning is not None and self.pruning.of is not None:
                _refuse_undivided(chain, names, self.pruning.of)
            if dry_run:
                return measured
            labels = {layer: each.name for each in measured for layer in names if names[layer] == each.name}

            def found() -> Iterator[tuple[str, Inputs]]:
                prune = None if self.pruning is None else self._prune(names)
                for layer, inputs in calibrating.measure(
                    chain, self.windows, gram=self.report.gram, prune=prune
                ):
                    yield labels[layer], inputs

            write_stats(target, measured, found(), self._facts(), gram=self.report.gram, overwrite=overwrite)
        return measured

    def _names(self, chain: Layered) -> dict[str, str]:
        """What the checkpoint calls the weights of each linear layer. Raises UnsupportedError."""
        names = {}
        for layer in (*(each for group in chain.linears for each in group), *chain.outside):
            found = stored_name(self.checkpoint, self.model, f"{layer}.weight")
            if found is None:
                raise UnsupportedError(
                    f"{self.checkpoint.path} holds no {layer}.weight, though {type(self.model).__name__} has "
                    "it: save the model with transformers, so that names agree"
                )
            names[layer] = found
        return names

    def _prune(self, names: Mapping[str, str]) -> Any:
        """Prunes the layers of a block in place, rounded as the checkpoint stores them."""
        from paring.pruning.calibrating import set_weights, weights_of

        assert self.pruning is not None
        pruning = self.pruning

        def prune(layers: Mapping[str, nn.Module], found: Mapping[str, Inputs]) -> None:
            for layer, module in layers.items():
                name = names[layer]
                weights = pruning.run(Matrix(name, weights_of(module), found[layer]))
                kind = self.checkpoint.tensors[name].dtype
                set_weights(module, from_f32(weights, kind, name).f32())

        return prune

    def _facts(self) -> dict[str, Any]:
        report = self.report
        return {
            "tool": f"paring {paring.__version__}",
            "model": {"name": self.checkpoint.files[0].parent.name, "sha256": self.checkpoint.digest()},
            "data": {"name": self.text.name, "sha256": self.text.sha256},
            "windows": report.windows,
            "window": report.window,
            "dtype": report.dtype,
            "sequential": report.sequential,
        }


def pruning(
    sequential: bool,
    *,
    gram: bool,
    method: str = "wanda",
    sparsity: str | float | None = None,
    keep: int | None = None,
    of: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> Pruning | None:
    """How a sequential calibration prunes its blocks, None for one that does not. Raises OptionError."""
    if not sequential:
        if sparsity is not None or keep is not None or of is not None or options:
            raise OptionError("--sparsity, --keep, --of and options of a method are for --sequential")
        return None
    chosen = method_of(method)
    if (keep is None) != (of is None) or (sparsity is None) == (keep is None):
        raise OptionError("--sequential prunes as it goes: give --sparsity .5, or --keep 2 --of 4")
    if keep is not None and of is not None:
        counting.group(keep, of)
    if chosen.sees == "grams" and not gram:
        raise OptionError(f"--method {chosen.name} needs products of inputs: add --gram")
    share = None if sparsity is None else counting.fraction(sparsity)
    return Pruning(chosen, chosen.parse(options or {}), share, keep, of)


def _windows(text: Text, length: int, samples: int) -> tuple[list[torch.Tensor], list[str]]:
    """Whole windows of a text, and a warning where they are fewer than asked for. Raises OptionError."""
    places, warnings = begins(text, length, length), []
    if len(places) < samples:
        warnings.append(f"{text.name} has {len(places)} windows of {length} tokens, fewer than {samples}")
    return [text.tokens[begin : begin + length] for begin in spread(places, samples)], warnings


def _inputs(chain: Layered, names: Mapping[str, str], checkpoint: Checkpoint) -> list[Measured]:
    """What will be measured: an input for each layer that leads, called as its weight."""
    from paring.pruning.calibrating import inputs_of

    layers = {**{each: m for group in chain.linears for each, m in group.items()}, **chain.outside}
    shared: dict[str, dict[str, tuple[int, ...]]] = {}
    for layer in layers:
        leader = chain.leaders.get(layer, layer)
        shared.setdefault(leader, {})[names[layer]] = checkpoint.tensors[names[layer]].shape
    return [Measured(names[leader], inputs_of(layers[leader]), shared[leader]) for leader in shared]


def _refuse_undivided(chain: Layered, names: Mapping[str, str], of: int) -> None:
    from paring.pruning.calibrating import inputs_of

    for group in chain.linears:
        for layer, module in group.items():
            if inputs_of(module) % of:
                raise UnsupportedError(
                    f"{names[layer]} has {inputs_of(module)} inputs, which groups of {of} do not divide"
                )
