"""A pruned model in memory, in fp32 by its own class, with its masks, and the way back to files.

The tensors of the file are matched to the parameters of the model by name, and by value: where a class stores
its weights under other names or layouts than it computes with, what cannot be traced is carried unchanged,
and training it is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from paring.checkpoint import Checkpoint, open_checkpoint
from paring.dtypes import FLOATS
from paring.errors import BadFileError, OptionError, UnsupportedError
from paring.language import folder_of, load_model, load_tokenizer, positions
from paring.loading import to_torch
from paring.pruning.layers import Layer, layers
from paring.retraining import text
from paring.retraining.fitting import Fit, Keeper, fit

#: tokens that a masked language model must guess, of which a tenth is drawn and a tenth left as it is
_GUESSED = 0.15


@dataclass(eq=False)
class Pupil:
    """``masks`` (bool, in the parameters' shapes, true where kept) by parameter name; ``files`` maps tensors
    of the file to parameters.

    ``notes`` collects what the recipes have to report.
    """

    model: nn.Module
    source: Checkpoint
    files: dict[str, str]
    masks: dict[str, torch.Tensor]
    data: text.Windows
    objective: str
    mask_token: int | None = None
    dense: Checkpoint | None = None
    pattern: tuple[int, int] | None = None
    seed: int = 0
    device: str = "cpu"
    keeper: Keeper | None = None
    notes: dict[str, Any] = field(default_factory=dict)
    changed: set[str] = field(default_factory=set)
    beside: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)

    @property
    def layers(self) -> dict[str, Layer]:
        """The model's matrices."""
        return layers(self.model)

    @property
    def parameters(self) -> int:
        """All numbers of the model, shared ones once."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def held(self, parameters: Iterable[tuple[str, nn.Parameter]]) -> dict[nn.Parameter, torch.Tensor]:
        """The masks, in their shapes, of those parameters that have one."""
        return {parameter: self.masks[name] for name, parameter in parameters if name in self.masks}

    def loss(self, size: int) -> Callable[[int], torch.Tensor]:
        """The model's own loss on micro-batch after micro-batch of ``size`` windows.

        Raises OptionError for a model without a language head.
        """
        if self.objective == "none":
            raise OptionError(
                f"{type(self.model).__name__} predicts no text, so there is no loss to train it by: "
                "reconstruct its blocks (--retrain reconstruct)"
            )
        bf16 = self.device != "cpu" and torch.cuda.is_bf16_supported()

        def of(number: int) -> torch.Tensor:
            torch.manual_seed(self.seed * 1_000_003 + number)  # of dropout, so that runs can be taken up
            ids = torch.from_numpy(text.batch(self.data, number, size, self.seed)).to(self.device)
            labels = ids
            if self.objective == "masked":
                ids, labels = self._guessed(ids, number)
            with torch.autocast(self.device.partition(":")[0], torch.bfloat16, enabled=bf16):
                found: torch.Tensor = self.model(input_ids=ids, labels=labels).loss
            return found

        return of

    def fit(self, parameters: dict[str, nn.Parameter], size: int, how: Fit, label: str) -> list[float]:
        """Train these parameters by the model's loss, within the masks."""
        self.model.train()
        held = self.held(parameters.items())
        return fit(
            list(parameters.values()), self.loss(size), how, held=held, keeper=self.keeper, label=label
        )

    def finish(self, label: str, names: Iterable[str]) -> None:
        """Keep what a part of the run has made of these parameters, their masks, and the notes so far."""
        if self.keeper is None:
            return
        wanted = set(names)
        values = {name: p.detach() for name, p in self.model.named_parameters() if name in wanted}
        masks = {name: mask for name, mask in self.masks.items() if name in wanted}
        facts = {"changed": sorted(self.changed), "notes": self.notes}
        self.keeper.finish(label, {"values": values, "masks": masks, **facts})

    def restore(self, label: str) -> bool:
        """Take over what :meth:`finish` kept of a part, if it did."""
        state = self.keeper.finished(label) if self.keeper is not None else None
        if state is None:
            return False
        with torch.no_grad():
            for name, values in state["values"].items():
                self.model.get_parameter(name).copy_(values)
        self.masks |= {name: mask.to(self.device) for name, mask in state["masks"].items()}
        self.changed |= set(state["changed"])
        self.notes |= state["notes"]
        return True

    def dense_weights(self, names: Iterable[str]) -> dict[str, torch.Tensor]:
        """The dense model's parameters by the names they have in the model, in their shapes, fp32.

        Raises OptionError where no dense model was given, BadFileError where it lacks one of this shape,
        UnsupportedError for names that are not the file's.
        """
        if self.dense is None:
            raise OptionError("this needs the dense model too: give the one that was pruned")
        stored = {parameter: name for name, parameter in self.files.items()}
        found = {}
        for name in names:
            if name not in stored:
                raise UnsupportedError(
                    f"{name} is in the file under another name or layout: it cannot be traced"
                )
            if stored[name] not in self.dense:
                raise BadFileError(f"{self.dense.path} has no tensor {stored[name]!r}: of another model?")
            tensor = to_torch(self.dense.read(stored[name])).float()
            if tensor.shape != self.model.get_parameter(name).shape:
                raise BadFileError(
                    f"{self.dense.path}: {stored[name]} is {tuple(tensor.shape)}: of another model?"
                )
            found[name] = tensor.to(self.device)
        return found

    @torch.no_grad()
    def undo(self, names: Iterable[str]) -> None:
        """Put the dense weights back. Raises as :meth:`dense_weights` does."""
        for name, weight in self.dense_weights(names).items():
            self.model.get_parameter(name).copy_(weight)
            self.changed.add(name)

    def _guessed(self, ids: torch.Tensor, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and labels of masked language modelling: 80 % masks, 10 % other tokens, 10 % as they are."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
        chance = torch.rand(ids.shape, generator=generator).to(ids.device)
        other = torch.randint(int(ids.max()) + 1, ids.shape, generator=generator).to(ids.device)
        assert self.mask_token is not None
        inputs = ids.masked_fill(chance < 0.8 * _GUESSED, self.mask_token)
        inputs = torch.where((chance >= 0.8 * _GUESSED) & (chance < 0.9 * _GUESSED), other, inputs)
        return inputs, ids.masked_fill(chance >= _GUESSED, -100)


def open_pupil(
    folder: str | Path,
    documents: Iterable[tuple[str, str]],
    *,
    length: int,
    dense: str | Path | None = None,
    masks: Mapping[str, np.ndarray[Any, Any]] | None = None,
    pattern: tuple[int, int] | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> Pupil:
    """Load the pruned model of a transformers ``folder`` and the text to train it on.

    ``masks`` (bool) are by tensor name in the file, true where kept, in the file's shapes; without them the
    exact zeros of a tensor are what was pruned. Raises BadFileError, UnsupportedError, OptionError.
    """
    folder = folder_of(Path(folder))
    source = open_checkpoint(folder)
    wide = next((t for t in source.tensors.values() if t.dtype not in FLOATS and len(t.shape) > 1), None)
    if wide is not None and wide.numel > 1:
        raise UnsupportedError(
            f"{folder}: {wide.name} is {wide.dtype}: a quantised or packed model cannot be retrained"
        )
    tokenizer = load_tokenizer(folder)
    model = load_model(folder)
    name = type(model).__name__
    causal = name.endswith(("ForCausalLM", "LMHeadModel"))
    objective = "causal" if causal else "masked" if name.endswith("ForMaskedLM") else "none"
    limit = positions(model.config)
    if limit and length > limit:
        raise OptionError(f"--length {length}: this model takes at most {limit} tokens")
    files = _match(model, source)
    named = dict(model.named_parameters())
    kept = {}
    for name, mask in (masks or {}).items():
        if name not in files or tuple(mask.shape) != tuple(named[files[name]].shape):
            raise OptionError(f"the mask of {name} fits no tensor of {folder}: a mask for another model?")
        kept[files[name]] = torch.from_numpy(np.array(mask, np.bool_)).to(device)
    if masks is None:
        tables = _embeddings(model)
        for name in files.values():
            if named[name].dim() > 1 and name not in tables and bool((named[name] == 0).any()):
                kept[name] = (named[name].detach() != 0).to(device)
    model.to(device)
    return Pupil(
        model, source, files, kept, text.windows(tokenizer, documents, length), objective,
        getattr(tokenizer, "mask_token_id", None),
        None if dense is None else open_checkpoint(dense), pattern, seed, device,
    )  # fmt: skip


def _match(model: nn.Module, source: Checkpoint) -> dict[str, str]:
    """Tensor of the file -> parameter of the model with that name, give or take a prefix, and that value."""
    named = dict(model.named_parameters(remove_duplicate=False))
    first = {id(parameter): name for name, parameter in model.named_parameters()}
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    found = {}
    for info in source.tensors.values():
        for name in (info.name, prefix + info.name, info.name.removeprefix(prefix)):
            if name in named and tuple(named[name].shape) == info.shape and info.dtype in FLOATS:
                if torch.equal(to_torch(source.read(info.name)).float(), named[name].detach()):
                    found[info.name] = first[id(named[name])]
                break
    if not found:
        raise UnsupportedError(f"{source.path}: its tensors are not those of {type(model).__name__}")
    return found


def _embeddings(model: nn.Module) -> set[str]:
    """Names of embeddings and head: their zeros (a padding row) were not pruned."""
    ends = [getattr(model, f"get_{side}_embeddings", lambda: None)() for side in ("input", "output")]
    weights = {id(end.weight) for end in ends if end is not None}
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    return {name for name, p in model.named_parameters() if id(p) in weights | tables}
