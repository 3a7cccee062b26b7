"""Modules derived from other tensors, against what PEFT adds to a weight for each of its kinds."""

import json
import warnings

import numpy as np
import pytest

from paring import adapters
from paring.checkpoint import open_checkpoint
from paring.dtypes import Stored
from paring.factors import read_factors
from tests.helpers import covered, put_adapter, why
from tests.test_adapters import tensor
from tests.test_adapters_peft import peft  # noqa: F401


def net():
    import torch
    from transformers.pytorch_utils import Conv1D

    torch.manual_seed(0)
    layers = {
        "q": torch.nn.Linear(12, 8),
        "v": torch.nn.Linear(8, 20, bias=False),
        "gpt": Conv1D(8, 12),
        "one": torch.nn.Conv2d(6, 4, 1),
        "two": torch.nn.Conv2d(6, 4, (3, 2)),
        "line": torch.nn.Conv1d(6, 4, 3),
        "grouped": torch.nn.Conv2d(4, 8, 3, groups=2),
        "mha": torch.nn.MultiheadAttention(8, 2),
    }
    model = torch.nn.Module()
    model.block = torch.nn.ModuleDict(layers)
    model.forward = lambda x: x
    return model


def save(peft, folder, kind, model=None, **options):  # noqa: F811
    """An adapter with random values as PEFT saves it: the PEFT model."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = peft.get_peft_model(model or net(), getattr(peft, kind)(**options))
        for name, parameter in made.named_parameters():
            if any(part in name for part in ("lora_", "hada_", "lokr_", "vera_lambda", "vblora_")):
                torch.nn.init.normal_(parameter)
        made.save_pretrained(folder)
    return made


def shapes_of(model):
    """The shapes of the base's weights, by the names of modules."""
    found = {}
    for name, parameter in model.base_model.model.named_parameters():
        if name.endswith("base_layer.weight"):
            found[name.removesuffix(".base_layer.weight")] = tuple(parameter.shape)
    return found.get


def deltas(adapter):
    assert not adapter.problems
    found = {f.name: (f.scale * (f.B.astype(np.float64) @ f.A), f) for f in read_factors(adapter)}
    for module in adapter.modules:
        delta, factors = found[module.name]
        assert delta.shape == (module.n_out, module.n_in)
        assert len(factors.A) == module.rank == factors.B.shape[1]
        assert np.prod(factors.shapes[0]) == factors.A.size and np.prod(factors.shapes[1]) == factors.B.size
    return {name: delta for name, (delta, _) in found.items()}


def check(model, folder, shapes=None, kind=None):
    """``scale * B @ A`` of every derived module is what PEFT adds."""
    adapter = covered(adapters.read(open_checkpoint(folder), derived=True, shapes=shapes))
    assert adapter.dialect == "peft" and adapter.modules and not adapter.refused
    for name, delta in deltas(adapter).items():
        layer = model.base_model.model.get_submodule(name)
        expected = layer.get_delta_weight("default").detach().numpy()
        if getattr(layer, "fan_in_fan_out", False):
            expected = expected.T
        np.testing.assert_allclose(delta.reshape(expected.shape), expected, rtol=1e-4, atol=1e-5)
    modules = {module.name.removeprefix("block."): module for module in adapter.modules}
    assert all(kind is None or module.derived.kind == kind for module in modules.values())
    return adapter, modules


def test_adalora(peft, tmp_path):  # noqa: F811
    import torch

    targets = ["q", "gpt", "two"]
    options = {"init_r": 4, "target_r": 2, "lora_alpha": 6, "target_modules": targets, "total_step": 10}
    model = save(peft, tmp_path, "AdaLoraConfig", fan_in_fan_out=False, **options)
    _, modules = check(model, tmp_path, kind="AdaLoRA")
    assert modules["q"].scale == 6 / (4 + 1e-5)
    assert modules["q"].a == "base_model.model.block.q.lora_A.weight"
    torch.manual_seed(1)
    model.peft_config["default"].rank_pattern = {
        "block.q.lora_E": [True, False, True, True], "block.gpt.lora_E": [True] * 4,
        "block.two.lora_E": [False, False, True, False],
    }  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.base_model.resize_modules_by_rank_pattern(model.peft_config["default"].rank_pattern, "default")
        model.save_pretrained(tmp_path / "pruned")
    _, modules = check(model, tmp_path / "pruned", kind="AdaLoRA")
    assert {name: m.rank for name, m in modules.items()} == {"q": 3, "gpt": 4, "two": 1}


@pytest.mark.parametrize("effective", [False, True])
def test_loha(peft, tmp_path, effective):  # noqa: F811
    targets = ["q", "v", "one", "two", "line"]
    model = save(
        peft, tmp_path, "LoHaConfig", r=2, alpha=3, target_modules=targets, use_effective_conv2d=effective,
        rank_pattern={"v": 1, "one": 3}, alpha_pattern={"q": 5},
    )  # fmt: skip
    adapter, modules = check(model, tmp_path, kind="LoHa")
    ranks = {"q": 4, "v": 1, "one": 4, "two": 4, "line": 4}  # a 4 x 6 matrix has rank 4, not 9
    assert {name: m.rank for name, m in modules.items()} == ranks
    assert {name: m.scale for name, m in modules.items()} == {
        "q": 2.5, "v": 3.0, "one": 1.0, "two": 1.5, "line": 1.5,
    }  # fmt: skip
    by_shape = {m.name: m for m in adapters.read(
        open_checkpoint(tmp_path), derived=True, shapes=shapes_of(model)).modules}  # fmt: skip
    for name, axes in {"two": (6, 3, 2), "line": (6, 3), "one": (6, 1, 1), "q": (12,)}.items():
        a, b = by_shape[f"block.{name}"].derived.shapes
        assert a[1:] == axes and b[2:] == (1,) * (len(axes) - 1)
    assert why(adapters.read(adapter.checkpoint))["base_model.model.block.q.hada_w1_a"]


@pytest.mark.parametrize("r", [1, 2, 64])
@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("effective", [False, True])
def test_lokr(peft, tmp_path, monkeypatch, r, both, effective):  # noqa: F811
    import torch

    kron = torch.kron  # PEFT hands it views that it cannot take
    monkeypatch.setattr(
        torch, "kron", lambda a, b: kron(a.clone(), b.clone(memory_format=torch.contiguous_format))
    )
    targets = ["q", "v", "one", "two", "line"]
    model = save(
        peft, tmp_path, "LoKrConfig", r=r, alpha=3, target_modules=targets, decompose_both=both,
        use_effective_conv2d=effective,
    )  # fmt: skip
    _, modules = check(model, tmp_path, kind="LoKr")
    assert modules["q"].scale == 3 / r
    assert all(m.rank <= min(m.n_in, m.n_out) for m in modules.values())
    if r == 1 and both:
        assert modules["v"].rank == 1


@pytest.mark.parametrize("saved", [True, False])
def test_vera(peft, tmp_path, saved):  # noqa: F811
    model = save(
        peft, tmp_path, "VeraConfig", r=3, target_modules=["q", "v", "gpt"], save_projection=saved,
        projection_prng_key=7,
    )  # fmt: skip
    _, modules = check(model, tmp_path, shapes_of(model), kind="VeRA")
    assert {name: (m.n_out, m.n_in) for name, m in modules.items()} == {
        "q": (8, 12), "v": (20, 8), "gpt": (8, 12),
    }  # fmt: skip
    adapter = covered(adapters.read(open_checkpoint(tmp_path), derived=True))
    assert not adapter.modules and len(adapter.refused) == 3
    assert adapter.refused[0][1].startswith("VeRA: how many inputs a module has stands in the base alone")


def test_vera_of_one_module_needs_no_base(peft, tmp_path):  # noqa: F811
    check(save(peft, tmp_path, "VeraConfig", r=3, target_modules=["q"]), tmp_path)


@pytest.mark.parametrize("sparse", [True, False])
def test_vblora(peft, tmp_path, sparse):  # noqa: F811
    model = save(
        peft, tmp_path, "VBLoRAConfig", r=3, num_vectors=11, vector_length=4, topk=2,
        target_modules=["q", "v", "gpt"], save_only_topk_weights=sparse,
    )  # fmt: skip
    check(model, tmp_path, kind="VB-LoRA")


def test_attention_with_one_projection_for_all(peft, tmp_path):  # noqa: F811
    model = save(peft, tmp_path, "LoraConfig", r=2, lora_alpha=3, target_modules=["mha"])
    _, modules = check(model, tmp_path)
    assert (modules["mha"].n_out, modules["mha"].n_in) == (24, 8)
    assert "mha.base_layer.out_proj" in modules


@pytest.mark.parametrize("stable", [False, True])
@pytest.mark.parametrize("turned", [False, True])
def test_stacked_experts(peft, tmp_path, stable, turned):  # noqa: F811
    import torch

    class Experts(torch.nn.Module):
        is_transposed = turned

        def __init__(self):
            super().__init__()
            self.up = torch.nn.Parameter(torch.zeros((3, 6, 10) if turned else (3, 10, 6)))
            self.down = torch.nn.Parameter(torch.zeros((3, 10, 6) if turned else (3, 6, 10)))

    model = torch.nn.Module()
    model.mlp = torch.nn.ModuleDict({"experts": Experts(), "q": torch.nn.Linear(6, 6)})
    model.forward = lambda x: x
    made = save(
        peft, tmp_path, "LoraConfig", model, r=2, lora_alpha=5, target_modules=["q"], use_rslora=stable,
        target_parameters=["experts.up", "experts.down"],
    )  # fmt: skip
    adapter = covered(adapters.read(open_checkpoint(tmp_path), derived=True))
    assert not adapter.refused and len(adapter.modules) == 7
    found = deltas(adapter)
    for path in ("mlp.experts", "mlp.experts.base_layer"):
        layer = made.base_model.model.get_submodule(path)
        expected = layer.get_delta_weight("default").detach().numpy()
        for i in range(3):
            one = expected[i].T if turned else expected[i]
            np.testing.assert_allclose(found[f"{path}.{i}"], one, rtol=1e-4, atol=1e-5)
    assert {m.derived.kind for m in adapter.modules if m.derived} == {"stacked experts"}
    assert all(m.derived.native for m in adapter.modules if m.derived)


def test_grouped_convolution(peft, tmp_path):  # noqa: F811
    """PEFT cannot make its weight; what the two convolutions do to an input is one full convolution."""
    import torch

    model = save(peft, tmp_path, "LoraConfig", r=4, lora_alpha=6, target_modules=["grouped"])
    adapter = covered(adapters.read(open_checkpoint(tmp_path), derived=True))
    (delta,) = deltas(adapter).values()
    layer = model.base_model.model.get_submodule("block.grouped")
    x = torch.randn(2, 4, 5, 5)
    up, down = layer.lora_B["default"], layer.lora_A["default"]
    expected = up(down(x)) * layer.scaling["default"]
    weight = torch.from_numpy(delta.reshape(8, 4, 3, 3)).float()
    torch.testing.assert_close(torch.nn.functional.conv2d(x, weight), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["FourierFTConfig", "OFTConfig", "HiraConfig", "RandLoraConfig"])
def test_what_is_no_product_is_carried(peft, tmp_path, kind):  # noqa: F811
    options = {"n_frequency": 9} if kind == "FourierFTConfig" else {"r": 2}
    if kind == "OFTConfig":
        options = {"r": 0, "oft_block_size": 4}
    save(peft, tmp_path, kind, target_modules=["q"], **options)
    adapter = covered(adapters.read(open_checkpoint(tmp_path), derived=True))
    assert not adapter.modules and len(adapter.carried) == len(adapter.checkpoint)


def test_nothing_is_derived_unless_asked_for(peft, tmp_path):  # noqa: F811
    save(peft, tmp_path, "LoHaConfig", r=2, target_modules=["q"])
    adapter = covered(adapters.read(open_checkpoint(tmp_path)))
    assert not adapter.modules and len(adapter.carried) == 4


def test_a_small_file_cannot_ask_for_any_amount_of_memory(tmp_path):
    tensors = {f"base_model.model.q.lokr_w{i}": tensor(400, 400) for i in (1, 2)}
    config = {"peft_type": "LOKR", "r": 2, "alpha": 4}
    adapter = adapters.read(open_checkpoint(put_adapter(tmp_path / "a", tensors, config)), derived=True)
    assert adapter.refused[0][1].startswith("plain factors of it would be too large (160000 x 160000")


LOHA = {"peft_type": "LOHA", "r": 2, "alpha": 4}


def loha(module="base_model.model.q", **left_out):
    shapes = {"hada_w1_a": (5, 2), "hada_w1_b": (2, 4), "hada_w2_a": (5, 2), "hada_w2_b": (2, 4)}
    return {f"{module}.{r}": tensor(*shape) for r, shape in {**shapes, **left_out}.items() if shape}


@pytest.mark.parametrize(
    ("tensors", "config", "problem"),
    [
        (loha(hada_w2_b=None), LOHA, "hada_w1_a has no matching hada_w2_b; the file is incomplete"),
        (loha(hada_w1_b=(3, 4)), LOHA, "ranks of module q disagree: 2 against 3"),
        (loha(hada_w2_b=(2, 7)), LOHA, "inputs of module q disagree: 4 against 7"),
        (loha(hada_w1_a=(0, 2)), LOHA, "hada_w1_a is empty"),
        (loha(hada_w1_a=(5,)), LOHA, "has not two axes"),
        (loha(), LOHA | {"r": 3}, "ranks, and adapter_config.json, of module q disagree: 2 against 3"),
        (loha() | {"base_model.model.q.hada_t1": tensor(2, 2, 3, 3)}, LOHA, "no matching hada_t2"),
        ({"base_model.model.q.lokr_w1": tensor(2, 2)}, LOHA, "no matching lokr_w2_a"),
        (
            {"base_model.model.q.lora_A": tensor(2, 4), "base_model.model.q.lora_B": tensor(5, 2),
             "base_model.model.q.lora_E": tensor(3, 1)},
            {"peft_type": "ADALORA", "init_r": 4, "lora_alpha": 2},
            "ranks of module q disagree: 2 against 3",
        ),
        (
            {"base_model.model.q.vblora_logits_A_topk_indices": Stored("U8", np.zeros((2, 1, 2), np.uint8)),
             "base_model.model.q.vblora_logits_A_topk_weights": tensor(2, 1, 2),
             "base_model.model.q.vblora_logits_B_topk_indices": Stored("U8", np.zeros((1, 2, 2), np.uint8)),
             "base_model.model.q.vblora_logits_B_topk_weights": tensor(1, 2, 1),
             "base_model.vblora_vector_bank": tensor(3, 4)},
            {"peft_type": "VBLORA", "topk": 2}, "indices and weights of VB-LoRA module q disagree",
        ),
        (
            {"base_model.model.q.vera_lambda_b": tensor(4), "base_model.model.q.vera_lambda_d": tensor(2)},
            {"peft_type": "VERA"}, "needs base_model.vera_A, which is not in the file",
        ),
    ],
)  # fmt: skip
def test_broken_files_say_what_is_wrong(tmp_path, tensors, config, problem):
    adapter = covered(
        adapters.read(open_checkpoint(put_adapter(tmp_path / "a", tensors, config)), derived=True)
    )
    assert len(adapter.problems) == 1 and problem in adapter.problems[0]
    assert str(tmp_path) in adapter.problems[0]
    assert not adapter.modules


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (None, "the scale is in adapter_config.json, which is missing"),
        (LOHA | {"shiny": 1}, "adapter_config.json sets 'shiny', which this version does not know"),
    ],
)
def test_configurations_that_do_not_tell(tmp_path, config, reason):
    adapter = covered(
        adapters.read(open_checkpoint(put_adapter(tmp_path / "a", loha(), config)), derived=True)
    )
    assert adapter.refused == (("q", reason),)


def lycoris(folder, tensors):
    from paring.checkpoint import write_safetensors

    write_safetensors(folder / "l.safetensors", tensors)
    return covered(adapters.read(open_checkpoint(folder / "l.safetensors"), derived=True))


def test_lycoris(tmp_path):
    from paring.dtypes import from_f32

    one = from_f32(np.array(1.0, np.float32), "F32")
    whole = {"lora_unet_a.lokr_w1": tensor(2, 3), "lora_unet_a.lokr_w2": tensor(4, 2, 3, 3, seed=1),
             "lora_unet_a.alpha": one}  # fmt: skip
    parts = {"lora_unet_b.lokr_w1": tensor(2, 3), "lora_unet_b.lokr_w2_a": tensor(4, 2, seed=1),
             "lora_unet_b.lokr_w2_b": tensor(2, 5, seed=2), "lora_unet_b.alpha": one}  # fmt: skip
    hada = {**loha("lycoris_c"), "lycoris_c.alpha": one}
    dora = {**loha("lora_te_d"), "lora_te_d.dora_scale": tensor(1, 4)}
    plain = {"lora_te_e.lora_down.weight": tensor(2, 4), "lora_te_e.lora_up.weight": tensor(5, 2),
             "lora_te_e.scalar": from_f32(np.array(3.0, np.float32), "F32")}  # fmt: skip
    full = {"lora_te_f.diff": tensor(4, 4), "lora_te_f.diff_b": tensor(4)}
    adapter = lycoris(tmp_path, {**whole, **parts, **hada, **dora, **plain, **full})
    assert (adapter.dialect, adapter.kind, adapter.problems) == ("lycoris", "LyCORIS", ())
    scales = {m.name: m.scale for m in adapter.modules}
    assert scales == {"lora_unet_a": 1.0, "lora_unet_b": 0.5, "lycoris_c": 0.5, "lora_te_e": 3.0}
    found = deltas(adapter)
    w1, w2 = (whole[f"lora_unet_a.lokr_w{i}"].f32() for i in (1, 2))
    expected = np.kron(w1[:, :, None, None], w2).reshape(8, -1)
    np.testing.assert_allclose(found["lora_unet_a"], expected, rtol=1e-6)
    parts_of = {name.partition(".")[2]: t.f32() for name, t in parts.items()}
    expected = 0.5 * np.kron(parts_of["lokr_w1"], parts_of["lokr_w2_a"] @ parts_of["lokr_w2_b"])
    np.testing.assert_allclose(found["lora_unet_b"], expected, rtol=1e-4, atol=1e-6)
    assert adapter.refused == (("lora_te_d", "DoRA: its update is not scale * B @ A"),)
    assert why(adapter)["lora_te_f.diff"].startswith("LyCORIS tensor")
    modules = {m.name: m for m in adapter.modules}
    assert modules["lora_unet_a"].derived.shapes[0][1:] == (6, 3, 3)
    assert modules["lycoris_c"].a == "lycoris_c.lora_down.weight"


@pytest.mark.parametrize("name", ["lora_unet_t", "lycoris_t"])
def test_locon_with_a_tucker_core(tmp_path, name):
    up, mid, down = tensor(8, 3, 1, 1), tensor(3, 3, 2, 2, seed=1), tensor(3, 5, 1, 1, seed=2)
    adapter = lycoris(tmp_path, {
        f"{name}.lora_up.weight": up, f"{name}.lora_mid.weight": mid, f"{name}.lora_down.weight": down,
    })  # fmt: skip
    (module,) = adapter.modules
    assert module.rank == 3 and module.derived.shapes == ((3, 5, 2, 2), (8, 3, 1, 1))
    expected = np.einsum(
        "om,mnkl,ni->oikl", up.f32()[:, :, 0, 0], mid.f32(), down.f32()[:, :, 0, 0], dtype=np.float64
    )
    np.testing.assert_allclose(deltas(adapter)[name], expected.reshape(8, -1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", ["bin", "shards", "bin shards"])
def test_every_kind_of_file(peft, tmp_path, form):  # noqa: F811
    import torch

    model = save(peft, tmp_path, "LoHaConfig", r=2, target_modules=["q", "v"])
    source = open_checkpoint(tmp_path)
    tensors = {name: torch.from_numpy(np.array(source.read(name).data)) for name in sorted(source)}
    (tmp_path / "adapter_model.safetensors").unlink()
    if form == "bin":
        torch.save(tensors, tmp_path / "adapter_model.bin")
    else:
        ending, names = ("bin" if "bin" in form else "safetensors"), list(tensors)
        shards = [f"adapter_model-0000{i}-of-00002.{ending}" for i in (1, 2)]
        for shard, part in zip(shards, (names[:5], names[5:]), strict=True):
            some = {name: tensors[name] for name in part}
            if ending == "bin":
                torch.save(some, tmp_path / shard)
            else:
                from safetensors.torch import save_file

                save_file(some, tmp_path / shard)
        weight_map = {name: shards[i >= 5] for i, name in enumerate(names)}
        index = tmp_path / f"adapter_model.{ending}.index.json"
        index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    check(model, tmp_path, kind="LoHa")


def test_a_packed_file_is_verified_whether_kinds_were_carried_or_made_plain(tmp_path):
    from paring.api import compress, inspect, verify
    from paring.checkpoint import write_safetensors

    plain = {"lora_unet_a.lora_down.weight": tensor(4, 64), "lora_unet_a.lora_up.weight": tensor(64, 4)}
    write_safetensors(tmp_path / "a.safetensors", plain | loha("lora_unet_b"))
    packed = compress(tmp_path / "a.safetensors", tmp_path / "p.paring.safetensors", error=0.9).output
    assert packed and verify(packed, tmp_path / "a.safetensors").ok
    assert [module.name for module in inspect(packed).modules] == ["lora_unet_a", "lora_unet_b"]
