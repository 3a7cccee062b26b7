"""Recipes: read and refused with the line; weights by pattern and layer; stages; stacks of layers."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from paring.api import load, merge, merge_recipe
from paring.checkpoint import open_checkpoint
from paring.errors import BadFileError, OptionError, OutputError, UnsupportedError
from paring.merging import stages
from paring.merging.recipes.recipe import read_recipe
from tests.helpers import names
from tests.merging import SHAPES, arrays, put_model

BASE = arrays(0)
A, B = arrays(1, BASE), arrays(2, BASE)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with base, a and b, fp32, which is the current one."""
    for name, values in (("base", BASE), ("a", A), ("b", B)):
        put_model(tmp_path / name, values)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(text):
    Path("r.yaml").write_text(text)
    return "r.yaml"


def values(path):
    return {name: tensor.numpy() for name, tensor in load(path).items()}


def same(first, second):
    with open_checkpoint(first) as one, open_checkpoint(second) as other:
        return one.digest() == other.digest()


WRONG = [
    ("method: tise\nmodels: [a]", 1, "did you mean 'ties'"),
    ("models: [a]\nmetod: ties", 2, "no key 'metod'; did you mean 'method'"),
    ("models: [a]\nmodels: [b]", 2, "given twice, first in line 1"),
    ("models:\n  - a\n  - c", 3, "c does not exist"),
    ("models:\n  - model: a\n    wieght: 1", 3, "did you mean 'weight'"),
    ("models:\n  - weight: 1", 2, "which model?"),
    ("models: []", 1, "expected a list of models"),
    ("models: [7]", 1, "in quotes, not a number 7"),
    ("method: linear", 1, "needs models"),
    ("models:\n  - model: a\n    weight: heavy", 3, "'heavy'"),
    ("models:\n  - model: a\n    weight: .inf", 3, "finite"),
    ("models:\n  - model: a\n    weight: [1, x]", 3, "'x'"),
    ("models:\n  - model: a\n    weight: yes", 3, "not yes or no"),
    ("method: ties\nmodels: [a]\noptions:\n  desity: .2", 4, "did you mean 'density'"),
    ("method: ties\nmodels: [a]\noptions:\n  density: much", 4, "density much: expected float"),
    ("method: ties\nmodels: [a]\ndensity: .2", 3, "option of ties: write it under options"),
    ("models: [a]\nweights: [1]", 2, "weight: 1.0"),
    ("models: [a]\nscale: 2", 2, "scale multiplies deltas"),
    ("models: [a]\ndtype: bf61", 2, "did you mean 'bf16'"),
    ("models: [a]\nmissing: ignore", 2, "refuse or copy"),
    ("models: [a]\nrank: -1", 2, "exact, or a number"),
    ("models: [a]\nshard_size: big", 2, "not a size"),
    ("models: [a]\nlayers: [3, 1]", 2, "one after the last"),
    ("models: [a]\ntail: last", 2, "tail is for passthrough"),
    ("models: [a]\nslices:\n  - model: a", 2, "write models"),
    ("method: passthrough\nmodels: [a]", 2, "write slices"),
    ("method: passthrough\nslices: [a]\nbase: b", 3, "base is not for passthrough"),
    ("models: [a]\nbase: b\ninto: b", 3, "give one of them"),
    ("stages:\n  x: {models: [y]}\n  y: {models: [a]}\nmodels: [x]", 2, "comes later"),
    ("stages:\n  x: {models: [a]}\nmodels: [b]", 2, "used by nothing"),
    ("stages:\n  b: {models: [a]}\nmodels: [b]", 2, "call it something else"),
    ("stages:\n  ../x: {models: [a]}\nmodels: [b]", 2, "letters, digits"),
    ("stages:\n  x: {models: [a], stages: {}}\nmodels: [x]", 2, "no key 'stages'"),
    ("stages:\n  first: {models: [a]}\nmodels: [frist]", 3, "did you mean 'first'"),
    ("models: [a]\nbase: 2020-01-01", 2, "timestamp"),
    ("models: [a]\nbase: !!python/name:os.system x", 2, "recipes do not have"),
    ("models: &m [*m]", 1, "nested too deeply"),
    ("- a\n- b", 1, "expected a recipe, not a list"),
    ("models: [a]\nmethod: linear\nmerge_method: linear", 2, "give one"),
]


@pytest.mark.parametrize(("text", "line", "what"), WRONG)
def test_every_error_has_its_line(here, text, line, what):
    with pytest.raises(OptionError) as caught:
        read_recipe(here / write(text))
    assert str(caught.value).startswith(f"{here}/r.yaml:{line}: "), caught.value
    assert what in str(caught.value)


def test_what_is_no_yaml_is_refused(here):
    bomb = "a: &a [x, x, x, x, x, x, x, x]\n" + "".join(
        f"{b}: &{b} [{', '.join([f'*{a}'] * 8)}]\n" for a, b in zip("abcdef", "bcdefg", strict=True)
    )
    with pytest.raises(OptionError, match=r"r\.yaml:.*too many for a recipe"):
        merge_recipe(write(bomb), "out")
    for text, what in (
        ("models: [a\nx: y", r"r.yaml:2: not valid YAML"),
        ("", "is empty"),
        ("a: \x00", "not valid YAML"),
        ("[" * 5000, "nested too deeply"),
        ("#" * 300_000, "too large for a recipe"),
    ):
        with pytest.raises(BadFileError, match=what):
            merge_recipe(write(text), "out")
    with pytest.raises(BadFileError, match="not found"):
        merge_recipe("none.yaml", "out")
    assert not (here / "out").exists()


def test_a_recipe_does_what_the_call_does(here):
    (here / "sub").mkdir()
    text = """
method: ties
base: base
models:
  - ../a
  - {model: b, weight: 0.5}
scale: 8e-1
dtype: bf16
shard_size: 200kB
options: {density: 0.3, trim: tensor}
"""
    (here / "sub" / "r.yaml").write_text(text.replace("base: base", "base: ../base"))
    (here / "r.yml").write_text(text.replace("../a", "a"))
    report = merge_recipe("r.yml", "out")
    assert (report.method, report.recipe["options"]["density"]) == ("ties", 0.3)
    merge(
        ["a", "b"], "direct", method="ties", base="base", weights=[1.0, 0.5], scale=0.8, dtype="bf16",
        shard_size=200_000, density=0.3, trim="tensor",
    )  # fmt: skip
    files = [name for name in names(here / "out") if name != "README.md"]
    assert len(files) > 4
    assert all((here / "out" / n).read_bytes() == (here / "direct" / n).read_bytes() for n in files)
    merge_recipe("sub/r.yaml", "again")  # paths from the recipe's folder, too
    assert same("again", "out")


def test_weights_by_pattern_and_over_layers(here):
    text = """
models:
  - model: a
    weight:
      "*": [0, 0.5, 1]
      mlp: 3
      layers.1.mlp: 2
  - {model: b, weight: [1, 0]}
options: {normalise: false}
"""
    merge_recipe(write(text), "out")
    found = values("out")
    expected = {
        "model.embed_tokens.weight": (0, 1), "model.layers.0.self_attn.q_proj.weight": (0, 1),
        "model.layers.1.self_attn.q_proj.weight": (0.5, 0.5), "model.layers.1.mlp.down_proj.weight": (2, 0.5),
        "model.layers.2.self_attn.q_proj.weight": (1, 0), "model.layers.0.mlp.down_proj.weight": (3, 1),
        "model.norm.weight": (0, 1), "model.scalar": (0, 1),
    }  # fmt: skip
    for name, (a, b) in expected.items():
        assert (found[name] == np.float32(a) * A[name] + np.float32(b) * B[name]).all(), name
    with pytest.raises(OptionError, match="'atn', which fits no tensor"):
        merge_recipe(write("models: [{model: a, weight: {atn: 1}}]"), "other")


STAGED = """
stages:
  sum:
    method: task_arithmetic
    base: base
    models: [a, b]
    dtype: fp32
  mean: {models: [a, sum]}
method: task_arithmetic
base: base
models: [sum, mean]
scale: 0.5
"""


def test_stages_are_merged_one_on_another_and_removed(here):
    report = merge_recipe(write(STAGED), "out")
    assert sorted(report.inputs) == ["a", "b", "base"]
    assert report.recipe["stages"]["mean"]["models"] == ["a", "sum"]
    merge(["a", "b"], "one", method="task_arithmetic", base="base", dtype="fp32")
    merge(["a", "one"], "two")
    merge(["one", "two"], "expected", method="task_arithmetic", base="base", scale=0.5)
    assert same("out", "expected")
    assert not [name for name in names(here) if name.startswith(".")]
    with pytest.raises(OutputError, match="overwrite"):
        merge_recipe("r.yaml", "out")
    assert merge_recipe("r.yaml", "dry", dry_run=True).dry_run
    assert "dry" not in names(here)


def test_stages_that_are_done_are_taken_up_by_the_next_run(here, monkeypatch):
    real, made = stages._stage, []

    def stage(request, folder, *rest):
        if folder.name == "mean" and len(made) == 1:
            made.append(("stopped", 0))
            raise KeyboardInterrupt
        found = real(request, folder, *rest)
        made.append((folder.name, (folder / "model.safetensors").stat().st_mtime_ns))
        return found

    monkeypatch.setattr(stages, "_stage", stage)
    with pytest.raises(KeyboardInterrupt):
        merge_recipe(write(STAGED), "out")
    first = (here / ".out.stages" / "sum" / "model.safetensors").stat().st_mtime_ns
    merge_recipe("r.yaml", "out")
    assert dict(made[2:])["sum"] == first  # not made again
    merge_recipe("r.yaml", "whole")
    assert same("out", "whole")
    made.clear()
    with pytest.raises(KeyboardInterrupt):
        merge_recipe("r.yaml", "out", overwrite=True)
    (here / "b" / "model.safetensors").unlink()
    put_model(here / "b", arrays(3, BASE))
    merge_recipe("r.yaml", "out", overwrite=True)  # an input has changed: made again
    assert not same("out", "whole")


def test_a_bad_stage_is_refused_before_any_work(here, monkeypatch):
    monkeypatch.setattr(stages, "_stage", lambda *_: pytest.fail("work was begun"))
    put_model(here / "odd", {**A, "model.norm.weight": np.ones(3, np.float32)})
    text = "stages:\n  x: {models: [a, b]}\n  y: {models: [a, odd]}\nmodels: [x, y]"
    with pytest.raises(UnsupportedError, match=r"model\.norm\.weight"):
        merge_recipe(write(text), "out")
    assert not [name for name in names(here) if name.startswith((".", "out"))]


@pytest.fixture
def llamas(tmp_path, monkeypatch):
    """Two tiny models of transformers, of 4 and 3 layers."""
    monkeypatch.chdir(tmp_path)
    for seed, name, layers in ((0, "four", 4), (1, "three", 3)):
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=30, hidden_size=16, intermediate_size=24, num_hidden_layers=layers,
            num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=32,
        )  # fmt: skip
        LlamaForCausalLM(config).save_pretrained(tmp_path / name)
        told = json.loads((tmp_path / name / "config.json").read_text())
        told["layer_types"] = ["full_attention"] * layers  # a list with one entry a layer
        (tmp_path / name / "config.json").write_text(json.dumps(told))
    return tmp_path


SLICES = """
method: passthrough
slices:
  - {model: four, layers: [0, 3]}
  - {model: three, layers: [1, 3], weight: {o_proj: 0.5}}
  - {model: four, layers: [2, 4]}
"""
PLACES = [("four", 0), ("four", 1), ("four", 2), ("three", 1), ("three", 2), ("four", 2), ("four", 3)]


def test_passthrough_stacks_layers_bit_for_bit(llamas):
    report = merge_recipe(write(SLICES), "out", threads=2)
    four, three, out = values("four"), values("three"), values("out")
    own = {"four": four, "three": three}
    assert len(out) == 7 * 9 + 3
    for k, (model, layer) in enumerate(PLACES):
        for name in four:
            if name.startswith("model.layers.0."):
                rest = name.removeprefix("model.layers.0.")
                expected = own[model][f"model.layers.{layer}.{rest}"]
                if model == "three" and "o_proj" in rest:
                    expected = expected * np.float32(0.5)
                assert out[f"model.layers.{k}.{rest}"].tobytes() == expected.tobytes()
    for name in ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"):
        assert out[name].tobytes() == four[name].tobytes()
    config = json.loads((llamas / "out" / "config.json").read_text())
    assert (config["num_hidden_layers"], config["layer_types"]) == (7, ["full_attention"] * 7)
    assert report.warnings == []
    assert report.bytes_in == sum((llamas / m / "model.safetensors").stat().st_size for m in own)


def test_transformers_loads_a_stack(llamas):
    merge_recipe(write(SLICES + "tail: last\n"), "out")
    model = AutoModelForCausalLM.from_pretrained("out")
    assert model.config.num_hidden_layers == len(model.model.layers) == 7
    with torch.no_grad():
        assert model(torch.tensor([[1, 2, 3]])).logits.isfinite().all()
    assert all(torch.equal(dict(model.named_parameters())[n], tensor) for n, tensor in load("out").items())


def test_a_tail_comes_from_the_last_model_and_a_part_of_layers_from_all(llamas):
    text = "method: passthrough\ntail: last\nslices: [four, three]"
    merge_recipe(write(text), "out")
    four, three, out = values("four"), values("three"), values("out")
    assert (out["lm_head.weight"] == three["lm_head.weight"]).all()
    assert (out["model.embed_tokens.weight"] == four["model.embed_tokens.weight"]).all()
    merge_recipe(write("models: [{model: four, layers: [1, 4]}, three]\ndtype: fp16"), "part")
    part = values("part")
    name = "model.layers.{}.mlp.up_proj.weight"
    mean = (four[name.format(3)] + three[name.format(2)]) / 2
    assert (part[name.format(2)] == mean.astype(np.float16)).all()
    assert json.loads((llamas / "part" / "config.json").read_text())["num_hidden_layers"] == 3


def test_stacks_that_make_no_model_are_refused(llamas):
    put_model(llamas / "odd", arrays(0))
    put_model(llamas / "bare", {"x": np.ones(3, np.float32)})
    for slices, what in (
        ("[four, odd]", "no such tensor|different architectures"),
        ("[{model: four, layers: [2, 5]}]", "has 4, numbered from 0"),
        ("[bare]", "no tensor has the number of a layer"),
        ("[four]\noptions: {stack: modle.layers}", "did you mean 'model.layers.'"),
    ):
        with pytest.raises((UnsupportedError, OptionError), match=what):
            merge_recipe(write(f"method: passthrough\nslices: {slices}"), "out")
    with pytest.raises(OptionError, match="are taken of"):
        merge_recipe(write("models: [{model: four, layers: [0, 2]}, three]"), "out")
    with pytest.raises(OptionError, match="takes a recipe with slices"):
        merge(["four", "three"], "out", method="passthrough")


def test_the_command_takes_a_recipe_alone(here):
    write("models: [a, b]")

    def run(*arguments):
        code = "from paring.cli import merge_main; merge_main()"
        return subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
        )

    done = run("r.yaml", "-o", "out", "--threads", "1", "--json")
    assert (done.returncode, json.loads(done.stdout)["method"]) == (0, "linear")
    for extra, what in (
        (["--method", "ties"], "--method beside a recipe"),
        (["--scale", "1"], "--scale beside a recipe"),
        (["--no-normalise"], "beside a recipe"),
        (["b"], "stands alone"),
    ):
        done = run("r.yaml", *extra, "-o", "out2")
        assert done.returncode == 2
        assert what in done.stderr
    write("models: [a, c]")
    done = run("r.yaml", "-o", "out2")
    assert (done.returncode, "r.yaml:1: c does not exist" in done.stderr) == (2, True)
    assert set(values("out")) == set(SHAPES)
