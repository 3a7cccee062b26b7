"""Layers by number: stacked from several models, or a part of every model's.

The layers of a model are the tensors with a number in their name; what stands before the first number
(``model.layers.``) is the stack they belong to. Layers are taken under the numbers that they have in the
result: everything after this sees names of the result.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from paring.dtypes import FLOATS
from paring.errors import OptionError, UnsupportedError
from paring.merging.inputs import Model
from paring.merging.models import Target
from paring.merging.plan import Copied
from paring.merging.sources import Entry
from paring.merging.weights import Weighting, after_layers
from paring.registry import nearest

#: the first layer and the one after the last; None for all
Layers = Sequence[int] | None

_NUMBER = re.compile(r"(?:^|\.)(0|[1-9]\d{0,5})\.")
#: what configurations call the number of layers, and where those of a text model stand among others
_COUNTS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
_SECTIONS = ("text_config", "llm_config", "language_config")


@dataclass(frozen=True, slots=True)
class Choice:
    """``tensors[i]`` is what model i (0 the base) gives, by names of the result; ``own[i]`` names the same in
    the model. ``config`` is what changes in ``config.json``.
    """

    tensors: list[Mapping[str, Entry] | None]
    own: list[dict[str, str]]
    count: int
    config: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def renamed(
        self, targets: Sequence[Target], copied: Sequence[Copied]
    ) -> tuple[list[Target], list[Copied]]:
        """The same with the models' own names."""

        def names(target: Target) -> tuple[str | None, ...]:
            return tuple(name and own[name] for name, own in zip(target.names, self.own, strict=True))

        return [replace(target, names=names(target)) for target in targets], [
            replace(copy, names={i: self.own[i][copy.name] for i in (copy.source, *copy.others)})
            for copy in copied
        ]


def split(name: str) -> tuple[str, int, str] | None:
    """``("model.layers.", 3, ".mlp.weight")``, None for a tensor of no layer."""
    found = _NUMBER.search(name)
    return (name[: found.start(1)], int(found[1]), name[found.end(1) :]) if found else None


def choose(
    models: Sequence[Model | None],
    tensors: Sequence[Mapping[str, Entry] | None],
    layers: Sequence[Layers],
    *,
    stacked: bool,
    tail: bool = False,
    stack: str | None = None,
    cast: bool = False,
) -> Choice:
    """Take ``layers[i]`` of each model: one after the other, or with ``stacked`` off side by side.

    What is in no layer comes from every model, when they are stacked from the first, and with ``tail`` what
    follows the layers from the last; with ``cast`` they may differ in dtype. Raises
    UnsupportedError, OptionError.
    """
    given = [i for i, model in enumerate(models) if model is not None]
    for i in given:
        if (model := models[i]) is not None and model.updates:
            raise UnsupportedError(f"{model.path} is an adapter: layers are taken of checkpoints")
    paths = {i: models[i].path for i in given}  # type: ignore[union-attr]
    configs = {i: models[i].checkpoint.config("config.json") for i in given}  # type: ignore[union-attr]
    first = given[0]
    prefix = _prefix(tensors[first] or {}, configs[first], stack, paths[first])
    ranges = {i: _range(tensors[i] or {}, prefix, layers[i], paths[i]) for i in given}
    own: list[dict[str, str]] = [{} for _ in models]
    count = 0
    for i in given:
        begin, end = ranges[i]
        if not stacked and count not in (0, end - begin):
            raise OptionError(f"layers {begin} to {end} of {paths[i]}: {count} are taken of {paths[first]}")
        offset = count if stacked else 0
        for name in tensors[i] or {}:
            parts = split(name)
            if parts is None or parts[0] != prefix:
                if not stacked or i == (given[-1] if tail and after_layers(name) else first):
                    own[i][name] = name
            elif begin <= parts[1] < end:
                own[i][f"{prefix}{offset + parts[1] - begin}{parts[2]}"] = name
        count = offset + end - begin
    if stacked:
        _refuse_odd(tensors, own, given, paths, prefix, cast)
    views: list[Mapping[str, Entry] | None] = [
        None if entries is None else {name: entries[source] for name, source in names.items()}
        for entries, names in zip(tensors, own, strict=True)
    ]
    taken = given if stacked else [first]
    config, warnings = _config([(configs[i], ranges[i], paths[i]) for i in taken], count)
    return Choice(views, own, count, config, warnings)


def stack(
    choice: Choice, models: Sequence[Model | None], weighting: Weighting, dtype: str | None
) -> tuple[list[Target], list[Copied]]:
    """The tensors of a stack: carried bit for bit, but where a weight or ``dtype`` changes them. Raises
    UnsupportedError for weights of tensors that hold no floats.
    """
    targets, copied = [], []
    for i, entries in enumerate(choice.tensors):
        for name, entry in (entries or {}).items():
            own, weights = choice.own[i][name], weighting.of(name)
            floats = entry.dtype in FLOATS
            if weights[i - 1] != 1 and not floats:
                model = models[i]
                assert model is not None
                raise UnsupportedError(f"{model.path}: {own} is {entry.dtype}, which no weight can scale")
            if weights[i - 1] == 1 and (not floats or dtype in (None, entry.dtype)):
                copied.append(Copied(name, i, entry, (), "stacked", {i: own}))
            else:
                names = tuple(own if i == j else None for j in range(len(models)))
                targets.append(Target(name, entry.shape, dtype or entry.dtype, names, weights))
    return targets, copied


def _prefix(names: Iterable[str], config: Mapping[str, Any] | None, wanted: str | None, path: Path) -> str:
    """The stack that is meant: the one asked for, the only one, or the one as high as the configuration."""
    found: dict[str, int] = {}
    for name in names:
        if (parts := split(name)) is not None:
            found[parts[0]] = max(found.get(parts[0], 0), parts[1] + 1)
    listed = ", ".join(f"{prefix.rstrip('.')} ({count})" for prefix, count in found.items())
    if wanted:
        prefix = wanted.rstrip(".") + "."
        if prefix not in found:
            hint = nearest(prefix, found) or f"; there are {listed}"
            raise OptionError(f"stack {wanted}: {path} has no such layers{hint}")
        return prefix
    section, key = _counted(config or {})
    likely = [prefix for prefix, count in found.items() if key and count == section[key]]
    if len(found) == 1 or len(likely) == 1:
        return (likely or list(found))[0]
    if not found:
        raise UnsupportedError(f"{path}: no tensor has the number of a layer in its name")
    raise UnsupportedError(f"{path} has several stacks of layers, {listed}: give options: {{stack: NAME}}")


def _range(names: Iterable[str], prefix: str, wanted: Layers, path: Path) -> tuple[int, int]:
    numbers = {parts[1] for name in names if (parts := split(name)) is not None and parts[0] == prefix}
    count = max(numbers, default=-1) + 1
    if not numbers:
        raise UnsupportedError(f"{path} has no layers called {prefix}0, as the first model has")
    if missing := set(range(count)) - numbers:
        raise UnsupportedError(f"{path} has no layer {prefix}{min(missing)}, though later ones")
    begin, end = wanted or (0, count)
    if end > count:
        raise OptionError(f"layers {begin} to {end}: {path} has {count}, numbered from 0")
    return begin, end


def _refuse_odd(
    tensors: Sequence[Mapping[str, Entry] | None],
    own: Sequence[Mapping[str, str]],
    given: Sequence[int],
    paths: Mapping[int, Path],
    prefix: str,
    cast: bool,
) -> None:
    """Refuse what would make no model: layers of other shapes, a head that only one model has."""
    first, last = given[0], given[-1]

    def kind(name: str) -> str:
        parts = split(name)
        return name if parts is None or parts[0] != prefix else f"{prefix}*{parts[2]}"

    known: dict[str, set[Entry]] = {}
    for name, entry in (tensors[first] or {}).items():
        known.setdefault(kind(name), set()).add(entry)
        if kind(name) == name and not any(name in names for names in own):
            raise UnsupportedError(
                f"{name} is in {paths[first]}, but not in {paths[last]}, which is to give it: tail: first"
            )
    for i in given:
        for source in own[i].values():
            entry, like = (tensors[i] or {})[source], known.get(kind(source))
            if like is None:
                raise UnsupportedError(f"{source} is in {paths[i]}, but no such tensor in {paths[first]}")
            shapes = [other.shape for other in like]
            if entry.shape not in shapes:
                raise UnsupportedError(
                    f"{source} is {entry.shape} in {paths[i]}, but {shapes[0]} in {paths[first]}: these "
                    "models have different architectures"
                )
            dtypes = [other.dtype for other in like]
            if entry.dtype not in dtypes and not (cast and {entry.dtype, dtypes[0]} <= set(FLOATS)):
                raise UnsupportedError(
                    f"{source} is {entry.dtype} in {paths[i]}, but {dtypes[0]} in {paths[first]}: floats are "
                    "made one by dtype"
                )


def _counted(config: Mapping[str, Any]) -> tuple[Mapping[str, Any], str | None]:
    """The section of a configuration that tells the number of layers, and the key."""
    nested = [config[name] for name in _SECTIONS if isinstance(config.get(name), dict)]
    for section in (config, *nested):
        for key in _COUNTS:
            if isinstance(section.get(key), int):
                return section, key
    return config, None


def _config(
    parts: Sequence[tuple[Mapping[str, Any] | None, tuple[int, int], Path]], count: int
) -> tuple[dict[str, Any], list[str]]:
    """What changes in the first configuration: the number of layers, and lists that have one entry each."""
    config, _, path = parts[0]
    if config is None:
        return {}, []
    section, key = _counted(config)
    if key is None:
        return {}, [f"config.json of {path} names no number of layers: see to it that it fits {count}"]
    changed: dict[str, Any] = {key: count}
    warnings = []
    for name, value in section.items():
        if not isinstance(value, list) or not value or not ("layer" in name or "block" in name):
            continue
        if len(value) != section[key]:
            warnings.append(f"config.json: {name} is not one entry a layer, and stays as it is: check it")
            continue
        changed[name] = []
        for other, (begin, end), where in parts:
            there, its = _counted(other or {})
            entries = there.get(name)
            if not isinstance(entries, list) or its is None or len(entries) != there[its]:
                raise UnsupportedError(
                    f"config.json of {where} has no {name} for each layer, that of {path} has"
                )
            changed[name] += entries[begin:end]
    inside = next((n for n in _SECTIONS if config.get(n) is section), None)
    return ({inside: changed} if inside else changed), warnings
