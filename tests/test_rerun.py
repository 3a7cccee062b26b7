"""``paring rerun``: the same bytes again, from the recipe in the result; or a clear word why not."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

import paring
from paring.api import compress, merge, merge_recipe, rerun
from paring.checkpoint import open_checkpoint, write_safetensors
from paring.dtypes import Stored
from paring.errors import BadFileError, OptionError, OutputError, UnsupportedError
from paring.merging.recipes.stored import _SOUND, request_of
from paring.merging.request import Request
from tests.helpers import names, put_adapter
from tests.merging import arrays, put_model
from tests.test_merge_adapters import config, lora

BASE = arrays(0)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with base, a and b, bf16, which is the current one."""
    for seed, name in enumerate(("base", "a", "b")):
        put_model(
            tmp_path / name, arrays(seed, BASE) if seed else BASE, "BF16", limit=(1 << 40, 50_000)[seed % 2]
        )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def tensor_files(path):
    with open_checkpoint(path) as found:
        return [file.read_bytes() for file in found.files]


def test_a_checkpoint_of_one_and_of_several_shards(here):
    merge(["a", "b"], "one", method="ties", base="base", weights=[1, [0.5, 1]], scale=0.9, density=0.3)
    merge(["a", "b"], "many", dtype="fp32", shard_size=100_000)
    merge(["a", "b"], "file.safetensors", method="dare", base="base", seed=7)
    for made, new, count in (
        ("one", "one2", 1),
        ("many", "many2", 4),
        ("file.safetensors", "f2.safetensors", 1),
    ):
        report = rerun(made, new, threads=2)
        assert (report.same, report.command) == (True, "rerun")
        assert tensor_files(new) == tensor_files(made)
        assert len(tensor_files(new)) == count
    assert names(here / "many2") == names(here / "many")
    assert (here / "one2" / "README.md").read_bytes() == (here / "one" / "README.md").read_bytes()


def test_adapters(here):
    put_adapter(here / "x", lora(1), config())
    put_adapter(here / "y", lora(2, rank=5), config(5))
    merge(["x", "y"], "xy", weights=[0.7, 0.3], rank=4)
    merge(["x", "y"], "xy.safetensors", method="task_arithmetic")
    for made, new in (("xy", "again"), ("xy.safetensors", "again.safetensors")):
        assert rerun(made, new).same
        assert tensor_files(new) == tensor_files(made)
    assert (here / "again/adapter_config.json").read_bytes() == (here / "xy/adapter_config.json").read_bytes()


RECIPE = """
stages:
  half: {models: [{model: a, weight: {mlp: [1, 2]}}, b], dtype: fp32}
method: passthrough
tail: last
slices:
  - {model: half, layers: [0, 2]}
  - {model: base, layers: [1, 2], weight: 0.5}
  - half
options: {stack: model.layers}
"""


def test_a_recipe_with_stages_and_a_stack(here):
    for name in ("base", "a", "b"):
        shutil.rmtree(here / name)
        some = {k: v for k, v in arrays(len(name), BASE).items() if ".q_proj." in k or "layers" not in k}
        put_model(
            here / name, {**some, **{f"model.layers.{i}.mlp.w": np.ones(3, np.float32) for i in range(3)}}
        )
    (here / "r.yaml").write_text(RECIPE)
    merge_recipe("r.yaml", "out")
    assert rerun("out", "again").same
    assert tensor_files("again") == tensor_files("out")
    assert json.loads((here / "again/config.json").read_text())["num_hidden_layers"] == 6
    assert not [name for name in names(here) if name.startswith(".")]


def test_a_packed_file(here):
    put_adapter(here / "x", lora(1), config())
    compress("x", ratio=3)
    assert rerun("x.paring.safetensors", "again.safetensors").same
    assert (here / "again.safetensors").read_bytes() == (here / "x.paring.safetensors").read_bytes()
    (here / "x").rename(here / "moved")
    with pytest.raises(BadFileError, match=r"adapter_model\.safetensors, which is not here"):
        rerun("x.paring.safetensors", "more.safetensors")
    assert rerun("x.paring.safetensors", "more.safetensors", source="moved").same
    put_adapter(here / "other", lora(2), config())
    with pytest.raises(BadFileError, match="tensors differ"):
        rerun("x.paring.safetensors", "last.safetensors", source="other")


def test_inputs_that_have_moved(here, monkeypatch):
    merge(["a", "b"], "out", method="task_arithmetic", base="base")
    (here / "below").mkdir()
    monkeypatch.chdir(here / "below")  # not from here, but from the folder of the result
    assert rerun(here / "out", "again").same
    (here / "b").rename(here / "c")
    with pytest.raises(BadFileError, match="out was made of b, which is not here or in"):
        rerun(here / "out", "more")
    assert names(here / "below") == ["again"]


def test_inputs_and_versions_that_have_changed(here, monkeypatch):
    merge(["a", "b"], "out")
    before = paring.__version__
    monkeypatch.setattr(paring, "__version__", "99")
    report = rerun("out", "newer")
    assert not report.same
    assert report.warnings[-2:] == [
        f"out was made by paring {before}, this is 99",
        "newer has the same tensors as out, in other files or beside other metadata",
    ]
    monkeypatch.undo()
    monkeypatch.chdir(here)
    shutil.rmtree(here / "b")
    put_model(here / "b", arrays(9, BASE), "BF16")
    report = rerun("out", "other")
    assert not report.same
    assert "differs from out: an input has changed" in report.warnings[-1]


def test_what_cannot_be_repeated_is_refused(here):
    with pytest.raises(UnsupportedError, match="a holds no recipe"):
        rerun("a", "out")
    with pytest.raises(BadFileError, match="does not exist"):
        rerun("none", "out")
    merge(["a", "b"], "made")
    with pytest.raises(OptionError, match="made is a folder"):
        rerun("made", "one.safetensors")
    with pytest.raises(OutputError, match="made is an input"):
        rerun("made", "made", overwrite=True)
    with pytest.raises(OutputError, match="overwrite"):
        rerun("made", "base")
    assert rerun("made", "dry", dry_run=True).same is None
    tensors = {"x.weight": arrays(0)["model.norm.weight"]}
    for recipe, what in (
        ("{", "its recipe is not valid JSON"),
        ('{"command": "convert"}', "made by convert, which cannot"),
        ('{"command": "merge"}', "names no models"),
        ('{"command": "merge", "models": ["a"], "speed": 3}', "'speed', which this version does not know"),
        ('{"command": "merge", "models": "a"}', "models is a"),
        ('{"command": "merge", "models": ["a"], "patterns": [["x", -1, 2]]}', "patterns is"),
        ('{"command": "merge", "models": ["a"], "layers": [[0, "x"]]}', "layers is"),
        ('{"command": "merge", "models": ["a"], "stages": {"../x": {}}}', "stages is"),
        (
            '{"command": "merge", "models": ["a", "b"], "patterns": [["x", 2, 2.0]]}',
            "of model 2, and there are 2",
        ),
        ('{"command": "merge", "models": ["a"], "method": "teis"}', "did you mean 'ties'"),
    ):
        file = here / "odd.safetensors"
        file.unlink(missing_ok=True)
        stored = {name: Stored("F32", value) for name, value in tensors.items()}
        write_safetensors(file, stored, {"format": "pt", "paring": recipe})
        with pytest.raises((BadFileError, UnsupportedError, OptionError), match=what):
            rerun(file, "new.safetensors")
    assert "new.safetensors" not in names(here)


def test_a_recipe_comes_back_from_json_as_it_was():
    request = Request(
        ["a", "b"], "c", None, "ties", [1.0, [0, 2]], [("x*", 1, 0.5)], 0.3, "bf16", "copy", 4, "drop",
        None, 7, {"density": 0.1}, [None, [0, 2], [1, 3]], None, {"s": {"models": ["a"]}},
    )  # fmt: skip
    told = json.loads(json.dumps(request.recipe()))
    assert json.loads(json.dumps(request_of(told, "x").recipe())) == told
    assert set(Request.__dataclass_fields__) == set(_SOUND)


def test_the_command(here):
    merge(["a", "b"], "out")

    def run(*arguments):
        code = "from paring.cli import main; main()"
        return subprocess.run(
            [sys.executable, "-c", code, "rerun", *arguments], capture_output=True, text=True, check=False
        )

    done = run("out", "-o", "again", "--json")
    assert (done.returncode, json.loads(done.stdout)["same"]) == (0, True)
    done = run("out", "-o", "more")
    assert (done.returncode, "bit for bit" in done.stdout) == (0, True)
    shutil.rmtree(here / "b")
    put_model(here / "b", arrays(9, BASE), "BF16")
    done = run("out", "-o", "last", "-q")
    assert (done.returncode, done.stdout) == (1, "")
