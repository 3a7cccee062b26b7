"""What shrink keeps, what it says of it in configurations, and what it refuses."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from paring.api import shrink
from paring.checkpoint import open_checkpoint
from paring.cli import paring
from paring.errors import BadFileError, BadValueError, OptionError, OutputError, UnsupportedError
from paring.shrinking import checking, families, scores
from tests.helpers import names
from tests.shrinking import DIM, HIDDEN, IDS, LAYERS, MODELS, kept, load


def matrices(folder):
    with open_checkpoint(folder) as opened:
        return {name: opened.read(name).f64() for name in opened}


def test_neurons_and_heads_by_products_of_norms(tiny, tmp_path):
    shrink(tiny("qwen2"), tmp_path / "out", neurons=20, heads=2, kv_heads=1)
    found, w = kept(tmp_path / "out"), matrices(tiny("qwen2"))
    for layer in range(LAYERS):
        p = f"model.layers.{layer}."
        norm = np.linalg.norm
        product = [
            norm(w[p + "mlp.gate_proj.weight"][j]) * norm(w[p + "mlp.up_proj.weight"][j])
            * norm(w[p + "mlp.down_proj.weight"][:, j]) for j in range(48)
        ]  # fmt: skip
        assert found["neurons"][str(layer)] == sorted(np.argsort(product)[-20:].tolist())
        cut = [slice(DIM * h, DIM * h + DIM) for h in range(4)]
        q = [
            norm(w[p + "self_attn.q_proj.weight"][c]) * norm(w[p + "self_attn.o_proj.weight"][:, c])
            for c in cut
        ]
        kv = [
            norm(w[p + "self_attn.k_proj.weight"][c]) * norm(w[p + "self_attn.v_proj.weight"][c])
            for c in cut[:2]
        ]
        group = int(np.argmax([kv[g] * (q[2 * g] + q[2 * g + 1]) for g in range(2)]))
        assert found["kv_heads"][str(layer)] == [group]
        assert found["heads"][str(layer)] == [2 * group, 2 * group + 1]


def test_a_score_does_not_change_when_a_neuron_is_rescaled(tiny, tmp_path):
    tensors = load_file(tiny("llama") / "model.safetensors")
    other = tmp_path / "other"
    other.mkdir()
    factor = torch.logspace(-2, 2, 48)
    for layer in range(LAYERS):
        tensors[f"model.layers.{layer}.mlp.up_proj.weight"] *= factor[:, None]
        tensors[f"model.layers.{layer}.mlp.down_proj.weight"] /= factor
    save_file(tensors, other / "model.safetensors")
    (other / "config.json").write_bytes((tiny("llama") / "config.json").read_bytes())
    shrink(tiny("llama"), tmp_path / "a", neurons=11)
    shrink(other, tmp_path / "b", neurons=11)
    assert kept(tmp_path / "a") == kept(tmp_path / "b")


def test_fisher_scores_are_summed_over_all_that_goes(tiny, tmp_path):
    rng = np.random.default_rng(0)
    fisher = {
        name: torch.from_numpy(rng.random(x.shape).astype(np.float32) ** 8)
        for name, x in matrices(tiny("llama")).items()
    }
    save_file(fisher, tmp_path / "f.safetensors")
    how = {"neurons": 20, "heads": 2, "width": 16, "layers": 2, "layers_by": "score"}
    report = shrink(tiny("llama"), tmp_path / "out", fisher=tmp_path / "f.safetensors", **how)
    found, f = kept(tmp_path / "out"), {name: x.double().numpy() for name, x in fisher.items()}
    total = [sum(x.sum() for name, x in f.items() if f".{layer}." in name) for layer in range(LAYERS)]
    assert found["layers"] == sorted(np.argsort(total)[-2:].tolist())
    for layer in found["layers"]:
        p = f"model.layers.{layer}."
        rows = [f[f"{p}mlp.{n}_proj.{part}"] for n in ("gate", "up") for part in ("weight", "bias")]
        own = sum(x.reshape(48, -1).sum(1) for x in rows) + f[p + "mlp.down_proj.weight"].sum(0)
        assert found["neurons"][str(layer)] == sorted(np.argsort(own)[-20:].tolist())
        q = (
            f[p + "self_attn.q_proj.weight"].sum(1)
            + f[p + "self_attn.q_proj.bias"]
            + f[p + "self_attn.o_proj.weight"].sum(0)
        )
        q = q.reshape(2, 2, DIM).sum(2)
        assert found["heads"][str(layer)] == [int(q[0].argmax()), 2 + int(q[1].argmax())]
    width = np.zeros(HIDDEN)
    for name, x in f.items():
        for axis, size in enumerate(x.shape):
            reads = "bias" not in name or name.endswith(("o_proj.bias", "down_proj.bias"))
            into = axis == 1 or any(n in name for n in ("norm", "o_proj", "down_proj"))
            if size == HIDDEN and reads and into and not (axis == 1 and ("o_proj" in name)):
                width += x.sum(axis=1 - axis) if x.ndim == 2 else x
    assert found["width"] == sorted(np.argsort(width)[-16:].tolist())
    assert len(report.inputs) == 2


def test_width_by_weights_gives_every_matrix_one_vote(tiny, tmp_path):
    shrink(tiny("mistral"), tmp_path / "out", width=10)
    votes = np.zeros(HIDDEN)
    for name, x in matrices(tiny("mistral")).items():
        if x.ndim == 2:
            axis = 0 if name.endswith(("o_proj.weight", "down_proj.weight")) else 1
            votes += np.abs(x).sum(axis=1 - axis) / np.abs(x).sum()
    assert kept(tmp_path / "out")["width"] == sorted(np.argsort(votes)[-10:].tolist())


def test_layers_are_spread_evenly_from_the_first_to_the_last():
    def chosen(count, total):
        return scores.choose_layers((), count, total, "even", dict)

    assert chosen(4, 12) == [0, 4, 7, 11] and chosen(2, 32) == [0, 31] and chosen(1, 5) == [0]
    for total in range(1, 40):
        for count in range(1, total + 1):
            found = chosen(count, total)
            assert len(set(found)) == count and found == sorted(found) and found[-1] < total
            assert count == 1 or (found[0], found[-1]) == (0, total - 1)


def test_of_equal_scores_the_first_go_first():
    assert scores.best(np.array([1.0, 1, 1, 1]), 2).tolist() == [2, 3]
    assert scores.best(np.array([-np.inf, 2, -np.inf, 1]), 3).tolist() == [1, 2, 3]


# --- configurations


def changed(tiny, kind, tmp_path, config, **how):
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "model.safetensors").symlink_to(tiny(kind) / "model.safetensors")
    own = json.loads((tiny(kind) / "config.json").read_text()) | config
    own = {key: value for key, value in own.items() if value != "gone"}
    (folder / "config.json").write_text(json.dumps(own))
    shrink(folder, tmp_path / "out", **how)
    return json.loads((tmp_path / "out" / "config.json").read_text())


def test_what_configurations_say_by_layer(tiny, tmp_path):
    found = changed(tiny, "gemma2", tmp_path, {"layer_types": "gone"}, drop_layers=[0])
    assert found["layer_types"] == ["full_attention", "sliding_attention", "full_attention"]


def test_lists_and_windows_by_layer(tiny, tmp_path):
    own = {
        "use_sliding_window": True,
        "sliding_window": 4,
        "max_window_layers": 3,
        "layer_types": list("abcd"),
    }
    with pytest.raises(BadFileError, match="lists 3 layer_types for 4 layers"):
        changed(tiny, "qwen2", tmp_path / "x" if (tmp_path / "x").mkdir() is None else None,
                {**own, "layer_types": list("abc")}, drop_layers=[0])  # fmt: skip
    own["layer_types"] = ["full_attention"] * 3 + ["sliding_attention"]
    found = changed(tiny, "qwen2", tmp_path, own, drop_layers=[0, 1])
    assert found["layer_types"] == ["full_attention", "sliding_attention"] and found["max_window_layers"] == 1


def test_layers_without_experts_keep_their_numbers(tiny, tmp_path):
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model("qwen3_moe", **MODELS["qwen3_moe"][1], mlp_only_layers=[2])
    transformers.Qwen3MoeForCausalLM(config).save_pretrained(tmp_path / "m")
    report = shrink(tmp_path / "m", tmp_path / "out", drop_layers=[0], experts=2, neurons=12)
    assert report.checked
    assert json.loads((tmp_path / "out" / "config.json").read_text())["mlp_only_layers"] == [1]
    assert load_file(tmp_path / "out" / "model.safetensors")["model.layers.1.mlp.up_proj.weight"].shape == (
        48,
        32,
    )
    load("qwen3_moe", tmp_path / "out")


def test_names_without_the_prefix(tmp_path):
    torch.manual_seed(0)
    for kind, cls in (("gpt2", "GPT2Model"), ("bert", "BertModel"), ("llama", "LlamaModel")):
        config = transformers.AutoConfig.for_model(kind, **MODELS[kind][1])
        getattr(transformers, cls)(config).save_pretrained(tmp_path / kind)
        assert shrink(tmp_path / kind, tmp_path / f"{kind}-out", drop_layers=[3], neurons=7).checked
        found = getattr(transformers, cls).from_pretrained(tmp_path / f"{kind}-out")
        assert torch.isfinite(found(IDS).last_hidden_state).all()


# --- refused


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
