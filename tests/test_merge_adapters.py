"""Adapters merged by their updates: the exact sum, the best of a rank, folded into a base, or refused."""

import json
import re
import warnings

import numpy as np
import pytest

from paring import adapters, registry
from paring.api import compress, decompress, load, merge
from paring.checkpoint import open_checkpoint, write_safetensors
from paring.dtypes import Stored, from_f32
from paring.errors import BadFileError, BadValueError, OptionError, OutputError, UnsupportedError
from paring.factors import read_factors
from paring.packed import open_source
from tests.helpers import names, put_adapter
from tests.make_golden import CASES, LORA, ia3, kohya
from tests.merging import put_model
from tests.test_adapters_peft import net, peft, save  # noqa: F401

FIXTURES = ["fixtures/adapters/rotten", "fixtures/adapters/brown", "fixtures/adapters/reuters8"]
MODULES = {"layers.0.q_proj": (12, 20), "layers.1.q_proj": (12, 20), "layers.1.down": (20, 30)}
PREFIX = "base_model.model."


@pytest.fixture(autouse=True)
def _at_root(monkeypatch):
    from pathlib import Path

    monkeypatch.chdir(Path(__file__).parents[1])


def lora(seed, rank=3, modules=MODULES, dtype="F32", **ranks):
    rng = np.random.default_rng(seed)
    out = {}
    for module, (n_out, n_in) in modules.items():
        r = ranks.get(module.replace(".", "_"), rank)
        a, b = rng.standard_normal((r, n_in)), rng.standard_normal((n_out, r))
        out[f"{PREFIX}{module}.lora_A.weight"] = from_f32(a.astype(np.float32), dtype)
        out[f"{PREFIX}{module}.lora_B.weight"] = from_f32(b.astype(np.float32), dtype)
    return out


def config(rank=3, alpha=6, **more):
    return LORA | {"r": rank, "lora_alpha": alpha, "target_modules": ["q_proj", "down"]} | more


def deltas(path):
    """module -> scale * B @ A, fp64."""
    found = adapters.read(open_source(path))
    assert not found.problems
    return {f.name: f.scale * (f.B.astype(float) @ f.A.astype(float)) for f in read_factors(found)}


def error(found, exact):
    assert set(found) == set(exact)
    lost = sum(((found[name] - exact[name]) ** 2).sum() for name in exact)
    return float((lost / sum((x**2).sum() for x in exact.values())) ** 0.5)


def total(parts, weights):
    return {
        name: sum(w * part.get(name, 0) for w, part in zip(weights, parts, strict=True)) for name in parts[0]
    }


@pytest.fixture
def three(tmp_path):
    """Mixed ranks and scales: a plain one, rsLoRA, and one with patterns."""
    plain = put_adapter(tmp_path / "plain", lora(0), config())
    stable = put_adapter(tmp_path / "stable", lora(1, 5), config(5, 7, use_rslora=True))
    patterns = config(4, 8, rank_pattern={"layers.1.down": 2}, alpha_pattern={"down": 5})
    pattern = put_adapter(tmp_path / "pattern", lora(2, 4, layers_1_down=2), patterns)
    return [plain, stable, pattern]


@pytest.mark.parametrize("weights", [[1, 1, 1], [0.5, -2, 1.5]])
@pytest.mark.parametrize("scale", [1.0, -0.3])
def test_the_sum_is_exact(three, tmp_path, weights, scale):
    exact = total([deltas(path) for path in three], [w * scale for w in weights])
    report = merge(three, tmp_path / "out", method="task_arithmetic", weights=weights, scale=scale)
    found = deltas(tmp_path / "out")
    assert report.error < 1e-6 and error(found, exact) == pytest.approx(report.error, rel=0.02)
    assert {m.rank for m in report.modules} == {12, 10}
    told = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert not told["use_rslora"] and told["r"] == told["lora_alpha"] == 12


def test_a_rank_is_the_best_of_that_rank(three, tmp_path):
    exact = total([deltas(path) for path in three], [1 / 3] * 3)
    best = 0.0
    for x in exact.values():
        best += (np.linalg.svd(x, compute_uv=False)[4:] ** 2).sum()
    best = (best / sum((x**2).sum() for x in exact.values())) ** 0.5
    report = merge(three, tmp_path / "out", rank=4)
    assert report.error == pytest.approx(best, rel=1e-5)
    assert error(deltas(tmp_path / "out"), exact) == pytest.approx(best, rel=1e-5)
    assert {m.rank for m in report.modules} == {4}


def test_the_same_twice_needs_no_more_rank(three, tmp_path):
    report = merge([three[0], three[0]], tmp_path / "out")
    assert {m.rank for m in report.modules} == {3}
    assert error(deltas(tmp_path / "out"), deltas(three[0])) < 1e-6
    merge([three[0], three[0]], tmp_path / "zero", method="task_arithmetic", weights=[1, -1])
    assert all(abs(x).max() < 1e-6 for x in deltas(tmp_path / "zero").values())


def test_order_does_not_matter(three, tmp_path):
    merge(three, tmp_path / "a")
    merge(three[::-1], tmp_path / "b")
    assert error(deltas(tmp_path / "a"), deltas(tmp_path / "b")) < 1e-6


@pytest.mark.parametrize("method", ["ties", "pcb"])
def test_other_rules_work_on_dense_updates(three, tmp_path, method):
    """As the same rule on a checkpoint that holds the updates."""
    report = merge(three, tmp_path / "out", method=method, density=0.3, rank=12)
    zeros = {f"{name}.weight": np.zeros(shape, np.float32) for name, shape in MODULES.items()}
    base = put_model(tmp_path / "base", zeros)
    tuned = [
        put_model(tmp_path / f"t{i}", {f"{n}.weight": x.astype(np.float32) for n, x in deltas(path).items()})
        for i, path in enumerate(three)
    ]
    merge(tuned, tmp_path / "dense", method=method, density=0.3, base=base)
    with open_checkpoint(tmp_path / "dense") as dense:
        exact = {name.removesuffix(".weight"): dense.read(name).f32().astype(float) for name in dense}
    assert error(deltas(tmp_path / "out"), exact) == pytest.approx(report.error, abs=2e-3)
    merge(three, tmp_path / "into", method=method, density=0.3, into=base)
    with open_checkpoint(tmp_path / "into") as folded:
        found = {name.removesuffix(".weight"): folded.read(name).f32().astype(float) for name in folded}
    assert error(found, exact) < 2e-3


def test_the_same_for_any_number_of_threads(tmp_path):
    made = []
    for threads in (1, 2):
        merge(FIXTURES, tmp_path / f"out{threads}", method="ties", rank=8, threads=threads)
        made.append((tmp_path / f"out{threads}" / "adapter_model.safetensors").read_bytes())
    assert made[0] == made[1]


@pytest.mark.parametrize("method", registry.names("merge"))
def test_real_adapters_merge_by_every_rule(tmp_path, method):
    models = FIXTURES[:2] if "slerp" in method else FIXTURES
    if method == "passthrough":
        pytest.skip("stacks layers of checkpoints")
    report = merge(models, tmp_path / "out", method=method, rank=8)
    found = deltas(tmp_path / "out")
    assert len(found) == 24 and all(np.isfinite(x).all() for x in found.values())
    assert 0 <= report.error < 1
    assert any(abs(x).max() > 0 for x in found.values())


def test_a_module_whose_name_another_one_ends_with_keeps_its_rank(tmp_path):
    modules = {
        "h.0.q_proj": (8, 12),
        "vision.h.0.q_proj": (8, 12),
        "h.1.q_proj": (8, 12),
        "h.2.q_proj": (8, 12),
    }
    kinds = config(rank_pattern={"^h\\.0\\.q_proj": 1}, alpha_pattern={"^h\\.0\\.q_proj": 2})
    models = [
        put_adapter(tmp_path / name, lora(seed, modules=modules, h_0_q_proj=1), kinds)
        for seed, name in enumerate("ab")
    ]
    merge(models, tmp_path / "out", method="linear")
    assert {m.rank for m in adapters.read(open_source(tmp_path / "out")).modules} == {2, 6}
    assert not adapters.read(open_source(tmp_path / "out")).problems


def test_modules_that_only_some_have(tmp_path):
    first = put_adapter(tmp_path / "a", lora(0, modules={"layers.0.q_proj": (12, 20)}), config())
    second = put_adapter(tmp_path / "b", lora(1, modules={"layers.1.down": (20, 30)}), config())
    merge([first, second], tmp_path / "out", method="task_arithmetic")
    found = deltas(tmp_path / "out")
    for path in (first, second):
        ((name, x),) = deltas(path).items()
        np.testing.assert_allclose(found[name], x, atol=1e-5)
    told = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert told["target_modules"] == ["layers.0.q_proj", "layers.1.down"]


@pytest.mark.parametrize(("stored", "wanted"), [("F32", None), ("F16", None), ("BF16", "fp32")])
def test_dtypes(tmp_path, stored, wanted):
    paths = [put_adapter(tmp_path / f"{i}", lora(i, dtype=stored), config()) for i in range(2)]
    report = merge(paths, tmp_path / "out", dtype=wanted)
    tensors = open_checkpoint(tmp_path / "out").tensors.values()
    assert {info.dtype for info in tensors} == {"F32" if wanted else stored}
    assert error(deltas(tmp_path / "out"), total([deltas(p) for p in paths], [0.5, 0.5])) < 2e-3
    assert report.error < 2e-3


def test_a_single_file(three, tmp_path):
    merge(three[:2], tmp_path / "o.safetensors")
    assert len(load(tmp_path / "o.safetensors")) == 6
    assert json.loads(open_checkpoint(tmp_path / "o.safetensors").metadata["paring"])["method"] == "linear"
    with pytest.raises(OutputError, match="exists"):
        merge(three[:2], tmp_path / "o.safetensors")


def test_packed_adapters_take_part(tmp_path):
    packed = compress(FIXTURES[0], tmp_path / "p.paring.safetensors", ratio=40).output
    decompress(packed, tmp_path / "plain")
    merge([packed, FIXTURES[1]], tmp_path / "a")
    merge([tmp_path / "plain", FIXTURES[1]], tmp_path / "b")
    assert error(deltas(tmp_path / "a"), deltas(tmp_path / "b")) < 1e-7


def test_vectors_around_one(tmp_path):
    told = {"peft_type": "IA3", "target_modules": ["k_proj", "v_proj", "down_proj"]}
    first, second = (put_adapter(tmp_path / f"{i}", ia3("F32"), told) for i in range(2))
    other = {name: from_f32(2 - t.f32(), "F32") for name, t in ia3("F32").items()}
    opposite = put_adapter(tmp_path / "opposite", other, told)
    merge([first, second], tmp_path / "same")
    merge([first, opposite], tmp_path / "one", method="task_arithmetic")
    for name, tensor in ia3("F32").items():
        same, one = (open_checkpoint(tmp_path / kind).read(name) for kind in ("same", "one"))
        np.testing.assert_allclose(same.f32(), tensor.f32(), rtol=1e-6)
        np.testing.assert_allclose(one.f32(), 1, rtol=1e-6)
        assert same.shape == tensor.shape


# --- dialects


def diffusers():
    """The two kohya modules of the golden files under diffusers' names, with alpha in the factors."""
    out = {}
    for name, tensor in kohya().items():
        if not name.endswith(("down.weight", "up.weight")):
            continue
        alpha = 2 if name.startswith("lora_unet") else 3
        scaled = tensor.f32() * (np.float32(alpha / 4) if "up" in name else 1)
        module = {"lora_unet_a": "unet.a", "lora_te_b": "text_encoder.b"}[name.split(".")[0]]
        out[f"{module}.lora.{'up' if 'up' in name else 'down'}.weight"] = from_f32(scaled, "F16")
    return out


@pytest.mark.parametrize("first", ["kohya", "diffusers"])
def test_dialects_mix_and_the_first_one_names(tmp_path, first):
    made = {}
    for name, tensors in (("kohya", kohya()), ("diffusers", diffusers())):
        made[name] = tmp_path / f"{name}.safetensors"
        write_safetensors(made[name], tensors)
    order = [made[first], *(path for name, path in made.items() if name != first)]
    options = {"method": "task_arithmetic", "weights": [1, 1]}
    if first == "diffusers":  # a bias under kohya's name would mean nothing beside diffusers' names
        with pytest.raises(UnsupportedError, match="diff_b, a full tensor and no factor, is not in"):
            merge(order, tmp_path / "out.safetensors", **options)
        options["carried"] = "drop"
    merge(order, tmp_path / "out.safetensors", **options)
    found, exact = deltas(tmp_path / "out.safetensors"), deltas(made[first])
    assert adapters.read(open_checkpoint(tmp_path / "out.safetensors")).dialect == first
    assert error(found, {name: 2 * x for name, x in exact.items()}) < 3e-3
    only = {name: tensor for name, tensor in kohya().items() if "unet" in name}
    write_safetensors(tmp_path / "only.safetensors", only)
    with pytest.raises(UnsupportedError, match="name in the kohya dialect is not known"):
        merge([tmp_path / "only.safetensors", made["diffusers"]], tmp_path / "x.safetensors")


# --- into a base, and in PEFT


def test_folded_into_a_base_that_names_modules_otherwise(three, tmp_path):
    rng = np.random.default_rng(0)
    base = {f"model.{name}.weight": rng.standard_normal(s).astype(np.float32) for name, s in MODULES.items()}
    folder = put_model(tmp_path / "base", base | {"model.norm.weight": np.ones(5, np.float32)})
    merge(three, tmp_path / "out", method="task_arithmetic", into=folder, weights=[1, -1, 2])
    exact = total([deltas(path) for path in three], [1, -1, 2])
    with open_checkpoint(tmp_path / "out") as found:
        assert (found.read("model.norm.weight").f32() == 1).all()
        for name, x in exact.items():
            merged = found.read(f"model.{name}.weight").f32()
            np.testing.assert_allclose(merged, base[f"model.{name}.weight"] + x, atol=2e-5)
    mixed = put_model(
        tmp_path / "mixed",
        {name: x + 1 for name, x in base.items()} | {"model.norm.weight": np.ones(5, np.float32)},
    )
    merge([mixed, three[0]], tmp_path / "both", method="task_arithmetic", base=folder)
    name = "layers.0.q_proj"
    with open_checkpoint(tmp_path / "both") as found:
        both = found.read(f"model.{name}.weight").f32()
    np.testing.assert_allclose(both, base[f"model.{name}.weight"] + 1 + deltas(three[0])[name], atol=2e-5)
    other = put_model(tmp_path / "other", {"model.layers.0.q_proj.weight": np.ones((12, 21), np.float32)})
    for base_, words in (
        (other, "is another's|another base's"),
        (put_model(tmp_path / "none", {"x.weight": np.ones((1, 1), np.float32)}), "fits no weight"),
    ):
        with pytest.raises(UnsupportedError, match=words):
            merge(three, tmp_path / "x", into=base_)


def test_peft_loads_what_is_merged(peft, tmp_path):  # noqa: F811
    """Linear, Conv1D, convolution and embedding layers; mixed ranks."""
    targets = ["emb", "q", "v", "one", "three"]
    paths, models = [], []
    for number, rank in enumerate((2, 3)):
        model, _ = save(peft, tmp_path / f"{number}", r=rank, lora_alpha=4 + number, target_modules=targets)
        paths.append(tmp_path / f"{number}")
        models.append(model)
    merge(paths, tmp_path / "out", method="task_arithmetic", weights=[0.5, 2.0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = peft.PeftModel.from_pretrained(net(), tmp_path / "out")
    for name in targets:
        layer = loaded.base_model.model.block[name]
        expected = sum(
            w * model.base_model.model.block[name].get_delta_weight("default").detach().numpy()
            for w, model in zip((0.5, 2.0), models, strict=True)
        )
        np.testing.assert_allclose(
            layer.get_delta_weight("default").detach().numpy(), expected, rtol=1e-3, atol=1e-4
        )


# --- refused by name


def refused(match, models, tmp_path, error=UnsupportedError, **options):
    before = names(tmp_path)
    with pytest.raises(error, match=match):
        merge(models, tmp_path / "out", **options)
    assert names(tmp_path) == before


def test_what_is_no_plain_product(three, tmp_path):
    dora = put_adapter(tmp_path / "dora", lora(5), config(use_dora=True))
    refused("dora: layers.0.q_proj cannot be merged: DoRA", [three[0], dora], tmp_path)
    pissa = put_adapter(tmp_path / "pissa", lora(5), config(init_lora_weights="pissa"))
    refused("pissa.*the base was changed", [pissa, three[0]], tmp_path)
    half = {name: tensor for name, tensor in lora(5).items() if "1.down.lora_B" not in name}
    broken = put_adapter(tmp_path / "broken", half, config())
    refused("has no matching B", [three[0], broken], tmp_path, BadFileError)


def test_adapters_that_do_not_fit(three, tmp_path):
    wide = put_adapter(tmp_path / "wide", lora(5, modules={"layers.0.q_proj": (12, 24)}), config())
    refused(r"layers\.0\.q_proj is 12 x 20 in .*12 x 24 in .*different bases", [three[0], wide], tmp_path)
    other = put_adapter(tmp_path / "other", lora(5), config(base_model_name_or_path="someone/else"))
    mine = put_adapter(tmp_path / "mine", lora(6), config(base_model_name_or_path="some/one"))
    report = merge([mine, other], tmp_path / "warned")
    assert "different bases" in report.warnings[0]
    refused("--rank 0: expected exact", three, tmp_path, OptionError, rank=0)
    refused("is an adapter or a task, and cannot be a base", three[:2], tmp_path, base=three[2])
    refused("name the base: give one", three[:2], tmp_path, OptionError, base=three[2], into=three[2])


def test_heads_that_differ(tmp_path):
    head = "base_model.model.classifier.weight"
    paths = []
    for number, classes in enumerate((2, 6)):
        tensors = lora(number) | {head: Stored("F32", np.full((classes, 4), number, np.float32))}
        paths.append(put_adapter(tmp_path / f"{number}", tensors, config(modules_to_save=["classifier"])))
    refused(re.escape(head) + ".*differs between.*--carried first", paths, tmp_path)
    merge(paths, tmp_path / "first", carried="first")
    assert open_checkpoint(tmp_path / "first").tensors[head].shape == (2, 4)
    merge(paths, tmp_path / "none", carried="drop")
    assert head not in open_checkpoint(tmp_path / "none")
    merge([paths[0], paths[0]], tmp_path / "same")
    assert head in open_checkpoint(tmp_path / "same")
    refused("--carried maybe", paths, tmp_path, OptionError, carried="maybe")


def test_golden_packed_files_merge(tmp_path):
    path = tmp_path / "x.paring.safetensors"
    CASES["kohya_f16_dropped"](path)
    report = merge([path, path], tmp_path / "out.safetensors")
    assert report.error < 1e-3


def test_nothing_is_dropped_in_silence_on_the_way_into_a_base(three, tmp_path):
    base = put_model(tmp_path / "base", {f"{n}.weight": np.ones(s, np.float32) for n, s in MODULES.items()})
    dora = put_adapter(tmp_path / "dora", lora(5), config(use_dora=True))
    refused("dora: layers.0.q_proj cannot be merged: DoRA", [three[0], dora], tmp_path, into=base)
    told = {"peft_type": "IA3", "target_modules": ["k_proj", "v_proj", "down_proj"]}
    vectors = put_adapter(tmp_path / "vectors", ia3("F32"), told)
    refused("multiplies activations", [vectors], tmp_path, into=base)
    head = lora(6) | {"base_model.model.score.weight": Stored("F32", np.ones((2, 4), np.float32))}
    headed = put_adapter(tmp_path / "headed", head, config(modules_to_save=["score"]))
    refused("score.weight is a full tensor", [headed, three[0]], tmp_path, into=base)
    report = merge([headed, three[0]], tmp_path / "made", into=base, carried="drop")
    assert any("score.weight and 0 more are left out" in text for text in report.warnings)


# --- corners where numbers went wrong once


@pytest.mark.parametrize("method", ["ties", "pcb", "sft", "knots"])
def test_thresholds_count_only_what_adapters_touch(three, tmp_path, method):
    """Folding in gives what the adapter merge gives, whatever else the base holds."""
    base = {f"{name}.weight": np.zeros(shape, np.float32) for name, shape in MODULES.items()}
    base |= {f"other.{i}.weight": np.ones((200, 40), np.float32) for i in range(4)}
    folder = put_model(tmp_path / "base", base)
    merge(three, tmp_path / "into", method=method, density=0.2, into=folder)
    merge(three, tmp_path / "lora", method=method, density=0.2, rank=20)
    with open_checkpoint(tmp_path / "into") as found:
        folded = {name: found.read(f"{name}.weight").f32().astype(float) for name in MODULES}
        assert all((found.read(f"other.{i}.weight").f32() == 1).all() for i in range(4))
    assert error(folded, deltas(tmp_path / "lora")) < 1e-5


def test_kinds_that_only_look_like_checkpoints_are_refused(tmp_path, three):
    rng = np.random.default_rng(0)
    spectrum = from_f32(rng.standard_normal(9).astype(np.float32), "F32")
    fourier = {f"{PREFIX}q.fourierft_spectrum": spectrum}
    folder = put_adapter(tmp_path / "fourier", fourier, {"peft_type": "FOURIERFT", "n_frequency": 9})
    refused("is an adapter .FOURIERFT. of a kind that cannot be merged", [folder, folder], tmp_path)
    biased = lora(1) | {f"{PREFIX}layers.0.q_proj.lora_B.bias": Stored("F32", np.ones(12, np.float32))}
    bias = put_adapter(tmp_path / "bias", biased, config(lora_bias=True))
    refused("lora_B.bias cannot be merged", [bias, three[0]], tmp_path)


def test_full_tensors_need_the_configuration_that_names_them(tmp_path):
    head = lora(1) | {"base_model.model.score.weight": Stored("F32", np.ones((2, 4), np.float32))}
    first = put_adapter(tmp_path / "plain", lora(0), config())
    second = put_adapter(tmp_path / "headed", head, config(modules_to_save=["score"]))
    refused("score.weight.*is not in .*plain.*name .*headed first", [first, second], tmp_path)
    report = merge([second, first], tmp_path / "out")
    assert [tensor.name for tensor in report.carried] == ["base_model.model.score.weight"]
    merge([second, first], tmp_path / "dropped", carried="drop")
    told = json.loads((tmp_path / "dropped" / "adapter_config.json").read_text())
    assert told["modules_to_save"] is None and told["bias"] == "none"


def test_exclusions_of_the_first_do_not_outlive_the_merge(tmp_path):
    first = put_adapter(
        tmp_path / "a", lora(0, modules={"layers.1.down": (20, 30)}), config(exclude_modules=["q_proj"])
    )
    second = put_adapter(tmp_path / "b", lora(1), config())
    merge([first, second], tmp_path / "out")
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["exclude_modules"] is None


def test_broken_and_scaleless_adapters_are_told_of(tmp_path, three):
    bad = lora(3)
    values = bad[f"{PREFIX}layers.1.down.lora_A.weight"].data.copy()
    values[0, 0] = np.nan
    bad[f"{PREFIX}layers.1.down.lora_A.weight"] = Stored("F32", values)
    folder = put_adapter(tmp_path / "nan", bad, config())
    for method in ("linear", "ties"):
        refused(
            r"layers\.1\.down\.lora_A\.weight holds NaN",
            [three[0], folder],
            tmp_path,
            BadValueError,
            method=method,
        )
    bare = put_adapter(tmp_path / "bare", lora(4), None)
    report = merge([three[0], bare], tmp_path / "out")
    assert any("scale assumed 1" in text for text in report.warnings)


def test_square_conv1d_weights_are_turned(tmp_path):
    """PEFT has one fan_in_fan_out for all modules, and it is wrong for some."""
    shapes = {"h.0.attn.c_attn": (8, 24), "h.0.attn.c_proj": (8, 8), "lm_head": (50, 8)}
    base = put_model(tmp_path / "base", {f"{n}.weight": np.zeros(s, np.float32) for n, s in shapes.items()})
    modules = {"h.0.attn.c_proj": (8, 8), "lm_head": (50, 8)}
    tensors = lora(0, modules=modules)
    folder = put_adapter(tmp_path / "a", tensors, config(fan_in_fan_out=False, target_modules=list(modules)))
    merge([folder], tmp_path / "out", into=base)
    exact = deltas(folder)
    with open_checkpoint(tmp_path / "out") as found:
        proj, head = (found.read(f"{name}.weight").f32() for name in modules)
    np.testing.assert_allclose(proj, exact["h.0.attn.c_proj"].T, atol=1e-5)
    np.testing.assert_allclose(head, exact["lm_head"], atol=1e-5)


def test_options_are_refused_on_a_dry_run(three, tmp_path):
    for options in (
        {"method": "ties", "density": 2},
        {"method": "slerp"},
        {"rank": 4.7},
        {"weights": [1, -1, 0]},
    ):
        refused(
            "density|slerp merges two|--rank|sum to zero",
            three,
            tmp_path,
            OptionError,
            dry_run=True,
            **options,
        )
    report = merge(three, tmp_path / "out", dry_run=True)
    assert report.error is None and names(tmp_path) == ["pattern", "plain", "stable"]


@pytest.mark.parametrize("method", ["linear", "ties"])
def test_memory_that_does_not_suffice_is_refused(three, tmp_path, method):
    with pytest.raises(OptionError, match=r"--memory 1: merging these adapters takes (\d+) bytes") as found:
        merge(three, tmp_path / "out", method=method, memory=1, dry_run=True)
    enough = int(re.search(r"takes (\d+)", str(found.value))[1])
    refused("--memory", three, tmp_path, OptionError, method=method, memory=enough - 1)
    whole, scant = tmp_path / "whole", tmp_path / "scant"
    merge(three, whole, method=method, threads=2)
    merge(three, scant, method=method, threads=2, memory=enough)
    with open_checkpoint(whole) as one, open_checkpoint(scant) as other:
        assert one.digest() == other.digest()
