"""Sparse checkpoints on disk: packed and dense again, bit for bit, with what lay beside them."""

import json
from functools import partial

import numpy as np
import pytest
from click.testing import CliRunner

from paring import outputs, packing, tensorwise
from paring.api import compress, decompress, inspect, load, rerun, verify
from paring.checkpoint import open_checkpoint, write_safetensors
from paring.cli import paring
from paring.dtypes import Stored, from_bytes, from_f32
from paring.errors import BadFileError, BadValueError, BudgetError, OptionError, OutputError, UnsupportedError
from paring.packed import open_source
from tests.helpers import names
from tests.merging import put_model
from tests.test_codec_sparse import tensor_of, two_of_four

CONFIG = {"model_type": "llama", "hidden_size": 64, "dtype": "bfloat16"}


def sparse_model(folder, limit=1 << 40, dtype="BF16"):
    rng = np.random.default_rng(0)
    extra = {
        "fp8.weight": tensor_of(("F8_E4M3", (40, 50), 0.3)),
        "int8.weight": tensor_of(("I8", (6, 7, 8), 0.3)),
        "ids": Stored("I64", np.arange(1, 5)),
        "empty": Stored("F16", np.zeros((0, 3), np.float16)),
        "zeros": Stored("BF16", np.zeros((90, 500), np.uint16)),
        "minus": from_f32(np.where(rng.random((30, 40)) < 0.5, -0.0, 1.0), "F32"),
    }
    values = {
        "model.layers.0.up.weight": (rng.random((200, 300)) < 0.5) * rng.standard_normal((200, 300)),
        "model.layers.0.down.weight": two_of_four("F32", (300, 200)).data,
        "model.layers.0.norm.weight": np.ones(200),
    }
    whole = {name: np.where(x == 0, 0.0, x).astype(np.float32) for name, x in values.items()}
    return put_model(folder, whole, dtype, limit=limit, extra=extra, config=CONFIG)


def tensors_of(path):
    with open_source(path) as opened:
        return {name: (t.dtype, t.shape, t.tobytes()) for name in opened for t in [opened.read(name)]}


@pytest.mark.parametrize("limit", [1 << 40, 60_000])
@pytest.mark.parametrize("threads", [1, 3])
def test_a_sparse_model_comes_back_with_what_lay_beside(tmp_path, limit, threads):
    source = sparse_model(tmp_path / "m", limit)
    (source / "1_Pooling").mkdir()
    (source / "1_Pooling" / "config.json").write_text("{}")
    (source / "secrets.txt").write_text("not ours")
    report = compress(source, tmp_path / "p.safetensors", method="sparse", threads=threads)
    assert report.bytes_out == (tmp_path / "p.safetensors").stat().st_size < 0.6 * report.bytes_in
    assert report.error == 0.0 and {m.name for m in report.modules} >= {"zeros", "fp8.weight", "int8.weight"}
    assert {c.name for c in report.carried} == {"model.layers.0.norm.weight", "ids", "empty", "minus"}
    density = {m.name: m.density for m in report.modules}
    assert density["zeros"] == 0 and density["model.layers.0.down.weight"] == pytest.approx(0.4, abs=0.02)
    assert tensors_of(tmp_path / "p.safetensors") == tensors_of(source)
    done = decompress(tmp_path / "p.safetensors", tmp_path / "out", threads=threads)
    assert tensors_of(tmp_path / "out") == tensors_of(source) and not done.warnings
    assert names(tmp_path / "out") == ["1_Pooling", "config.json", "model.safetensors", "tokenizer.json"]
    assert (tmp_path / "out" / "config.json").read_bytes() == (source / "config.json").read_bytes()
    assert load(tmp_path / "p.safetensors").keys() == tensors_of(source).keys()  # files are no tensors


def test_the_same_file_whatever_threads_and_shards(tmp_path):
    one, two = sparse_model(tmp_path / "a" / "m"), sparse_model(tmp_path / "b" / "m", 60_000)
    assert len(list(two.glob("*.safetensors"))) > 2
    found = []
    for i, (source, threads) in enumerate([(one, 1), (one, 4), (two, 2)]):
        compress(source, tmp_path / f"{i}.safetensors", method="sparse", threads=threads)
        opened = open_source(tmp_path / f"{i}.safetensors")
        found.append([opened.payload(held).tobytes() for held in opened.payloads])
    assert found[0] == found[1] == found[2]


def test_shards_of_what_is_decompressed(tmp_path, monkeypatch):
    source = sparse_model(tmp_path / "m")
    compress(source, tmp_path / "p.safetensors", method="sparse")
    monkeypatch.setattr(outputs, "Output", partial(outputs.Output, shard_size=60_000))
    report = decompress(tmp_path / "p.safetensors", tmp_path / "out")
    assert report.files and "model.safetensors.index.json" in names(tmp_path / "out")
    assert tensors_of(tmp_path / "out") == tensors_of(source)


def test_verify_inspect_and_rerun(tmp_path):
    source = sparse_model(tmp_path / "m")
    compress(source, tmp_path / "m.paring.safetensors", method="sparse")
    assert verify(tmp_path / "m.paring.safetensors", source).ok
    assert inspect(tmp_path / "m.paring.safetensors").packed["method"] == "sparse"
    assert rerun(tmp_path / "m.paring.safetensors", tmp_path / "again.safetensors", source=source).same


def test_minus_zeros_are_told(tmp_path):
    source = sparse_model(tmp_path / "m")
    (warning,) = compress(source, tmp_path / "p.safetensors", method="sparse").warnings
    values, bytes_ = (open_checkpoint(source).read(name).data for name in ("minus", "fp8.weight"))
    count = (np.signbit(values) & (values == 0)).sum() + (bytes_ == 0x80).sum()
    assert warning.startswith(f"{count} entries are -0")


@pytest.mark.parametrize(
    ("budget", "fits"),
    [({"ratio": 1.5}, True), ({"ratio": 20}, False), ({"bits_per_param": 9}, True),
     ({"bits_per_param": 0.5}, False), ({"error": 0.1}, True)],
)  # fmt: skip
def test_a_budget_is_met_or_refused(tmp_path, budget, fits):
    source = sparse_model(tmp_path / "m")
    if fits:
        assert compress(source, tmp_path / "p.safetensors", method="sparse", **budget).error == 0
        return
    with pytest.raises(BudgetError, match=r"without loss this checkpoint takes .* best that can be had"):
        compress(source, tmp_path / "p.safetensors", method="sparse", **budget)
    assert names(tmp_path) == ["m"]


def test_what_is_refused_leaves_nothing(tmp_path):
    source = sparse_model(tmp_path / "m")
    with pytest.raises(OptionError, match="carry"):
        compress(source, tmp_path / "p.safetensors", method="sparse", carry="drop")
    broken = tmp_path / "nan.safetensors"
    write_safetensors(broken, {"a": Stored("F32", np.array([0.0, np.nan], np.float32))})
    with pytest.raises(BadValueError, match=r"a holds NaN .*first at flat index 1"):
        compress(broken, tmp_path / "p.safetensors", method="sparse")
    compress(source, tmp_path / "p.safetensors", method="sparse")
    with pytest.raises(UnsupportedError, match="packed already"):
        compress(tmp_path / "p.safetensors", tmp_path / "q.safetensors", method="sparse")
    with pytest.raises(OutputError, match="exists"):
        compress(source, tmp_path / "p.safetensors", method="sparse")
    with pytest.raises(OptionError, match="base"):
        decompress(tmp_path / "p.safetensors", tmp_path / "o", base=source)
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / "mine.txt").write_text("keep me")
    with pytest.raises(OutputError, match=r"mine\.txt, which would be lost"):
        decompress(tmp_path / "p.safetensors", tmp_path / "o", overwrite=True)
    assert names(tmp_path) == ["m", "nan.safetensors", "o", "p.safetensors"]


def test_a_damaged_file_is_refused_before_anything_is_written(tmp_path):
    source = sparse_model(tmp_path / "m")
    path = tmp_path / "p.safetensors"
    compress(source, path, method="sparse")
    whole = bytearray(path.read_bytes())
    container = open_checkpoint(path)
    for entry, told in [("file:config.json", "'config.json' in it is damaged"), ("sparse", "is damaged")]:
        broken = bytearray(whole)
        broken[container.tensors[entry].start + 4] ^= 1
        path.write_bytes(broken)
        with pytest.raises(BadFileError, match=told):
            decompress(path, tmp_path / "out")
    assert names(tmp_path) == ["m", "p.safetensors"]


@pytest.mark.parametrize("name", ["../evil", "/etc/passwd", "a/b/c", "", ".", "a:b", 3, "a\0"])
def test_names_of_files_stay_below_the_folder(tmp_path, name, monkeypatch):
    monkeypatch.setattr(packing.manifest, "check", lambda *_: None)
    file = packing.Beside(name, packing.written(b"evil"), 4)
    monkeypatch.setattr(tensorwise.Beside, "of", lambda *_: file)
    monkeypatch.setattr(tensorwise, "_recheck", lambda *_: None)
    compress(sparse_model(tmp_path / "m"), tmp_path / "p.safetensors", method="sparse")
    with pytest.raises(BadFileError, match="the manifest"):
        decompress(tmp_path / "p.safetensors", tmp_path / "out")


def test_in_another_dtype_and_as_one_file(tmp_path):
    source = sparse_model(tmp_path / "m")
    compress(source, tmp_path / "p.safetensors", method="sparse")
    report = decompress(tmp_path / "p.safetensors", tmp_path / "out", dtype="fp32")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "float32"
    with open_checkpoint(tmp_path / "out") as wide, open_checkpoint(source) as own:
        assert {wide.tensors[n].dtype for n in wide} == {"F32", "F8_E4M3", "I8", "I64"}
        name = "model.layers.0.up.weight"
        assert (wide.read(name).data == own.read(name).f32()).all()
    assert report.error is None
    report = decompress(tmp_path / "p.safetensors", tmp_path / "one.safetensors")
    assert (
        tensors_of(tmp_path / "one.safetensors") == tensors_of(source) and "config.json" in report.warnings[0]
    )


def test_an_adapter_keeps_its_configuration(tmp_path):
    from tests.helpers import put_adapter
    from tests.make_golden import lora

    source = put_adapter(tmp_path / "a", lora("F16"))
    compress(source, tmp_path / "p.safetensors", method="sparse")
    decompress(tmp_path / "p.safetensors", tmp_path / "out")
    assert names(tmp_path / "out") == ["adapter_config.json", "adapter_model.safetensors"]
    assert tensors_of(tmp_path / "out") == tensors_of(source)


def test_on_the_command_line(tmp_path):
    source = sparse_model(tmp_path / "m")
    run = CliRunner()
    done = run.invoke(paring, ["compress", str(source), "--method", "sparse", "--json"])
    assert done.exit_code == 0 and json.loads(done.stdout)["error"] == 0
    text = run.invoke(
        paring, ["compress", str(source), "--method", "sparse", "--dry-run", "-o", str(tmp_path / "x")]
    )
    assert text.exit_code == 0 and "every bit comes back" in text.stdout and "warning" in text.stderr
    done = run.invoke(
        paring, ["decompress", str(tmp_path / "m.paring.safetensors"), "-o", str(tmp_path / "o")]
    )
    assert done.exit_code == 0, done.output
    assert tensors_of(tmp_path / "o") == tensors_of(source)


def test_little_memory_is_held(tmp_path):
    import tracemalloc

    tensors = {f"{i:02}.weight": from_bytes("F32", (256, 1024), bytes(1 << 20)) for i in range(24)}
    write_safetensors(tmp_path / "m.safetensors", tensors)
    tracemalloc.start()
    compress(tmp_path / "m.safetensors", tmp_path / "p.safetensors", method="sparse", threads=1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12 << 20 < 24 << 20
