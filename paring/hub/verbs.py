"""Verbs that take sources from the Hub: their reports and errors call them as users do."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any, ParamSpec, TypeVar

from paring.errors import ParingError
from paring.hub.names import readable, told

P = ParamSpec("P")
R = TypeVar("R")


def naming(verb: Callable[P, R]) -> Callable[P, R]:
    """``verb``, with the Hub's names in place of paths in the client's cache: in what it raises, and in the
    inputs, base and warnings that its report tells.
    """

    @functools.wraps(verb)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            found = verb(*args, **kwargs)
        except ParingError as error:
            error.args = (readable(str(error)), *error.args[1:])
            raise
        named: R = _named(found)
        return named

    return wrapped


def _named(report: Any) -> Any:
    """A report whose texts are readable; anything else as it is."""
    if not is_dataclass(report) or isinstance(report, type):
        return report
    changes: dict[str, Any] = {}
    for item in fields(report):
        value = getattr(report, item.name)
        if item.name == "inputs":
            changes["inputs"] = [told(path) for path in value]
        elif item.name == "base" and isinstance(value, str):
            changes["base"] = told(value)
        elif item.name in ("warnings", "passed", "failed", "problems"):
            changes[item.name] = [readable(text) for text in value]
        elif item.name == "merge":
            changes["merge"] = _named(value)
    return replace(report, **changes) if changes else report
