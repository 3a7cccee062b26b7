"""The matrices of a torch model: by the name of their weight, with the module that holds it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.utils import parametrize


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """A module's weight: ``(out, in, ...)``, or with ``turned`` (GPT-2's Conv1D) ``(in, out)``."""

    name: str
    module: nn.Module
    turned: bool

    @property
    def attribute(self) -> str:
        """What the module calls the weight."""
        return self.name.rpartition(".")[2]

    @property
    def weight(self) -> torch.Tensor:
        """The parameter in its own layout, or what its parametrisation makes of it."""
        found: torch.Tensor = getattr(self.module, self.attribute)
        return found

    @property
    def original(self) -> torch.Tensor:
        """The weight before its parametrisation, in the same layout, of one that has some."""
        found: torch.Tensor = self.module.parametrizations[self.attribute].original  # type: ignore[index, union-attr]
        return found

    @torch.no_grad()
    def settle(self, values: torch.Tensor) -> None:
        """Take the parametrisation off; the weight is ``values``, of its shape, from here on."""
        parametrize.remove_parametrizations(self.module, self.attribute, leave_parametrized=False)
        self.weight.copy_(values)


def layers(model: nn.Module) -> dict[str, Layer]:
    """Linear layers and convolutions but for the output head and weights that two modules share."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    uses = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    found = {}
    for prefix, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if module is head or not isinstance(weight, nn.Parameter) or uses[id(weight)] > 1:
            continue
        turned = is_turned(module)
        if turned or isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
            name = f"{prefix}.weight" if prefix else "weight"
            found[name] = Layer(name, module, turned)
    return found


def is_turned(module: nn.Module) -> bool:
    """Whether this is transformers' Conv1D, a linear layer that stores ``(in, out)``."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf") and not isinstance(module, nn.Conv1d)
