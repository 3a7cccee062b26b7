"""What PEFT makes of converted and merged adapters is what it made of the originals."""

import copy
import warnings

import numpy as np
import pytest

from paring.api import convert, diff, inspect, load, merge
from paring.checkpoint import open_checkpoint, write_safetensors
from paring.dtypes import from_f32
from paring.errors import UnsupportedError
from tests.test_adapters_derived import net, save
from tests.test_adapters_peft import peft  # noqa: F401


def tuned(model):
    """The weights after PEFT has merged an adapter, by name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        merged = copy.deepcopy(model).merge_and_unload()
    return {name: tensor.detach().numpy() for name, tensor in merged.state_dict().items()}


def loaded(peft, folder, model=None):  # noqa: F811
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", message=".*(missing|unexpected).*")
        return peft.PeftModel.from_pretrained(model or net(), folder)


def same(one, other, tolerance=1e-4):
    assert one.keys() == other.keys()
    before = {name: tensor.numpy() for name, tensor in net().state_dict().items()}
    assert any(not np.array_equal(one[name], before[name]) for name in one)
    for name, weight in one.items():
        np.testing.assert_allclose(weight, other[name], rtol=tolerance, atol=tolerance)


def put_base(folder):
    folder.mkdir()
    tensors = {name: from_f32(tensor.numpy(), "F32") for name, tensor in net().state_dict().items()}
    write_safetensors(folder / "model.safetensors", tensors)
    return folder


LINEAR = ["q", "v", "gpt"]
CONVS = ["q", "v", "one", "two", "line"]
KINDS = {
    "lora": ("LoraConfig", {"r": 3, "lora_alpha": 5, "rank_pattern": {"v": 2}, "alpha_pattern": {"q": 7},
                            "target_modules": ["q", "v", "one", "two"]}),
    "rslora": ("LoraConfig", {"r": 3, "use_rslora": True, "target_modules": LINEAR, "fan_in_fan_out": True}),
    "adalora": ("AdaLoraConfig", {"init_r": 3, "target_r": 2, "total_step": 9,
                                  "target_modules": ["q", "two"]}),
    "loha": ("LoHaConfig", {"r": 2, "alpha": 3, "rank_pattern": {"v": 1}, "target_modules": CONVS}),
    "loha with cores": ("LoHaConfig", {"r": 2, "use_effective_conv2d": True, "target_modules": CONVS}),
    "lokr": ("LoKrConfig", {"r": 2, "alpha": 3, "target_modules": CONVS}),
    "lokr in factors": ("LoKrConfig", {"r": 1, "decompose_both": True, "target_modules": ["q", "v"]}),
    "vera": ("VeraConfig", {"r": 3, "target_modules": ["q", "v"]}),
    "vera of a seed": ("VeraConfig", {"r": 3, "save_projection": False, "target_modules": ["q", "v"]}),
    "vblora": ("VBLoRAConfig", {"r": 2, "num_vectors": 9, "vector_length": 4, "topk": 2,
                                "target_modules": ["q", "v"]}),
    "attention": ("LoraConfig", {"r": 2, "target_modules": ["mha"]}),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_plain_factors_do_what_the_kind_did(peft, tmp_path, kind):  # noqa: F811
    name, options = KINDS[kind]
    model = save(peft, tmp_path / "a", name, **options)
    base = put_base(tmp_path / "base")
    report = convert(tmp_path / "a", tmp_path / "plain", dialect="peft", bases=[base])
    assert report.error < 1e-7 and not report.carried
    plain = kind in ("lora", "rslora", "attention")
    assert sum(report.derived.values()) == (0 if plain else len(report.modules))
    same(tuned(model), tuned(loaded(peft, tmp_path / "plain")))
    config = peft.PeftConfig.from_pretrained(tmp_path / "plain")
    assert config.peft_type == "LORA"


@pytest.mark.parametrize("kind", KINDS)
def test_through_kohya_and_back(peft, tmp_path, kind):  # noqa: F811
    name, options = KINDS[kind]
    model = save(peft, tmp_path / "a", name, **options)
    base = put_base(tmp_path / "base")
    report = convert(tmp_path / "a", tmp_path / "k.safetensors", dialect="kohya", bases=[base])
    assert report.error < 1e-7
    convert(tmp_path / "k.safetensors", tmp_path / "back", dialect="peft")
    same(tuned(model), tuned(loaded(peft, tmp_path / "back")))


def test_lokr_of_a_one_dimensional_convolution_is_no_lycoris(peft, tmp_path):  # noqa: F811
    """PEFT lays out its Kronecker product otherwise; the plain factors have the same update."""
    model = save(peft, tmp_path / "a", "LoKrConfig", r=64, alpha=64, target_modules=["line", "q"])
    report = convert(tmp_path / "a", tmp_path / "l.safetensors", dialect="lycoris")
    assert report.held == report.derived == {"LoKr": 1}
    convert(tmp_path / "l.safetensors", tmp_path / "back", dialect="peft")
    found = load(tmp_path / "back")
    for name in ("line", "q"):
        a, b = (found[f"base_model.model.block.{name}.lora_{side}.weight"] for side in "AB")
        layer = model.base_model.model.block[name]
        expected = layer.get_delta_weight("default").detach()
        delta = (b.flatten(1) @ a.flatten(1)).reshape(expected.shape)
        np.testing.assert_allclose(delta, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["loha", "adalora", "lokr", "vblora", "lora"])
def test_merged_into_a_base(peft, tmp_path, kind):  # noqa: F811
    name, options = KINDS[kind]
    model = save(peft, tmp_path / "a", name, **options)
    merge([tmp_path / "a"], tmp_path / "out", into=put_base(tmp_path / "base"), method="task_arithmetic")
    same(tuned(model), {name: tensor.numpy() for name, tensor in load(tmp_path / "out").items()})


def test_attention_merged_into_a_base(peft, tmp_path):  # noqa: F811
    """PEFT 0.21 itself adds the update of the second projection twice (its pull request 3774)."""
    model = save(peft, tmp_path / "a", "LoraConfig", r=2, lora_alpha=3, target_modules=["mha"])
    merge([tmp_path / "a"], tmp_path / "out", into=put_base(tmp_path / "base"), method="task_arithmetic")
    layer, before, found = model.base_model.model.block["mha"], net().state_dict(), load(tmp_path / "out")
    for name, part in (("in_proj_weight", layer), ("out_proj.weight", layer.base_layer.out_proj)):
        expected = before[f"block.mha.{name}"] + part.get_delta_weight("default").detach()
        np.testing.assert_allclose(found[f"block.mha.{name}"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "kinds", [("loha", "loha"), ("adalora", "lora"), ("lora", "adalora"), ("vblora", "lokr in factors")]
)
def test_kinds_merge_with_each_other(peft, tmp_path, kinds):  # noqa: F811
    import torch

    models = []
    for i, kind in enumerate(kinds):
        name, options = KINDS[kind]
        options = options | {"target_modules": ["q", "v"]}
        options.pop("rank_pattern", None), options.pop("alpha_pattern", None)
        models.append(save(peft, tmp_path / f"{i}", name, **options))
        torch.manual_seed(i + 1)
    merge([tmp_path / "0", tmp_path / "1"], tmp_path / "out", method="task_arithmetic", weights=[0.5, 2.0])
    before = {name: tensor.numpy() for name, tensor in net().state_dict().items()}
    first, second = (tuned(model) for model in models)
    expected = {n: w + 0.5 * (first[n] - w) + 2.0 * (second[n] - w) for n, w in before.items()}
    same(expected, tuned(loaded(peft, tmp_path / "out")), 1e-3)
    found = diff([tmp_path / "0", tmp_path / "1"])
    assert len(found.tensors) == 2 and not found.not_compared


def test_convolutions_merge_in_their_shape(peft, tmp_path):  # noqa: F811
    model = save(peft, tmp_path / "a", *[KINDS["loha with cores"][0]], **KINDS["loha with cores"][1] | {
        "target_modules": ["two", "q"]})  # fmt: skip
    merge([tmp_path / "a"], tmp_path / "out", method="task_arithmetic")
    same(tuned(model), tuned(loaded(peft, tmp_path / "out")), 1e-3)


def experts():
    import torch

    class Experts(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.up = torch.nn.Parameter(torch.zeros(3, 10, 6))

    model = torch.nn.Module()
    model.mlp = torch.nn.ModuleDict({"experts": Experts(), "q": torch.nn.Linear(6, 6)})
    model.forward = lambda x: x
    return model


def test_stacked_experts_stay_as_peft_has_them(peft, tmp_path):  # noqa: F811
    model = save(
        peft, tmp_path / "a", "LoraConfig", experts(), r=2, lora_alpha=5, target_modules=["q"],
        target_parameters=["experts.up"],
    )  # fmt: skip
    report = convert(tmp_path / "a", tmp_path / "same", dialect="peft")
    assert [t.why for t in report.carried] == ["PEFT's own form, unchanged"] * 2
    again = loaded(peft, tmp_path / "same", experts())
    path = "base_model.model.mlp.experts"
    np.testing.assert_array_equal(
        *(m.get_submodule(path).get_delta_weight("default").detach().numpy() for m in (model, again))
    )
    report = convert(tmp_path / "a", tmp_path / "k.safetensors", dialect="kohya")
    assert report.derived == {"stacked experts": 3} and len(report.modules) == 4
    assert {m.name for m in inspect(tmp_path / "a").modules} == {
        "mlp.q", "mlp.experts.0", "mlp.experts.1", "mlp.experts.2",
    }  # fmt: skip
    with pytest.raises(UnsupportedError, match="stacked experts, which a merged adapter cannot hold"):
        merge([tmp_path / "a", tmp_path / "a"], tmp_path / "out")
    with pytest.raises(UnsupportedError, match="keep their configuration"):
        convert(tmp_path / "a", tmp_path / "out", dialect="peft", adapter_scale=2.0)


def test_a_grouped_convolution_stays_as_peft_has_it(peft, tmp_path):  # noqa: F811
    save(peft, tmp_path / "a", "LoraConfig", r=4, target_modules=["grouped", "q"])
    convert(tmp_path / "a", tmp_path / "same", dialect="peft")
    assert open_checkpoint(tmp_path / "a").digest() == open_checkpoint(tmp_path / "same").digest()
    loaded(peft, tmp_path / "same")


@pytest.mark.parametrize("dora", ["LoraConfig"])
def test_dora_goes_along_by_name(peft, tmp_path, dora):  # noqa: F811
    save(peft, tmp_path / "a", dora, r=2, target_modules=["q"], use_dora=True)
    with pytest.raises(UnsupportedError, match=r"no module can be converted; block\.q is DoRA"):
        convert(tmp_path / "a", tmp_path / "k.safetensors", dialect="kohya")


def test_names_that_end_alike_get_their_own_ranks(peft, tmp_path):  # noqa: F811
    import torch

    def model():
        torch.manual_seed(0)
        made = torch.nn.Module()
        made.q = torch.nn.Linear(6, 5)
        made.block = torch.nn.ModuleDict({"q": torch.nn.Linear(6, 5), "w": torch.nn.Linear(6, 5)})
        made.forward = lambda x: x
        return made

    made = save(
        peft, tmp_path / "a", "LoHaConfig", model(), r=2, target_modules=["q", "w"],
        rank_pattern={"^q": 1}, alpha_pattern={"^q": 3, "block.q": 16},
    )  # fmt: skip
    convert(tmp_path / "a", tmp_path / "plain", dialect="peft")
    again = loaded(peft, tmp_path / "plain", model())
    one, two = tuned(made), tuned(again)
    for name, weight in one.items():
        np.testing.assert_allclose(weight, two[name], rtol=1e-4, atol=1e-5)
