"""A mergekit recipe as read: its models, and its parameters as they hold for one model or for all."""

from __future__ import annotations

import glob
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from paring.errors import OptionError
from paring.merging.recipes.nodes import Node
from paring.merging.weights import Weight

Level = Mapping[str, Node]
#: conditions, of which the first that holds counts: (part of a name, or None for any; value; where)
Setting = list[tuple[str | None, Weight, Node]]
Fields = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Rule:
    """A merge_method in our terms; the parameters of each model, and of all; ``base``: it merges deltas."""

    translate: Callable[[Given], Fields]
    own: tuple[str, ...]
    shared: tuple[str, ...]
    base: bool = False


@dataclass(slots=True)
class Source:
    """One model: its parameters, those of its slice after them, and its layers."""

    node: Node
    path: str
    levels: list[Level]
    layers: list[int] | None = None


@dataclass(slots=True)
class Given:
    """A recipe as read; ``shared`` are the parameters of all models, the nearest first."""

    name: str
    rule: Rule
    method: Node
    shared: list[Level]
    sources: list[Source]
    base: Source | None
    notes: list[str] = field(default_factory=list)

    def wrong(self, name: str, reason: str) -> OptionError:
        """An error about a parameter of all models, with its line; where it is left out, the method's."""
        node = next((level[name] for level in self.shared if name in level), self.method)
        return node.error(f"mergekit's {self.name}, {name}: {reason}")

    def setting(self, name: str, levels: list[Level]) -> Setting:
        """The conditions for a parameter, those nearest to the model first, up to one without a filter."""
        found: Setting = []
        for level in levels:
            for condition in _conditions(level[name]) if name in level else ():
                found.append(condition)
                if condition[0] is None:
                    return found
        return found

    def number(self, name: str, default: float, source: Source | None = None) -> float:
        """A parameter that is one number here: of all models, or of one."""
        found = self.setting(name, [*(source.levels if source else []), *self.shared])
        if not found:
            return default
        part, value, node = found[0]
        if part is not None or not isinstance(value, int | float):
            raise node.error(f"{name} differs by layer or tensor: paring's {self.name} takes one number")
        return float(value)

    def common(self, name: str, default: float) -> float:
        """A parameter of every model that is one number for all here."""
        values = {self.number(name, default, source): source for source in self.sources}
        if len(values) > 1:
            listed = ", ".join(f"{value:g}" for value in values)
            raise list(values.values())[1].node.error(
                f"{name} differs between models ({listed}): paring's {self.name} takes one for all"
            )
        return next(iter(values))

    def flag(self, name: str, default: bool) -> bool:
        """A parameter of all models that is true or false."""
        level = next((level for level in self.shared if name in level), None)
        return default if level is None else level[name].boolean()

    def weights(self, name: str = "weight", default: float | None = None) -> Fields:
        """A weight for each model, and those by pattern: of ours the last that fits counts."""
        whole: list[Weight] = []
        patterns: list[tuple[str, int, Weight]] = []
        for index, source in enumerate(self.sources):
            found = self.setting(name, [*source.levels, *self.shared])
            if found and found[-1][0] is None:
                whole.append(found[-1][1])
            elif default is not None:
                whole.append(default)
            else:
                more = " where no filter fits: end the list with {value: ..}" if found else ""
                raise source.node.error(f"{source.path} has no {name}{more}; {self.name} requires one")
            some = [(glob.escape(part), value) for part, value, _ in found if part is not None]
            patterns += [(part, index, value) for part, value in reversed(some)]
        return {"weights": whole, "patterns": patterns}

    def positive(self) -> Fields:
        """Weights under which an elected sign means the same: mergekit turns deltas before it elects."""
        told = self.weights()
        for weight in [*told["weights"], *(weight for _, _, weight in told["patterns"])]:
            if min(numbers(weight)) < 0:
                raise self.method.error(f"{self.name} with a negative weight elects other signs here")
        return told

    def scaled(self) -> Fields:
        """``lambda``; ``int8_mask`` only says how to compute."""
        self.flag("int8_mask", False)
        return {"scale": self.number("lambda", 1.0)}

    def fields(self, method: str, options: Mapping[str, Any], **more: Any) -> Fields:
        """The request's fields."""
        base = self.base if self.rule.base else None
        layers = [base.layers if base else None, *(source.layers for source in self.sources)]
        return {
            "models": [source.path for source in self.sources],
            "base": base.path if base else None,
            "method": method,
            "options": options,
            "layers": layers if any(layers) or method == "passthrough" else (),
            **more,
        }


def numbers(weight: Weight) -> list[float]:
    """The anchors of a weight, one for a plain number."""
    return [weight] if isinstance(weight, int | float) else list(weight)


def _conditions(node: Node) -> Setting:
    """A number, numbers over the layers, or such with filters."""
    if isinstance(node.value, list) and node.value and isinstance(node.value[0].value, dict):
        return [condition for item in node.value for condition in _conditions(item)]
    if isinstance(node.value, dict):
        told = node.mapping("a setting", ("filter", "value"))
        if "value" not in told:
            raise node.error("a filter needs a value")
        part = told["filter"].text("part of a tensor's name") if "filter" in told else "*"
        ((_, value, where),) = _conditions(told["value"])
        return [(None if part == "*" else part, value, where)]
    if isinstance(node.value, list):
        return [(None, [item.number() for item in node.items("numbers")], node)]
    return [(None, node.number("a number, a list of numbers, or a list of {filter: .., value: ..}"), node)]
