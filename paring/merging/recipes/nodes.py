"""YAML that others wrote, with the line of every value, so that an error can say where.

Only plain data is read: no tags, no merge keys, no key twice. Files are limited in size, and anchors may not
make a small file a large tree.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import yaml

from paring.errors import BadFileError, OptionError
from paring.registry import nearest
from paring.untrusted import read_bounded

MAX_BYTES = 256 << 10
MAX_VALUES = 20_000
MAX_DEPTH = 32

_PLAIN = {f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float", "str")}
_KINDS: dict[type, str] = {
    type(None): "nothing", bool: "yes or no", int: "a number", float: "a number", str: "text",
    list: "a list", dict: "a mapping",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Node:
    """A value and where it stands (``recipe.yaml:12``); lists and mappings hold nodes."""

    value: Any
    where: str

    def error(self, text: str) -> OptionError:
        return OptionError(f"{self.where}: {text}")

    def wrong(self, expected: str) -> NoReturn:
        shown = f" {self.value!r}" if isinstance(self.value, str | int | float) else ""
        raise self.error(f"expected {expected}, not {_KINDS[type(self.value)]}{shown}")

    def mapping(self, what: str, known: Collection[str] | None = None) -> dict[str, Node]:
        """The values by key; with ``known`` any other key is refused, the nearest being suggested. Raises
        OptionError.
        """
        if not isinstance(self.value, dict):
            self.wrong(what)
        for key, (_, where) in self.value.items():
            if known is not None and key not in known:
                hint = nearest(key, known) or f"; there are {', '.join(sorted(known))}"
                raise OptionError(f"{where}: {what} has no key {key!r}{hint}")
        return {key: node for key, (node, _) in self.value.items()}

    def key(self, name: str) -> Node:
        """The key ``name`` of a mapping, as a node: where it stands."""
        return Node(name, self.value[name][1])

    def items(self, what: str) -> list[Node]:
        if not isinstance(self.value, list) or not self.value:
            self.wrong(f"a list of {what}")
        found: list[Node] = self.value
        return found

    def text(self, what: str) -> str:
        if not isinstance(self.value, str) or not self.value or "\0" in self.value:
            number = isinstance(self.value, int | float)
            self.wrong(f"{what} in quotes" if number else what)
        return self.value

    def number(self, what: str = "a number") -> float:
        """A finite number; ``1e-3``, which YAML takes for text, is one."""
        value = self.value
        if isinstance(value, str):
            try:
                value = float(value)
            except ValueError:
                self.wrong(what)
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.wrong(what)
        try:
            found = float(value)
        except OverflowError:
            found = math.inf
        if not math.isfinite(found):
            raise self.error(f"expected {what}, and a finite one")
        return found

    def whole(self, what: str) -> int:
        if isinstance(self.value, bool) or not isinstance(self.value, int) or self.value < 0:
            self.wrong(what)
        return self.value

    def boolean(self) -> bool:
        if not isinstance(self.value, bool):
            self.wrong("true or false")
        return self.value

    def plain(self) -> Any:
        """The value of a scalar."""
        if isinstance(self.value, list | dict):
            self.wrong("a single value")
        return self.value


def read(path: Path) -> Node:
    """The one document in ``path``. Raises BadFileError for a file that is not YAML, OptionError for what is,
    but means nothing here; both say the line.
    """
    raw = read_bounded(path, MAX_BYTES, "a recipe")
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        raise BadFileError(f"{path} is not text in UTF-8, and no recipe") from None
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        raise BadFileError(f"{path}{line}: not valid YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise BadFileError(f"{path}: not valid YAML: {str(error).splitlines()[0]}") from None
    except RecursionError:
        raise BadFileError(f"{path}: YAML nested too deeply to read") from None
    if root is None:
        raise BadFileError(f"{path} is empty")
    return _Reader(path).node(root, 0)


class _Reader:
    """From PyYAML's nodes to ours."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._left = MAX_VALUES
        self._scalars = yaml.SafeLoader("")

    def node(self, node: Any, depth: int) -> Node:
        where = f"{self._path}:{node.start_mark.line + 1}"
        self._left -= 1
        if self._left < 0:
            raise OptionError(f"{where}: more than {MAX_VALUES} values, too many for a recipe")
        if depth > MAX_DEPTH:
            raise OptionError(f"{where}: nested too deeply for a recipe")
        if isinstance(node, yaml.MappingNode) and node.tag == "tag:yaml.org,2002:map":
            return Node(dict(self._pairs(node, depth)), where)
        if isinstance(node, yaml.SequenceNode) and node.tag == "tag:yaml.org,2002:seq":
            return Node([self.node(item, depth + 1) for item in node.value], where)
        if not isinstance(node, yaml.ScalarNode) or node.tag not in _PLAIN:
            what = f"{node.value!r} is a {node.tag.rpartition(':')[2]}" if node.id == "scalar" else node.tag
            raise OptionError(f"{where}: {what}, which recipes do not have; put text in quotes")
        try:
            return Node(self._scalars.construct_object(node), where)
        except ValueError as error:
            raise OptionError(f"{where}: {error}") from None

    def _pairs(self, node: Any, depth: int) -> Iterator[tuple[str, tuple[Node, str]]]:
        seen: dict[str, str] = {}
        for key, value in node.value:
            where = f"{self._path}:{key.start_mark.line + 1}"
            if not isinstance(key, yaml.ScalarNode):
                raise OptionError(f"{where}: keys must be text")
            name = str(key.value)
            if name in seen:
                raise OptionError(
                    f"{where}: the key {name!r} is given twice, first in line {seen[name].rpartition(':')[2]}"
                )
            seen[name] = where
            yield name, (self.node(value, depth + 1), where)
