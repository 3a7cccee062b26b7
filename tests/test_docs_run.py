"""What the pages show is run: guides and README, in a folder that holds small things of the names they use."""

from __future__ import annotations

import shutil
import warnings

import pytest

from tests import docs_world as world
from tests import documents
from tests.documents import ROOT

GUIDES = sorted((ROOT / "docs" / "guides").glob("*.md"))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return world.make(tmp_path_factory.mktemp("docs") / "world")


@pytest.fixture
def place(made, tmp_path):
    """A copy of the world, for one page."""
    return shutil.copytree(made, tmp_path / "world", symlinks=True)


@pytest.mark.parametrize("page", GUIDES, ids=[page.stem for page in GUIDES])
def test_guides_do_what_they_show(page, place, hub, monkeypatch):
    names: dict[str, object] = {}
    if "minilm/" in page.read_text(encoding="utf-8"):
        world.minilm(place / "minilm")
    with world.inside(place, monkeypatch):
        for block in documents.blocks(page):
            if block.note.startswith("not run: "):
                continue
            if block.note.startswith("file: "):
                (place / block.note.removeprefix("file: ")).write_text(block.code)
            elif block.language == "console":
                world.follow(block, fails=block.note == "fails")
            elif block.language == "python":
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", FutureWarning)  # of peft about transformers
                    exec(compile(block.code, str(block), "exec"), names)


def test_output_that_is_not_printed_is_noticed(place, monkeypatch):
    block = documents.Block(ROOT / "README.md", 1, "console", "$ paring inspect maths/\nkind  a poem", "")
    with world.inside(place, monkeypatch), pytest.raises(AssertionError, match="no 'kind  a poem'"):
        world.follow(block)
