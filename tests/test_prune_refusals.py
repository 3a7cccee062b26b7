"""What prune refuses, by name and before anything is written."""

from __future__ import annotations

import numpy as np
import pytest

from paring.api import compress, prune
from paring.checkpoint import open_checkpoint
from paring.dtypes import STORAGE, Stored, from_f32
from paring.errors import BadFileError, BadValueError, OptionError, UnsupportedError
from tests.helpers import names, put_adapter
from tests.prunable import PRUNED, arrays, put


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
@pytest.mark.parametrize(
    "options",
    [
        {"sparsity": "0"},
        {"sparsity": ".5", "scope": "global"},
        {"keep": 2, "of": 4},
        {"sparsity": ".5", "allocate": "lamp"},
    ],
)
def test_nan_is_refused_by_name(tmp_path, bad, dtype, options):
    values = arrays()
    values[PRUNED[2]][3, 4] = bad
    model = put(tmp_path / "m", values, dtype)
    with pytest.raises(BadValueError, match=f"{PRUNED[2]} holds NaN, infinity"):
        prune(model, tmp_path / "out", save_mask=tmp_path / "k.safetensors", **options)
    assert names(tmp_path) == ["m"]


@pytest.mark.parametrize(("options", "why"), [
    ({}, "say how much goes"),
    ({"sparsity": "1"}, r"a share in \[0, 1\)"),
    ({"sparsity": "-.1"}, r"a share in \[0, 1\)"),
    ({"sparsity": "50"}, "50 % is 0.5"),
    ({"sparsity": "some"}, "expected a share"),
    ({"sparsity": ".5", "keep": 2, "of": 4}, "one of them"),
    ({"keep": 2}, "go together"),
    ({"of": 4}, "go together"),
    ({"keep": 0, "of": 4}, "expected to keep"),
    ({"keep": 5, "of": 4}, "expected to keep"),
    ({"keep": 2, "of": 4, "scope": "row"}, "leave it out"),
    ({"sparsity": ".5", "scope": "model"}, "tensor, row, global"),
    ({"sparsity": ".5", "allocate": "fair"}, "uniform, erk, lamp"),
    ({"sparsity": ".5", "scope": "global", "allocate": "erk"}, "exclude each other"),
    ({"sparsity": ".5", "scope": "global", "lines": "outputs"}, "exclude each other"),
    ({"sparsity": ".5", "scope": "global", "budgets": {"q": ".5"}}, "one threshold"),
    ({"sparsity": ".5", "lines": "rows"}, "outputs, inputs"),
    ({"sparsity": ".5", "tail": "pad"}, "error, dense"),
    ({"sparsity": ".5", "method": "magnitud"}, "did you mean 'magnitude'"),
    ({"sparsity": ".5", "colour": 1}, "no option --colour"),
    ({"sparsity": ".5", "threads": 0}, "at least 1"),
    ({"sparsity": ".5", "shard_size": 0}, "at least 1"),
    ({"sparsity": ".5", "device": "tpu"}, "auto, cpu or cuda"),
])  # fmt: skip
def test_options_that_cannot_be_meant(tmp_path, options, why):
    model = put(tmp_path / "m", arrays())
    with pytest.raises(OptionError, match=why):
        prune(model, tmp_path / "out", **options)
    assert names(tmp_path) == ["m"]


@pytest.mark.parametrize(("extra", "why"), [
    ({"a.q_proj.qweight": ("I32", (4, 4))}, "a.q_proj.qweight .I32. holds packed or quantised"),
    ({"a.q_proj.weight": ("U8", (16, 1))}, "a.q_proj.weight .U8. holds packed"),
    ({"a.q_proj.weight": ("F8_E4M3", (4, 4))}, "F8_E4M3"),
    ({"a.q_proj.weight_packed": ("I32", (4, 4))}, "weight_packed"),
    ({"a.q_proj.weight.bitmask": ("U8", (4, 1))}, "bitmask"),
])  # fmt: skip
def test_quantised_weights_are_refused(tmp_path, extra, why):
    made = {name: Stored(kind, np.zeros(shape, STORAGE[kind])) for name, (kind, shape) in extra.items()}
    config = {"quantization_config": {"quant_method": "gptq"}}
    model = put(tmp_path / "m", arrays(), extra=made, config=config)
    with pytest.raises(UnsupportedError, match=why) as found:
        prune(model, tmp_path / "out", sparsity=".5")
    assert "(gptq)" in str(found.value)


def test_buffers_of_integers_are_carried(tmp_path):
    extra = {
        "h.0.attn.bias": Stored("BOOL", np.ones((1, 1, 4, 4), np.bool_)),
        "ids": Stored("I64", np.arange(5)),
    }
    model = put(tmp_path / "m", arrays(), extra=extra)
    prune(model, tmp_path / "out", sparsity=".5")
    with open_checkpoint(tmp_path / "out") as opened:
        assert all(opened.read(name).tobytes() == tensor.tobytes() for name, tensor in extra.items())


def test_adapters_and_packed_files_are_refused(tmp_path):
    rng = np.random.default_rng(0)
    prefix = "base_model.model.layers.0.q_proj.lora_"
    factors = {f"{prefix}A.weight": (4, 64), f"{prefix}B.weight": (64, 4)}
    tensors = {n: from_f32(rng.standard_normal(s).astype(np.float32), "F32") for n, s in factors.items()}
    adapter = put_adapter(tmp_path / "a", tensors)
    with pytest.raises(UnsupportedError, match="is an adapter"):
        prune(adapter, tmp_path / "out", sparsity=".5")
    compress(adapter, tmp_path / "p.safetensors", ratio=4)
    with pytest.raises(UnsupportedError, match="is packed"):
        prune(tmp_path / "p.safetensors", tmp_path / "out", sparsity=".5")


def test_a_model_that_changes_meanwhile(tmp_path, monkeypatch):
    from paring.pruning import run

    model, real = put(tmp_path / "m", arrays()), run._beside

    def grow(*arguments):
        real(*arguments)
        with (model / "model.safetensors").open("ab") as file:
            file.write(b"more")

    monkeypatch.setattr(run, "_beside", grow)
    with pytest.raises(BadFileError, match="was changed after it was opened"):
        prune(model, tmp_path / "out", sparsity=".5")
    assert names(tmp_path) == ["m"]
