"""The documentation as data: fenced blocks, commands, links; and commands checked without being run."""

from __future__ import annotations

import ast
import copy
import importlib
import inspect
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, get_args

import click

from paring import cli, registry

ROOT = Path(__file__).parent.parent
TOOLS = ("compress", "merge", "prune", "paring")


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block: its language, its lines, and the HTML comment on the line above, if any."""

    page: Path
    line: int
    language: str
    code: str
    note: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


@dataclass(frozen=True, slots=True)
class Command:
    """A command that a page shows, and the lines that it shows of what the command prints."""

    words: tuple[str, ...]
    output: tuple[str, ...]


def pages() -> list[Path]:
    """All pages there are."""
    top = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
    return [*top, *sorted((ROOT / "docs").rglob("*.md"))]


@lru_cache
def blocks(page: Path) -> tuple[Block, ...]:
    found: list[Block] = []
    lines = page.read_text(encoding="utf-8").splitlines()
    start, note = None, ""
    for number, line in enumerate(lines):
        fence = re.fullmatch(r"```(\S*)", line)
        if start is None and fence:
            start = number
            above = re.fullmatch(r"<!-- (.+) -->", lines[number - 1]) if number else None
            note = above[1] if above else ""
        elif start is not None and line == "```":
            code = "\n".join(lines[start + 1 : number])
            found.append(Block(page, start + 1, lines[start][3:], code, note))
            start = None
    assert start is None, f"{page}: a fence is not closed"
    return tuple(found)


def every(*languages: str) -> list[Block]:
    """The blocks of these languages in all pages."""
    return [block for page in pages() for block in blocks(page) if block.language in languages]


def commands(block: Block) -> list[Command]:
    """Of ``console``: what follows a prompt, and what is printed; of ``bash``: every line."""
    code = re.sub(r"\\\n\s*", "", block.code)
    found: list[tuple[str, list[str]]] = []
    for line in code.splitlines():
        if block.language == "bash" and line.strip() and not line.startswith("#"):
            found += [(part, []) for part in line.split(" && ")]
        elif line.startswith("$ "):
            found.append((line[2:], []))
        elif found:
            found[-1][1].append(line)
    split = [(shlex.split(re.sub(r"(^|\s)#.*", "", text)), lines) for text, lines in found]
    return [Command(tuple(words), tuple(lines)) for words, lines in split if words]


def tool(words: tuple[str, ...]) -> str:
    """The program that a command calls, whatever folder it is in."""
    return Path(words[0]).name


def check(words: tuple[str, ...]) -> None:
    """Raise click.ClickException or ParingError for a command of ours that our command line would refuse
    before it looks at files: options and their values, those of methods too.
    """
    rest = [word for word in words[1:] if word != "--offline"]  # which acts when it is read
    rest = rest if tool(words) == "paring" else [tool(words), *rest]
    command: click.Command = cli.paring
    context = click.Context(command, info_name="paring")
    while isinstance(command, click.Group):
        _, found, rest = command.resolve_command(context, rest)
        assert found is not None
        command = copy.copy(found)
        context = click.Context(command, info_name=found.name, parent=context)
    command.parse_args(context, list(rest))
    if command.name in get_args(registry.Kind):
        kind: Any = command.name
        given = context.params
        _check_method(kind, given["method"], "method_", given)
        if given.get("retrain"):
            _check_method(kind, given["retrain"], "retrain_", given)


def _check_method(kind: registry.Kind, name: str, prefix: str, given: Mapping[str, Any]) -> None:
    """Hold the options of one method, as click found them, to its signature."""
    typed = {key.removeprefix(prefix): value for key, value in given.items() if key.startswith(prefix)}
    registry.load(kind, name).parse({key: value for key, value in typed.items() if value is not None})


def check_python(code: str) -> None:
    """Compile code, import what it imports, and hold its calls of that to their signatures."""
    tree = ast.parse(code)
    names: dict[str, Any] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            module = importlib.import_module(node.module)
            names |= {alias.asname or alias.name: _member(module, alias.name) for alias in node.names}
        elif isinstance(node, ast.Import):
            for alias in node.names:
                importlib.import_module(alias.name)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names:
            _check_call(node, names[node.func.id])


def _member(module: Any, name: str) -> Any:
    if not hasattr(module, name):
        return importlib.import_module(f"{module.__name__}.{name}")
    return getattr(module, name)


def _check_call(node: ast.Call, function: Any) -> None:
    if isinstance(function, type) or any(isinstance(each, ast.Starred) for each in node.args):
        return  # classes of exceptions have no signatures
    keywords: dict[str, ast.expr] = {key.arg: key.value for key in node.keywords if key.arg is not None}
    inspect.signature(function).bind(*node.args, **keywords)
    kind: Any = getattr(function, "__name__", "")
    if kind in get_args(registry.Kind) and function.__module__.startswith("paring.api."):
        parameters = inspect.signature(function).parameters
        method = keywords.get("method")
        name = ast.literal_eval(method) if method is not None else parameters["method"].default
        rest = {key: ast.literal_eval(value) for key, value in keywords.items() if key not in parameters}
        registry.load(kind, name).parse(rest)


def links(page: Path) -> Iterator[tuple[int, str]]:
    """The targets of all links and pictures, with the numbers of their lines; code is none."""
    inside = False
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        inside ^= line.startswith("```")
        if not inside:
            for found in re.finditer(
                r"\]\(([^()\s]*(?:\([^()\s]*\)[^()\s]*)*)\)", re.sub(r"`[^`]*`", "", line)
            ):
                yield number, found[1]


@lru_cache
def anchors(page: Path) -> frozenset[str]:
    """What a link into a page may name, as GitHub makes it of headings."""
    seen: dict[str, int] = {}
    found, inside = set(), False
    for line in page.read_text(encoding="utf-8").splitlines():
        inside ^= line.startswith("```")
        heading = re.match(r"#{1,6} (.+)", line)
        if heading and not inside:
            text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading[1].replace("`", ""))
            slug = re.sub(r"[^\w\- ]", "", text.strip().lower()).replace(" ", "-")
            count = seen.get(slug, 0)
            seen[slug] = count + 1
            found.add(f"{slug}-{count}" if count else slug)
    return frozenset(found)


def skeleton(line: str) -> str:
    """A printed line without what differs from run to run: numbers, units, addresses, rules of tables."""
    line = re.sub(r"https?://\S+", "URL", line)
    line = re.sub(r"\b[kMGT]B\b", "B", line)
    return " ".join(re.sub(r"[\d.,]+|─+|[-+](?=\d)", "#", line).split())


def figures(line: str) -> list[float]:
    """The numbers of a printed line, without those of time and memory."""
    if line.startswith("took"):
        return []
    line = re.sub(r"https?://\S+|\b[\d.]+ s\b", "", line)
    return [float(found.replace(",", "")) for found in re.findall(r"\d[\d,]*(?:\.\d+)?", line)]
