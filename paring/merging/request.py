"""What a user asks of a merge, and what can be refused from that alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import paring
from paring import registry
from paring.dtypes import parse_dtype
from paring.errors import OptionError
from paring.merging import layers as numbered
from paring.merging.keeping import refuse_options
from paring.merging.models import Mix, Models, Target
from paring.merging.weights import Weight, Weighting, parse
from paring.outputs import SHARD_BYTES
from paring.registry import Method


@dataclass(frozen=True, slots=True)
class Request:
    """What a user asked to merge: the arguments of :func:`paring.api.merge`, stored in recipes."""

    models: Sequence[str]
    base: str | None = None
    into: str | None = None
    method: str = "linear"
    weights: Sequence[Weight] | None = None
    patterns: Sequence[tuple[str, int, Weight]] = ()
    scale: float = 1.0
    dtype: str | None = None
    missing: str = "refuse"
    rank: int | str | None = None
    carried: str = "refuse"
    tokenizer: str | None = None
    shard_size: int = SHARD_BYTES
    options: Mapping[str, Any] | None = None
    #: of the base and of each model, the first layer and the one after the last
    layers: Sequence[numbered.Layers] = ()
    #: ``"last"``: the last model of a stack gives what follows the layers
    tail: str | None = None
    #: recipes of intermediate results, by the names that ``models`` and ``base`` may use
    stages: Mapping[str, Mapping[str, Any]] | None = None
    #: how zeros of the base stay zeros: ``mask`` or ``scale`` (:mod:`.keeping`)
    keep_mask: str | None = None
    #: what of the result stays; the rest is set to zero
    mask: str | None = None

    def recipe(self) -> dict[str, Any]:
        """As JSON; what was left out is left out."""
        found = {name: getattr(self, name) for name in self.__dataclass_fields__}
        found["options"] = dict(self.options or {})
        given = {key: value for key, value in found.items() if value not in (None, (), {}, [])}
        return {"paring": paring.__version__, "command": "merge", **given}


def check(request: Request) -> tuple[Method, dict[str, Any]]:
    """What options alone can tell: the method and its options, parsed. Raises OptionError."""
    method = registry.load("merge", request.method)
    options = method.parse(request.options or {})
    if not request.models:
        raise OptionError("name the models to merge")
    if request.missing not in ("refuse", "copy"):
        raise OptionError(f"--missing {request.missing}: expected refuse or copy")
    if not abs(request.scale) < float("inf"):
        raise OptionError(f"--scale {request.scale}: must be a finite number")
    if method.sees == "weights" and request.scale != 1:
        raise OptionError(f"--scale multiplies deltas, and {method.name} merges weights: leave it out")
    if request.shard_size < 1:
        raise OptionError(f"--shard-size {request.shard_size}: at least 1")
    weights = parse(request.weights, len(request.models), 1.0)
    parse_dtype(request.dtype)
    for pattern, model, _ in request.patterns:
        if not 0 <= model < len(request.models):
            raise OptionError(f"weight of {pattern}: of model {model}, and there are {len(request.models)}")
    _check_layers(request, method)
    refuse_options(request.keep_mask, request)
    rehearsed(method, options, Weighting(weights, tuple(request.patterns)))
    return method, options


def rehearsed(method: Method, options: dict[str, Any], weighting: Weighting) -> Any:
    """What the rule makes of a tensor without entries: that refuses options and weights that cannot be meant,
    and tells if it is a weighted sum. None of passthrough. Raises OptionError.
    """
    if method.name == "passthrough":
        return None
    nobody = [None] * (len(weighting.default) + 1)
    target = Target("every tensor", (0,), "F32", tuple(nobody), weighting.of(""))
    rule = method.function(Models([target], nobody, True, frozenset(), method.unit), **options)
    if isinstance(rule, Mix) and not weighting.patterns:
        rule.coefficients(target)
    return rule


def _check_layers(request: Request, method: Method) -> None:
    if method.name == "passthrough":
        if not request.layers:
            raise OptionError("passthrough stacks layers: it takes a recipe with slices (docs/recipes.md)")
        for name in ("base", "into", "tokenizer"):
            if getattr(request, name) is not None:
                raise OptionError(
                    f"--{name} is not for passthrough, whose first slice gives what is in no layer"
                )
    elif request.tail is not None:
        raise OptionError(f"tail is for passthrough, not for {method.name}")
    if request.tail not in (None, "last"):
        raise OptionError(f"tail {request.tail}: expected last")
    if request.layers and len(request.layers) != len(request.models) + 1:
        raise OptionError(f"layers are given for {len(request.layers)} inputs, the base and models")
    for some in request.layers:
        if some is not None and (len(some) != 2 or not 0 <= some[0] < some[1]):
            raise OptionError(f"layers {list(some)}: expected the first and the one after the last")
