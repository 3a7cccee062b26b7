"""The example of docs/adding-a-method.md: taken from the page, installed, and used by our command line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import docs_world as world
from tests import documents
from tests.documents import ROOT

BLOCKS = documents.blocks(ROOT / "docs" / "adding-a-method.md")
SHOWN = [block for block in BLOCKS if block.note.startswith("external")]
RUN = "import sys; from paring import cli; getattr(cli, sys.argv.pop(1))()"


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder with the distribution, as pip installs it; nothing is downloaded."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    for block in BLOCKS:
        if block.note.startswith("file: "):
            (source / block.note.removeprefix("file: ")).write_text(block.code + "\n")
    offline = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    pip = [sys.executable, "-m", "pip", "install", *offline, "--target", str(target), str(source)]
    done = subprocess.run(pip, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (target / "my_merging.py").exists()
    return target


def test_a_method_of_another_distribution_is_a_method(installed, tmp_path):
    place = world.make(tmp_path / "world")
    path = os.pathsep.join([str(installed), str(ROOT)])
    told = {**os.environ, "PYTHONPATH": path, "OMP_WAIT_POLICY": "passive", "COLUMNS": "80"}

    def run(words: tuple[str, ...]) -> tuple[int, str]:
        name = words[0] if words[0] != "paring" else ""
        function = f"{name}_main".lstrip("_")
        done = subprocess.run(
            [sys.executable, "-c", RUN, function, *words[1:]], cwd=place, env=told, text=True, check=False,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        return done.returncode, done.stdout

    assert SHOWN
    for block in SHOWN:
        world.follow(block, fails=block.note.endswith("fails"), by=run)


def test_the_example_is_short():
    (code,) = [block.code for block in BLOCKS if block.note == "file: my_merging.py"]
    body = code.partition('"""\n\n')[2]
    assert sum(bool(line.strip()) for line in body.splitlines()) <= 20


def test_the_way_to_prune_prunes():
    from paring.pruning.matrix import Matrix
    from paring.registry import describe

    (code,) = [b.code for b in BLOCKS if b.language == "python" and "paring.pruning" in b.code]
    names: dict[str, object] = {"__name__": "mine"}
    exec(compile(code, "adding-a-method.md", "exec"), names)
    method = describe(names["by_row"], "prune", "by_row")
    import numpy as np

    weights = np.array([[1, -2, 4], [0, 0, 0]], np.float32)
    np.testing.assert_array_equal(
        method.function(Matrix("w", weights)), np.array([[0.25, 0.5, 1], [0, 0, 0]], np.float32)
    )
