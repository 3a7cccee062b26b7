"""Training MoS adapters in torch: attach to any model of ``nn.Linear`` layers, train, save, merge.

    from paring.mos.training import attach

    mos = attach(model, target_modules=["q_proj", "v_proj"], r=16, e=4, private=1, shards=4, alpha=16)
    optimizer = torch.optim.AdamW(mos.trainable_parameters, lr=2e-4)
    ...                             # train the model as before
    mos.save("adapter.mos.safetensors")
    model = mos.merge()             # ordinary nn.Linear layers again

Pools are fp32 whatever the model's dtype, as PEFT keeps its factors, and are registered under every layer
that shares them, so optimisers, ``model.to(...)`` and ``model.train()`` see them.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from paring.checkpoint import open_checkpoint
from paring.dtypes import Stored, from_f32
from paring.errors import BadFileError, OptionError, UnsupportedError
from paring.kernels import random
from paring.mos.file import open_mos, write_mos
from paring.mos.layer import MosLinear, SharedPools
from paring.mos.pools import Layout, Projection, projections
from paring.mos.routing import FACTORS, Factor, Sizes


class MosModel:
    """A handle on MoS layers in a model: ``model`` itself is what is trained and called."""

    def __init__(self, model: nn.Module, layout: Layout, pools: dict[str, SharedPools]) -> None:
        self.model = model
        self.layout = layout
        self.pools = pools
        self._attached = True

    @property
    def trainable_parameters(self) -> list[nn.Parameter]:
        """The pools, two of each projection type: all that is trained."""
        return [parameter for pools in self.pools.values() for parameter in (pools.a, pools.b)]

    @property
    def num_trainable(self) -> int:
        """Trained parameters, those of LoRA of rank ``e``."""
        return sum(parameter.numel() for parameter in self.trainable_parameters)

    def save(
        self, path: str | Path, *, dtype: str = "F32", base: str | None = None, overwrite: bool = False
    ) -> None:
        """Write the compact file ``path`` (see :mod:`.file`) in ``dtype``, a safetensors code.

        ``base`` is the base model's name; that of a transformers model is known. Raises BadValueError for
        NaN, OutputError.
        """
        known = getattr(getattr(self.model, "config", None), "_name_or_path", None)
        pools: dict[tuple[str, Factor], Stored] = {}
        for name, pair in self.pools.items():
            for factor, pool in zip(FACTORS, (pair.a, pair.b), strict=True):
                values = pool.detach().float().cpu().numpy()
                pools[name, factor] = from_f32(values, dtype, f"{name}.pool_{factor}")
        write_mos(path, self.layout, pools, base=base or known or None, overwrite=overwrite)

    def merge(self) -> nn.Module:
        """Add every update to its base weight and put plain layers back; returns the model.

        Raises UnsupportedError, before any is changed, for quantised base weights and for weights that
        another part of the model uses too (a head tied to the embedding).
        """
        named = self.model.named_parameters(remove_duplicate=False)
        uses = Counter(id(parameter) for _, parameter in named)
        for name, layer in self._layers():
            if uses[id(layer.weight)] > 1:
                raise UnsupportedError(
                    f"{name} shares its weight with another module, which would change too"
                )
            if not layer.weight.is_floating_point():
                raise UnsupportedError(
                    f"{name} has quantised weights ({layer.weight.dtype}): save the adapter, and merge it "
                    "into the original model"
                )
        return self._put_back(merged=True)

    def unload(self) -> nn.Module:
        """Put the base layers back as they were; returns the model."""
        return self._put_back(merged=False)

    def _put_back(self, *, merged: bool) -> nn.Module:
        for name, layer in self._layers():
            _replace(self.model, name, layer.merge() if merged else layer.base_layer)
        self._attached = False
        return self.model

    def _layers(self) -> Iterator[tuple[str, MosLinear]]:
        if not self._attached:
            raise OptionError("this MoS adapter is no longer in its model: it was merged or unloaded")
        for projection in self.layout.projections:
            for name in projection.modules:
                layer = self.model.get_submodule(name)
                assert isinstance(layer, MosLinear)
                yield name, layer


def attach(
    model: nn.Module, target_modules: str | Sequence[str], *, r: int, e: int, private: int = 1,
    shards: int = 4, alpha: float = 16, dropout: float = 0.0, seed: int = 0,
) -> MosModel:  # fmt: skip
    """Put a new MoS adapter on ``model``, in place, and freeze everything else.

    Args:
        target_modules: names as PEFT takes them: a list of whole names or their last parts, a regular
            expression for whole names, or ``"all-linear"``: every linear layer but the output head
        r: rank of every module (the active one); e: rank of the LoRA with as many parameters
        private: how many of the r rank vectors are each layer's own; shards: pieces that make a vector
        alpha: the update is scaled by ``alpha / r``
        dropout: of the update's input, in training
        seed: of the indices and of the initial A; the same on every device

    Layers of a type are numbered as the model has them. As published, A begins uniform as
    ``kaiming_uniform_(a=sqrt(5))`` of whole vectors would be, within ``1 / sqrt(in)``, and B zero: at first
    nothing changes. Raises OptionError, leaving the model as it was.
    """
    linears = _targets(model, target_modules)
    shapes = [(name, (layer.out_features, layer.in_features)) for name, layer in linears.items()]
    layout = Layout(Sizes(r, e, private, shards), alpha, projections(shapes), seed)
    pools = {each.name: _initial(layout, each, seed) for each in layout.projections}
    return _install(model, layout, pools, dropout)


def attach_file(model: nn.Module, path: str | Path, *, dropout: float = 0.0) -> MosModel:
    """Put the MoS adapter in the compact file ``path`` on ``model``, to use it or to train it further.

    Raises BadFileError for a damaged file, OptionError for modules that the model lacks or has otherwise.
    """
    pools = {}
    with open_mos(open_checkpoint(path)) as opened:
        for each in opened.layout.projections:
            a, b = (torch.from_numpy(opened.pool(each.name, factor).f32()) for factor in FACTORS)
            if not (a.isfinite().all() and b.isfinite().all()):
                raise BadFileError(f"{path}: the pools of {each.name} hold NaN or infinity")
            pools[each.name] = SharedPools(a, b)
    return _install(model, opened.layout, pools, dropout)


def _initial(layout: Layout, projection: Projection, seed: int) -> SharedPools:
    count, width = layout.shape(projection, "A")
    key = np.array([random.key(seed, "mos", projection.name, "initial A")], np.uint64)
    unit = random.uniform(key, 0, count * width).reshape(count, width)
    # kaiming_uniform_(a=sqrt(5)): sqrt(6 / ((1 + 5) * fan_in)), fan_in the whole vector, not the shard
    bound = np.float32(1 / math.sqrt(projection.n_in))
    return SharedPools(torch.from_numpy((2 * unit - 1) * bound), torch.zeros(layout.shape(projection, "B")))


def _install(model: nn.Module, layout: Layout, pools: dict[str, SharedPools], dropout: float) -> MosModel:
    """Everything is checked, then everything is replaced."""
    if not 0 <= dropout < 1:
        raise OptionError(f"MoS: dropout must be in [0, 1), not {dropout!r}")
    modules = dict(model.named_modules())
    if attached := next((name for name, module in modules.items() if isinstance(module, MosLinear)), None):
        raise OptionError(f"{attached} has a MoS adapter already: merge() or unload() it first")
    made: dict[str, MosLinear] = {}
    for each in layout.projections:
        shared = pools[each.name].to(_device(modules, each))
        for layer, name in enumerate(each.modules):
            base = modules[name]
            assert isinstance(base, nn.Linear)
            a, b = (
                torch.from_numpy(layout.route(each, layer, factor)).to(shared.a.device) for factor in FACTORS
            )
            made[name] = MosLinear(base, shared, (a, b), layout.sizes, layout.scale, dropout)
    model.requires_grad_(False)
    for name, module in made.items():
        module.train(modules[name].training)
        _replace(model, name, module)
    return MosModel(model, layout, pools)


def _device(modules: dict[str, nn.Module], projection: Projection) -> torch.device:
    """Where the layers of a type are. Raises OptionError unless they are of its shape and on one device."""
    devices = set()
    for name in projection.modules:
        base = modules.get(name)
        if not isinstance(base, nn.Linear):
            found = type(base).__name__ if base is not None else "missing"
            raise OptionError(f"MoS of {name}: the model must have an nn.Linear there, but it is {found}")
        if (base.out_features, base.in_features) != (projection.n_out, projection.n_in):
            raise OptionError(
                f"MoS of {name}: it is ({base.out_features}, {base.in_features}), but the adapter is for "
                f"({projection.n_out}, {projection.n_in}): of another model?"
            )
        devices.add(base.weight.device)
    if len(devices) > 1:
        raise OptionError(f"MoS of {projection.name}: its layers share a pool and must be on one device")
    return devices.pop()


def _targets(model: nn.Module, wanted: str | Sequence[str]) -> dict[str, nn.Linear]:
    """The layers that ``wanted`` means, in the model's order. Raises OptionError for none and other kinds."""
    output = getattr(model, "get_output_embeddings", lambda: None)()

    def fits(name: str, module: nn.Module) -> bool:
        if wanted == "all-linear":
            return isinstance(module, nn.Linear) and module is not output
        if isinstance(wanted, str):
            return re.fullmatch(wanted, name) is not None
        return any(name == each or name.endswith(f".{each}") for each in wanted)

    found: dict[str, nn.Linear] = {}
    seen: set[int] = set()
    for name, module in model.named_modules(remove_duplicate=False):
        if not name or not fits(name, module):
            continue
        if not isinstance(module, nn.Linear):
            raise OptionError(f"target_modules: {name} is a {type(module).__name__}, not an nn.Linear")
        if id(module) in seen:
            raise OptionError(f"target_modules: {name} is one layer under two names: leave it out")
        found[name] = module
        seen.add(id(module))
    if not found:
        raise OptionError(f"target_modules: no layer of the model is called {wanted!r}")
    return found


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, module)
