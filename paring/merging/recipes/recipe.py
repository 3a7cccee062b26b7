"""Recipes: a merge as a YAML file (docs/recipes.md), read and checked as a whole before any work.

Every error says the file and the line, and for a misspelt word the nearest that there is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from paring import registry
from paring.errors import OptionError, ParingError
from paring.hub.names import parse
from paring.hub.reading import pinned
from paring.merging.recipes import mergekit
from paring.merging.recipes.nodes import Node, read
from paring.merging.request import Request, check
from paring.merging.weights import Weight
from paring.registry import nearest
from paring.sizes import parse_size

_KEYS = (
    "method", "base", "into", "models", "slices", "layers", "tail", "scale", "dtype", "missing", "rank",
    "carried", "tokenizer", "keep_mask", "shard_size", "options", "stages",
)  # fmt: skip
#: words that are looked for at the top of a recipe -> where what they mean is said
_ELSEWHERE = {
    "weights": "each model has its own weight: models: [{model: PATH, weight: 1.0}]",
    "weight": "a weight stands with its model: models: [{model: PATH, weight: 1.0}]",
    "output": "the output is named on the command line: -o OUT",
    "base_model": "it is called base here; merge_method in place of method makes a recipe one of mergekit's",
    "parameters": "options of the method stand under options, a weight with its model",
}
_STAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a file asks for, and what is to be said of how it was understood."""

    request: Request
    notes: list[str] = field(default_factory=list)


def read_recipe(path: Path) -> Recipe:
    """The recipe in ``path``, paring's or mergekit's. Raises OptionError and BadFileError, with the line."""
    root = read(path)
    top = root.mapping("a recipe")
    places = _Places(path.parent)
    if "merge_method" in top:
        if "method" in top:
            raise root.key("method").error("method is paring's key and merge_method mergekit's: give one")
        request, notes = mergekit.translate(root, places.locate)
        try:
            return Recipe(replace(request, options=check(request)[1]), notes)
        except OptionError as error:
            raise root.key("merge_method").error(_plain(error)) from None
    stages: dict[str, Any] = {}
    if "stages" in top:
        keys = top["stages"].mapping("stages: a mapping of names to recipes")
        places.later = list(keys)
        for name, node in keys.items():
            key = top["stages"].key(name)
            if not _STAGE.fullmatch(name):
                raise key.error(f"stage {name!r}: a name is made of letters, digits, - and _")
            if places.find(name):
                raise key.error(f"stage {name} is also the name of a file here: call it something else")
            told = _request(node, places, {key for key in _KEYS if key != "stages"}).recipe()
            stages[name] = {key: value for key, value in told.items() if key not in ("paring", "command")}
            places.stages.append(name)
    request = _request(root, places, _KEYS)
    for name in stages:
        if name not in places.used:
            raise top["stages"].key(name).error(f"stage {name} is used by nothing")
    return Recipe(replace(request, stages=stages or None))


@dataclass(slots=True)
class _Places:
    """What names in a recipe stand for: stages, or paths from the current folder or the recipe's own."""

    folder: Path
    stages: list[str] = field(default_factory=list)
    later: list[str] = field(default_factory=list)
    used: set[str] = field(default_factory=set)

    def find(self, name: str) -> str | None:
        return next((str(path) for path in (Path(name), self.folder / name) if path.exists()), None)

    def _fetch(self, node: Node, name: str) -> str | None:
        """The name of a repository on the Hub, by its commit; None for what can only be a path."""
        try:
            return pinned(name) if parse(name) is not None else None
        except ParingError as error:
            raise node.error(str(error)) from None

    def locate(self, node: Node) -> str:
        """A stage's name, or the path of what is there."""
        name = node.text("the path of a model")
        if name in self.stages:
            self.used.add(name)
            return name
        if name in self.later:
            raise node.error(f"stage {name} comes later: a stage uses those above it")
        found = self.find(name) or self._fetch(node, name)
        if found is None:
            hint = nearest(name, [*self.stages, *self.later])
            raise node.error(f"{name} does not exist, from here or from {self.folder.absolute()}{hint}")
        return found


def _request(node: Node, places: _Places, known: Collection[str]) -> Request:
    """One recipe, or one stage of it."""
    top = node.mapping("a recipe")
    method = _at(top["method"], lambda n: registry.load("merge", n.text("the name of a method"))) if (
        "method" in top
    ) else registry.load("merge", "linear")  # fmt: skip
    for key in top:
        if key not in known and key in method.options:
            raise node.key(key).error(f"{key} is an option of {method.name}: write it under options:")
        if key not in known and key in _ELSEWHERE:
            raise node.key(key).error(_ELSEWHERE[key])
    node.mapping("a recipe", known)
    models, weights, patterns, layers = _inputs(node, top, places, stacked=method.name == "passthrough")
    if "base" in top and "into" in top:
        raise node.key("into").error("base and into both name the base: give one of them")
    base = places.locate(top["base"]) if "base" in top else None
    span = _layers(top["layers"]) if "layers" in top else None
    layers = [span, *(own or span for own in layers)]
    options = _options(top["options"], method) if "options" in top else {}
    tokenizer = None
    if "tokenizer" in top:
        word = top["tokenizer"].text("base, union, or one of the models")
        tokenizer = word if word in ("base", "union") else places.locate(top["tokenizer"])
    request = Request(
        models,
        base,
        places.locate(top["into"]) if "into" in top else None,
        method.name,
        weights,
        patterns,
        top["scale"].number() if "scale" in top else 1.0,
        options=options,
        tokenizer=tokenizer,
        layers=layers if any(layers) or method.name == "passthrough" else (),
        **{key: _SIMPLE[key](top[key]) for key in _SIMPLE if key in top},
    )
    try:
        return replace(request, options=check(request)[1])
    except OptionError as error:
        named = re.match(r"(?:--)?([a-z-]+) ", str(error))
        key = named[1].replace("-", "_") if named else ""
        where = node.key(key) if key in top else node
        raise where.error(_plain(error)) from None


def _inputs(
    node: Node, top: Mapping[str, Node], places: _Places, *, stacked: bool
) -> tuple[list[str], list[Weight] | None, list[tuple[str, int, Weight]], list[list[int] | None]]:
    """Models, their weights, patterns with weights, layers."""
    key, other = ("slices", "models") if stacked else ("models", "slices")
    if other in top:
        reason = "passthrough stacks slices" if stacked else "slices are stacked by method: passthrough"
        raise node.key(other).error(f"{reason}: write {key}")
    if key not in top:
        raise node.error(f"a recipe needs {key}")
    models: list[str] = []
    weights: list[Weight] = []
    patterns: list[tuple[str, int, Weight]] = []
    layers: list[list[int] | None] = []
    given = False
    for index, item in enumerate(top[key].items("models")):
        if isinstance(item.value, dict):
            told = item.mapping("a model", ("model", "weight", "layers"))
            if "model" not in told:
                raise item.error("which model? write {model: PATH}")
        else:
            told = {"model": item}
        models.append(places.locate(told["model"]))
        weights.append(1.0)
        layers.append(_layers(told["layers"]) if "layers" in told else None)
        if "weight" in told:
            given = True
            if isinstance(told["weight"].value, dict):
                some = told["weight"].mapping("weights by pattern")
                patterns += [(pattern, index, _weight(value)) for pattern, value in some.items()]
            else:
                weights[-1] = _weight(told["weight"])
    return models, weights if given else None, patterns, layers


def _weight(node: Node) -> Weight:
    """A number, or several that are spread over the layers."""
    if isinstance(node.value, list):
        return [item.number() for item in node.items("numbers")]
    return node.number("a number, or a list of numbers for the layers")


def _layers(node: Node) -> list[int]:
    found = [item.whole("a layer's number") for item in node.items("two numbers")]
    if len(found) != 2 or found[0] >= found[1]:
        raise node.error("layers are [first, one after the last], numbered from 0")
    return found


def _options(node: Node, method: registry.Method) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in node.mapping("options").items():
        if key not in method.options:
            hint = nearest(key, method.options) or f"; there are {', '.join(method.options) or 'none'}"
            raise node.key(key).error(f"{method.name} has no option {key!r}{hint}")
        found[key] = _at(value, lambda n, key=key: method.options[key].parse(n.plain()))  # type: ignore[misc]
    return found


def _at(node: Node, parse: Callable[[Node], Any]) -> Any:
    """``parse(node)``, with the node's line in what it raises."""
    try:
        return parse(node)
    except OptionError as error:
        text = str(error)
        raise error if text.startswith(node.where) else node.error(_plain(error)) from None


def _plain(error: OptionError) -> str:
    """What an option is called here: without dashes."""
    return re.sub(r"(?<!\S)--(?=[a-z])", "", str(error))


def _choice(*words: str) -> Callable[[Node], str]:
    def parse(node: Node) -> str:
        word = node.text(" or ".join(words))
        if word not in words:
            raise node.error(f"{word!r}: expected {' or '.join(words)}{nearest(word, words)}")
        return word

    return parse


def _rank(node: Node) -> int | str:
    return "exact" if node.value == "exact" else node.whole("exact, or a number from 1 on")


def _size(node: Node) -> int:
    size = node.value if type(node.value) is int else parse_size(node.text("a size such as 5GB"))
    if not size:
        raise node.error(f"{node.value!r} is not a size such as 5GB or 300MiB")
    return int(size)


_SIMPLE: dict[str, Callable[[Node], Any]] = {
    "tail": lambda node: {"first": None, "last": "last"}[_choice("first", "last")(node)],
    "dtype": _choice("fp64", "fp32", "fp16", "bf16"),
    "missing": _choice("refuse", "copy"),
    "rank": _rank,
    "carried": _choice("refuse", "first", "drop"),
    "keep_mask": _choice("mask", "scale"),
    "shard_size": _size,
}
