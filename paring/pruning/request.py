"""What a user asks to prune, and what options alone can tell of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, get_args

import paring
from paring import registry
from paring.errors import OptionError
from paring.hub.names import told
from paring.outputs import SHARD_BYTES
from paring.pruning import allocating, outliers, sparsity
from paring.registry import Method

Scope = Literal["tensor", "row", "global"]
Lines = Literal["outputs", "inputs"]
Tail = Literal["error", "dense"]

#: the method whose scores order as magnitudes do says so among its invariants: bits are compared then
BY_MAGNITUDE = "magnitude"


@dataclass(frozen=True, slots=True)
class Request:
    """What a user asked to prune: the arguments of :func:`paring.api.prune`, stored in recipes."""

    model: str
    method: str = "magnitude"
    sparsity: str | float | None = None
    keep: int | None = None
    of: int | None = None
    scope: str | None = None
    allocate: str = "uniform"
    lines: str | None = None
    budgets: Mapping[str, Any] | None = None
    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    tail: str = "error"
    stats: str | None = None
    mask: str | None = None
    shard_size: int = SHARD_BYTES
    options: Mapping[str, Any] | None = None
    refit: bool = False
    outliers: float = 5.0
    spread: float = 0.08

    def recipe(self) -> dict[str, Any]:
        """As JSON; what was left out is left out."""
        found = {name: getattr(self, name) for name in self.__dataclass_fields__}
        found |= {"model": told(self.model), "options": dict(self.options or {})}
        if self.mask is not None:
            found["mask"] = told(self.mask)
        if self.sparsity is not None:
            found["sparsity"] = sparsity.decimal(sparsity.fraction(self.sparsity))
        if self.allocate != "owl":
            del found["outliers"], found["spread"]
        given = {key: value for key, value in found.items() if value not in (None, False, (), [], {})}
        return {"paring": paring.__version__, "command": "prune", **given}


def inputs_of(request: Request) -> list[str]:
    """Every input by the name that the request has for it."""
    return [name for name in (request.model, request.stats, request.mask) if name is not None]


def method_of(name: str) -> Method:
    """A method that prunes. Raises OptionError for none, and for a recipe of retraining."""
    method = registry.load("prune", name)
    if method.sees == "model":
        raise OptionError(
            f"--method {method.name} retrains what is pruned: --retrain {method.name} --data TEXT"
        )
    return method


def check(request: Request) -> tuple[Method, dict[str, Any], Fraction | None]:
    """What options alone can tell: the method, its options and the sparsity, parsed. Raises OptionError."""
    method = method_of(request.method)
    options = method.parse(request.options or {})
    for option, value, allowed in (
        ("scope", request.scope, (None, *get_args(Scope))), ("tail", request.tail, get_args(Tail)),
        ("lines", request.lines, (None, *get_args(Lines))),
    ):  # fmt: skip
        if value not in allowed:
            names = ", ".join(name for name in allowed if name)
            raise OptionError(f"--{option} {value}: expected {names}")
    allocating.named(request.allocate)
    if request.mask is not None:
        if request != Request(request.model, mask=request.mask, shard_size=request.shard_size):
            raise OptionError(f"{request.mask} says all that stays: leave out what else would say it")
        return method, options, None
    grouped = request.keep is not None or request.of is not None
    if grouped:
        sparsity.group(request.keep, request.of)
    if (request.sparsity is not None) == grouped and not (request.budgets and not grouped):
        raise OptionError("say how much goes: --sparsity .5, or --keep 2 --of 4 (one of them)")
    share = None if request.sparsity is None else sparsity.fraction(request.sparsity)
    fixed = [
        f"--{name} {value}" for name, value, default in (
            ("scope", request.scope or "tensor", "tensor"), ("allocate", request.allocate, "uniform"),
            ("lines", request.lines, None),
        ) if value != default
    ]  # fmt: skip
    if grouped and fixed:
        raise OptionError(f"{fixed[0]}: groups of {request.of} each keep {request.keep}; leave it out")
    if len(fixed) > 1 and not (request.scope == "row" and request.allocate != "uniform" and len(fixed) == 2):
        raise OptionError(f"{' '.join(fixed)}: these exclude each other")
    if request.budgets and request.scope == "global":
        raise OptionError("--budget gives tensors a share of their own, --scope global shares one threshold")
    if method.unit == "tensor" and (request.scope == "global" or request.lines or request.tail == "dense"):
        raise OptionError(
            f"{method.name} changes what stays and works matrix by matrix: --scope tensor or row, no "
            "--lines, --tail error"
        )
    if request.refit and request.scope == "global":
        raise OptionError("--refit works matrix by matrix: --scope tensor or row")
    if (wants := wants_stats(request, method)) and request.stats is None:
        raise OptionError(f"{wants} needs statistics of inputs: `paring calibrate` makes them, for --stats")
    if request.allocate == "owl":
        outliers.check(request.outliers, request.spread)
    if request.shard_size < 1:
        raise OptionError(f"--shard-size {request.shard_size}: at least 1")
    return method, options, share


def wants_stats(request: Request, method: Method) -> str | None:
    """What asks for statistics of inputs; None where nothing looks at them."""
    wants = method.name if method.sees in ("norms", "grams") else "--refit" if request.refit else None
    return wants or ("--allocate owl" if request.allocate == "owl" else None)


def scope_of(request: Request, method: Method) -> Scope:
    """What shares one threshold where nobody says: rows, where a method is published so."""
    free = request.of is None and request.lines is None and request.allocate != "lamp"
    return "row" if method.unit == "row" and free else "tensor"
