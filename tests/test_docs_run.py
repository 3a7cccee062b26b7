"""What the pages show is run: guides and README, in a folder that holds small things of those names."""

from __future__ import annotations

import shutil
import warnings

import pytest

from tests import docs_world as world
from tests import documents, hubbing, running
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


README = [
    (block, command)
    for block in documents.blocks(ROOT / "README.md")
    if block.language == "console" and not block.note.startswith("not run: ")
    for command in documents.commands(block)
]


@pytest.fixture(scope="module")
def readme(tmp_path_factory):
    """The world with what the README's commands take that others of them make."""
    place = world.make(tmp_path_factory.mktemp("readme") / "world")
    (place / "fixtures").unlink()
    rotten = ROOT / "fixtures" / "adapters" / "rotten"
    shutil.copytree(rotten, place / "fixtures" / "adapters" / "rotten")
    shutil.copytree(rotten, place / "rotten")
    running.put(place / "deep", num_hidden_layers=32)
    running.put(place / "long", max_position_embeddings=512)
    with pytest.MonkeyPatch.context() as patch, world.inside(place, patch):
        for line in (
            "compress rotten/ --method truncate --rank 1 -o rotten.paring.safetensors",
            "paring convert lora/ --dialect kohya -o lora.safetensors",
            "merge a/ b/ --base base/ --method ties -o merged/",
            "prune model/ --sparsity .5 --save-mask mask.safetensors -o pruned/",
            "paring calibrate model/ --data text.txt --gram -o stats.safetensors",
        ):
            code, printed = world.run(line.split())
            assert code == 0, printed
    return place


@pytest.mark.parametrize(("block", "command"), README, ids=[" ".join(c.words) for _, c in README])
def test_the_readme_does_what_it_shows(block, command, readme, tmp_path, hub, monkeypatch):
    """Each command by itself: what it takes is there, what it makes is not."""
    place = shutil.copytree(readme, tmp_path / "world", symlinks=True)
    words = command.words
    if words[0] == "compress":  # a/ and b/ are adapters here, and checkpoints elsewhere
        for name, other in (("a", "maths"), ("b", "code"), ("c", "chat"), ("adapter", "rotten")):
            shutil.rmtree(place / name)
            shutil.copytree(place / other, place / name)
        shutil.rmtree(place / "adapters")
        for name in ("one", "two"):
            shutil.copytree(place / "rotten", place / "adapters" / name)
    larger = "deep" if words[1] == "shrink" else "long" if "--retrain" in words else None
    if larger:
        shutil.rmtree(place / "model")
        (place / larger).rename(place / "model")
    if "-o" in words and (made := place / words[words.index("-o") + 1]).exists():
        shutil.rmtree(made) if made.is_dir() else made.unlink()
    for word in words[1:]:
        if word.startswith("me/") and words[words.index(word) - 1] != "--push-to-hub":
            hubbing.put(hub, word, place / word.removeprefix("me/"))
    fewer = {"--retrain": ("--steps", "5"), "--search": ("--trials", "3")}  # than the default, for time
    more = next((extra for option, extra in fewer.items() if option in words), ())
    with world.inside(place, monkeypatch):
        world.follow_one(block, documents.Command((*words, *more), command.output))
