"""The sparse formats of compressed-tensors: what its own compressors wrote is read; what lies is refused.

The files in ``fixtures/compressed_tensors`` were made by release 0.14.0.1, the dense ones being its input.
"""

import json
import random
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from paring.api import compress, decompress, inspect, load, merge
from paring.bitmasks import Bitmasks, cleaned
from paring.checkpoint import open_checkpoint, write_safetensors
from paring.dtypes import Stored
from paring.errors import BadFileError, OptionError, ParingError, UnsupportedError
from paring.packed import open_source
from paring.resumable import index_of, shards
from tests.helpers import names
from tests.test_fuzz import MOST, damage, with_header
from tests.test_sparse_files import tensors_of

HOME = Path(__file__).parents[1] / "fixtures" / "compressed_tensors"
FILES = {"bitmask": "sparse-bitmask", "bitmask24": "sparse-24-bitmask"}
CONFIG = {
    "model_type": "llama",
    "quantization_config": {
        "format": "dense", "quant_method": "compressed-tensors", "version": "0.9.1", "config_groups": {},
        "sparsity_config": {"format": "sparse-bitmask", "global_sparsity": 0.5, "targets": ["Linear"]},
    },
}  # fmt: skip


def dense(name):
    return tensors_of(HOME / f"{name}.dense.safetensors")


def folder_of(home, name, *, limit=1 << 40, config=CONFIG):
    home.mkdir()
    with open_checkpoint(HOME / f"{name}.safetensors") as opened:
        tensors = {key: opened.read(key) for key in opened}
    files = shards([(k, t.dtype, t.shape) for k, t in tensors.items()], "model", limit, {"format": "pt"})
    for shard in files:
        write_safetensors(home / shard.name, {k: tensors[k] for k in shard.places}, {"format": "pt"})
    if len(files) > 1:
        (home / "model.safetensors.index.json").write_text(json.dumps(index_of(files)))
    (home / "config.json").write_text(json.dumps(config))
    return home


@pytest.mark.parametrize("name", FILES)
def test_files_of_the_library_itself(name, tmp_path):
    opened = open_source(HOME / f"{name}.safetensors")
    assert isinstance(opened, Bitmasks) and opened.formats.keys() == {FILES[name]}
    assert tensors_of(HOME / f"{name}.safetensors") == dense(name)
    report = decompress(HOME / f"{name}.safetensors", tmp_path / "out.safetensors")
    assert report.method == FILES[name] and report.error == 0
    assert tensors_of(tmp_path / "out.safetensors") == dense(name)


@pytest.mark.parametrize("limit", [1 << 40, 300])
@pytest.mark.parametrize("name", FILES)
def test_folders_with_a_clean_configuration(name, limit, tmp_path):
    source = folder_of(tmp_path / "old", name, limit=limit)
    (source / "tokenizer.json").write_text("{}")
    decompress(source, tmp_path / "new", threads=2)
    assert names(tmp_path / "new") == ["config.json", "model.safetensors", "tokenizer.json"]
    assert json.loads((tmp_path / "new" / "config.json").read_text()) == {"model_type": "llama"}
    assert tensors_of(tmp_path / "new") == dense(name)


def test_older_names_with_weight_in_them(tmp_path):
    with open_checkpoint(HOME / "bitmask.safetensors") as opened:
        parts = (".shape", ".compressed", ".bitmask", ".row_offsets")
        older = {
            name.replace(part, f".weight{part}"): opened.read(name)
            for name in opened
            for part in [next((part for part in parts if name.endswith(part)), "\0")]
        }
    write_safetensors(tmp_path / "old.safetensors", older)
    assert tensors_of(tmp_path / "old.safetensors") == dense("bitmask")


def test_any_command_reads_them(tmp_path):
    source = folder_of(tmp_path / "old", "bitmask24")
    assert inspect(source).elements == sum(np.prod(shape) for _, shape, _ in dense("bitmask24").values())
    assert load(source)["model.layers.0.a.weight"].shape == (6, 16)
    merge([source, source], tmp_path / "merged")
    assert tensors_of(tmp_path / "merged") == dense("bitmask24")
    assert json.loads((tmp_path / "merged" / "config.json").read_text()) == {"model_type": "llama"}
    compress(source, tmp_path / "p.safetensors", method="sparse")
    decompress(tmp_path / "p.safetensors", tmp_path / "again")
    assert tensors_of(tmp_path / "again") == dense("bitmask24")
    assert json.loads((tmp_path / "again" / "config.json").read_text()) == {"model_type": "llama"}


def test_what_is_quantised_stays_said():
    groups = {"group_0": {"weights": {"num_bits": 8, "type": "float"}}}
    told = {"a": 1, "quantization_config": {**CONFIG["quantization_config"], "config_groups": groups}}
    kept = cleaned(told)["quantization_config"]
    assert kept["config_groups"] == groups and "sparsity_config" not in kept
    assert cleaned({"compression_config": {"sparsity_config": {}, "quant_method": "x"}, "b": 2}) == {"b": 2}
    plain = {"quantization_config": {"quant_method": "gptq"}}
    assert cleaned(plain) == plain


def test_marlin_is_refused_by_name(tmp_path):
    config = {"quantization_config": {"format": "marlin-24", "sparsity_config": {}}}
    source = folder_of(tmp_path / "old", "bitmask", config=config)
    with pytest.raises(UnsupportedError, match="marlin-24, which is not read"):
        decompress(source, tmp_path / "new")
    assert names(tmp_path) == ["old"]


def broken(tmp_path, name, changes):
    with open_checkpoint(HOME / f"{name}.safetensors") as opened:
        tensors = {key: opened.read(key) for key in opened}
    for key, value in changes.items():
        if value is None:
            del tensors[f"model.layers.0.{key}"]
        else:
            kind = {np.dtype("i8"): "I64", np.dtype("u1"): "U8", np.dtype("f4"): "F32", np.dtype("i4"): "I32"}
            tensors[f"model.layers.0.{key}"] = Stored(kind[value.dtype], value)
    write_safetensors(tmp_path / "x.safetensors", tensors)
    return tmp_path / "x.safetensors"


I64 = np.int64
BASE = np.array([0, 0, 0, 0, 0])


@pytest.mark.parametrize(
    ("name", "changes", "told"),
    [
        ("bitmask", {"b.shape": None}, "no shape that makes sense"),
        ("bitmask", {"b.shape": np.array([5, -9], I64)}, "no shape that makes sense"),
        ("bitmask", {"b.shape": np.array(5.0, np.float32)}, "no shape that makes sense"),
        ("bitmask", {"b.shape": np.array([5, 1 << 40], I64)}, "does not fit"),
        ("bitmask", {"b.shape": np.array([1 << 40, 9], I64)}, "does not fit"),
        ("bitmask", {"b.shape": np.array([1 << 62, 1 << 62, 9], I64)}, "does not fit"),
        ("bitmask", {"b.shape": np.array([5, 8], I64)}, "does not fit"),
        ("bitmask", {"b.shape": np.zeros(99, I64)}, "no shape that makes sense"),
        ("bitmask", {"b.row_offsets": np.zeros(4, I64)}, "offsets of other rows"),
        ("bitmask", {"b.row_offsets": np.zeros(5, np.int32)}, "offsets of other rows"),
        ("bitmask", {"b.row_offsets": np.full(5, 1 << 60, I64)}, "row_offsets does not fit"),
        ("bitmask", {"b.bitmask": np.full((5, 2), 255, np.uint8)}, "marks .* entries"),
        ("bitmask", {"b.bitmask": np.zeros((5, 2), np.uint8)}, "marks 0 entries"),
        ("bitmask", {"b.compressed": np.zeros(46, np.float32)}, "holds 46 values"),
        ("bitmask", {"b.compressed": np.zeros(3, np.float32)}, "marks .* holds 3 values"),
        ("bitmask", {"b.row_offsets": None}, "other than two values in four"),
        ("bitmask", {"b.weight": np.zeros(3, np.float32)}, "is there twice"),
        ("bitmask24", {"c.compressed": np.zeros((4, 3), np.float32)}, "other than two values in four"),
        ("bitmask24", {"c.shape": np.array([[4], [9]], I64)}, "does not fit"),
    ],
)
def test_parts_that_do_not_agree_are_refused(name, changes, told, tmp_path):
    path = broken(tmp_path, name, changes)
    tracemalloc.start()
    with pytest.raises(BadFileError, match=told):
        decompress(path, tmp_path / "out.safetensors")
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()
    assert names(tmp_path) == ["x.safetensors"]


def test_bits_behind_the_last_column_are_refused(tmp_path):
    mask = open_checkpoint(HOME / "bitmask.safetensors").read("model.layers.0.b.bitmask").data.copy()
    mask[2, 1] |= 0x80  # of 9 columns
    with pytest.raises(BadFileError, match=r"b\.bitmask marks"):
        load(broken(tmp_path, "bitmask", {"b.bitmask": mask}))["model.layers.0.b.weight"]


def test_it_needs_no_base(tmp_path):
    with pytest.raises(OptionError, match="it needs none"):
        decompress(HOME / "bitmask.safetensors", tmp_path / "o", base=HOME)


@pytest.mark.parametrize("make", [damage, with_header])
@pytest.mark.parametrize("name", FILES)
def test_damage_anywhere(name, make, tmp_path):
    rng, outcomes = random.Random(name), set()
    path = tmp_path / "x.safetensors"
    for _ in range(60):
        path.write_bytes(make((HOME / f"{name}.safetensors").read_bytes(), rng))
        tracemalloc.start()
        try:
            decompress(path, tmp_path / "o.safetensors", overwrite=True)
            outcomes.add("used")
        except ParingError:
            outcomes.add("refused")
        assert tracemalloc.get_traced_memory()[1] < MOST
        tracemalloc.stop()
    assert "refused" in outcomes
    shutil.rmtree(tmp_path / ".o.safetensors.resume", ignore_errors=True)
    assert set(names(tmp_path)) <= {"x.safetensors", "o.safetensors"}
