"""``convert``: every update is kept between all dialects, scales are told, nothing is dropped."""

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from paring import adapters
from paring.adapters import kohya, naming, stable_diffusion
from paring.api import compress, convert, load, merge
from paring.checkpoint import open_checkpoint, write_safetensors
from paring.converting import TARGETS
from paring.dtypes import Stored, from_f32
from paring.errors import BadFileError, BadValueError, OptionError, OutputError, UnsupportedError
from paring.factors import read_factors
from paring.packed import open_source
from tests.helpers import put_adapter
from tests.test_adapters import pair, tensor
from tests.test_adapters_derived import LOHA, loha

ANALOG = Path(__file__).parents[1] / "fixtures" / "adapters" / "analog" / "analog_svd_rank4.safetensors"
NAMES = [
    *list(stable_diffusion.NAMES.values())[:3],
    "unet.down_blocks.0.attentions.1.proj_in",
    "unet.mid_block.resnets.0.conv1",
    "unet.time_embedding.linear_1",
    "text_encoder.text_model.encoder.layers.3.mlp.fc1",
    "text_encoder_2.text_model.encoder.layers.3.mlp.fc1",
    "model.layers.0.self_attn.q_proj",
    "model.layers.10.mlp.gate_proj",
    "transformer.h.0.attn.c_attn",
    "block.my_own.odd_name",
]


def deltas(path):
    """module -> the update in fp32, products and scale; and the view."""
    adapter = adapters.read(open_source(path), derived=True)
    assert not adapter.problems
    return {f.name: np.float32(f.scale) * (f.B @ f.A) for f in read_factors(adapter)}, adapter


def target(folder, name, dialect):
    return folder / (name if dialect == "peft" else f"{name}.safetensors")


def kohya_file(path, modules, scales):
    """A kohya adapter: name -> (rank, shape of A beyond the rank, outputs)."""
    tensors = {}
    for i, ((name, (rank, rest, out)), scale) in enumerate(zip(modules.items(), scales, strict=True)):
        ones = (1,) * (len(rest) - 1)
        tensors[f"{name}.lora_down.weight"] = tensor(rank, *rest, seed=i)
        tensors[f"{name}.lora_up.weight"] = tensor(out, rank, *ones, seed=100 + i)
        if scale != 1:
            tensors[f"{name}.alpha"] = from_f32(np.array(scale * rank, np.float32), "F32")
    write_safetensors(path, tensors)
    return path


shapes = st.tuples(st.integers(1, 3), st.sampled_from([(5,), (4, 3, 3), (6, 1, 1)]), st.integers(1, 7))
adapters_made = st.dictionaries(st.sampled_from(NAMES), shapes, min_size=1, max_size=4)


@pytest.mark.parametrize("second", TARGETS)
@pytest.mark.parametrize("first", TARGETS)
@settings(max_examples=3, deadline=None, derandomize=True, phases=[Phase.explicit, Phase.generate])
@given(modules=adapters_made, data=st.data())
def test_there_and_back_every_update_keeps_its_bits(first, second, modules, data):
    scales = [data.draw(st.sampled_from([1.0, 2.0, 0.5, 0.125, -4.0])) for _ in modules]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        named = dict(zip(kohya.named(list(modules)), modules.values(), strict=True))
        made = kohya_file(folder / "made.safetensors", named, scales)
        # the odd name's dots are nowhere: tell them
        names = folder / "names.json"
        names.write_text(json.dumps(dict(zip(named, modules, strict=True))))
        paths = [target(folder, str(i), dialect) for i, dialect in enumerate((first, second, first))]
        reports = [convert(made, paths[0], dialect=first, names=names)]
        reports += [convert(paths[0], paths[1], dialect=second), convert(paths[1], paths[2], dialect=first)]
        assert all(report.error == 0 and not report.carried for report in reports)
        views = [deltas(path)[0] for path in (made, *paths)]
        assert len({len(view) for view in views}) == 1
        assert views[1].keys() == views[3].keys()
        for before, after in ((views[0], views[1]), (views[0], views[2])):
            old, new = (sorted(delta.tobytes() for delta in view.values()) for view in (before, after))
            assert old == new
        for module, delta in views[1].items():
            np.testing.assert_array_equal(delta, views[3][module])
        stored = [sorted((n, t.shape) for n, t in open_checkpoint(p).tensors.items()) for p in paths]
        assert stored[0] == stored[2]
        back = convert(paths[1], folder / "k.safetensors", dialect="kohya")
        assert all("assumed" in text for text in back.warnings)
        found, _ = deltas(folder / "k.safetensors")
        assert found.keys() == views[0].keys()
        for module, delta in views[0].items():
            np.testing.assert_array_equal(found[module], delta)


def test_names_of_each_dialect(tmp_path):
    canonical = list(stable_diffusion.NAMES.values())
    cases = {
        "peft": "base_model.model.unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0"
                ".lora_A.weight",
        "kohya": "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_out_0.lora_down.weight",
        "diffusers": "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0.lora_A.weight",
        "diffusers-old": "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0"
                         ".lora.down.weight",
        "cloneofsimo": "unet:3:down",
    }  # fmt: skip
    named = dict.fromkeys(kohya.named([canonical[3], canonical[-1]]), (2, (4,), 3))
    made = kohya_file(tmp_path / "made.safetensors", named, [1.0, 1.0])
    for dialect, name in cases.items():
        out = target(tmp_path, dialect, dialect)
        convert(made, out, dialect=dialect)
        assert name in load(out)
    assert "text_encoder:47:up" in load(tmp_path / "cloneofsimo.safetensors")
    last = "text_encoder.text_model.encoder.layers.11.self_attn.out_proj.lora_linear_layer.up.weight"
    assert last in load(tmp_path / "diffusers-old.safetensors")


def test_old_processors_have_the_names_of_modules(tmp_path):
    place = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor"
    tensors = {f"{place}.{leaf}_lora.{role}.weight": tensor(*((2, 4) if role == "down" else (4, 2)))
               for leaf in ("to_q", "to_out") for role in ("down", "up")}  # fmt: skip
    write_safetensors(tmp_path / "old.safetensors", tensors)
    report = convert(tmp_path / "old.safetensors", tmp_path / "peft", dialect="peft")
    assert [m.name for m in report.modules] == [
        "base_model.model.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0",
        "base_model.model.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
    ]
    assert (
        "unet" not in json.loads((tmp_path / "peft" / "adapter_config.json").read_text())["target_modules"][0]
    )


@pytest.mark.parametrize("name", [*stable_diffusion.NAMES.values(), *NAMES[:-1]])
def test_underscores_are_undone(name):
    assert kohya.canonical(kohya.named([name])[0], naming.dotted) == name


LDM = {
    "input_blocks_0_0": "conv_in",
    "input_blocks_1_0_in_layers_2": "down_blocks.0.resnets.0.conv1",
    "input_blocks_3_0_op": "down_blocks.0.downsamplers.0.conv",
    "input_blocks_4_1_transformer_blocks_0_attn1_to_k":
        "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_k",
    "input_blocks_8_1_proj_in": "down_blocks.2.attentions.1.proj_in",
    "input_blocks_7_0_skip_connection": "down_blocks.2.resnets.0.conv_shortcut",
    "middle_block_1_transformer_blocks_9_ff_net_0_proj":
        "mid_block.attentions.0.transformer_blocks.9.ff.net.0.proj",
    "middle_block_2_emb_layers_1": "mid_block.resnets.1.time_emb_proj",
    "output_blocks_2_1_transformer_blocks_0_attn2_to_out_0":
        "up_blocks.0.attentions.2.transformer_blocks.0.attn2.to_out.0",
    "output_blocks_2_2_conv": "up_blocks.0.upsamplers.0.conv",
    "output_blocks_8_0_out_layers_3": "up_blocks.2.resnets.2.conv2",
    "time_embed_0": "time_embedding.linear_1",
    "label_emb_0_2": "add_embedding.linear_2",
}  # fmt: skip


def test_numbers_in_names_are_in_order_and_other_digits_are_none(tmp_path):
    assert sorted(["h.10", "h.2", "h", "h.1²3"], key=naming.natural) == ["h", "h.1²3", "h.2", "h.10"]
    source = put_adapter(tmp_path / "a", pair("base_model.model.²") | pair("base_model.model.x"), None)
    convert(source, tmp_path / "out", dialect="cloneofsimo")
    assert set(load(tmp_path / "out")) == {f"model:{i}:{side}" for i in (0, 1) for side in ("up", "down")}


def test_names_of_sdxl_in_kohya_are_those_of_diffusers(tmp_path):
    made = kohya_file(
        tmp_path / "a.safetensors", {f"lora_unet_{name}": (2, (4,), 3) for name in LDM}, [1.0] * len(LDM)
    )
    for dialect in ("diffusers", "diffusers-old", "peft"):
        out = target(tmp_path, dialect, dialect)
        report = convert(made, out, dialect=dialect)
        part = "" if dialect == "peft" else "unet."
        assert report.renamed == {f"lora_unet_{old}": part + new for old, new in LDM.items()}
        assert not report.warnings
        convert(out, tmp_path / f"{dialect}.k.safetensors", dialect="kohya")
        back = open_checkpoint(tmp_path / f"{dialect}.k.safetensors")
        assert {m.name for m in adapters.read(back).modules} == {f"lora_unet_{name}" for name in LDM}


def test_the_traversal_is_that_of_the_model():
    import torch
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        model = CLIPTextModel(CLIPTextConfig(hidden_size=8, intermediate_size=8, num_attention_heads=2))
    found = [n for n, m in model.named_modules() if "self_attn." in n and isinstance(m, torch.nn.Linear)]
    assert [name.removeprefix("text_model.") for name in found] == [
        name.removeprefix("text_model.") for name in stable_diffusion.TRAVERSAL["text_encoder"]
    ]


def test_the_table_has_the_shapes_of_a_real_file():
    widths = {"down_blocks.0": 320, "down_blocks.1": 640, "down_blocks.2": 1280, "mid_block": 1280,
              "up_blocks.1": 1280, "up_blocks.2": 640, "up_blocks.3": 320}  # fmt: skip
    tensors = open_checkpoint(ANALOG).tensors
    for i, name in enumerate(stable_diffusion.TRAVERSAL["unet"]):
        width = next(width for place, width in widths.items() if name.startswith(place))
        n_in = 768 if name.endswith(("attn2.to_k", "attn2.to_v")) else width
        n_out = 8 * width if name.endswith("net.0.proj") else width
        assert tensors[f"unet:{i}:up"].shape == (n_out, 4)
        assert tensors[f"unet:{i}:down"].shape == (4, n_in)
    assert len(stable_diffusion.NAMES) == 192 == len(tensors) // 2


@pytest.mark.parametrize("dialect", TARGETS)
@pytest.mark.parametrize("names", [None, "sd1"])
def test_a_real_adapter(tmp_path, dialect, names):
    out = target(tmp_path, "out", dialect)
    report = convert(ANALOG, out, dialect=dialect, names=names)
    assert report.error == 0 and len(report.modules) == 192 and not report.carried
    assert sum(scale.modules for scale in report.scales) == 192
    convert(out, tmp_path / "back.safetensors", dialect="cloneofsimo")
    before, after = open_checkpoint(ANALOG), open_checkpoint(tmp_path / "back.safetensors")
    assert before.digest() == after.digest()
    assert after.metadata["unet:3:rank"] == "4"


def test_a_real_adapter_merges(tmp_path):
    convert(ANALOG, tmp_path / "k.safetensors", dialect="kohya", names="sd1")
    convert(ANALOG, tmp_path / "d.safetensors", dialect="diffusers", names="sd1")
    for models in ([ANALOG, ANALOG], [tmp_path / "k.safetensors", tmp_path / "d.safetensors"]):
        report = merge(models, tmp_path / "out.safetensors", overwrite=True)
        assert len(report.modules) == 192 and report.error < 1e-3


def test_text_encoders_with_the_same_names_are_not_mistaken(tmp_path):
    module = "text_model.encoder.layers.0.mlp.fc1"
    names = kohya.named([f"text_encoder.{module}", f"text_encoder_2.{module}"])
    assert names[0].startswith("lora_te1_") and names[1].startswith("lora_te2_")
    made = kohya_file(tmp_path / "a.safetensors", dict.fromkeys(names, (2, (4,), 3)), [1, 1])
    merge([made, made], tmp_path / "out.safetensors")
    found, _ = deltas(tmp_path / "out.safetensors")
    for name, delta in deltas(made)[0].items():
        np.testing.assert_allclose(found[name], delta, atol=1e-5)


@pytest.mark.parametrize(
    ("dialect", "kept"),
    [
        ("kohya", "alpha"),
        ("peft", "adapter_config.json"),
        ("cloneofsimo", "multiplied into B, rounded to F32"),
    ],
)
def test_scales_are_resolved_and_told(tmp_path, dialect, kept):
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 3, "use_rslora": True, "alpha_pattern": {"n": 4}}
    tensors = {**pair("base_model.model.q"), **pair("base_model.model.n")}
    tensors = {name: from_f32(t.f32(), "F16") for name, t in tensors.items()}
    source = put_adapter(tmp_path / "a", tensors, config)
    out = target(tmp_path, "out", dialect)
    report = convert(source, out, dialect=dialect, adapter_scale=0.7)
    told = {(round(s.scale, 6), s.source, s.kept, s.modules) for s in report.scales}
    assert told == {
        (round(0.7 * 3 / 2**0.5, 6), "lora_alpha / sqrt(r) (rsLoRA), times 0.7 as asked", kept, 1),
        (round(0.7 * 4 / 2**0.5, 6), "alpha_pattern / sqrt(r) (rsLoRA), times 0.7 as asked", kept, 1),
    }
    assert report.error < 1e-7
    before, after = (sorted(deltas(path)[0].values(), key=lambda d: abs(d).sum()) for path in (source, out))
    for x, y in zip(before, after, strict=True):
        np.testing.assert_allclose(0.7 * x, y, rtol=1e-6)
    dtypes = {info.dtype for info in open_checkpoint(out).tensors.values() if info.numel > 1}
    assert dtypes == ({"F16"} if dialect != "cloneofsimo" else {"F16", "F32"})


def test_a_scale_in_the_metadata_is_not_applied_twice(tmp_path):
    told = {"lora_adapter_metadata": json.dumps({"unet.r": 2, "unet.lora_alpha": 8})}
    write_safetensors(tmp_path / "a.safetensors", pair("unet.mid_block.to_k"), told)
    (before,) = deltas(tmp_path / "a.safetensors")[0].values()
    for dialect in TARGETS:
        report = convert(tmp_path / "a.safetensors", target(tmp_path, dialect, dialect), dialect=dialect)
        assert report.scales[0].scale == 4
        np.testing.assert_array_equal(*deltas(target(tmp_path, dialect, dialect))[0].values(), before)
    merge([tmp_path / "a.safetensors"], tmp_path / "m.safetensors", method="task_arithmetic")
    np.testing.assert_allclose(*deltas(tmp_path / "m.safetensors")[0].values(), before, rtol=1e-5)


def test_a_note_that_is_out_of_date_goes(tmp_path):
    source = put_adapter(tmp_path / "a", pair("base_model.model.self_attn.q_proj"), {
        "peft_type": "LORA", "r": 2, "lora_alpha": 2})  # fmt: skip
    convert(source, tmp_path / "k.safetensors", dialect="kohya")
    assert "paring.convert" in open_checkpoint(tmp_path / "k.safetensors").metadata
    convert(tmp_path / "k.safetensors", tmp_path / "b", dialect="peft")
    assert "paring.convert" not in open_checkpoint(tmp_path / "b").metadata


def test_an_alpha_that_fp32_does_not_hold(tmp_path):
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 3, "use_rslora": True}
    source = put_adapter(tmp_path / "a", pair(), config)
    convert(source, tmp_path / "k.safetensors", dialect="kohya")
    assert open_checkpoint(tmp_path / "k.safetensors").tensors["lora_q.alpha"].dtype == "F64"
    assert deltas(tmp_path / "k.safetensors")[1].modules[0].scale == pytest.approx(3 / 2**0.5, rel=1e-15)


def test_scalars_of_lycoris_are_in_the_scale(tmp_path):
    made = kohya_file(tmp_path / "a.safetensors", {"lora_unet_conv_in": (2, (4,), 3)}, [0.5])
    tensors = {name: open_checkpoint(made).read(name) for name in open_checkpoint(made)}
    tensors["lora_unet_conv_in.scalar"] = from_f32(np.array(3.0, np.float32), "F32")
    write_safetensors(tmp_path / "s.safetensors", tensors)
    ((_, plain),) = deltas(made)[0].items()
    convert(tmp_path / "s.safetensors", tmp_path / "c.safetensors", dialect="kohya")
    merge([tmp_path / "s.safetensors"], tmp_path / "m.safetensors", method="task_arithmetic")
    for path in ("s", "c", "m"):
        ((_, found),) = deltas(tmp_path / f"{path}.safetensors")[0].items()
        np.testing.assert_allclose(found, 3 * plain, rtol=1e-5, atol=1e-6)


def test_zero_is_no_alpha(tmp_path):
    source = put_adapter(tmp_path / "a", pair(), {"peft_type": "LORA", "r": 2, "lora_alpha": 0})
    convert(source, tmp_path / "k.safetensors", dialect="kohya")
    ((_, delta),) = deltas(tmp_path / "k.safetensors")[0].items()
    assert not delta.any()
    convert(tmp_path / "k.safetensors", tmp_path / "c.safetensors", dialect="cloneofsimo")
    assert not next(iter(deltas(tmp_path / "c.safetensors")[0].values())).any()


def test_a_power_of_two_that_underflows_is_not_exact(tmp_path):
    tensors = {
        "unet:0:down": from_f32(np.ones((1, 2)), "F16"),
        "unet:0:up": from_f32(np.full((2, 1), 6e-8), "F16"),
    }
    write_safetensors(tmp_path / "a.safetensors", tensors)
    report = convert(
        tmp_path / "a.safetensors", tmp_path / "b.safetensors", dialect="diffusers", adapter_scale=0.5
    )
    written = open_checkpoint(tmp_path / "b.safetensors").tensors.values()
    assert report.error == 0 and {info.dtype for info in written} == {"F16", "F32"}


def test_dtype(tmp_path):
    source = put_adapter(tmp_path / "a", pair(), {"peft_type": "LORA", "r": 2, "lora_alpha": 2})
    report = convert(source, tmp_path / "k.safetensors", dialect="kohya", dtype="fp16")
    assert 0 < report.error < 1e-3
    exact, rounded = (next(iter(deltas(p)[0].values())) for p in (source, tmp_path / "k.safetensors"))
    assert np.linalg.norm(exact - rounded) / np.linalg.norm(exact) == pytest.approx(report.error, rel=1e-2)
    with pytest.raises(BadValueError, match="too large for F16; ask for a wider --dtype"):
        convert(source, tmp_path / "l.safetensors", dialect="diffusers", dtype="fp16", adapter_scale=1e6)


def test_what_is_no_factor_is_carried(tmp_path):
    extra = {
        "base_model.model.head.weight": tensor(2, 3), "odd.tensor": tensor(2),
        "base_model.model.d.lora_A.weight": tensor(2, 4), "base_model.model.d.lora_B.weight": tensor(3, 2),
        "base_model.model.d.lora_magnitude_vector": tensor(3),
    }  # fmt: skip
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "modules_to_save": ["head"]}
    source = put_adapter(tmp_path / "a", pair() | extra, config)
    report = convert(source, tmp_path / "k.safetensors", dialect="kohya")
    why = {tensor.name: tensor.why for tensor in report.carried}
    assert why.keys() == extra.keys()
    assert why["base_model.model.d.lora_A.weight"].startswith("DoRA")
    assert "5 tensors have no form in this dialect" in report.warnings[0]
    for name, stored in extra.items():
        assert open_checkpoint(tmp_path / "k.safetensors").read(name).tobytes() == stored.tobytes()
    convert(tmp_path / "k.safetensors", tmp_path / "back", dialect="peft")
    before, after = open_checkpoint(source), open_checkpoint(tmp_path / "back")
    assert before.digest() == after.digest()
    told = json.loads((tmp_path / "back" / "adapter_config.json").read_text())
    assert told["modules_to_save"] == ["head"] and told["lora_alpha"] == 4


def test_alphas_of_what_is_not_converted_stay(tmp_path):
    tensors = {}
    for name in ("lora_te_a", "lora_te_b"):
        tensors |= {f"{name}.lora_down.weight": tensor(2, 4), f"{name}.lora_up.weight": tensor(3, 2),
                    f"{name}.alpha": from_f32(np.array(1.0), "F32")}  # fmt: skip
    tensors["lora_te_b.dora_scale"] = tensor(1, 4)
    write_safetensors(tmp_path / "a.safetensors", tensors)
    report = convert(tmp_path / "a.safetensors", tmp_path / "out", dialect="peft")
    assert sorted(t.name for t in report.carried) == sorted(name for name in tensors if "te_b" in name)


@pytest.mark.parametrize("dialect", ["kohya", "cloneofsimo"])
def test_embeddings_come_back(tmp_path, dialect):
    tensors = {
        "base_model.model.emb.lora_embedding_A": tensor(2, 9),
        "base_model.model.emb.lora_embedding_B": tensor(4, 2),
    }
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "fan_in_fan_out": True, "task_type": "CAUSAL_LM"}
    source = put_adapter(tmp_path / "a", tensors, config)
    report = convert(source, tmp_path / "k.safetensors", dialect=dialect)
    assert any("emb is an embedding" in text for text in report.warnings)
    convert(tmp_path / "k.safetensors", tmp_path / "back", dialect="peft")
    assert open_checkpoint(source).digest() == open_checkpoint(tmp_path / "back").digest()
    told = json.loads((tmp_path / "back" / "adapter_config.json").read_text())
    assert told["fan_in_fan_out"] and told["task_type"] == "CAUSAL_LM"


def test_lycoris_holds_its_own_kinds(tmp_path):
    source = put_adapter(tmp_path / "a", loha(), LOHA)
    report = convert(source, tmp_path / "l.safetensors", dialect="lycoris")
    assert report.held == {"LoHa": 1} and not report.derived and report.error == 0
    assert "lora_q.hada_w1_a" in load(tmp_path / "l.safetensors")
    (one,), (two,) = (deltas(path)[0].values() for path in (source, tmp_path / "l.safetensors"))
    np.testing.assert_array_equal(one, two)
    report = convert(tmp_path / "l.safetensors", tmp_path / "plain", dialect="peft")
    assert report.derived == {"LoHa": 1} and report.modules[0].rank == 4
    (three,) = deltas(tmp_path / "plain")[0].values()
    np.testing.assert_allclose(three, one, rtol=1e-5, atol=1e-6)


def test_lokr_of_whole_factors_has_no_alpha_in_lycoris(tmp_path):
    tensors = {"base_model.model.q.lokr_w1": tensor(2, 3), "base_model.model.q.lokr_w2": tensor(4, 5)}
    for alpha, held in ((2, {"LoKr": 1}), (3, {})):
        source = put_adapter(tmp_path / f"a{alpha}", tensors, {"peft_type": "LOKR", "r": 2, "alpha": alpha})
        report = convert(source, tmp_path / f"l{alpha}.safetensors", dialect="lycoris")
        assert report.held == held
        one, two = (next(iter(deltas(p)[0].values())) for p in (source, tmp_path / f"l{alpha}.safetensors"))
        np.testing.assert_allclose(one, two, rtol=1e-6, atol=1e-6)


def test_the_base_tells_names(tmp_path):
    made = kohya_file(tmp_path / "a.safetensors", {"lora_unet_my_own_odd_name": (2, (4,), 3)}, [1.0])
    report = convert(made, tmp_path / "b.safetensors", dialect="diffusers")
    assert "where its dots were is not known" in report.warnings[0]
    write_safetensors(tmp_path / "model.safetensors", {"block.my_own.odd_name.weight": tensor(3, 4)})
    report = convert(
        made, tmp_path / "c.safetensors", dialect="diffusers", bases=[tmp_path / "model.safetensors"]
    )
    assert report.renamed == {"lora_unet_my_own_odd_name": "unet.my_own.odd_name"} and not report.warnings


def test_packed_sources(tmp_path):
    source = put_adapter(tmp_path / "a", {
        "base_model.model.q.lora_A.weight": tensor(4, 64), "base_model.model.q.lora_B.weight": tensor(64, 4),
    }, {"peft_type": "LORA", "r": 4, "lora_alpha": 8})  # fmt: skip
    packed = compress(source, tmp_path / "p.paring.safetensors", error=0.9).output
    report = convert(packed, tmp_path / "k.safetensors", dialect="kohya")
    assert report.error == 0 and report.scales[0].scale == 2


def test_a_name_clash_is_refused(tmp_path):
    tensors = {**pair("base_model.model.a.b"), **pair("base_model.model.a_b")}
    source = put_adapter(tmp_path / "a", tensors, {"peft_type": "LORA", "r": 2, "lora_alpha": 2})
    with pytest.raises(UnsupportedError, match=r"a\.b and a_b would both be called lora_a_b"):
        convert(source, tmp_path / "k.safetensors", dialect="kohya")
    (tmp_path / "names.json").write_text('{"a_b": "a.c"}')
    assert (
        len(
            convert(
                source, tmp_path / "k.safetensors", dialect="kohya", names=tmp_path / "names.json"
            ).modules
        )
        == 2
    )


IA3 = {"base_model.model.q.ia3_l": tensor(4, 1)}
NAN = {**pair(), "base_model.model.q.lora_A.weight": Stored("F32", np.full((2, 4), np.nan, np.float32))}


@pytest.mark.parametrize(
    ("tensors", "config", "options", "error", "message"),
    [
        (pair(), {}, {"dialect": "peft2"}, OptionError, "--dialect peft2: expected peft, kohya"),
        (pair(), {}, {"dialect": "peft", "dtype": "int8"}, OptionError, "--dtype int8"),
        (pair(), {}, {"dialect": "kohya", "adapter_scale": np.nan}, OptionError, "--adapter-scale nan"),
        (pair(), {}, {"dialect": "kohya", "names": "no"}, OptionError, "--names no: expected sd1"),
        (IA3, {"peft_type": "IA3"}, {"dialect": "kohya"}, UnsupportedError, "multiplies activations"),
        (pair(), {"use_dora": True}, {"dialect": "kohya"}, UnsupportedError, "q is DoRA"),
        ({"x": tensor(2)}, {}, {"dialect": "kohya"}, UnsupportedError, "no adapter factors among its 1"),
        ({"q.lora_A.weight": tensor(2, 4)}, {}, {"dialect": "kohya"}, BadFileError, "has no matching B"),
        (pair(r=3), {}, {"dialect": "kohya"}, BadFileError, "rank 3, but adapter_config.json says 2"),
        (NAN, {}, {"dialect": "kohya"}, BadValueError, "lora_A.weight holds NaN or infinity"),
        (pair() | {"lora_q.alpha": tensor(1)}, {}, {"dialect": "kohya"}, UnsupportedError, "rename it"),
    ],
)  # fmt: skip
def test_refusals_write_nothing(tmp_path, tensors, config, options, error, message):
    source = put_adapter(tmp_path / "a", tensors, {"peft_type": "LORA", "r": 2, "lora_alpha": 2, **config})
    before = sorted(tmp_path.iterdir())
    with pytest.raises(error, match=message):
        convert(source, tmp_path / ("out" if options["dialect"] == "peft" else "o.safetensors"), **options)
    assert sorted(tmp_path.iterdir()) == before


def test_outputs(tmp_path):
    source = put_adapter(tmp_path / "a", pair(), {"peft_type": "LORA", "r": 2, "lora_alpha": 2})
    with pytest.raises(OptionError, match="PEFT keeps scales in adapter_config"):
        convert(source, tmp_path / "o.safetensors", dialect="peft")
    report = convert(source, tmp_path / "o.safetensors", dialect="kohya", dry_run=True)
    assert report.dry_run and not (tmp_path / "o.safetensors").exists()
    convert(source, tmp_path / "d", dialect="diffusers")
    assert (tmp_path / "d" / "pytorch_lora_weights.safetensors").exists()
    with pytest.raises(OutputError, match="exists"):
        convert(source, tmp_path / "d", dialect="diffusers")
    convert(source, tmp_path / "d", dialect="diffusers", overwrite=True)
    with pytest.raises(OutputError):
        convert(source, source, dialect="peft", overwrite=True)


@pytest.mark.parametrize("note", ['{"modules": []}', '{"embeddings": [3]}', "{", '{"config": 3}'])
def test_a_damaged_note_is_refused(tmp_path, note):
    write_safetensors(tmp_path / "a.safetensors", {
        "unet:0:down": tensor(1, 2), "unet:0:up": tensor(2, 1)}, {"paring.convert": note})  # fmt: skip
    with pytest.raises(BadFileError, match=r"paring\.convert"):
        convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", dialect="kohya")


def test_mappings_are_checked(tmp_path):
    source = put_adapter(tmp_path / "a", pair(), {"peft_type": "LORA", "r": 2, "lora_alpha": 2})
    for text, error in (('{"z": "y"}', OptionError), ('{"q": 3}', BadFileError), ("[]", BadFileError)):
        (tmp_path / "n.json").write_text(text)
        with pytest.raises(error):
            convert(source, tmp_path / "k.safetensors", dialect="kohya", names=tmp_path / "n.json")
