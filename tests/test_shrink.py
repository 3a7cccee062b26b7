"""Smaller models load in transformers, and are the model with those parts masked."""

import json
from contextlib import contextmanager

import pytest
import torch

from paring.api import rerun, shrink
from tests.helpers import names
from tests.shrinking import (
    DIM,
    EXPERTS,
    GROUPED,
    HIDDEN,
    LAYERS,
    MODELS,
    TIED,
    close,
    kept,
    load,
    load_file,
    logits,
    masked,
    save,
)


@pytest.mark.parametrize("kind", MODELS)
def test_dropped_layers_are_skipped_layers(kind, tiny, tmp_path):
    source = tiny(kind)
    report = shrink(source, tmp_path / "out", drop_layers=[1, 2])
    assert report.checked and report.after["layers"] == 2 and kept(tmp_path / "out")["layers"] == [0, 3]
    whole = load(kind, source)
    lists = (module for module in whole.modules() if isinstance(module, torch.nn.ModuleList))
    stack = next(module for module in lists if len(module) == LAYERS)
    for layer in (2, 1):
        del stack[layer]
    for config in {id(m.config): m.config for m in whole.modules() if hasattr(m, "config")}.values():
        config.num_hidden_layers = 2
        if getattr(config, "layer_types", None):
            config.layer_types = [config.layer_types[0], config.layer_types[3]]
    for number, layer in enumerate(stack):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = number
    # experts may be summed up in another order
    torch.testing.assert_close(logits(load(kind, tmp_path / "out")), logits(whole), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", MODELS)
def test_dropped_neurons_are_masked_neurons(kind, tiny, tmp_path):
    report = shrink(tiny(kind), tmp_path / "out", neurons=0.34)
    n = {"gpt2": 128, "qwen2_moe": 24, "qwen3_moe": 24}.get(kind, 48)
    assert report.before["neurons"] == n and report.after["neurons"] == int(0.34 * n)
    assert {*names(tiny(kind)), "README.md", "shrink.json"} == set(names(tmp_path / "out"))
    found = kept(tmp_path / "out")["neurons"]
    assert all(len(rows) == int(0.34 * n) and rows == sorted(set(rows)) for rows in found.values())
    assert len(found) == LAYERS * (4 if kind in EXPERTS else 1)
    other = masked(kind, tiny(kind), tmp_path / "masked", neurons=found)
    close(logits(load(kind, tmp_path / "out")), logits(load(kind, other)))


@pytest.mark.parametrize("kind", GROUPED)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "left"), [(2, None, (2, 2)), (None, 1, (2, 1)), (1, 1, (1, 1))]
)
def test_dropped_heads_are_masked_heads(kind, heads, kv_heads, left, tiny, tmp_path):
    report = shrink(tiny(kind), tmp_path / "out", heads=heads, kv_heads=kv_heads)
    assert (report.after["heads"], report.after["kv_heads"]) == left and report.after["head_dim"] == DIM
    found = kept(tmp_path / "out")
    for layer in map(str, range(LAYERS)):
        groups = [head // 2 for head in found["heads"][layer]]
        assert sorted(set(groups)) == found["kv_heads"][layer] and len(groups) == left[0]
    name = "model.layers.2.self_attn.o_proj.weight"
    before, after = (load_file(path / "model.safetensors")[name] for path in (tiny(kind), tmp_path / "out"))
    rows = [DIM * head + i for head in found["heads"]["2"] for i in range(DIM)]
    assert torch.equal(before[:, rows], after)
    other = masked(kind, tiny(kind), tmp_path / "masked", heads=found["heads"])
    close(logits(load(kind, tmp_path / "out")), logits(load(kind, other)))


@contextmanager
def without_experts(gone):
    """Routers give no token to experts in ``gone``."""
    plain = torch.nn.functional.linear

    def linear(x, weight, bias=None):
        out = plain(x, weight, bias)
        if weight.shape == (4, HIDDEN):
            out = out.clone()
            out[..., gone.pop(0)] = -torch.inf
        return out

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "linear", linear)
        yield


@pytest.mark.parametrize("kind", EXPERTS)
def test_dropped_experts_are_experts_that_get_no_tokens(kind, tiny, tmp_path):
    report = shrink(tiny(kind), tmp_path / "out", experts=3)
    assert report.after["experts"] == 3 and report.checked
    rows = kept(tmp_path / "out")["experts"]
    gone = [sorted({0, 1, 2, 3} - set(rows[str(layer)])) for layer in range(LAYERS)]
    with without_experts(gone):
        expected = logits(load(kind, tiny(kind)))
    assert not gone
    close(logits(load(kind, tmp_path / "out")), expected)


@pytest.mark.parametrize("kind", EXPERTS)
def test_stacked_experts_are_cut_as_single_ones(kind, tiny, tmp_path):
    """As a model has them in memory, and may be saved."""
    state = load(kind, tiny(kind)).state_dict()
    assert any(name.endswith("experts.gate_up_proj") for name in state)
    stacked = tmp_path / "stacked"
    stacked.mkdir()
    save(state, stacked)
    (stacked / "config.json").write_bytes((tiny(kind) / "config.json").read_bytes())
    how = {"experts": 3, "neurons": 12, "heads": 2, "width": 24, "drop_layers": [0]}
    one, two = shrink(tiny(kind), tmp_path / "one", **how), shrink(stacked, tmp_path / "two", **how)
    assert kept(tmp_path / "one") == kept(tmp_path / "two")
    assert one.elements_left == two.elements_left and one.checked and two.checked
    first, second = (load(kind, tmp_path / name).state_dict() for name in ("one", "two"))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("kind", MODELS)
def test_width_keeps_one_set_of_the_residual_stream(kind, tiny, tmp_path):
    how = {"width": 24, "heads": 3} if kind in TIED else {"width": 24}
    report = shrink(tiny(kind), tmp_path / "out", **how)
    assert report.after["hidden"] == 24 and report.checked
    rows = torch.tensor(kept(tmp_path / "out")["width"])
    assert len(rows) == 24 == len(set(rows.tolist()))
    before, after = (load_file(path / "model.safetensors") for path in (tiny(kind), tmp_path / "out"))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        if ("q_proj" in name or "gate_proj" in name) and name.endswith("weight"):
            assert torch.equal(tensor[:, rows], after[name])
        if "norm" in name.lower() and tensor.shape == (HIDDEN,):
            assert torch.equal(tensor[rows], after[name])
        if "embed" in name and "LayerNorm" not in name:
            assert torch.equal(tensor[:, rows], after[name])
    assert torch.isfinite(logits(load(kind, tmp_path / "out"))).all()


@pytest.mark.parametrize("kind", ["llama", "qwen3_moe", "gemma2", "bert"])
def test_everything_at_once_and_again_by_rerun(kind, tiny, tmp_path):
    how = {"layers": 3, "neurons": 12, "heads": 2, "width": 16 if kind in TIED else 20, "layers_by": "score"}
    report = shrink(tiny(kind), tmp_path / "out", threads=1, shard_size=5000, **how)
    assert report.checked and len(report.files) > 3
    shrink(tiny(kind), tmp_path / "two", threads=3, shard_size=5000, **how)
    assert torch.equal(logits(load(kind, tmp_path / "out")), logits(load(kind, tmp_path / "two")))
    again = rerun(tmp_path / "out", tmp_path / "again")
    assert again.same
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["num_hidden_layers"] == 3 and config["hidden_size"] == how["width"]
    assert "shrunk by paring" in (tmp_path / "out" / "README.md").read_text().lower()
