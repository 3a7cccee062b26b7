"""The verbs, on real adapters and small ones: budgets are met, or refused with the best that can be had."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from paring.api import compress, decompress, inspect, load, load_into, to_torch, verify
from paring.budget import Budget
from paring.checkpoint import digest, open_checkpoint
from paring.compressing import _read
from paring.dtypes import STORAGE, Stored, from_f32
from paring.errors import BadFileError, BadValueError, BudgetError, OptionError, OutputError, UnsupportedError
from paring.packed import Packed, open_source
from paring.plan import plan_compress
from tests.helpers import put_adapter
from tests.make_golden import carried, ia3, kohya, lora

ADAPTERS = Path(__file__).parents[1] / "fixtures" / "adapters"
BROWN = ADAPTERS / "brown"
RULE = {"basis": "trained", "scope": "global", "alpha": 1.0}
PAPER = {"method": "compeft", **RULE}
DTYPES = ("F32", "F16", "BF16", "F64")


def tensors_of(path):
    return dict(open_source(path).read_all())


def same(a, b):
    return {n: (t.dtype, t.shape, t.tobytes()) for n, t in a.items()} == {
        n: (t.dtype, t.shape, t.tobytes()) for n, t in b.items()
    }


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """A real adapter, 64 times smaller than in fp16, and the report."""
    output = tmp_path_factory.mktemp("brown") / "brown.paring.safetensors"
    return compress(BROWN, output, bits_per_param=0.25, threads=2)


# --- budgets


@pytest.fixture
def small(tmp_path):
    """An adapter of 6144 parameters: large enough for its manifest not to be all there is."""
    rng = np.random.default_rng(3)
    tensors = {}
    for i in range(3):
        for name, shape in (("A", (4, 256)), ("B", (256, 4))):
            values = rng.standard_t(3, shape).astype(np.float32) / 50
            tensors[f"base_model.model.layers.{i}.fc.lora_{name}.weight"] = from_f32(values, "F32")
    return put_adapter(tmp_path / "small", tensors)


@pytest.mark.parametrize("options", [{}, PAPER, {"method": "compeft", "basis": "svd", "scope": "tensor"}])
@pytest.mark.parametrize("ratio", [12, 16.5, 22])
def test_a_ratio_is_met_closely(small, tmp_path, ratio, options):
    made = compress(small, tmp_path / "x.safetensors", ratio=ratio, **options)
    size = (tmp_path / "x.safetensors").stat().st_size
    source = (small / "adapter_model.safetensors").stat().st_size
    assert made.bytes_in == source and made.bytes_out == size
    assert made.ratio == source / size >= ratio
    assert verify(made.output, small).ok


def test_half_the_source_means_twice_the_ratio(small, tmp_path):
    opened = open_checkpoint(small)
    halved = {name: from_f32(opened.read(name).f32(), "F16") for name in opened}
    wide = compress(small, tmp_path / "w.safetensors", bits_per_param=1.6, **PAPER)
    half = compress(
        put_adapter(tmp_path / "h", halved), tmp_path / "h.safetensors", bits_per_param=1.6, **PAPER
    )
    assert wide.ratio_fp16 == pytest.approx(half.ratio_fp16, rel=0.02)
    assert wide.ratio == pytest.approx(2 * half.ratio, rel=0.05)


@pytest.mark.parametrize("options", [{}, {"method": "compeft", "sweeps": 1}, PAPER])
@pytest.mark.parametrize(("budget", "much"), [("ratio", 1000), ("bits_per_param", 0.001), ("error", 0.001)])
def test_what_cannot_be_had_is_refused_with_what_can(small, tmp_path, budget, much, options):
    before = sorted(tmp_path.iterdir())
    with pytest.raises(BudgetError, match=r"cannot be met.*the best that can be had is --") as caught:
        compress(small, tmp_path / "x.safetensors", **{budget: much}, **options)
    assert sorted(tmp_path.iterdir()) == before
    flag, best = str(caught.value).split()[-2:]
    assert flag == "--" + budget.replace("_", "-")
    made = compress(small, tmp_path / "x.safetensors", **{budget: float(best)}, **options)
    assert made.ratio >= float(best) if budget == "ratio" else getattr(made, budget) <= float(best)


def trials(source, output, **options):
    """Sizes and errors of all dials of the published rule near one that was chosen."""
    chosen = compress(source, output, **options, **PAPER)
    plan = plan_compress(source, output.with_name("y"), budget=Budget(), method="compeft", options=RULE)
    family = plan.method.function(_read(plan)[0], 1, "cpu", **plan.options)
    kept = sum(int(np.count_nonzero(to.data)) for to in tensors_of(chosen.output).values())
    return chosen, family, kept


@pytest.mark.parametrize("error", [0.85, 0.9, 0.95])
def test_an_error_is_met_by_the_smallest_that_does(small, tmp_path, error):
    chosen, family, kept = trials(small, tmp_path / "x", error=error)
    assert chosen.error <= error
    total = family._d
    for fewer in (1, 2, 8):
        density = (kept - 1 - fewer + 0.5) / total  # the dial of so many fewer entries
        other = compress(small, tmp_path / f"{fewer}", density=density, **PAPER)
        assert other.error > error or other.bytes_out >= chosen.bytes_out


@pytest.mark.parametrize("bits", [1.5, 2.0])
def test_a_size_is_filled_by_the_best_that_fits(small, tmp_path, bits):
    chosen, family, kept = trials(small, tmp_path / "x", bits_per_param=bits)
    most = math.floor(bits * 6144 / 8)
    assert chosen.bytes_out <= most and chosen.bits_per_param <= bits
    for more in (1, 8, 64):
        density = (kept - 1 + more + 0.5) / family._d
        if density < 2 / 3:
            other = compress(small, tmp_path / f"{more}", density=density, **PAPER)
            assert other.bytes_out > most or other.error >= chosen.error - 1e-12


CONTRADICTIONS = (
    {"ratio": 20, "error": 0.5},
    {"ratio": -1},
    {"error": 1.5},
    {"bits_per_param": math.inf},
    {"density": 0.1, "ratio": 3, **PAPER},
    {"carry": "some"},
    {"threads": 0},
    {"device": "tpu"},
    {"method": "none"},
    {"nonsense": 1},
)


@pytest.mark.parametrize("options", CONTRADICTIONS)
def test_options_that_contradict(small, tmp_path, options):
    with pytest.raises(OptionError):
        compress(small, tmp_path / "x", **options)
    assert not (tmp_path / "x").exists()


def test_a_dry_run_writes_nothing(small, tmp_path):
    dry = compress(small, tmp_path / "x", bits_per_param=2, dry_run=True, **PAPER)
    assert dry.dry_run and not (tmp_path / "x").exists()
    wet = compress(small, tmp_path / "x", bits_per_param=2, **PAPER)
    assert (wet.bytes_out, wet.error, wet.modules) == (dry.bytes_out, dry.error, dry.modules)
    assert "dry_run" in dry.to_json() and "dry_run" not in wet.to_json()


def test_the_default_output_and_budget(small, tmp_path):
    made = compress(small, **PAPER)
    assert Path(made.output) == tmp_path / "small.paring.safetensors"
    assert made.ratio_fp16 >= 16 or made.bits_per_param <= 1


# --- dtypes and what is carried


@pytest.mark.parametrize("dtype", DTYPES)
def test_source_dtypes_come_back(dtype, tmp_path):
    source = put_adapter(tmp_path / "s", lora(dtype) | carried())
    made = compress(source, tmp_path / "x", density=0.4, **PAPER)
    assert (made.ratio, made.ratio_fp16) == (made.bytes_in / made.bytes_out, 2 * 1727 / made.bytes_out)
    found, original = (
        tensors_of(made.output),
        {n: open_checkpoint(source).read(n) for n in open_checkpoint(source)},
    )
    assert {n: t.dtype for n, t in found.items()} == {n: t.dtype for n, t in original.items()}
    assert same({n: found[n] for n in carried()}, carried())
    assert verify(made.output, source).passed[-1] == "recorded error"
    assert {tensor.name for tensor in made.carried} == set(carried())


def test_carried_in_half_precision(tmp_path):
    others = carried() | {"base_model.model.alpha": Stored("F32", np.array(0.1, np.float32))}
    source = put_adapter(tmp_path / "s", lora("BF16") | others)
    lossless = compress(source, tmp_path / "x", density=0.4, **PAPER)
    half = compress(source, tmp_path / "y", density=0.4, carry="fp16", **PAPER)
    assert half.bytes_out < lossless.bytes_out
    found = tensors_of(half.output)
    for name, tensor in others.items():
        narrowed = tensor.dtype in ("F32", "F64") and tensor.numel > 1
        expected = (
            STORAGE[tensor.dtype].type(np.float16(1)) * tensor.data.astype(np.float16)
            if narrowed
            else tensor.data
        )
        assert found[name].dtype == tensor.dtype
        assert found[name].tobytes() == np.asarray(expected, STORAGE[tensor.dtype]).tobytes()
    wide = put_adapter(
        tmp_path / "t", lora() | {"base_model.model.x": from_f32(np.full(9, 1e6, np.float32), "F32")}
    )
    with pytest.raises(BadValueError, match=r"base_model.model.x: a value is too large for F16"):
        compress(wide, tmp_path / "z", density=0.4, carry="fp16", **PAPER)
    assert not (tmp_path / "z").exists()


def test_dropping_leaves_scalars_where_they_are(tmp_path):
    source = put_adapter(tmp_path / "s", kohya(), None)
    made = compress(source, tmp_path / "x", density=0.4, carry="drop", **PAPER)
    found = tensors_of(made.output)
    assert set(kohya()) - set(found) == {"lora_te_extra.diff_b"}
    assert "1 tensors dropped, lora_te_extra.diff_b" in made.warnings[-1]
    assert inspect(made.output).packed["dropped"] == ["lora_te_extra.diff_b"]
    assert {m.name: m.scale for m in inspect(made.output).modules} == {"lora_unet_a": 0.5, "lora_te_b": 0.75}
    assert verify(made.output, source).ok


def test_what_carried_tensors_block_is_named(tmp_path):
    rng = np.random.default_rng(0)
    head = {"base_model.model.score.weight": Stored("F32", rng.normal(size=(64, 500)).astype(np.float32))}
    source = put_adapter(tmp_path / "s", lora() | head)
    with pytest.raises(
        BudgetError, match=r"carried tensors such as base_model.model.score.weight \(.*--carry"
    ):
        compress(source, tmp_path / "x", ratio=20)
    assert compress(source, tmp_path / "x", ratio=20, carry="drop").ratio >= 20


def test_vectors_that_scale_activations(tmp_path):
    config = {"peft_type": "IA3", "target_modules": ["k_proj"]}
    for dtype in ("F32", "F16", "BF16"):
        source = put_adapter(tmp_path / dtype, ia3(dtype), config)
        made = compress(
            source, tmp_path / f"{dtype}.out", density=0.6, method="compeft", basis="svd", scope="tensor"
        )
        assert verify(made.output, source).ok and 0 < made.error < 1
        assert [m.rank for m in made.modules] == [None] * 6
        original = {name: open_checkpoint(source).read(name).f32() for name in ia3(dtype)}
        lost = sum(((t.f32() - original[n]) ** 2).sum() for n, t in tensors_of(made.output).items())
        energy = sum(((x - 1) ** 2).sum() for x in original.values())
        assert made.error == pytest.approx((lost / energy) ** 0.5, rel=1e-4)


# --- the same bytes, and out again


def test_same_bytes_for_any_threads_and_every_run(small, tmp_path, packed):
    again = compress(BROWN, tmp_path / "again", bits_per_param=0.25, threads=1)
    assert Path(again.output).read_bytes() == Path(packed.output).read_bytes()
    for options in (PAPER, {"method": "compeft", "basis": "svd"}, {}):
        runs = [
            compress(small, tmp_path / "x", bits_per_param=2, threads=threads, overwrite=True, **options)
            and (tmp_path / "x").read_bytes()
            for threads in (1, 2, 1)
        ]
        assert len(set(runs)) == 1


def test_what_does_not_read_back_is_never_published(small, tmp_path, monkeypatch):
    honest = Packed.read_all

    def lying(self, names=None):
        for name, tensor in honest(self, names):
            yield name, Stored(tensor.dtype, -tensor.data)

    monkeypatch.setattr(Packed, "read_all", lying)
    (tmp_path / "x").write_bytes(b"precious")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(BadFileError, match="does not read back the same"):
        compress(small, tmp_path / "x", bits_per_param=2, overwrite=True, **PAPER)
    assert (tmp_path / "x").read_bytes() == b"precious" and sorted(tmp_path.iterdir()) == before


def test_a_report_as_json(packed):
    told = json.loads(json.dumps(packed.to_json(), allow_nan=False))
    assert told["command"] == "compress" and told["bytes_out"] == packed.bytes_out
    assert {
        "modules",
        "carried",
        "ratio",
        "ratio_fp16",
        "bits_per_param",
        "error",
        "recipe",
        "seconds",
    } <= set(told)
    assert None not in told.values() and len(told["modules"]) == 24
    assert set(told["modules"][0]) == {"name", "shape", "rank", "density", "bits", "error"}
    json.dumps(inspect(packed.output).to_json(), allow_nan=False)
    json.dumps(verify(packed.output).to_json(), allow_nan=False)


def test_inspect(packed):
    found, source = inspect(packed.output), inspect(BROWN)
    assert (found.kind, found.dialect, found.base) == (source.kind, source.dialect, source.base)
    assert found.metadata == source.metadata == {"format": "pt"} and not found.problems
    assert found.packed["error"] == pytest.approx(packed.error, abs=1e-6)
    assert found.packed["source"]["sha256"] == open_checkpoint(BROWN).digest()
    scales = {m.name: m.scale for m in source.modules}
    for module, told in zip(found.modules, packed.modules, strict=True):
        assert (module.name, module.rank, module.shape) == (told.name, told.rank, told.shape)
        assert module.density is None and module.error == pytest.approx(told.error, abs=1e-4)
        assert module.scale == scales[module.name] == 2.0


def test_inspect_tells_densities_of_ternary_files(tmp_path):
    how = {"basis": "trained", "scope": "tensor", "density": 0.05}
    made = compress(BROWN, tmp_path / "x.safetensors", method="compeft", **how)
    told = [module.density for module in inspect(made.output).modules]
    assert told == [module.density for module in made.modules] and set(told) != {None}


def test_decompress_to_a_file_or_a_folder(packed, tmp_path):
    expected = tensors_of(packed.output)
    for dtype, code in ((None, "F32"), ("fp16", "F16"), ("bf16", "BF16"), ("fp64", "F64")):
        made = decompress(packed.output, tmp_path / f"{dtype}.safetensors", dtype=dtype)
        opened = open_checkpoint(made.output)
        assert made.bytes_out == opened.nbytes and opened.metadata == {"format": "pt"}
        for name in expected:
            cast = from_f32(expected[name].data, code)
            assert (opened.read(name).dtype, opened.read(name).tobytes()) == (code, cast.tobytes())
    decompress(packed.output, tmp_path / "folder")
    assert json.loads((tmp_path / "folder" / "adapter_config.json").read_text()) == json.loads(
        (BROWN / "adapter_config.json").read_text()
    )
    assert digest(expected.items()) == open_checkpoint(tmp_path / "folder").digest()
    for output in (tmp_path / "folder", tmp_path / "None.safetensors"):
        with pytest.raises(OutputError, match="exists: add --overwrite"):
            decompress(packed.output, output)
        decompress(packed.output, output, overwrite=True)
    with pytest.raises(OutputError, match="is an input"):
        decompress(packed.output, packed.output, overwrite=True)
    with pytest.raises(UnsupportedError, match="not a packed file"):
        decompress(BROWN, tmp_path / "other")
    with pytest.raises(OptionError, match="--dtype int8"):
        decompress(packed.output, tmp_path / "other", dtype="int8")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("code", sorted(STORAGE))
def test_tensors_of_every_dtype_reach_torch(code):
    torch = pytest.importorskip("torch")
    raw = np.arange(6 * STORAGE[code].itemsize, dtype=np.uint8) & (1 if code == "BOOL" else 0x3B)
    data = raw.view(STORAGE[code]).reshape(2, 3)
    for part in (data, data[:0], data[0, 0].reshape(())):
        tensor = to_torch(Stored(code, part))
        assert tuple(tensor.shape) == part.shape
        assert tensor.reshape(-1).view(torch.uint8).numpy().tobytes() == part.tobytes()


def test_load_is_lazy_and_hands_out_copies(packed):
    tensors = load(packed.output, threads=2)
    name = next(iter(tensors))
    first = tensors[name]
    first.zero_()
    assert tensors[name].any() and len(tensors) == 48 and name in tensors and "missing" not in tensors
    with pytest.raises(KeyError):
        tensors["missing"]


# --- verify


def test_verify_finds_what_is_wrong(packed, tmp_path):
    good = Path(packed.output).read_bytes()
    found = verify(packed.output, BROWN)
    assert found.ok and found.to_json()["ok"] and found.error == pytest.approx(found.error_recorded, abs=1e-5)
    assert "digest of the source" in found.passed
    wrong = verify(packed.output, ADAPTERS / "rotten")
    assert not wrong.ok and "not what this file was made of" in wrong.failed[0]
    bad = tmp_path / "x.safetensors"
    info = open_checkpoint(packed.output).tensors["trellis"]
    bad.write_bytes(good[: info.start + 99] + bytes([good[info.start + 99] ^ 16]) + good[info.start + 100 :])
    assert any("checksum of payload 'trellis'" in line for line in verify(bad).failed)
    told = good.replace(open_source(packed.output).digest_recorded.encode(), b"0" * 64)
    bad.write_bytes(told)
    assert "not those that were written" in verify(bad).failed[0]
    with pytest.raises(OptionError, match="not a packed file"):
        verify(BROWN, BROWN)


def test_verify_plain_files(tmp_path):
    assert verify(BROWN).ok
    nan = lora() | {"base_model.model.x": Stored("F32", np.array([0, np.nan], np.float32))}
    assert (
        "base_model.model.x holds NaN or infinity (first at flat index 1)"
        in verify(put_adapter(tmp_path / "s", nan)).failed[0]
    )
    half = lora()
    del half[next(iter(half))]
    assert "has no matching A" in verify(put_adapter(tmp_path / "t", half)).failed[0]


# --- PEFT

#: PEFT's own business with transformers
deprecated = pytest.mark.filterwarnings("ignore:.*deprecated.*:FutureWarning")


@pytest.fixture(scope="module")
def base():
    """A random encoder of the fixtures' shapes."""
    transformers = pytest.importorskip("transformers")
    import torch

    config = transformers.BertConfig(
        hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536, vocab_size=50
    )
    torch.manual_seed(0)
    return lambda: transformers.BertModel(config).eval()


def outputs(model):
    import torch

    with torch.no_grad():
        return model(input_ids=torch.arange(12).reshape(2, 6)).last_hidden_state


@deprecated
def test_peft_loads_what_was_decompressed_and_what_is_packed(packed, tmp_path, base):
    import torch
    from peft import PeftModel

    decompress(packed.output, tmp_path / "folder")
    torch.manual_seed(0)
    model = PeftModel.from_pretrained(base(), tmp_path / "folder").eval()
    tensors = load(packed.output)
    layer = model.base_model.model.encoder.layer[3].intermediate.dense
    name = "base_model.model.encoder.layer.3.intermediate.dense"
    delta = 2.0 * tensors[f"{name}.lora_B.weight"] @ tensors[f"{name}.lora_A.weight"]
    torch.testing.assert_close(layer.get_delta_weight("default"), delta, rtol=0, atol=1e-7)
    expected = outputs(model)

    load_into(model, packed.output, "packed")
    load_into(model, tmp_path / "folder", "folder")
    for adapter in ("packed", "folder"):
        torch.testing.assert_close(outputs(model), expected, rtol=0, atol=0)  # not active yet
        model.set_adapter(adapter)
        torch.testing.assert_close(outputs(model), expected, rtol=0, atol=0)
        model.set_adapter("default")
    with model.disable_adapter():
        assert not torch.equal(outputs(model), expected)
    with pytest.raises(UnsupportedError, match="has an adapter named 'packed' already"):
        load_into(model, packed.output, "packed")


@deprecated
def test_load_into_refuses_what_does_not_fit(packed, tmp_path, base):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(base(), LoraConfig(target_modules=["query"], r=2))
    with pytest.raises(UnsupportedError, match=r"holds no adapter_config.json"):
        load_into(model, put_adapter(tmp_path / "s", lora(), None), "x")
    with pytest.raises(BadFileError, match="does not fit this model"):
        load_into(model, put_adapter(tmp_path / "t", lora()), "x")
    config = json.loads((BROWN / "adapter_config.json").read_text())
    source = {name: open_checkpoint(BROWN).read(name) for name in open_checkpoint(BROWN)}
    last = "base_model.model.encoder.layer.5.output.dense.lora_A.weight"
    fewer = {name: tensor for name, tensor in source.items() if name != last}
    with pytest.raises(BadFileError, match=r"does not hold .*layer.5.output.dense.lora_A.weight"):
        load_into(model, put_adapter(tmp_path / "u", fewer, config), "x")
    more = source | {"base_model.model.pooler.lora_A.weight": source[last]}
    with pytest.raises(BadFileError, match=r"no place for base_model.model.pooler"):
        load_into(model, put_adapter(tmp_path / "v", more, config), "x")
    other = source | {last: from_f32(np.zeros((8, 7), np.float32), "F32")}
    with pytest.raises(BadFileError, match=r"does not fit this model: size mismatch for .*layer.5.output"):
        load_into(model, put_adapter(tmp_path / "w", other, config), "x")
    assert list(model.peft_config) == ["default"]
    load_into(model, packed.output, "x")
