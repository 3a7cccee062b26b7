"""What a file says beside its factors, for other ranks: configuration, alphas and metadata.

A module's scale is ``alpha / r`` or ``alpha / sqrt(r)``: with fewer ranks the same alpha would mean another
scale. :func:`rewritten` says what must stand in the file so that every scale stays what it was, or becomes
the one that is asked for.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from paring import adapters
from paring.adapters import embedded, peft_config
from paring.adapters.checks import scalar_of
from paring.adapters.derived import wide
from paring.adapters.peft_config import exact, number
from paring.adapters.view import Adapter, Dialect, LowRank
from paring.dtypes import FLOATS, STORAGE, Stored, from_f32
from paring.errors import OptionError, UnsupportedError

_NETWORK = {"ss_network_dim": "{rank}", "ss_network_alpha": "{alpha}"}


@dataclass(frozen=True, slots=True)
class Rewritten:
    """What the file must say now; ``scalars`` are tensors by name, ``dropped`` those to leave out."""

    config: dict[str, Any] | None
    metadata: dict[str, str]
    scalars: dict[str, Stored]
    dropped: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Module:
    """One module and its new rank; ``raw`` is its name in the file, ``alpha`` the number that it needs."""

    view: LowRank
    raw: str
    rank: int
    alpha: float


def needed(adapter: Adapter) -> frozenset[str]:
    """The modules that cannot be left out: those that are numbered, and those whose update has a bias."""
    tensors = adapter.checkpoint.tensors
    return frozenset(
        module.name
        for module in adapter.modules
        if adapter.dialect == "cloneofsimo" or f"{_raw(adapter, module)}.lora_B.bias" in tensors
    )


def scalars(adapter: Adapter) -> frozenset[str]:
    """The tensors that :func:`rewritten` may change or drop."""
    found = {name for module in adapter.modules for name in _companions(adapter, module)}
    return frozenset(found & adapter.checkpoint.tensors.keys())


def rewritten(adapter: Adapter, ranks: Mapping[str, int], scale: float | None = None) -> Rewritten:
    """What the file must say when its modules have ``ranks`` (0: left out), with the scales that they had.

    With ``scale``, all modules have that one from now on. Raises UnsupportedError where the format has no
    place for it, and OptionError when no module is left.
    """
    if not any(ranks[module.name] for module in adapter.modules):
        raise OptionError("nothing is left: every module would lose all its ranks; ask for more")
    config_of = embedded.configs(adapter.checkpoint)
    modules = [
        _module(adapter, module, ranks[module.name], scale, config_of(module.name) or {})
        for module in adapter.modules
    ]
    told: dict[str, Stored] = {}
    dropped: list[str] = []
    for module in modules:
        own = [name for name in _companions(adapter, module.view) if name in adapter.checkpoint]
        if not module.rank:
            dropped += own
        elif module.view.scale_source.startswith("alpha tensor"):
            told[own[0]] = _scalar(adapter, own[0], module.alpha)
        elif scale is not None and not _placed(module) and abs(scale - module.view.scale) > 1e-6 * abs(scale):
            raise UnsupportedError(
                f"{adapter.checkpoint.path}: nothing here holds the scale of module {module.view.name} "
                f"({module.view.scale_source}); `paring convert --adapter-scale {scale:g}` writes it into "
                "the factors"
            )
    aside = [name for name, _ in adapter.refused]
    config = None if adapter.config is None else _config(dict(adapter.config), modules, aside)
    return Rewritten(config, _metadata(adapter, modules), told, tuple(dropped))


def _placed(module: _Module) -> bool:
    """Whether the configuration says the module's scale."""
    return module.view.scale_source.startswith(("alpha_pattern", "lora_alpha"))


def _dialect(adapter: Adapter) -> Dialect:
    return next(dialect for dialect in adapters.dialects() if dialect.name == adapter.dialect)


def _raw(adapter: Adapter, module: LowRank) -> str:
    """The module's name in the file."""
    found = _dialect(adapter).factor.match(module.a)
    assert found is not None, "a plain factor"
    return found["module"]


def _companions(adapter: Adapter, module: LowRank) -> tuple[str, ...]:
    """The tensors that belong to a module's scale: its alpha first."""
    form = _dialect(adapter).alpha
    raw = _raw(adapter, module)
    return () if form is None else (form.format(module=raw), f"{raw}.scalar")


def _module(
    adapter: Adapter, module: LowRank, rank: int, scale: float | None, config: Mapping[str, Any]
) -> _Module:
    raw = _raw(adapter, module)
    by_tensor = module.scale_source.startswith("alpha tensor")
    root = not by_tensor and bool(config.get("use_rslora"))
    if scale is not None:
        factor = scalar_of(adapter.checkpoint, f"{raw}.scalar") if adapter.dialect != "peft" else None
        return _Module(module, raw, rank, (scale / (factor or 1.0)) * (math.sqrt(rank) if root else rank))
    if by_tensor:
        own = scalar_of(adapter.checkpoint, _companions(adapter, module)[0]) or 0.0
    elif module.scale_source.startswith(("alpha_pattern", "lora_alpha")):
        own = peft_config.alpha_of(config, module.name)[0]
    else:
        own = float(module.rank)
    return _Module(module, raw, rank, own * (math.sqrt(rank / module.rank) if root else rank / module.rank))


def _scalar(adapter: Adapter, name: str, value: float) -> Stored:
    """``value`` as the tensor ``name``: in its own dtype where that holds it, else in fp32."""
    info = adapter.checkpoint.tensors[name]
    values = np.full(info.shape, value)
    if info.dtype in FLOATS:
        own = from_f32(values, info.dtype, name)
    else:
        own = Stored(info.dtype, values.astype(STORAGE[info.dtype]))
    return own if bool((wide(own) == values).all()) else from_f32(values, "F32", name)


def _config(
    config: dict[str, Any], modules: Sequence[_Module], refused: Sequence[str], part: str = ""
) -> dict[str, Any]:
    """PEFT's fields for ``modules``; in the view their names begin with ``part``.

    Modules that are ``refused``, whose factors are carried as they are no plain product, keep the ranks and
    alphas that they have: then the common ones stay, too.
    """
    if "r" not in config:
        return config

    def name_of(name: str) -> str:
        return name.removeprefix(part)

    kept = [module for module in modules if module.rank]
    placed = [module for module in kept if _placed(module)]
    aside = {name: peft_config.rank_of(config, name) for name in refused}
    rank, alpha = config["r"], config.get("lora_alpha")
    if not aside:
        rank = Counter(module.rank for module in kept).most_common(1)[0][0]
        alphas = Counter(module.alpha for module in placed if module.rank == rank)
        alpha = number(alphas.most_common(1)[0][0]) if alphas else alpha
    names = {name_of(name) for name in (*(module.view.name for module in kept), *aside)}
    ranks = {exact(name_of(m.view.name), names): m.rank for m in kept if m.rank != rank}
    alphas_by = {exact(name_of(m.view.name), names): number(m.alpha) for m in placed if m.alpha != alpha}
    for name, own in aside.items():
        if own not in (None, rank):
            ranks[exact(name_of(name), names)] = own
        if (own_alpha := peft_config.pattern(config, "alpha_pattern", name)) is not None:
            alphas_by[exact(name_of(name), names)] = own_alpha
    told = {**config, "r": rank, "lora_alpha": alpha, "rank_pattern": ranks, "alpha_pattern": alphas_by}
    if len(kept) < len(modules) and config.get("target_modules"):
        # named in full: a short name would make PEFT look for the modules that were left out
        told["target_modules"] = sorted(names)
    return told


def _metadata(adapter: Adapter, modules: Sequence[_Module]) -> dict[str, str]:
    """The file's own metadata, true of the new ranks."""
    told = dict(adapter.checkpoint.metadata)
    kept = [module for module in modules if module.rank]
    for module in modules:
        if (key := f"{module.raw}:rank") in told:  # cloneofsimo
            told[key] = str(module.rank)
    for key, form in _NETWORK.items():  # kohya
        if key in told:
            values = {form.format(rank=m.rank, alpha=number(m.alpha)) for m in kept}
            told[key] = values.pop() if len(values) == 1 else "Dynamic"
    if embedded.KEY in told and adapter.config is None:
        told[embedded.KEY] = _embedded(told[embedded.KEY], adapter, modules)
    return told


def _embedded(text: str, adapter: Adapter, modules: Sequence[_Module]) -> str:
    """PEFT's configuration as diffusers writes it: the fields of each part of a pipeline behind its name."""
    out: dict[str, Any] = {}
    for part, config in embedded.parts(json.loads(text)).items():
        strip = f"{part}." if part else ""
        mine = [module for module in modules if module.view.name.startswith(strip)]
        aside = [name for name, _ in adapter.refused if name.startswith(strip)]
        if any(module.rank for module in mine):
            config = _config(config, mine, aside, strip)
        out |= {f"{part}.{field}" if part else field: value for field, value in config.items()}
    return json.dumps(out, sort_keys=True)
