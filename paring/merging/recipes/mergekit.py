"""mergekit's YAML, where it means the same here: which models, layers and parameters it names.

What would give another result is refused, with the reason and what to write instead; :mod:`.mergekit_rules`
knows the rules. Rounding is no such difference: paring computes in fp32 and rounds once, whatever the dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from paring.merging.recipes.given import Given, Level, Rule, Source
from paring.merging.recipes.mergekit_rules import ABSENT, RULES
from paring.merging.recipes.nodes import Node
from paring.merging.request import Request
from paring.registry import nearest

Locate = Callable[[Node], str]

_TOP = ("merge_method", "base_model", "models", "slices", "parameters", "dtype", "out_dtype")
_REFUSED = {
    **dict.fromkeys(
        ("tokenizer_source", "tokenizer"),
        "leave it out where all models have one tokenizer; otherwise in paring's form, tokenizer: base or "
        "union, which fills the rows of tokens that a model lacks in another way",
    ),
    "chat_template": "leave it out; the base's or first model's is copied",
    "modules": "parts of models are not merged apart: write a recipe with models, and weights by filter",
    "random_seed": "random numbers are other ones here: in paring's form, method: dare, options: {seed: 0}",
    "name": "a recipe of several documents is written as the stages of one of paring's",
}
_DTYPES = {"float64": "fp64", "float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
_PARAMETERS = {name for rule in RULES.values() for name in (*rule.own, *rule.shared)} | {"epsilon"}


def translate(root: Node, locate: Locate) -> tuple[Request, list[str]]:
    """The request, and notes on what differs by a hair. Raises OptionError with the line and the reason."""
    top = root.mapping("a recipe")
    for key, reason in _REFUSED.items():
        if key in top:
            raise root.key(key).error(f"mergekit's {key}: {reason}")
    root.mapping("a recipe of mergekit's", _TOP)
    method = top["merge_method"]
    name = method.text("the name of a method")
    if name in ABSENT:
        raise method.error(f"mergekit's {name}: {ABSENT[name]}")
    if name not in RULES:
        raise method.error(f"mergekit has no method {name!r}{nearest(name, RULES)}")
    reader = _Reader(name, RULES[name], locate)
    if "models" in top and "slices" in top:
        raise root.key("slices").error("models or slices, not both")
    shared = [reader.parameters(top["parameters"])] if "parameters" in top else []
    if "slices" in top:
        sources = reader.slices(top["slices"], shared)
    elif "models" in top:
        sources = [reader.source(item, []) for item in top["models"].items("models")]
    else:
        raise root.error("a recipe of mergekit's needs models or slices")
    base = Source(top["base_model"], reader.model(top["base_model"]), []) if "base_model" in top else None
    given = Given(name, RULES[name], root.key("merge_method"), shared, sources, base)
    _settle_base(given, sliced="slices" in top)
    dtype = None
    for key in ("dtype", "out_dtype"):
        if key in top:
            word = top[key].text("a dtype")
            if word not in _DTYPES:
                raise top[key].error(f"{key} {word}: expected {', '.join(_DTYPES)}{nearest(word, _DTYPES)}")
            dtype = _DTYPES[word]
    fields: dict[str, Any] = {"dtype": dtype, **RULES[name].translate(given)}
    return Request(**fields), given.notes


def _settle_base(given: Given, *, sliced: bool) -> None:
    """Take the base out of the models of delta rules; put it first for others: it gives the configuration."""
    base, sources, name = given.base, given.sources, given.name
    if name != "passthrough":
        seen: set[str] = set()
        for source in sources:
            if source.path in seen:
                raise source.node.error(f"{source.path} is given twice, which mergekit takes for once")
            seen.add(source.path)
    if base is None:
        if given.rule.base:
            raise given.method.error(f"{name} needs base_model")
        return
    own = next((source for source in sources if source.path == base.path), None)
    if given.rule.base:
        if sliced and own is None:
            raise base.node.error(f"{base.path} must be among the sources of the slice, to say its layers")
        given.base, given.sources = own or base, [source for source in sources if source is not own]
        if not given.sources:
            raise base.node.error("there is no model beside the base")
        return
    if name == "nuslerp":
        raise base.node.error("nuslerp with base_model turns deltas, paring's turns weights: leave it out")
    if name == "slerp" and not sliced:
        own = own or base
    if own is None:
        raise base.node.error(f"{name} merges weights: the base must be one of the models, or left out")
    if name != "passthrough":
        given.sources = [own, *(source for source in sources if source is not own)]
    elif own is not sources[0]:
        raise base.node.error("the first slice's model gives the configuration: leave base_model out")


class _Reader:
    """Reads models and parameters for one merge_method."""

    def __init__(self, name: str, rule: Rule, locate: Locate) -> None:
        self._name, self._rule, self._locate = name, rule, locate

    def parameters(self, node: Node, *, of_model: bool = False) -> Level:
        known = self._rule.own if of_model else (*self._rule.own, *self._rule.shared)
        told = node.mapping("parameters")
        for key in told:
            if key in known:
                continue
            if key in self._rule.shared:
                raise node.key(key).error(f"{key} is for all models, mergekit ignores it here: move it up")
            if key in _PARAMETERS:
                raise node.key(key).error(f"{self._name} has no {key}, mergekit ignores it: leave it out")
            raise node.key(key).error(f"{self._name} has no parameter {key!r}{nearest(key, known)}")
        return told

    def model(self, node: Node) -> str:
        if isinstance(node.value, dict):
            raise node.error("name the model by its path alone")
        text = node.text("the path of a model")
        if "+" in text:
            raise node.error(
                f"{text}: an adapter on a model is a stage of paring's, {{models: [ADAPTER], into: MODEL}}"
            )
        return self._locate(node)

    def source(self, item: Node, outer: list[Level], *, sliced: bool = False) -> Source:
        told = item.mapping("a model", ("model", "parameters", *(("layer_range",) if sliced else ())))
        if "model" not in told:
            raise item.error("which model? write model: PATH")
        levels = [self.parameters(told["parameters"], of_model=True)] if "parameters" in told else []
        source = Source(told["model"], self.model(told["model"]), [*levels, *outer])
        if sliced:
            if "layer_range" not in told:
                raise item.error("a source of a slice needs layer_range: [first, one after the last]")
            node = told["layer_range"]
            source.layers = [number.whole("a layer's number") for number in node.items("two numbers")]
            if len(source.layers) != 2 or source.layers[0] >= source.layers[1]:
                raise node.error("layer_range is [first, one after the last], numbered from 0")
        return source

    def slices(self, node: Node, shared: list[Level]) -> list[Source]:
        """One source of every slice for passthrough; for other rules all those of the only slice, whose
        parameters then go before ``shared``.
        """
        items, stacked = node.items("slices"), self._name == "passthrough"
        if len(items) > 1 and not stacked:
            raise items[1].error(
                f"several slices merged by {self._name}: in paring's form, merge each in a stage with layers "
                "and stack them by passthrough"
            )
        found: list[Source] = []
        for item in items:
            told: Mapping[str, Node] = item.mapping(
                "a slice", ("sources", "parameters", "base_model", "residual_weight")
            )
            for key in ("base_model", "residual_weight"):
                if key in told:
                    raise item.key(key).error(f"{key} of a slice: not offered here, leave it out")
            if "sources" not in told:
                raise item.error("a slice needs sources")
            outer = [self.parameters(told["parameters"])] if "parameters" in told else []
            inner = told["sources"].items("sources")
            if stacked and len(inner) != 1:
                raise told["sources"].error("passthrough takes one source for each slice")
            found += [self.source(one, outer if stacked else [], sliced=True) for one in inner]
            if not stacked:
                shared[:0] = outer
        return found
