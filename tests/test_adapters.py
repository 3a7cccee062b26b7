"""The module view of files made by hand: other dialects, damaged files, odd configurations."""

import json

import numpy as np
import pytest

from paring import adapters
from paring.checkpoint import open_checkpoint, write_safetensors
from paring.dtypes import Stored, from_f32
from paring.errors import BadFileError
from tests.helpers import covered, why


def tensor(*shape, seed=0):
    return from_f32(np.random.default_rng(seed).standard_normal(shape).astype(np.float32), "F32")


def view(folder, tensors, config=None):
    write_safetensors(folder / "adapter_model.safetensors", tensors)
    if config is not None:
        (folder / "adapter_config.json").write_text(json.dumps(config))
    return covered(adapters.read(open_checkpoint(folder)))


def pair(module="base_model.model.q", r=2):
    return {f"{module}.lora_A.weight": tensor(r, 4), f"{module}.lora_B.weight": tensor(3, r)}


def test_kohya(tmp_path):
    adapter = view(tmp_path, {
        "lora_unet_a.lora_down.weight": tensor(4, 6),
        "lora_unet_a.lora_up.weight": tensor(5, 4),
        "lora_unet_a.alpha": from_f32(np.array(2.0), "F32"),
        "lora_te_b.lora_down.weight": tensor(2, 3, 3, 3),
        "lora_te_b.lora_up.weight": tensor(7, 2, 1, 1),
        "lora_te_b.alpha": Stored("I64", np.array(3)),
        "lora_te_z.lora_down.weight": tensor(2, 3),
        "lora_te_z.lora_up.weight": tensor(7, 2),
        "lora_te_z.alpha": from_f32(np.array(0.0), "F16"),
        "lora_unet_unet_wild_lora_down.weight": tensor(2, 6),
        "lora_unet_unet_wild_lora_up.weight": tensor(5, 2),
        "lora_te_dora.lora_down.weight": tensor(2, 6),
        "lora_te_dora.lora_up.weight": tensor(5, 2),
        "lora_te_dora.dora_scale": tensor(1, 6),
        "lora_te_tucker.lora_down.weight": tensor(2, 6, 1, 1),
        "lora_te_tucker.lora_mid.weight": tensor(2, 2, 3, 3),
        "lora_te_tucker.lora_up.weight": tensor(5, 2, 1, 1),
        "lora_te_loha.hada_w1_a": tensor(5, 2),
    })  # fmt: skip
    assert (adapter.dialect, adapter.kind, adapter.problems) == ("kohya", "LoRA", ())
    found = {m.name: (m.rank, m.n_in, m.n_out, m.scale) for m in adapter.modules}
    assert found == {
        "lora_unet_a": (4, 6, 5, 0.5),
        "lora_te_b": (2, 27, 7, 1.5),
        "lora_te_z": (2, 3, 7, 1.0),
        "lora_unet_unet_wild": (2, 6, 5, 1.0),
    }
    reasons = why(adapter)
    assert reasons["lora_unet_a.alpha"] == "alpha of a module"
    assert reasons["lora_te_dora.lora_down.weight"].startswith("DoRA")
    assert reasons["lora_te_tucker.lora_up.weight"].startswith("LoCon with a Tucker core")
    assert reasons["lora_te_loha.hada_w1_a"].startswith("LyCORIS")


def test_diffusers(tmp_path):
    adapter = view(tmp_path, {
        "unet.mid.to_k.lora.down.weight": tensor(2, 6),
        "unet.mid.to_k.lora.up.weight": tensor(5, 2),
        "down.attn1.processor.to_q_lora.down.weight": tensor(3, 6),
        "down.attn1.processor.to_q_lora.up.weight": tensor(5, 3),
        "text_encoder.k_proj.lora_linear_layer.down.weight": tensor(2, 6),
        "text_encoder.k_proj.lora_linear_layer.up.weight": tensor(5, 2),
    })  # fmt: skip
    assert (adapter.dialect, adapter.carried, adapter.problems) == ("diffusers", (), ())
    assert {m.name: (m.rank, m.scale) for m in adapter.modules} == {
        "unet.mid.to_k": (2, 1.0),
        "down.attn1.processor.to_q": (3, 1.0),
        "text_encoder.k_proj": (2, 1.0),
    }


def test_newer_diffusers_files_have_the_names_of_peft(tmp_path):
    adapter = view(tmp_path, pair("unet.mid.to_k"))
    assert adapter.dialect == "peft"
    assert [(m.name, m.scale) for m in adapter.modules] == [("unet.mid.to_k", 1.0)]
    assert "assumed" in adapter.modules[0].scale_source


@pytest.mark.parametrize("part", ["", "unet."])
def test_newer_diffusers_files_keep_the_configuration_in_their_metadata(tmp_path, part):
    told = {"r": 2, "lora_alpha": 8, "use_rslora": True, "alpha_pattern": {"to_v": 2}, "use_dora": False}
    text = json.dumps({part + key: value for key, value in told.items()})
    tensors = pair("unet.mid.to_k") | pair("unet.mid.to_v") | pair("text_encoder.q")
    write_safetensors(tmp_path / "a.safetensors", tensors, {"lora_adapter_metadata": text})
    adapter = adapters.read(open_checkpoint(tmp_path / "a.safetensors"))
    scales = {module.name: module.scale for module in adapter.modules}
    root = 2**0.5
    assert scales == {
        "text_encoder.q": 1.0 if part else 8 / root, "unet.mid.to_k": 8 / root, "unet.mid.to_v": 2 / root,
    }  # fmt: skip
    dora = text.replace("false", "true")
    write_safetensors(tmp_path / "d.safetensors", tensors, {"lora_adapter_metadata": dora})
    refused = adapters.read(open_checkpoint(tmp_path / "d.safetensors")).refused
    assert len(refused) == (2 if part else 3) and all("DoRA" in why for _, why in refused)
    write_safetensors(tmp_path / "b.safetensors", tensors, {"lora_adapter_metadata": "{"})
    with pytest.raises(BadFileError, match="lora_adapter_metadata"):
        adapters.read(open_checkpoint(tmp_path / "b.safetensors"))


def test_an_alpha_beside_factors_counts_before_the_configuration(tmp_path):
    tensors = pair() | pair("base_model.model.v")
    tensors["base_model.model.v.alpha"] = from_f32(np.array(6.0), "F32")
    adapter = view(tmp_path, tensors, {"peft_type": "LORA", "r": 2, "lora_alpha": 4})
    found = {m.name: (m.scale, m.scale_source) for m in adapter.modules}
    assert found == {"q": (2.0, "lora_alpha / r"), "v": (3.0, "alpha tensor / r")}


def test_cloneofsimo(tmp_path):
    adapter = view(tmp_path, {
        "unet:0:up": tensor(5, 2),
        "unet:0:down": tensor(2, 6),
        "text_encoder:11:up": tensor(4, 1),
        "text_encoder:11:down": tensor(1, 3),
        "<s1>": tensor(768),
    })  # fmt: skip
    assert adapter.dialect == "cloneofsimo"
    assert {m.name: (m.rank, m.n_in, m.n_out) for m in adapter.modules} == {
        "unet:0": (2, 6, 5),
        "text_encoder:11": (1, 3, 4),
    }
    assert why(adapter) == {"<s1>": "learned token embedding"}


def test_a_checkpoint_that_is_no_adapter(tmp_path):
    adapter = view(tmp_path, {"layer.weight": tensor(3, 4), "layer.bias": tensor(3)})
    assert (adapter.dialect, adapter.kind, adapter.modules) == ("none", "checkpoint", ())


def test_base_model_and_config(tmp_path):
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": "org/base"}
    adapter = view(tmp_path, pair(), config)
    assert (adapter.base, adapter.config, adapter.modules[0].scale) == ("org/base", config, 2.0)
    adapter.refuse_problems()


@pytest.mark.parametrize(
    ("tensors", "config", "message"),
    [
        (
            {"m.lora_A.weight": tensor(2, 4)},
            None,
            "m.lora_A.weight has no matching B; the file is incomplete",
        ),
        (
            {"m.lora_B.weight": tensor(4, 2)},
            None,
            "m.lora_B.weight has no matching A; the file is incomplete",
        ),
        (
            {"m.lora_A.weight": tensor(2, 4), "m.lora_B.weight": tensor(3, 5)},
            None,
            "ranks disagree in module m: m.lora_A.weight [2, 4] against m.lora_B.weight [3, 5]",
        ),
        (
            {"m.lora_A.weight": tensor(0, 4), "m.lora_B.weight": tensor(3, 0)},
            None,
            "m.lora_A.weight is empty, shape [0, 4]",
        ),
        (
            {"m.lora_A.weight": tensor(8), "m.lora_B.weight": tensor(6)},
            None,
            "m.lora_A.weight has shape [8]; a factor needs two axes",
        ),
        (
            pair(r=3),
            {"peft_type": "LORA", "r": 8, "lora_alpha": 8},
            "module q has rank 3, but adapter_config.json says 8",
        ),
    ],
)
def test_broken_adapters_say_what_is_wrong(tmp_path, tensors, config, message):
    adapter = view(tmp_path, tensors, config)
    assert len(adapter.problems) == 1
    assert message in adapter.problems[0]
    assert str(tmp_path) in adapter.problems[0]
    with pytest.raises(BadFileError, match="adapter_model|" + tmp_path.name):
        adapter.refuse_problems()


def test_many_problems_are_counted(tmp_path):
    adapter = view(tmp_path, {"a.lora_A.weight": tensor(2, 4), "b.lora_A.weight": tensor(2, 4)})
    with pytest.raises(BadFileError, match="and 1 more: see `paring inspect`"):
        adapter.refuse_problems()


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"shiny_new_option": 3}, "adapter_config.json sets 'shiny_new_option', which this version"),
        ({"use_qalora": True}, "QALoRA: its update is not a plain"),
        ({"alora_invocation_tokens": [1]}, "aLoRA: its update"),
        ({"target_parameters": ["experts"], "r": 1}, "experts are stacked on the rank axis"),
        ({"peft_type": "XLORA"}, "XLORA: its update is not"),
    ],
)
def test_what_a_configuration_makes_of_factors(tmp_path, extra, message):
    adapter = view(tmp_path, pair(), {"peft_type": "LORA", "r": 2, "lora_alpha": 4, **extra})
    assert not adapter.modules
    assert all(message in reason for reason in why(adapter).values())


def test_options_unknown_but_off_do_no_harm(tmp_path):
    adapter = view(tmp_path, pair(), {"r": 2, "lora_alpha": 4, "new": False, "newer": None, "newest": {}})
    assert len(adapter.modules) == 1


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"lora_alpha": "16"}, "lora_alpha of module q is '16', not a number"),
        ({"lora_alpha": [16]}, "not a number"),
        ({"alpha_pattern": {"q": True}}, "alpha_pattern of module q is True, not a number"),
        ({"alpha_pattern": ["q"]}, "alpha_pattern must map names of modules to numbers"),
        ({"rank_pattern": 7}, "rank_pattern must map names of modules to numbers"),
    ],
)
def test_a_damaged_configuration_is_refused(tmp_path, extra, message):
    with pytest.raises(BadFileError, match=message):
        view(tmp_path, pair(), {"r": 2, "lora_alpha": 4, **extra})


def test_integer_and_quantised_factors_are_carried(tmp_path):
    tensors = pair() | {
        "n.lora_A.weight": Stored("I8", np.ones((2, 4), np.int8)),
        "n.lora_B.weight": tensor(3, 2),
    }
    adapter = view(tmp_path, tensors)
    assert [module.name for module in adapter.modules] == ["q"]
    assert set(why(adapter).values()) == {"quantised or integer factor (I8)"}


def test_an_up_factor_with_a_kernel_is_carried(tmp_path):
    adapter = view(
        tmp_path, {"lora_x.lora_down.weight": tensor(2, 4, 1, 1), "lora_x.lora_up.weight": tensor(3, 2, 3, 3)}
    )
    assert not adapter.modules
    assert set(why(adapter).values()) == {"the up factor has a kernel: not one matrix product"}
