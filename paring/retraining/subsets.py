"""Which parameters are trained: PERP's subsets, found in any model by what its modules are and do.

``biases``: every vector that a module calls its bias. ``norms``: the vectors of normalising modules.
``head``: the output head, through an ordinary LoRA (it is not pruned, so this merges). ``adapters``: one of
:mod:`.adapters` on every matrix. ``all``: everything, under the masks.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from paring.errors import OptionError
from paring.pruning.layers import Layer
from paring.registry import nearest
from paring.retraining.adapters import Adapter
from paring.retraining.kinds import Kind

NAMES = ("biases", "norms", "head", "adapters", "all")


@dataclass(eq=False)
class Subset:
    """What is trained: parameters of the model by name, and adapters by the name of their weight."""

    own: dict[str, nn.Parameter]
    adapters: dict[str, tuple[Layer, Adapter]] = field(default_factory=dict)

    @property
    def named(self) -> dict[str, nn.Parameter]:
        """All that the optimizer gets, in a fixed order."""
        attached = {
            f"{name}.{factor}": parameter
            for name, (_, adapter) in self.adapters.items()
            for factor, parameter in adapter.named_parameters()
        }
        return self.own | attached

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The same without names."""
        return list(self.named.values())

    @property
    def count(self) -> int:
        """Trained numbers."""
        return sum(parameter.numel() for parameter in self.parameters)

    def changed(self) -> set[str]:
        """The names of the model's tensors that training changes."""
        merged = {name for name, (_, adapter) in self.adapters.items() if adapter.kind != "lora"}
        return set(self.own) | merged

    @torch.no_grad()
    def merge(self) -> dict[str, dict[str, torch.Tensor]]:
        """Fold the adapters into their weights, in fp32 and exactly within the masks; plain layers again.

        Returns the factors of those that do not merge (``lora``): by name, A ``(rank, in)`` and B ``(out,
        rank)`` times the scale.
        """
        beside = {}
        for name, (layer, adapter) in self.adapters.items():
            layer.settle(adapter.merged(layer.original))
            if adapter.kind == "lora":
                beside[name] = {"A": adapter.a.detach(), "B": adapter.b.detach() * adapter.scale}
        self.adapters = {}
        return beside


def choose(
    model: nn.Module,
    names: Iterable[str],
    layers: Mapping[str, Layer],
    masks: Mapping[str, torch.Tensor],
    *,
    adapter: Kind = "masklora",
    rank: int = 16,
    alpha: float = 32.0,
    seed: int = 0,
    within: str = "",
) -> Subset:
    """Freeze ``model`` but for the subsets ``names`` (of ``NAMES``), and put adapters on ``layers``.
    ``masks`` are by parameter name, in their shapes, true where kept.

    ``within`` restricts it to parameters whose names begin so (one block). Raises OptionError for names that
    there are not and for a model in which a subset is empty, leaving the model frozen.
    """
    wanted = parse(names)
    model.requires_grad_(False)
    named = {name: p for name, p in model.named_parameters() if name.startswith(within)}
    if "all" in wanted:
        own = named
    else:
        own = {}
        if "biases" in wanted:
            own |= {
                name: p for name, p in named.items() if name.rpartition(".")[2] == "bias" and p.dim() == 1
            }
        if "norms" in wanted:
            own |= norms(model, within)
    subset = Subset(own)
    generator = torch.Generator().manual_seed(seed)
    if "adapters" in wanted:
        for name, layer in layers.items():
            if layer.weight.dim() == 2 and name.startswith(within):
                subset.adapters[name] = (
                    layer,
                    Adapter(adapter, layer.weight, masks.get(name), rank, alpha, generator, layer.turned),
                )
    if "head" in wanted:
        name, layer = head(model)
        subset.adapters[name] = (
            layer,
            Adapter("loraprune", layer.weight, None, rank, alpha, generator, layer.turned),
        )
    if not subset.parameters:
        raise OptionError(f"--train {','.join(wanted)}: this model has no such parameters")
    for layer, attached in subset.adapters.values():
        parametrize.register_parametrization(layer.module, layer.attribute, attached)
    for parameter in subset.parameters:
        parameter.requires_grad_(True)
    return subset


def parse(names: Iterable[str] | str) -> list[str]:
    """Subset names as typed (``norms,adapters``), checked. Raises OptionError."""
    listed = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
    for name in listed:
        if name not in NAMES:
            raise OptionError(f"--train {name}: expected some of {', '.join(NAMES)}{nearest(name, NAMES)}")
    if "all" in listed and len(listed) > 1:
        raise OptionError("--train all is everything: name nothing beside it")
    return listed


def norms(model: nn.Module, within: str = "") -> dict[str, nn.Parameter]:
    """The vectors of modules that normalise, by name: told by behaviour, so that no list goes out of date.

    ``within`` is what the names begin with (``layers.1.``).
    """
    found = {}
    for prefix, module in model.named_modules():
        if not f"{prefix}.".startswith(within):
            continue
        vectors = {
            f"{prefix}.{name}" if prefix else name: parameter
            for name, parameter in module.named_parameters(recurse=False)
            if parameter.dim() == 1
        }
        whole = len(list(module.parameters(recurse=False)))
        if vectors and len(vectors) == whole and not list(module.children()) and normalises(module):
            found.update(vectors)
    return found


def normalises(module: nn.Module) -> bool:
    """Whether the module's output keeps the shape of its input and does not depend on the input's scale."""
    if isinstance(module, _BatchNorm):  # its scale is that of other batches
        return True
    size = max(parameter.numel() for parameter in module.parameters(recurse=False))
    probe = copy.deepcopy(module).float().cpu().eval()
    x = 30 * torch.randn(4, size, generator=torch.Generator().manual_seed(0))
    try:
        with torch.no_grad():
            for parameter in probe.parameters():
                parameter.fill_(0.5)  # a norm that begins at zero would tell nothing
            once, more = probe(x), probe(8 * x)
    except Exception:  # it takes something else
        return False
    if not isinstance(once, torch.Tensor) or once.shape != x.shape:
        return False
    return bool(torch.allclose(once, more, rtol=1e-3, atol=1e-4)) and bool(once.std() > 1e-3)


def head(model: nn.Module) -> tuple[str, Layer]:
    """The output head, by the name of its weight. Raises OptionError where there is none of its own."""
    module = getattr(model, "get_output_embeddings", lambda: None)()
    if module is None:
        raise OptionError("--train head: this model has no output head")
    found = [name for name, each in model.named_modules() if each is module]
    name = f"{found[0]}.weight"
    embeddings = getattr(model, "get_input_embeddings", lambda: None)()
    if embeddings is not None and getattr(embeddings, "weight", None) is module.weight:
        raise OptionError(
            f"--train head: {name} is also the input embedding, which would change: leave the head out"
        )
    return name, Layer(name, module, False)
