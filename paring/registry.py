"""Methods, found by file name and loaded on demand.

``load("compress", "compeft")`` imports ``paring.compress.compeft`` and returns the function decorated there
with :func:`method`; there is no list to edit. Another distribution adds methods through the entry-point
groups ``paring.compress``, ``paring.merge`` and ``paring.prune`` (entry point = the decorated function).
Command-line options, their help, the recipe in the output and the documentation all come from the function's
signature and docstring.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from paring.errors import OptionError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

Kind = Literal["compress", "merge", "prune"]
Sees = Literal["weights", "deltas", "modules", "adapters", "tensors", "methods", "norms", "grams", "model"]
Unit = Literal["element", "row", "tensor"]


@dataclass(frozen=True, slots=True)
class Option:
    """A keyword-only argument of a method: ``types`` (int, float, bool, str) and a Literal's ``choices``."""

    name: str
    types: tuple[type, ...]
    choices: tuple[str, ...]
    default: Any
    help: str

    def parse(self, text: object) -> Any:
        """The option's value from what a user typed; values of the right type pass unchanged.

        Raises OptionError naming the option, the value and what is allowed.
        """
        if text is None and (self.default is None or type(None) in self.types):
            return None
        for kind in self.types:
            if isinstance(text, kind) and not (kind is not bool and isinstance(text, bool)):
                return text
            if kind is float and isinstance(text, int) and not isinstance(text, bool):
                return float(text)
        if isinstance(text, str):
            if text in self.choices:
                return text
            for kind in self.types:
                try:
                    if kind in (int, float):
                        return kind(text)
                except ValueError:
                    continue
        allowed = [*self.choices, *(kind.__name__ for kind in self.types if kind is not type(None))]
        raise OptionError(f"--{self.name.replace('_', '-')} {text}: expected {' or '.join(allowed)}")


@dataclass(frozen=True, slots=True)
class Method:
    """What :func:`method` makes of a function."""

    kind: str
    name: str
    function: Callable[..., Any]
    sees: Sees
    reference: str
    options: Mapping[str, Option]
    presets: Mapping[str, Mapping[str, Any]]
    unit: Unit = "element"
    torch: bool = False
    invariants: tuple[str, ...] = ()
    fixes: tuple[str, ...] = ()
    deltas: Callable[..., Any] | None = None

    @property
    def summary(self) -> str:
        """The first line of the docstring."""
        return (inspect.getdoc(self.function) or "").split("\n", 1)[0]

    def parse(self, given: Mapping[str, object]) -> dict[str, Any]:
        """All options, defaults filled in. Raises OptionError; for a wrong name it suggests the nearest."""
        for name in given:
            if name not in self.options:
                hint = nearest(name, self.options)
                raise OptionError(f"method {self.name} has no option --{name.replace('_', '-')}{hint}")
        return {name: option.parse(given.get(name, option.default)) for name, option in self.options.items()}


def method(
    *,
    sees: Sees,
    reference: str,
    presets: Mapping[str, Mapping[str, Any]] | None = None,
    unit: Unit = "element",
    torch: bool = False,
    invariants: tuple[str, ...] = (),
    fixes: tuple[str, ...] = (),
    deltas: Callable[..., Any] | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Declare a function as the method of the file it stands in.

    ``sees`` says what it is given (weights, deltas or modules; whole adapters, all together; tensors, one at
    a time; methods, for one that names others to be tried; weights and the norms of their inputs, or also the
    inputs' Gram matrix, which calibration measures; a model in memory, to retrain), ``reference`` where it
    comes from. Its keyword-only arguments become options; the docstring's ``Options:`` section gives one line
    of help each (``name: help``). ``presets`` are named sets of options; each becomes a flag (``--paper``).
    ``unit`` is what a merging rule must see at once: element, row or tensor; ``torch`` that its chunks may be
    torch tensors on a GPU; ``invariants`` are what its contract test holds it to; ``fixes`` names the options
    of a compression method that say how much is kept, so that no budget can be met beside them.

    ``deltas`` is for a compression method that takes full fine-tunes, too: given those options that it has as
    well, it returns what codes their deltas, a function of matrices and threads.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        function.__paring__ = (sees, reference, presets or {}, unit, torch, invariants, fixes, deltas)  # type: ignore[attr-defined]
        return function

    return decorate


def describe(function: Callable[..., Any], kind: str, name: str) -> Method:
    """Read a decorated function's signature and docstring. Raises TypeError for any other function."""
    if not hasattr(function, "__paring__"):
        raise TypeError(f"{kind} method {name}: {function!r} is not decorated with @method")
    sees, reference, presets, unit, torch, invariants, fixes, deltas = function.__paring__
    hints = typing.get_type_hints(function)
    text = inspect.getdoc(function) or ""
    section = text.partition("Options:")[2]
    options = {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            found = re.search(rf"^ +{parameter.name}: (.*(?:\n {{8,}}.*)*)", section, re.MULTILINE)
            line = " ".join(found[1].split()) if found else ""
            kinds, choices = _alternatives(hints[parameter.name])
            options[parameter.name] = Option(parameter.name, kinds, choices, parameter.default, line)
    return Method(
        kind, name, function, sees, reference, options, presets, unit, torch, invariants, fixes, deltas
    )


def _alternatives(hint: Any) -> tuple[tuple[type, ...], tuple[str, ...]]:
    """Split ``float | Literal["lsq"] | None`` into its types and its literal choices."""
    if typing.get_origin(hint) is Literal:
        return (), tuple(typing.get_args(hint))
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        parts = [_alternatives(part) for part in typing.get_args(hint)]
        return tuple(t for kinds, _ in parts for t in kinds), tuple(
            c for _, choices in parts for c in choices
        )
    return (hint,), ()


def names(kind: Kind) -> list[str]:
    """The methods there are, sorted; nothing is imported."""
    return sorted(_files(kind) | _entries(kind).keys())


def _files(kind: Kind) -> set[str]:
    """The methods that are files of ours; others begin with an underscore."""
    package = importlib.import_module(f"paring.{kind}")
    found = {path.stem for folder in package.__path__ for path in Path(folder).glob("*.py")}
    return {name for name in found if not name.startswith("_")}


def _entries(kind: Kind) -> dict[str, EntryPoint]:
    """The methods of other distributions; ``-`` and ``_`` are the same in a name."""
    from importlib.metadata import entry_points

    return {entry.name.replace("-", "_"): entry for entry in entry_points(group=f"paring.{kind}")}


def load(kind: Kind, name: str) -> Method:
    """Import one method by name; ours come before another distribution's of that name.

    Raises OptionError, suggesting the nearest, when there is none.
    """
    wanted = name.replace("-", "_")
    if wanted in _files(kind):
        function = getattr(importlib.import_module(f"paring.{kind}.{wanted}"), wanted)
    elif wanted in (found := _entries(kind)):  # a search through all distributions there are
        function = found[wanted].load()
    else:
        hint = nearest(wanted, names(kind)) or "; `paring methods` lists them"
        raise OptionError(f"there is no {kind} method {name!r}{hint}")
    return describe(function, kind, wanted)


def nearest(word: str, known: typing.Iterable[str]) -> str:
    """``"; did you mean 'x'?"``, or an empty string when nothing is near."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
