"""The pages: links lead somewhere, commands and code are ones that exist, generated pages are up to date.

``test_docs_run`` runs what can be run.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import subprocess
import sys
import tomllib
from typing import Any, get_args
from urllib.parse import unquote, urlsplit

import click
import pytest
import yaml

from paring import registry
from paring.errors import OptionError
from tests import documents
from tests.documents import ROOT

METHODS = [(kind, name) for kind in get_args(registry.Kind) for name in registry.names(kind)]
PAGES = documents.pages()
#: programs of others that pages may call
OTHERS = {".ci/run", "hf", "pip", "python", "python3", "mypy", "pytest", "ruff"}


def ids(things: Any) -> list[str]:
    return [str(thing.relative_to(ROOT)) if hasattr(thing, "relative_to") else str(thing) for thing in things]


@pytest.fixture(scope="module")
def build():
    spec = importlib.util.spec_from_file_location("docs_build", ROOT / "docs" / "build.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_pages_are_what_the_generator_makes(build):
    assert build.differing() == [], "python docs/build.py writes them"


def test_a_page_that_differs_lacks_or_is_left_over_is_told(build, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(build, "DOCS", tmp_path)
    assert build.main(check=False) == 0
    assert build.differing() == []
    (tmp_path / "api.md").write_text("old")
    (tmp_path / "methods" / "merge" / "ties.md").unlink()
    (tmp_path / "methods" / "merge" / "gone.md").write_text("of a method that is no more")
    wrong = ["api.md", "methods/merge/gone.md", "methods/merge/ties.md"]
    assert build.differing() == wrong
    capsys.readouterr()
    assert build.main(check=True) == 1
    told = capsys.readouterr().out
    assert [f"docs/{name} is not what" in told for name in wrong] == [True] * 3
    assert build.main(check=False) == 0
    assert build.differing() == []


@pytest.mark.parametrize(("kind", "name"), METHODS)
def test_a_method_says_what_it_costs_and_when_not_to_use_it(kind, name):
    module = inspect.getmodule(registry.load(kind, name).function)
    text = " ".join((inspect.getdoc(module) or "").split())
    before, _, after = text.partition(" Cost: ")
    cost, _, when = after.partition(" When not to use it: ")
    assert "``" in before, "no formula"
    assert min(len(before), len(cost), len(when)) > 5


@pytest.mark.parametrize("page", PAGES, ids=ids(PAGES))
def test_links_lead_somewhere(page):
    for line, link in documents.links(page):
        where = f"{page.relative_to(ROOT)}:{line}: {link}"
        parts = urlsplit(link)
        if parts.scheme:
            assert parts.scheme == "https" and parts.netloc and "." in parts.netloc, where
            assert link == link.strip() and " " not in unquote(link), where
            continue
        target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
        assert target.is_relative_to(ROOT) and target.exists(), where
        if parts.fragment:
            assert target.suffix == ".md" and parts.fragment in documents.anchors(target), where


def test_every_page_is_reached_from_the_entries():
    found, todo = set(), [ROOT / "README.md", ROOT / "docs" / "README.md"]
    while todo:
        page = todo.pop()
        if page in found:
            continue
        found.add(page)
        paths = [urlsplit(link).path for _, link in documents.links(page) if not urlsplit(link).scheme]
        todo += [
            target for path in paths if path.endswith(".md") and (target := (page.parent / path).resolve())
        ]
    assert sorted(set(PAGES) - found) == []


COMMANDS = [b for b in documents.every("console", "bash", "sh") if not b.note.startswith("external")]


@pytest.mark.parametrize("block", COMMANDS, ids=ids(COMMANDS))
def test_commands_are_ones_that_exist(block):
    shown = documents.commands(block)
    assert shown, f"{block}: a block of {block.language} without a command"
    for command in shown:
        program = documents.tool(command.words)
        if program not in documents.TOOLS:
            assert program in OTHERS or command.words[0] in OTHERS, f"{block}: {command.words[0]}"
            continue
        try:
            documents.check(command.words)
        except (click.ClickException, OptionError) as error:
            pytest.fail(f"{block}: {' '.join(command.words)}: {getattr(error, 'message', error)}")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("merge a b --method ties --densty .3 -o x", "No such option"),
        ("merge a b --method linear --density .3 -o x", "No such option"),
        ("merge a b --method tie -o x", "did you mean 'ties'"),
        ("merge a b --method ties --sign masses -o x", "expected mass or count"),
        ("merge a b --method ties", "output"),
        ("prune m --sparsity .5 --retrain perp --step 5 -o x", "No such option"),
        ("prune m --sparsity .5 --retrain perp --steps few -o x", "expected int"),
        ("paring mask aply m n -o x", "No such command"),
        ("paring inspct x", "did you mean 'inspect'"),
    ],
)
def test_a_wrong_command_is_noticed(words, message):
    with pytest.raises((click.ClickException, OptionError)) as caught:
        documents.check(tuple(words.split()))
    assert message in str(getattr(caught.value, "message", caught.value)) or message in str(caught.value)


PYTHON = documents.every("python")


@pytest.mark.parametrize("block", PYTHON, ids=ids(PYTHON))
def test_python_compiles_and_calls_what_exists(block):
    documents.check_python(block.code)


@pytest.mark.parametrize(
    "code",
    [
        "from paring.api import compres",
        "from paring.api import compress\ncompress('a', ration=20)",
        "from paring.api import merge\nmerge(['a'], 'b', method='ties', dense=1)",
        "from paring.api import load\nload('a', 'b')",
        "from paring.api import load\nload(",
    ],
)
def test_wrong_python_is_noticed(code):
    with pytest.raises((ImportError, TypeError, OptionError, SyntaxError)):
        documents.check_python(code)


DATA = documents.every("json", "yaml", "toml")


@pytest.mark.parametrize("block", DATA, ids=ids(DATA))
def test_data_is_well_formed(block):
    read: dict[str, Any] = {"json": json.loads, "yaml": yaml.safe_load, "toml": tomllib.loads}
    assert read[block.language](block.code)


def test_extras_that_pages_name_exist():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for block in COMMANDS:
        for command in documents.commands(block):
            for word in command.words:
                if word.startswith(("paring[", ".[")):
                    assert word.partition("[")[2].rstrip("]") in extras, f"{block}: {word}"


def test_the_generator_runs_as_a_script():
    done = subprocess.run(
        [sys.executable, "docs/build.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
