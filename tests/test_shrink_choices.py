"""What shrink keeps, and what it says of it in configurations."""

import json

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from paring.api import shrink
from paring.checkpoint import open_checkpoint
from paring.errors import BadFileError
from paring.shrinking import scores
from tests.shrinking import DIM, HIDDEN, IDS, LAYERS, MODELS, changed, kept, load


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
