"""What is to be cut, by options and configuration alone, and the configuration of what is left."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from paring.errors import BadFileError, OptionError, UnsupportedError
from paring.hub.names import told
from paring.outputs import SHARD_BYTES
from paring.shrinking.families import Family

#: keys of configurations that count layers, beside the number of them
_LISTS = ("layer_types", "layers_block_type", "no_rope_layers")
_GROUPED = ("dense", "shared", "chosen")


@dataclass(frozen=True, slots=True)
class Request:
    """What a user asked to keep. Counts are whole numbers, or shares below one; None keeps all."""

    model: str
    layers: float | None = None
    drop_layers: Sequence[int] = ()
    layers_by: str = "even"
    neurons: float | None = None
    heads: float | None = None
    kv_heads: float | None = None
    experts: float | None = None
    width: float | None = None
    fisher: str | None = None
    shard_size: int = SHARD_BYTES

    def recipe(self) -> dict[str, Any]:
        """As JSON, without what was left out."""
        import paring

        found = {name: getattr(self, name) for name in self.__dataclass_fields__}
        found |= {"model": told(self.model), "fisher": self.fisher and told(self.fisher)}
        given = {
            key: list(v) if isinstance(v, tuple) else v for key, v in found.items() if v not in (None, ())
        }
        return {"paring": paring.__version__, "command": "shrink", **given}


def request_from(recipe: Mapping[str, Any], where: str) -> Request:
    """The request that a recipe is of. Raises BadFileError, beginning with ``where``, for what is none."""
    given = {key: value for key, value in recipe.items() if key not in ("paring", "command")}
    numbers = ("layers", "neurons", "heads", "kv_heads", "experts", "width")
    for key, value in given.items():
        if key in numbers:
            sound = isinstance(value, int | float) and not isinstance(value, bool)
        elif key == "shard_size":
            sound = type(value) is int and value > 0
        elif key == "drop_layers":
            sound = isinstance(value, list) and all(type(layer) is int for layer in value)
        else:
            sound = key in ("model", "fisher", "layers_by") and isinstance(value, str) and "\0" not in value
        if not sound:
            raise BadFileError(f"{where}: its recipe makes no sense: {key} is {str(value)[:80]}")
    if "model" not in given:
        raise BadFileError(f"{where}: its recipe names no model")
    return Request(**{**given, "drop_layers": tuple(given.get("drop_layers", ()))})


@dataclass(frozen=True, slots=True)
class Sizes:
    """The sizes of a model; 0 for what it has none of."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    neurons: int
    experts: int = 0
    dense: int = 0
    shared: int = 0
    chosen: int = 0

    def axis(self, name: str) -> int | None:
        """How long an axis is; None where the configuration does not say."""
        if name == "*":
            return None
        if name in ("q", "kv"):
            return self.head_dim * (self.heads if name == "q" else self.kv_heads)
        return int(getattr(self, name))

    def told(self) -> dict[str, int]:
        """The sizes that there are, by name."""
        found = {name: int(getattr(self, name)) for name in self.__dataclass_fields__}
        return {name: size for name, size in found.items() if size and name not in _GROUPED}


def sizes_of(family: Family, config: Mapping[str, Any], where: str) -> Sizes:
    """What a configuration says. Raises BadFileError where it says nothing, or nothing that makes sense."""

    def get(name: str, default: int | None = None) -> int:
        keys = family.keys.get(name, ())
        value = next((config[key] for key in keys if config.get(key) is not None), default)
        if type(value) is not int or value < (0 if default == 0 else 1):
            raise BadFileError(f"{where}: config.json says {keys[0] if keys else name} is {value!r}")
        return value

    hidden, heads = get("hidden"), get("heads")
    if ("head_dim" not in family.keys or config.get("head_dim") is None) and hidden % heads:
        raise BadFileError(f"{where}: {heads} heads do not divide a width of {hidden}")
    dim = get("head_dim", hidden // heads)
    kv_heads = get("kv_heads", heads)
    if heads % kv_heads:
        raise BadFileError(f"{where}: {heads} heads are not shared evenly by {kv_heads} key-value heads")
    neurons = get("neurons", 4 * hidden if family.keys["neurons"] == ("n_inner",) else None)
    rest = {name: get(name, 0) for name in ("experts", "dense", "shared", "chosen")}
    return Sizes(get("layers"), hidden, heads, kv_heads, dim, neurons, **rest)


def cut_sizes(family: Family, before: Sizes, asked: Request, kind: str) -> Sizes:
    """The sizes of what is left. Raises OptionError for what cannot be kept, UnsupportedError for what
    ``kind`` of model cannot be without.
    """
    if asked.layers is not None and asked.drop_layers:
        raise OptionError("--layers and --drop-layers both say which layers stay: give one of them")
    if asked.layers_by not in ("even", "score"):
        raise OptionError(f"--layers-by {asked.layers_by}: expected even or score")
    dropped = set(asked.drop_layers)
    if wrong := [layer for layer in asked.drop_layers if not 0 <= layer < before.layers]:
        raise OptionError(f"--drop-layers {wrong[0]}: there are layers 0 to {before.layers - 1}")
    layers = before.layers - len(dropped) if dropped else _count("layers", asked.layers, before.layers)
    if not layers:
        raise OptionError("--drop-layers: that drops all layers, and one at least must stay")
    if not before.experts and asked.experts is not None:
        raise UnsupportedError(f"--experts: a {kind} model has none")
    experts = _count("experts", asked.experts, before.experts) if before.experts else 0
    if experts < before.chosen:
        raise OptionError(f"--experts {experts}: each token goes to {before.chosen} of them")
    neurons = _count("neurons", asked.neurons, before.neurons)
    width = _count("width", asked.width, before.hidden)
    after = replace(before, layers=layers, experts=experts, neurons=neurons, hidden=width)
    heads, kv_heads = _heads(before, asked)
    after = replace(after, heads=heads, kv_heads=kv_heads)
    if family.tied and (heads, width) != (before.heads, before.hidden) and heads * before.head_dim != width:
        dim = before.head_dim
        other = (
            f", or --width {width} --heads {width // dim}"
            if width % dim == 0 and heads == before.heads
            else ""
        )
        raise UnsupportedError(
            f"a {kind} model has no head size of its own, it is the width over the number of heads: "
            f"{heads} heads of {dim} need --width {heads * dim}{other}"
        )
    if after == before:
        raise OptionError("nothing is cut: say what to keep, or --drop-layers (see --help)")
    return after


def _heads(before: Sizes, asked: Request) -> tuple[int, int]:
    """Heads and key-value heads that stay: as many heads for each of these as for any other."""
    each, one_each = before.heads // before.kv_heads, before.heads == before.kv_heads
    if asked.heads is None and asked.kv_heads is None:
        return before.heads, before.kv_heads
    if asked.heads is None:
        kv_heads = _count("kv-heads", asked.kv_heads, before.kv_heads)
        return kv_heads * each, kv_heads
    heads = _count("heads", asked.heads, before.heads)
    if asked.kv_heads is not None:
        kv_heads = _count("kv-heads", asked.kv_heads, before.kv_heads)
    else:
        kv_heads = heads if one_each else before.kv_heads
    if heads < kv_heads:
        raise OptionError(
            f"--heads {heads}: some of the {kv_heads} groups that share keys and values would be empty; "
            f"add --kv-heads {heads}, or fewer"
        )
    if heads % kv_heads:
        raise OptionError(
            f"--heads {heads}: the {kv_heads} groups that share keys and values would be uneven; "
            f"keep {heads // kv_heads * kv_heads}, or choose --kv-heads, too"
        )
    if heads // kv_heads > each:
        raise OptionError(f"--heads {heads}: {kv_heads} key-value heads have {kv_heads * each} at most")
    return heads, kv_heads


def _count(name: str, asked: float | None, there: int) -> int:
    """How many of ``there`` a number or share is; the share of the decimal that was typed, rounded down."""
    if asked is None:
        return there
    share = 0 < asked < 1
    count = int(Fraction(str(asked)) * there) if share else int(asked) if math.isfinite(asked) else 0
    if not share and count != asked:
        raise OptionError(f"--{name} {asked}: a whole number, or a share below 1")
    if not 1 <= count <= there:
        raise OptionError(f"--{name} {asked:g}: at least 1 and at most {there} can be kept")
    return count


def config_changes(
    family: Family, config: Mapping[str, Any], before: Sizes, after: Sizes, layers: Sequence[int], where: str
) -> dict[str, Any]:
    """What changes in ``config.json``. Raises UnsupportedError for a rule by layer that would not hold."""
    changes: dict[str, Any] = {}
    for name in ("layers", "hidden", "heads", "kv_heads", "neurons", "experts"):
        if getattr(before, name) != getattr(after, name) or (
            name == "neurons" and before.hidden != after.hidden
        ):
            keys = family.keys.get(name, ())
            changes |= (
                {next((key for key in keys if key in config), keys[0]): getattr(after, name)} if keys else {}
            )
    if "head_dim" in family.keys and (before.heads, before.hidden) != (after.heads, after.hidden):
        changes["head_dim"] = before.head_dim
        if before.heads != after.heads:  # said where it was not: its default is the number of heads
            changes[family.keys["kv_heads"][0]] = after.kv_heads
    if len(layers) < before.layers:
        changes |= _by_layer(family, config, before, layers, where)
    return changes


def _by_layer(
    family: Family, config: Mapping[str, Any], before: Sizes, layers: Sequence[int], where: str
) -> dict[str, Any]:
    """What a configuration says of layers by their numbers."""
    changes: dict[str, Any] = {}
    if config.get("scale_attn_by_inverse_layer_idx") or config.get("decoder_sparse_step", 1) not in (0, 1):
        raise UnsupportedError(
            f"{where}: what a layer does depends on its number here (scale_attn_by_inverse_layer_idx or "
            "decoder_sparse_step): no layer can be dropped"
        )
    for key in _LISTS:
        told = config.get(key)
        if isinstance(told, list):
            if len(told) != before.layers:
                raise BadFileError(f"{where}: config.json lists {len(told)} {key} for {before.layers} layers")
            changes[key] = [told[layer] for layer in layers]
    round_ = family.alternates.get(str(config.get("model_type")))
    if round_ is not None and "layer_types" not in changes:
        pattern = config.get("sliding_window_pattern", config.get("_sliding_window_pattern", round_))
        kinds = ("full_attention", "sliding_attention")
        changes["layer_types"] = [kinds[(layer + 1) % (pattern or round_) != 0] for layer in layers]
    if isinstance(config.get("mlp_only_layers"), list):
        only = set(config["mlp_only_layers"])
        changes["mlp_only_layers"] = [i for i, layer in enumerate(layers) if layer in only]
    if isinstance(config.get("max_window_layers"), int) and config.get("use_sliding_window"):
        changes["max_window_layers"] = sum(layer < config["max_window_layers"] for layer in layers)
    return changes
