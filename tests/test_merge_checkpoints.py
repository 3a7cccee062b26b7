"""Checkpoints merged file to file: the plain formula's values, the same bytes however it is run."""

import hashlib
import json

import numpy as np
import pytest

from paring.api import load, merge
from paring.checkpoint import Checkpoint, open_checkpoint
from paring.dtypes import Stored, from_f32
from paring.errors import BadFileError, BadValueError, OptionError, OutputError, UnsupportedError
from tests.helpers import names
from tests.merging import CONFIG, SHAPES, arrays, put_model

BASE = arrays(0)
TUNED = [arrays(seed, BASE) for seed in (1, 2, 3)]
POSITIONS = {"model.position_ids": Stored("I64", np.arange(9))}


@pytest.fixture
def models(tmp_path):
    """A base and three fine-tunes, bf16, in different numbers of shards."""
    base = put_model(tmp_path / "base", BASE, "BF16", extra=POSITIONS)
    limits = (1 << 40, 50_000, 150_000)
    tuned = [
        put_model(tmp_path / f"m{i}", values, "BF16", limit=limit, extra=POSITIONS)
        for i, (values, limit) in enumerate(zip(TUNED, limits, strict=True))
    ]
    return base, tuned


def values(path):
    with open_checkpoint(path) as found:
        return {name: found.read(name).f32() for name in found if found.tensors[name].dtype != "I64"}


def stored(x):
    return from_f32(x, "BF16").f32()


def digest(folder):
    state = hashlib.sha256()
    with open_checkpoint(folder) as found:
        state.update(found.digest().encode())
    return state.hexdigest()


def test_linear_is_the_weighted_mean(models, tmp_path):
    _, tuned = models
    report = merge(tuned, tmp_path / "out", weights=[1, 2, 1])
    found = values(tmp_path / "out")
    assert set(found) == set(SHAPES)
    for name in SHAPES:
        parts = [np.float32(w) * stored(m[name]) for w, m in zip((0.25, 0.5, 0.25), TUNED, strict=True)]
        assert (found[name] == stored(parts[0] + parts[1] + parts[2])).all()
    assert report.bytes_out == (tmp_path / "out" / "model.safetensors").stat().st_size
    assert report.warnings == []


def test_task_arithmetic_adds_scaled_deltas(models, tmp_path):
    base, tuned = models
    report = merge(
        tuned[:2], tmp_path / "o.safetensors", method="task_arithmetic", base=base, weights=[1, -1], scale=0.5
    )
    found = values(tmp_path / "o.safetensors")
    for name in SHAPES:
        b, first, second = (stored(m[name]) for m in (BASE, *TUNED[:2]))
        update = ((first - b) - (second - b)) * np.float32(0.5)
        assert (found[name] == stored(update + b)).all()
    assert "lost in rounding to BF16" in report.warnings[0]


def test_one_model_is_itself_and_opposite_weights_cancel(models, tmp_path):
    base, tuned = models
    report = merge(tuned[:1], tmp_path / "a", method="task_arithmetic", base=base)
    assert "only one model" in report.warnings[0]
    assert digest(tmp_path / "a") == digest(tuned[0])
    report = merge([tuned[0], tuned[0]], tmp_path / "b", method="task_arithmetic", base=base, weights=[1, -1])
    assert "given 2 times" in report.warnings[0]
    assert digest(tmp_path / "b") == digest(base)


@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "ties", "pcb"])
def test_bits_do_not_depend_on_shards_threads_or_output_files(models, tmp_path, method):
    _, tuned = models
    one = put_model(tmp_path / "one", TUNED[1], "BF16", extra=POSITIONS)
    seven = put_model(tmp_path / "seven", TUNED[1], "BF16", limit=25_000, extra=POSITIONS)
    assert len(names(seven)) >= 7
    base = None if method == "linear" else models[0]
    made = set()
    for number, (middle, threads, size) in enumerate(
        [(one, 1, 1 << 40), (seven, 1, 60_000), (one, 2, 60_000), (seven, 2, 1 << 40), (tuned[1], 3, 200_000)]
    ):
        out = tmp_path / f"out{number}"
        merge([tuned[0], middle, tuned[2]], out, method=method, base=base, threads=threads, shard_size=size)
        made.add(digest(out))
    assert len(made) == 1


def test_outputs_are_as_the_hub_has_them(models, tmp_path):
    base, tuned = models
    out = tmp_path / "out"
    merge(tuned, out, method="ties", base=base, shard_size=60_000, dtype="fp16")
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == {*SHAPES, "model.position_ids"}
    assert index["metadata"]["total_parameters"] == sum(int(np.prod(s)) for s in SHAPES.values()) + 9
    files = set(index["weight_map"].values())
    assert files == {f"model-{i:05}-of-{len(files):05}.safetensors" for i in range(1, len(files) + 1)}
    # configuration and tokenizer come from the base, always
    assert json.loads((out / "tokenizer.json").read_text()) == {"from": "base"}
    config = json.loads((out / "config.json").read_text())
    assert config == {**{k: v for k, v in CONFIG.items() if k != "torch_dtype"}, "dtype": "float16"}
    card = (out / "README.md").read_text()
    assert "ties" in card and "`m0`" in card and '"density": 0.2' in card
    told = json.loads(open_checkpoint(out).metadata["paring"])
    assert told["method"] == "ties" and told["options"]["density"] == 0.2
    assert {info.dtype for info in open_checkpoint(out).tensors.values()} == {"F16", "I64"}
    (first, *_) = load(out).values()
    assert first is not None


def test_without_a_base_the_first_model_is_the_donor(models, tmp_path):
    _, tuned = models
    for order in (tuned, tuned[::-1]):
        merge(order, tmp_path / "out", overwrite=True)
        assert json.loads((tmp_path / "out" / "tokenizer.json").read_text()) == {"from": order[0].name}


def test_a_used_folder_keeps_no_stale_shard(models, tmp_path):
    _, tuned = models
    out = tmp_path / "out"
    merge(tuned, out, shard_size=30_000)
    assert len(names(out)) > 5
    with pytest.raises(OutputError, match="exists"):
        merge(tuned, out)
    merge(tuned, out, overwrite=True)
    assert names(out) == ["README.md", "config.json", "model.safetensors", "tokenizer.json"]
    (out / "notes.txt").touch()
    with pytest.raises(OutputError, match="also holds"):
        merge(tuned, out, overwrite=True)


def test_a_dry_run_writes_nothing(models, tmp_path):
    base, tuned = models
    before = names(tmp_path)
    report = merge(tuned, tmp_path / "out", method="pcb", base=base, dry_run=True)
    assert names(tmp_path) == before
    assert report.dry_run and report.bytes_out
    assert report.merged == len(SHAPES)
    assert [(tensor.name, tensor.bytes) for tensor in report.carried] == [("model.position_ids", 72)]
    merge(tuned, tmp_path / "out", method="pcb", base=base)
    assert report.bytes_out == sum(f.stat().st_size for f in (tmp_path / "out").glob("*.safetensors"))


# --- what is refused, by name, before any work


def refused(error, match, tmp_path, *args, **options):
    before = names(tmp_path)
    with pytest.raises(error, match=match) as caught:
        merge(*args, **options)
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == before


def test_options_that_cannot_be_meant(models, tmp_path):
    base, tuned = models
    out = tmp_path / "out"
    refused(OptionError, "ties works on deltas: add --base", tmp_path, tuned, out, method="ties")
    refused(OptionError, "did you mean 'ties'", tmp_path, tuned, out, method="tis", base=base)
    refused(OptionError, "did you mean 'density'", tmp_path, tuned, out, method="ties", base=base, densty=0.1)
    refused(OptionError, "sum to zero", tmp_path, tuned, out, weights=[1, -1, 0])
    refused(OptionError, "2 numbers for 3 models", tmp_path, tuned, out, weights=[1, 1])
    refused(OptionError, "finite", tmp_path, tuned, out, weights=[1, 1, float("nan")])
    refused(OptionError, "merges weights: leave it out", tmp_path, tuned, out, scale=0.5)
    refused(OptionError, "--dtype int8", tmp_path, tuned, out, dtype="int8")
    refused(OptionError, "density is a fraction", tmp_path, tuned, out, method="ties", base=base, density=0)
    refused(OutputError, "is an input", tmp_path, tuned, tuned[1], overwrite=True)
    refused(OutputError, "holds the input|is an input", tmp_path, tuned, tmp_path, overwrite=True)
    refused(BadFileError, "does not exist", tmp_path, [*tuned, tmp_path / "no"], out)


def variant(tmp_path, name, change, dtype="BF16", extra=POSITIONS):
    own = dict(TUNED[1])
    change(own)
    return put_model(tmp_path / name, own, dtype, extra=extra)


def test_models_that_do_not_fit(models, tmp_path):
    _, tuned = models
    out = tmp_path / "out"
    norm = "model.norm.weight"
    other = variant(tmp_path, "wide", lambda own: own.update({norm: np.ones(32, np.float32)}))
    refused(
        UnsupportedError,
        r"model\.norm\.weight is \(24,\) in .*different architectures",
        tmp_path,
        [tuned[0], other],
        out,
    )
    vocabulary = variant(
        tmp_path,
        "vocabulary",
        lambda own: own.update({"model.embed_tokens.weight": np.ones((60, 24), np.float32)}),
    )
    refused(UnsupportedError, "vocabularies differ", tmp_path, [tuned[0], vocabulary], out)
    lacking = variant(tmp_path, "lacking", lambda own: own.pop(norm))
    refused(
        UnsupportedError, r"norm\.weight is in .* but not in .*lacking", tmp_path, [tuned[0], lacking], out
    )
    refused(UnsupportedError, "but not in", tmp_path, [tuned[0], tuned[2]], out, method="ties", base=lacking)
    untied = variant(
        tmp_path, "untied", lambda own: own.update({"lm_head.weight": np.ones((50, 24), np.float32)})
    )
    refused(UnsupportedError, "one ties its head", tmp_path, [untied, tuned[0]], out)
    report = merge([untied, tuned[0]], out, missing="copy")
    assert (values(out)["lm_head.weight"] == 1).all()
    assert "lm_head.weight is not in" in report.warnings[0]


def test_integers_are_carried_or_refused_but_never_cast(models, tmp_path):
    _, tuned = models
    without = variant(tmp_path, "without", lambda own: None, extra={})
    for order in ([tuned[0], without], [without, tuned[0]]):
        report = merge(order, tmp_path / "out", overwrite=True)
        assert "model.position_ids is not in" in report.warnings[0]
        assert (open_checkpoint(tmp_path / "out").read("model.position_ids").data == np.arange(9)).all()
    odd = variant(
        tmp_path, "odd", lambda own: None, extra={"model.position_ids": Stored("I64", np.arange(1, 10))}
    )
    refused(
        UnsupportedError, "model.position_ids .*differs between", tmp_path, [tuned[0], odd], tmp_path / "x"
    )
    short = variant(
        tmp_path,
        "short",
        lambda own: None,
        extra={"model.position_ids": Stored("I32", np.arange(9, dtype=np.int32))},
    )
    refused(UnsupportedError, "model.position_ids is I64 in", tmp_path, [tuned[0], short], tmp_path / "x")
    ints = variant(
        tmp_path,
        "ints",
        lambda own: own.pop("model.norm.weight"),
        extra={"model.norm.weight": Stored("I8", np.ones(24, np.int8))},
    )
    refused(UnsupportedError, "floats and integers do not mix", tmp_path, [tuned[0], ints], tmp_path / "x")


def test_float_dtypes_mix_and_the_first_one_decides(models, tmp_path):
    _, tuned = models
    wide = variant(tmp_path, "wide", lambda own: None, dtype="F32")
    merge([wide, tuned[0]], tmp_path / "a")
    merge([tuned[0], wide], tmp_path / "b")
    assert open_checkpoint(tmp_path / "a").tensors["model.norm.weight"].dtype == "F32"
    assert open_checkpoint(tmp_path / "b").tensors["model.norm.weight"].dtype == "BF16"


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("method", ["linear", "ties"])
def test_nan_in_model_two_of_three(models, tmp_path, bad, method):
    base, tuned = models
    base = None if method == "linear" else base

    def spoil(own):
        x = own["model.layers.1.mlp.down_proj.weight"].copy()
        x[20, 2900] = bad
        own["model.layers.1.mlp.down_proj.weight"] = x

    broken = variant(tmp_path, "broken", spoil)
    refused(
        BadValueError, r"broken: model\.layers\.1\.mlp\.down_proj\.weight holds NaN, infinity", tmp_path,
        [tuned[0], broken, tuned[2]], tmp_path / "out", method=method, base=base,
    )  # fmt: skip


def test_overflow_is_refused_with_the_tensor(models, tmp_path):
    _, tuned = models
    refused(BadValueError, "too large for F16; see --dtype", tmp_path, tuned[:1], tmp_path / "out",
            weights=[1e6], normalise=False, dtype="fp16")  # fmt: skip


def test_an_input_that_changes_meanwhile(models, tmp_path, monkeypatch):
    _, tuned = models
    from paring.merging import run

    real = run._merge

    def meddled(plan, view, staging):
        file = tuned[2] / next(name for name in names(tuned[2]) if name.endswith(".safetensors"))
        file.write_bytes(file.read_bytes())
        return real(plan, view, staging)

    monkeypatch.setattr(run, "_merge", meddled)
    refused(BadFileError, "was changed after it was opened", tmp_path, tuned, tmp_path / "out")


def test_memory_is_kept_to_or_refused_before_the_work(models, tmp_path, monkeypatch):
    base, tuned = models
    merge(tuned, tmp_path / "a", method="ties", base=base)
    merge(tuned, tmp_path / "b", method="ties", base=base, memory=3_000_000)
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    refused(
        OptionError,
        "--memory 1000: a tensor of this merge takes",
        tmp_path,
        tuned,
        tmp_path / "c",
        memory=1000,
        dry_run=True,
    )
    monkeypatch.setattr(Checkpoint, "fetch", lambda self: pytest.fail("downloaded before it was refused"))
    refused(OptionError, "--memory 1000", tmp_path, tuned, tmp_path / "c", memory=1000)


def test_a_full_disk_is_refused_before_anything_is_read(models, tmp_path, monkeypatch):
    from collections import namedtuple

    _, tuned = models
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("paring.atomic.shutil.disk_usage", lambda path: usage(10**9, 10**9 - 1000, 1000))
    monkeypatch.setattr("paring.merging.run.run", None)
    refused(OutputError, "no room for", tmp_path, tuned, tmp_path / "out")


def test_pooling_folders_go_along_and_may_be_replaced(models, tmp_path):
    _, tuned = models
    (tuned[0] / "1_Pooling").mkdir()
    (tuned[0] / "1_Pooling" / "config.json").write_text("{}")
    for _ in range(2):
        merge(tuned, tmp_path / "out", overwrite=True)
        assert names(tmp_path / "out" / "1_Pooling") == ["config.json"]
    (tmp_path / "out" / "mine").mkdir()
    with pytest.raises(OutputError, match="also holds mine"):
        merge(tuned, tmp_path / "out", overwrite=True)


def test_numbers_of_any_kind(models, tmp_path):
    _, tuned = models
    merge(tuned, tmp_path / "a", weights=[1, 2, 1])
    merge(tuned, tmp_path / "b", weights=np.array([1, 2, 1.0]))
    merge(tuned, tmp_path / "c", weights=[np.float32(1), np.int64(2), 1])
    assert digest(tmp_path / "a") == digest(tmp_path / "b") == digest(tmp_path / "c")
    for weights in ([1, None, 1], [1, [], 1], [10**400, 1, 1], [1e308, 1e308, 1e308], "1;2"):
        refused(
            OptionError,
            "--weights|beyond all numbers|numbers for",
            tmp_path,
            tuned,
            tmp_path / "x",
            weights=weights,
        )


def test_a_second_checkpoint_in_an_input_and_extra_shards_are_refused(models, tmp_path):
    _, tuned = models
    refused(OutputError, "would be a second checkpoint", tmp_path, tuned, tuned[0] / "out.safetensors")
    shard = next(tuned[1].glob("model-*"))
    (tuned[1] / "model-00099-of-00099.safetensors").write_bytes(shard.read_bytes())
    refused(BadFileError, "model-00099-of-00099.safetensors is a shard that", tmp_path, tuned, tmp_path / "x")
