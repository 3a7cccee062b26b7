"""What shrink refuses, and that nothing is written then; runs that were stopped; the command line."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from paring.api import shrink
from paring.cli import paring
from paring.errors import BadFileError, BadValueError, OptionError, OutputError, UnsupportedError
from paring.shrinking import checking, families
from tests.helpers import names
from tests.shrinking import MODELS, changed


@pytest.mark.parametrize(
    ("kind", "how", "told"),
    [
        ("llama", {}, "nothing is cut"),
        ("llama", {"layers": 4, "neurons": 48}, "nothing is cut"),
        ("llama", {"drop_layers": [0, 1, 2, 3]}, "drops all layers"),
        ("llama", {"drop_layers": [4]}, "there are layers 0 to 3"),
        ("llama", {"drop_layers": [-1]}, "there are layers 0 to 3"),
        ("llama", {"drop_layers": [1], "layers": 2}, "give one of them"),
        ("llama", {"layers": 0}, "at least 1 and at most 4"),
        ("llama", {"layers": 5}, "at least 1 and at most 4"),
        ("llama", {"layers": 0.1}, "at least 1 and at most 4"),
        ("llama", {"layers": 2.5}, "a whole number, or a share below 1"),
        ("llama", {"layers": float("nan")}, "a whole number"),
        ("llama", {"layers": 2, "layers_by": "size"}, "expected even or score"),
        ("llama", {"heads": 1}, "groups that share keys and values would be empty"),
        ("llama", {"heads": 3}, "would be uneven; keep 2"),
        ("llama", {"heads": 4, "kv_heads": 1}, "1 key-value heads have 2 at most"),
        ("llama", {"experts": 2}, "a llama model has none"),
        ("mixtral", {"experts": 1}, "each token goes to 2 of them"),
        ("gpt2", {"width": 24}, "need --width 32, or --width 24 --heads 3"),
        ("bert", {"heads": 2}, "2 heads of 8 need --width 16"),
        ("bert", {"heads": 2, "kv_heads": 1}, "1 key-value heads have 1 at most"),
        ("llama", {"drop_layers": [1], "fisher": "f"}, "nothing that is cut is chosen by scores"),
    ],
)
def test_what_cannot_be_kept(kind, how, told, tiny, tmp_path):
    with pytest.raises((OptionError, UnsupportedError), match=told):
        shrink(tiny(kind), tmp_path / "out", **how)
    assert not names(tmp_path)


@pytest.mark.parametrize(
    ("config", "how", "told"),
    [
        ({"model_type": "t5"}, {}, "models of type 't5' are not known; known are bert, "),
        ({"model_type": "gone"}, {}, "models of type None are not known"),
        (
            {"hidden_size": 33},
            {},
            r"lm_head.weight is \[64, 32\], and its config.json implies \[any, 33\]",
        ),
        ({"num_hidden_layers": 3}, {}, "a layer that config.json does not count"),
        ({"num_hidden_layers": 5}, {}, "says 5 layers, and 4 have tensors"),
        ({"num_attention_heads": 3}, {}, "do not divide|not shared evenly"),
        ({"intermediate_size": None}, {}, "config.json says intermediate_size is None"),
        ({"num_attention_heads": "4"}, {}, "config.json says num_attention_heads is '4'"),
        ({"quantization_config": {"quant_method": "gptq"}}, {}, "is quantised"),
    ],
)
def test_configurations_that_are_not_true(config, how, told, tiny, tmp_path):
    with pytest.raises((BadFileError, UnsupportedError), match=told):
        changed(tiny, "llama", tmp_path, config, **(how or {"neurons": 8}))
    assert names(tmp_path) == ["m"]


def test_layers_that_count_are_not_dropped(tiny, tmp_path):
    with pytest.raises(UnsupportedError, match="depends on its number"):
        changed(tiny, "gpt2", tmp_path, {"scale_attn_by_inverse_layer_idx": True}, drop_layers=[0])


def other_tensors(tiny, tmp_path, more, kind="llama"):
    folder = tmp_path / "m"
    folder.mkdir()
    save_file(load_file(tiny(kind) / "model.safetensors") | more, folder / "model.safetensors")
    (folder / "config.json").write_bytes((tiny(kind) / "config.json").read_bytes())
    return folder


def test_tensors_that_nobody_knows(tiny, tmp_path):
    more = {"model.layers.2.extra.weight": torch.ones(3), "value_head.weight": torch.ones(1, 32)}
    folder = other_tensors(tiny, tmp_path, more)
    for how in ({"neurons": 8}, {"width": 24}):
        with pytest.raises(UnsupportedError, match="no tensor that models of its kind have"):
            shrink(folder, tmp_path / "out", **how)
    shrink(folder, tmp_path / "out", drop_layers=[1])  # its layer is numbered anew
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert "model.layers.1.extra.weight" in found and "value_head.weight" in found


def test_broken_weights_and_scores(tiny, tmp_path):
    name = "model.layers.2.mlp.up_proj.weight"
    folder = other_tensors(tiny, tmp_path, {name: torch.full((48, 32), torch.nan)})
    for how in ({"neurons": 8}, {"drop_layers": [1]}):
        with pytest.raises(BadValueError, match=r"layers\.2\.mlp\.up_proj\.weight holds NaN"):
            shrink(folder, tmp_path / "out", **how)
    good = load_file(tiny("llama") / "model.safetensors")
    for change, told in [
        ({name: torch.full((48, 32), -1.0)}, "negative score"),
        ({name: torch.ones(3)}, "scores of another model"),
        ({name: None}, "is missing, .* scores of another model"),
    ]:  # fmt: skip
        fisher = {n: x.abs() for n, x in good.items()} | change
        save_file({n: x for n, x in fisher.items() if x is not None}, tmp_path / "f.safetensors")
        with pytest.raises((BadValueError, BadFileError), match=told):
            shrink(tiny("llama"), tmp_path / "out", neurons=8, fisher=tmp_path / "f.safetensors")
    assert names(tmp_path) == ["f.safetensors", "m"]


def test_an_output_is_refused_before_weights_are_read(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("paring.shrinking.run.scores_of", lambda *_, **__: pytest.fail("weights were read"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("")
    with pytest.raises(OutputError, match="exists"):
        shrink(tiny("llama"), tmp_path / "out", neurons=8)


def test_what_is_no_model(tiny, tmp_path):
    with pytest.raises(OptionError, match="name a folder"):
        shrink(tiny("llama"), tmp_path / "out.safetensors", neurons=8)
    with pytest.raises(BadFileError, match="does not exist"):
        shrink(tmp_path / "nowhere", tmp_path / "out", neurons=8)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("")
    with pytest.raises(OutputError, match="mine"):
        shrink(tiny("llama"), tmp_path / "out", neurons=8, overwrite=True)
    with pytest.raises(OutputError, match="is an input"):
        shrink(tiny("llama"), tiny("llama"), neurons=8, overwrite=True)
    bare = tmp_path / "bare.safetensors"
    bare.write_bytes((tiny("llama") / "model.safetensors").read_bytes())
    with pytest.raises(BadFileError, match=r"no config\.json"):
        shrink(bare, tmp_path / "x", neurons=8)


def test_what_would_not_load_is_refused_before_it_is_written(tiny, tmp_path, monkeypatch):
    from paring.shrinking import run

    plain = run.config_changes
    monkeypatch.setattr(run, "config_changes", lambda *a: plain(*a) | {"intermediate_size": 9})
    with pytest.raises(
        UnsupportedError, match=r"would not load what is left: .* is \[.*8.*\], not \[.*9.*\]"
    ):
        shrink(tiny("llama"), tmp_path / "out", neurons=8)
    assert not names(tmp_path)
    monkeypatch.setattr(checking, "find_spec", lambda name: None)
    report = shrink(tiny("llama"), tmp_path / "out", neurons=8)
    assert not report.checked and "not both installed" in report.warnings[0]


def test_it_goes_on_where_it_was_stopped(tiny, tmp_path, monkeypatch):
    from paring.shrinking import run

    plain, calls = run.left, []

    def stopped(*arguments):
        calls.append(1)
        if len(calls) == 20:
            raise KeyboardInterrupt
        return plain(*arguments)

    monkeypatch.setattr(run, "left", stopped)
    with pytest.raises(KeyboardInterrupt):
        shrink(tiny("llama"), tmp_path / "out", neurons=8, threads=1)
    assert not (tmp_path / "out").exists()
    shrink(tiny("llama"), tmp_path / "out", neurons=8, threads=1)
    assert len(calls) == 1 + len(load_file(tiny("llama") / "model.safetensors"))
    assert names(tmp_path) == ["out"]


def test_on_the_command_line(tiny, tmp_path):
    run, out = CliRunner(), str(tmp_path / "out")
    arguments = ["shrink", str(tiny("llama")), "--drop-layers", "1-2", "--neurons", ".5", "-o", out]
    dry = run.invoke(paring, [*arguments, "--dry-run"])
    assert dry.exit_code == 0 and "would be shrunk to" in dry.stdout and not Path(out).exists()
    done = run.invoke(paring, [*arguments, "--json"])
    told = json.loads(done.stdout)
    assert (told["before"]["layers"], told["after"]["layers"], told["after"]["neurons"]) == (4, 2, 24)
    assert told["elements_left"] < told["elements"] and told["checked"]
    wrong = run.invoke(paring, ["shrink", str(tiny("llama")), "--drop-layers", "1;2", "-o", out])
    assert wrong.exit_code == 2 and "no list of numbers" in wrong.stderr


def test_every_type_that_is_known_is_tried_here():
    assert set(families.known_types()) == {*MODELS, "xlm-roberta"}
