"""mergekit's rules in terms of ours: which parameters mean the same, and why others do not."""

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

ABSENT = {
    "multislerp": "paring's mean on the sphere is karcher: merge_method: karcher",
    "nearswap": "paring has no such rule",
    "arcee_fusion": "paring has no such rule",
    "ram": "paring has no such rule",
    "ramplus_tl": "paring has no such rule",
    "breadcrumbs_ties": "paring's breadcrumbs adds up what is kept, as published: merge_method: breadcrumbs",
    **dict.fromkeys(
        ("della", "della_linear"),
        "it scales each tensor as a whole, paring's divides each entry by its own probability, as published: "
        "method: della, in paring's form",
    ),
}


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


def _linear(given: Given) -> Fields:
    return given.fields("linear", {"normalise": given.flag("normalize", True)}, **given.weights())


def _slerp(given: Given) -> Fields:
    if given.base is None:
        raise given.method.error("slerp needs base_model, where t: 0 is")
    if len(given.sources) != 2:
        raise given.method.error(f"slerp takes two models, not {len(given.sources)}")
    found = given.setting("t", given.shared)
    if not found or found[-1][0] is not None:
        more = " where no filter fits: end the list with {value: ..}" if found else ""
        raise given.method.error(f"slerp has no t{more}")
    for _, value, node in found:
        if not all(0 <= x <= 1 for x in numbers(value)):
            raise node.error("t goes from 0, the base, to 1, the other model")
    *filtered, (_, whole, _) = found
    if not filtered and isinstance(whole, int | float):
        return given.fields("slerp", {"t": float(whole)})
    given.notes.append(
        "t differs by layer or tensor, so this is nuslerp with weights 1 - t and t: it turns nearly parallel "
        "tensors, too (cosine beyond .9995), where mergekit's slerp goes straight"
    )
    patterns: list[tuple[str, int, Weight]] = []
    for part, value, _ in reversed(filtered):
        patterns += [(glob.escape(part or "*"), 0, _rest(value)), (glob.escape(part or "*"), 1, value)]
    return given.fields("nuslerp", {}, weights=[_rest(whole), whole], patterns=patterns)


def _rest(t: Weight) -> Weight:
    return 1 - t if isinstance(t, int | float) else [1 - x for x in t]


def _nuslerp(given: Given) -> Fields:
    if not given.flag("nuslerp_flatten", True):
        raise given.wrong("nuslerp_flatten", "in paring's form, method: nuslerp, options: {per: row}")
    return given.fields("nuslerp", {}, **given.weights())


def _karcher(given: Given) -> Fields:
    if given.number("max_iter", 10) < 10 or given.number("tol", 1e-5) > 1e-5:
        raise given.wrong("max_iter", "paring's goes on to the mean itself: leave max_iter and tol out")
    return given.fields("karcher", {})


def _task_arithmetic(given: Given) -> Fields:
    told = given.weights()
    if given.flag("normalize", False):
        whole = [weight for weight in told["weights"] if isinstance(weight, int | float)]
        if told["patterns"] or len(whole) < len(told["weights"]) or abs(sum(whole)) < 1e-8:
            raise given.wrong(
                "normalize", "weights differ by tensor or sum to zero: write ones that sum to one"
            )
        told["weights"] = [weight / sum(whole) for weight in whole]
    return given.fields("task_arithmetic", {}, **told, **given.scaled())


def _ties(given: Given) -> Fields:
    if given.flag("rescale", False):
        raise given.wrong("rescale", "paring does not rescale what is kept: leave it out")
    given.notes.append(
        "of d entries ties keeps int(d density) + 1, and all that equal the smallest of them, as published; "
        "mergekit keeps int(d density)"
    )
    combine = "mean" if given.flag("normalize", True) else "sum"
    options = {"density": given.common("density", 1.0), "trim": "tensor", "combine": combine}
    return given.fields("ties", options, **given.positive(), **given.scaled())


def _dare(given: Given) -> Fields:
    combine = given.name.removeprefix("dare_")
    if given.flag("rescale", True):
        raise given.wrong(
            "rescale",
            "it brings each tensor back to its former sum of magnitudes, paring's divides by the density, as "
            "published: write rescale: false, or in paring's form method: dare, options: {density: .., "
            f"combine: {combine}}}",
        )
    if given.flag("normalize", False) != (combine == "ties"):
        reason = "paring's takes the mean: write true" if combine == "ties" else "paring's sums: write false"
        raise given.wrong("normalize", reason)
    given.notes.append("dare draws other random numbers than mergekit")
    options = {"density": given.common("density", 1.0), "rescale": False, "combine": combine}
    weights = given.positive() if combine == "ties" else given.weights()
    return given.fields("dare", options, **weights, **given.scaled())


def _breadcrumbs(given: Given) -> Fields:
    for name in ("normalize", "rescale"):
        if given.flag(name, False):
            raise given.wrong(name, "paring's adds up what is kept, as it is: leave it out")
    density, gamma = given.common("density", 1.0), given.common("gamma", 0.01)
    if density + gamma > 1 + 1e-9:
        raise given.method.error(f"density {density:g} and gamma {gamma:g} are more than the whole")
    given.notes.append("breadcrumbs keeps tensors of few entries, of which mergekit drops the whole delta")
    options = {"density": density, "gamma": gamma}
    return given.fields("breadcrumbs", options, **given.weights(), **given.scaled())


def _model_stock(given: Given) -> Fields:
    if given.flag("filter_wise", False):
        raise given.wrong("filter_wise", "paring's angles are those of whole tensors: leave it out")
    if len(given.sources) < 2:
        raise given.method.error("model_stock needs two models beside the base")
    given.notes.append("model_stock takes a mean cosine below zero for zero; mergekit does not")
    return given.fields("model_stock", {})


def _sce(given: Given) -> Fields:
    given.flag("int8_mask", False)
    if given.number("select_topk", 1.0) != 1:
        raise given.wrong(
            "select_topk",
            "it is a share of the entries that differ at all, paring's density of all entries: in paring's "
            "form, method: sce, options: {density: .., normalise: true}",
        )
    return given.fields("sce", {"density": 1.0, "normalise": True})


def _passthrough(given: Given) -> Fields:
    told = given.weights("scale", 1.0)
    for source, weight in zip(given.sources, told["weights"], strict=True):
        if not isinstance(weight, int | float):
            raise source.node.error("a scale that changes within a slice: give each layer a slice")
    first, last = given.sources[0], given.sources[-1]
    same = first.path == last.path and len(set(told["weights"])) == 1 and not told["patterns"]
    if not told["patterns"] and set(told["weights"]) == {1.0}:
        told["weights"] = None
    return given.fields("passthrough", {}, **told, tail=None if same else "last")


_DELTAS = ("normalize", "lambda", "int8_mask", "rescale")
_SPARSE = ("weight", "density")

RULES = {
    "linear": Rule(_linear, ("weight",), ("normalize",)),
    "slerp": Rule(_slerp, (), ("t",)),
    "nuslerp": Rule(_nuslerp, ("weight",), ("nuslerp_flatten", "nuslerp_row_wise")),
    "karcher": Rule(_karcher, (), ("max_iter", "tol")),
    "task_arithmetic": Rule(_task_arithmetic, ("weight",), _DELTAS, base=True),
    "ties": Rule(_ties, _SPARSE, _DELTAS, base=True),
    "dare_linear": Rule(_dare, _SPARSE, _DELTAS, base=True),
    "dare_ties": Rule(_dare, _SPARSE, _DELTAS, base=True),
    "breadcrumbs": Rule(_breadcrumbs, (*_SPARSE, "gamma"), _DELTAS, base=True),
    "model_stock": Rule(_model_stock, (), ("filter_wise",), base=True),
    "sce": Rule(_sce, (), ("select_topk", "int8_mask"), base=True),
    "passthrough": Rule(_passthrough, ("scale",), ()),
}
