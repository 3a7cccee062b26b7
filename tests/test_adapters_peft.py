"""The module view against PEFT itself: what it saves, and what it adds to a weight."""

import warnings
from collections import Counter

import numpy as np
import pytest

from paring import adapters
from paring.checkpoint import open_checkpoint
from paring.factors import read_factors
from tests.helpers import covered, why


@pytest.fixture(scope="module")
def peft():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("peft")


def net():
    import torch
    from transformers.pytorch_utils import Conv1D

    torch.manual_seed(0)
    layers = {
        "emb": torch.nn.Embedding(11, 6),
        "q": torch.nn.Linear(6, 5),
        "v": torch.nn.Linear(6, 5, bias=False),
        "gpt": Conv1D(7, 5),
        "one": torch.nn.Conv2d(3, 4, 1),
        "three": torch.nn.Conv2d(3, 4, 3),
        "grouped": torch.nn.Conv2d(4, 4, 3, groups=2),
        "head": torch.nn.Linear(5, 2),
    }
    model = torch.nn.Module()
    model.block = torch.nn.ModuleDict(layers)
    model.forward = lambda x: x
    return model


def save(peft, folder, kind="LoraConfig", **options):
    """An adapter as PEFT saves it, with random factors: the PEFT model, and our view of the file."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(net(), getattr(peft, kind)(**options))
        for name, parameter in model.named_parameters():
            if "lora_" in name or "ia3_" in name:
                torch.nn.init.normal_(parameter)
        model.save_pretrained(folder)
    return model, covered(adapters.read(open_checkpoint(folder)))


def check_deltas(model, adapter):
    """``scale * B @ A`` is what PEFT adds, for every module."""
    assert adapter.dialect == "peft"
    assert not adapter.problems
    for module, factors in zip(adapter.modules, read_factors(adapter), strict=True):
        layer = model.base_model.model.get_submodule(module.name)
        expected = layer.get_delta_weight("default").detach().numpy()
        delta = factors.scale * factors.B @ factors.A
        assert delta.shape == (module.n_out, module.n_in)
        if getattr(layer, "fan_in_fan_out", False) or "emb" in module.name:
            expected = expected.T
        np.testing.assert_allclose(delta.reshape(expected.shape), expected, rtol=1e-4, atol=1e-5)
    return {module.name: module for module in adapter.modules}


ALL = ["emb", "q", "v", "one", "three"]


@pytest.mark.parametrize(
    ("options", "scales"),
    [
        ({"r": 3, "lora_alpha": 5}, dict.fromkeys(ALL, 5 / 3)),
        ({"r": 4, "lora_alpha": 6, "use_rslora": True}, dict.fromkeys(ALL, 3.0)),
        (
            {"r": 2, "lora_alpha": 8, "rank_pattern": {"q": 4, "block.v": 1}, "alpha_pattern": {"[qo].*": 3}},
            {"emb": 4.0, "q": 0.75, "v": 8.0, "one": 1.5, "three": 4.0},
        ),
        ({"r": 4, "lora_alpha": 5, "init_lora_weights": "orthogonal"}, {"q": 1.25, "v": 1.25}),
    ],
)
def test_the_delta_is_the_one_that_peft_adds(peft, tmp_path, options, scales):
    model, adapter = save(peft, tmp_path, target_modules=list(scales), **options)
    modules = check_deltas(model, adapter)
    assert {name.removeprefix("block."): module.scale for name, module in modules.items()} == pytest.approx(
        scales
    )
    assert adapter.kind == ("rsLoRA" if options.get("use_rslora") else "LoRA")
    assert not adapter.carried


def test_conv1d_of_gpt2(peft, tmp_path):
    model, adapter = save(peft, tmp_path, r=3, target_modules=["gpt"], fan_in_fan_out=True)
    (module,) = check_deltas(model, adapter).values()
    assert (module.n_in, module.n_out, module.rank) == (5, 7, 3)


def test_convolutions_are_matrices_with_flat_kernels(peft, tmp_path):
    model, adapter = save(peft, tmp_path, r=2, target_modules=["one", "three"])
    modules = check_deltas(model, adapter)
    assert modules["block.one"].n_in == 3
    assert modules["block.three"].n_in == 27


def test_a_grouped_convolution_is_carried(peft, tmp_path):
    _, adapter = save(peft, tmp_path, r=2, target_modules=["grouped", "q"])
    assert [module.name for module in adapter.modules] == ["block.q"]
    assert list(why(adapter).values()) == ["grouped convolution: its factors are not one matrix product"] * 2


def test_what_is_beside_the_factors_is_carried(peft, tmp_path):
    model, adapter = save(
        peft, tmp_path, r=2, target_modules=["q"], lora_bias=True, bias="all", modules_to_save=["head"]
    )
    check_deltas(model, adapter)
    reasons = why(adapter)
    assert reasons.pop("base_model.model.block.q.lora_B.bias") == "bias of the update"
    assert reasons.pop("base_model.model.block.head.weight").startswith("full tensor")
    assert reasons
    assert set(reasons.values()) == {"bias (a full replacement value)"}


def test_dora_is_carried_by_name(peft, tmp_path):
    _, adapter = save(peft, tmp_path, r=2, target_modules=["q", "v"], use_dora=True)
    assert (adapter.kind, adapter.modules, len(adapter.carried)) == ("DoRA", (), 6)
    assert Counter(why(adapter).values()) == {
        "DoRA: its update is not scale * B @ A": 4,
        "DoRA magnitude": 2,
    }


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_where_the_base_was_changed_the_factors_are_no_update(peft, tmp_path, init):
    _, adapter = save(peft, tmp_path, r=2, target_modules=["q"], init_lora_weights=init)
    assert not adapter.modules
    assert set(why(adapter).values()) == {f"init_lora_weights={init}: the base was changed too, "
                                          "so B @ A is not the update"}  # fmt: skip


def test_adalora_is_carried_by_name(peft, tmp_path):
    _, adapter = save(
        peft, tmp_path, "AdaLoraConfig", init_r=3, target_r=2, target_modules=["q"], total_step=10
    )
    assert adapter.kind == "ADALORA"
    assert not adapter.modules
    assert set(why(adapter).values()) == {
        "AdaLoRA: its update is B @ diag(E) @ A",
        "AdaLoRA singular values",
    }


def test_ia3_vectors(peft, tmp_path):
    _, adapter = save(
        peft, tmp_path, "IA3Config", target_modules=["q", "v"], feedforward_modules=["v"], task_type=None
    )
    assert (adapter.dialect, adapter.kind, adapter.modules, adapter.carried) == ("peft", "(IA)^3", (), ())
    assert {vector.name: vector.numel for vector in adapter.vectors} == {"block.q": 5, "block.v": 6}
    for vector, factors in zip(adapter.vectors, read_factors(adapter), strict=True):
        stored = adapter.checkpoint.read(vector.tensor)
        assert (factors.b, factors.scale, factors.shapes) == (None, 1.0, (stored.shape,))
        np.testing.assert_array_equal(factors.B @ factors.A, stored.f32().reshape(1, -1) - 1)


@pytest.mark.parametrize("kind", ["LoHaConfig", "VeraConfig"])
def test_other_kinds_are_carried_whole(peft, tmp_path, kind):
    _, adapter = save(peft, tmp_path, kind, r=2, target_modules=["q"])
    assert not adapter.modules
    assert len(adapter.carried) == len(adapter.checkpoint)
