"""The compact MoS file: an ordinary LoRA to its readers, to PEFT's form and back, and nothing but errors."""

from __future__ import annotations

import json
import random
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paring import adapters, api
from paring.checkpoint import open_checkpoint, write_safetensors
from paring.dtypes import Stored, from_f32
from paring.errors import BadFileError, BadValueError, OptionError, OutputError, ParingError, UnsupportedError
from paring.mos.convert import expand_file, fold_file
from paring.mos.file import MosFile, is_mos, open_mos, write_mos
from paring.mos.pools import Layout, expand, projections
from paring.mos.routing import FACTORS, Sizes

MODULES = [
    (f"model.layers.{k}.{name}", shape)
    for k in range(11)  # ten and more: by letters, layer 10 comes before layer 2
    for name, shape in (("self_attn.q_proj", (8, 12)), ("mlp.up_proj", (16, 12)))
]
SIZES = Sizes(r=6, e=2, private=1, shards=4)


def make(seed: int | None = 0, sizes: Sizes = SIZES, dtype: str = "F32") -> tuple[Layout, dict[Any, Stored]]:
    """A MoS adapter of two types; without a seed, with indices as another generator drew them."""
    types, indices = projections(MODULES), None
    rng = np.random.default_rng(5)
    if seed is None:
        indices = {
            (each.name, factor): np.stack([
                np.append(rng.permutation(sizes.public(11))[: sizes.drawn], sizes.own(11, layer))
                for layer in range(11)
            ])
            for each in types
            for factor in FACTORS
        }  # fmt: skip
    layout = Layout(sizes, 16, types, seed, indices)
    pools = {
        (each.name, factor): from_f32(rng.normal(size=layout.shape(each, factor)).astype(np.float32), dtype)
        for each in types
        for factor in FACTORS
    }
    return layout, pools


@pytest.fixture
def small(tmp_path: Path) -> Path:
    write_mos(tmp_path / "x.mos.safetensors", *make(), base="org/base")
    return tmp_path / "x.mos.safetensors"


def opened(path: Path) -> MosFile:
    return open_mos(open_checkpoint(path))


@pytest.mark.parametrize("seed", [0, None])
@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16", "F64"])
def test_reads_as_the_lora_that_it_stands_for(tmp_path: Path, seed: int | None, dtype: str) -> None:
    layout, pools = make(seed, dtype=dtype)
    write_mos(tmp_path / "x.safetensors", layout, pools, base="org/base")
    found = opened(tmp_path / "x.safetensors")
    assert len(found) == 2 * len(MODULES)
    assert found.nbytes == (tmp_path / "x.safetensors").stat().st_size
    for each in layout.projections:
        for layer, module in enumerate(each.modules):
            for factor in FACTORS:
                name = f"base_model.model.{module}.lora_{factor}.weight"
                tensor, info = found.read(name), found.tensors[name]
                index = layout.route(each, layer, factor)
                rows = expand(pools[each.name, factor].data, index, 4)
                np.testing.assert_array_equal(tensor.data, rows if factor == "A" else rows.T)
                assert (tensor.dtype, tensor.shape, tensor.nbytes) == (dtype, info.shape, info.nbytes)
                assert tensor.shape == ((6, each.n_in) if factor == "A" else (each.n_out, 6))
                assert not tensor.data.flags.writeable
                assert tensor.data.flags.c_contiguous
    view = adapters.read(found)
    assert (view.dialect, view.base, view.problems, view.carried) == ("peft", "org/base", (), ())
    assert {(m.name, m.rank, m.n_out, m.n_in, m.scale) for m in view.modules} == {
        (name, 6, *shape, 16 / 6) for name, shape in MODULES
    }


def test_a_file_is_pools_and_little_else(small: Path) -> None:
    container = open_checkpoint(small)
    assert is_mos(container)
    assert {name: (info.dtype, info.shape) for name, info in container.tensors.items()} == {
        "model.layers.*.self_attn.q_proj.pool_A": ("F32", (88, 3)),
        "model.layers.*.self_attn.q_proj.pool_B": ("F32", (88, 2)),
        "model.layers.*.mlp.up_proj.pool_A": ("F32", (88, 3)),
        "model.layers.*.mlp.up_proj.pool_B": ("F32", (88, 4)),
    }
    assert container.metadata["format"] == "paring-mos"
    layout = opened(small).layout
    assert sum(info.nbytes for info in container.tensors.values()) == 4 * layout.parameters
    assert layout.parameters == 2 * 11 * (8 + 12 + 16 + 12)


def test_indices_take_what_they_need(tmp_path: Path) -> None:
    for sizes, kind in ((SIZES, "U8"), (Sizes(6, 6, 1, 4), "U16")):
        write_mos(tmp_path / kind, *make(None, sizes))
        container = open_checkpoint(tmp_path / kind)
        info = container.tensors["model.layers.*.mlp.up_proj.index_A"]
        assert (info.dtype, info.shape) == (kind, (11, 24))


@pytest.mark.parametrize("seed", [3, None])
def test_fold_undoes_expand(tmp_path: Path, seed: int | None) -> None:
    layout, pools = make(seed)
    write_mos(tmp_path / "x.safetensors", layout, pools, base="org/base")
    expand_file(tmp_path / "x.safetensors", tmp_path / "lora")
    assert sorted(path.name for path in (tmp_path / "lora").iterdir()) == [
        "adapter_config.json", "adapter_model.safetensors",
    ]  # fmt: skip
    again = fold_file(tmp_path / "lora", tmp_path / "y.safetensors", SIZES, seed=seed, indices=layout.indices)
    assert (again.alpha, again.projections) == (16, tuple(sorted(layout.projections, key=lambda t: t.name)))
    found = opened(tmp_path / "y.safetensors")
    assert found.base == "org/base"
    assert found.digest() == opened(tmp_path / "x.safetensors").digest()
    for each in layout.projections:
        for factor in FACTORS:
            used = np.unique([layout.route(each, layer, factor) for layer in range(11)])
            assert (
                found.pool(each.name, factor).data[used].tobytes()
                == pools[each.name, factor].data[used].tobytes()
            )


def test_a_fold_keeps_an_alpha_that_division_rounds(tmp_path: Path) -> None:
    layout, pools = make()
    alpha = next(n / 10 for n in range(1, 1000) if n / 10 / 6 * 6 != n / 10)
    write_mos(tmp_path / "x", Layout(layout.sizes, alpha, layout.projections, 0), pools)
    expand_file(tmp_path / "x", tmp_path / "lora")
    assert fold_file(tmp_path / "lora", tmp_path / "y", SIZES, seed=0).alpha == alpha


def test_other_indices_do_not_fold(small: Path, tmp_path: Path) -> None:
    expand_file(small, tmp_path / "lora")
    with pytest.raises(BadValueError, match="does not fold"):
        fold_file(tmp_path / "lora", tmp_path / "y", SIZES, seed=1)
    with pytest.raises(OptionError, match="has rank 6, not r = 4"):
        fold_file(tmp_path / "lora", tmp_path / "y", Sizes(4, 2, 1, 4), seed=0)
    with pytest.raises(OutputError, match="inputs are never changed"):
        fold_file(tmp_path / "lora", tmp_path / "lora" / "adapter_model.safetensors", SIZES, seed=0)
    assert not (tmp_path / "y").exists()


def test_only_plain_lora_folds(small: Path, tmp_path: Path) -> None:
    expand_file(small, tmp_path / "lora")
    path = tmp_path / "lora" / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"alpha_pattern": {"q_proj": 8}}))
    with pytest.raises(UnsupportedError, match="several dtypes or scales"):
        fold_file(tmp_path / "lora", tmp_path / "y", SIZES, seed=0)
    path.write_text(json.dumps(config | {"use_dora": True}))
    with pytest.raises(UnsupportedError, match="only plain LoRA"):
        fold_file(tmp_path / "lora", tmp_path / "y", SIZES, seed=0)


def test_fp64_pools_are_rounded_once(tmp_path: Path) -> None:
    layout, pools = make(dtype="F64")
    value = 1 + 2**-11 + 2**-40  # by way of fp32 it would be a tie, and 1
    write_mos(
        tmp_path / "x", layout, {key: Stored("F64", np.full_like(p.data, value)) for key, p in pools.items()}
    )
    expand_file(tmp_path / "x", tmp_path / "lora", dtype="F16")
    with open_checkpoint(tmp_path / "lora") as lora:
        assert all((lora.read(name).f64() == 1 + 2**-10).all() for name in lora)


def test_expand_rounds_once_and_keeps_what_exists(small: Path, tmp_path: Path) -> None:
    expand_file(small, tmp_path / "lora", dtype="F16")
    with open_checkpoint(tmp_path / "lora") as lora:
        source = opened(small)
        for name in source:
            assert lora.read(name).data.tobytes() == from_f32(source.read(name).f32(), "F16").data.tobytes()
    with pytest.raises(OutputError, match="exists"):
        expand_file(small, tmp_path / "lora")
    expand_file(small, tmp_path / "lora", overwrite=True)
    (tmp_path / "lora" / "mine.txt").write_text("")
    with pytest.raises(OutputError, match=r"also holds mine\.txt"):
        expand_file(small, tmp_path / "lora", overwrite=True)
    with pytest.raises(OutputError, match="holds the input"):
        expand_file(small, tmp_path, overwrite=True)


def test_what_cannot_be_written(tmp_path: Path) -> None:
    layout, pools = make()
    name = "model.layers.*.mlp.up_proj"
    for bad, why in (
        (Stored("F32", np.zeros((88, 4), np.float32)), r"pool_A is F32 \[88, 4\], but must be .* \[88, 3\]"),
        (Stored("I32", np.zeros((88, 3), np.int32)), "must be floating point"),
        (Stored("F32", np.full((88, 3), np.nan, np.float32)), "pool_A holds NaN or infinity"),
    ):
        with pytest.raises(BadValueError, match=why):
            write_mos(tmp_path / "x", layout, pools | {(name, "A"): bad})
    assert not (tmp_path / "x").exists()
    write_mos(tmp_path / "x", layout, pools)
    with pytest.raises(OutputError, match="exists"):
        write_mos(tmp_path / "x", layout, pools)


def rewrite(path: Path, facts: Any = None, tensors: Any = None, metadata: Any = None) -> Path:
    """The file with something changed, checksums made to fit."""
    container = open_checkpoint(path)
    told = json.loads(container.metadata["mos"]) | (facts or {})
    held = {name: container.read(name) for name in container} | (tensors or {})
    held = {name: tensor for name, tensor in held.items() if tensor is not None}
    told["crc"] = {name: zlib.crc32(tensor.tobytes()) for name, tensor in held.items()}
    told = {key: value for key, value in told.items() if value != "missing"}
    out = path.with_name("bad.safetensors")
    whole = container.metadata | {"mos": json.dumps(told)} | (metadata or {})
    whole["crc"] = (metadata or {}).get("crc") or str(zlib.crc32(whole["mos"].encode()))
    write_safetensors(out, held, whole, overwrite=True)
    return out


@pytest.mark.parametrize("key", ["r", "e", "private", "shards", "alpha", "seed", "base", "types"])
def test_nothing_may_be_missing(small: Path, key: str) -> None:
    with pytest.raises(BadFileError, match=f"makes no sense .*{key}"):
        opened(rewrite(small, {key: "missing"}))


UP = {"name": "model.layers.*.mlp.up_proj", "out": 16, "in": 12, "modules": ["a", "b"]}


@pytest.mark.parametrize(
    ("facts", "why"),
    [
        ({"r": 13}, "each module draws 48"),
        ({"r": 10**30}, "each module draws"),
        ({"e": 3}, r"is F32 \[88, 3\], expected F64/F32/F16/BF16 \[132, 3\]"),
        ({"e": 10**30}, "expected F64"),
        ({"shards": 0}, "shards must be a whole number"),
        ({"private": 3}, "private = 3"),
        ({"alpha": "1"}, "alpha must be a number"),
        ({"alpha": 1e300}, "alpha must be a number"),
        ({"seed": "0"}, "seed must be a whole number"),
        ({"seed": None}, "index_A' is missing"),
        ({"base": 1}, "base must be text"),
        ({"types": []}, "belongs to none of its types"),
        ({"types": 7}, "TypeError"),
        ({"types": [UP]}, "belongs to none of its types"),
        ({"types": [UP | {"modules": []}]}, "need names"),
        ({"types": [UP | {"modules": "ab"}]}, "need names"),
        ({"types": [UP | {"modules": [1]}]}, "need names"),
        ({"types": [UP | {"out": -16}]}, "whole numbers, 1 or more"),
        ({"types": [UP | {"in": True}]}, "whole numbers, 1 or more"),
    ],
)
def test_metadata_that_makes_no_sense(small: Path, facts: dict[str, Any], why: str) -> None:
    with pytest.raises(BadFileError, match=f"makes no sense .*{why}"):
        opened(rewrite(small, facts))


def test_one_module_may_not_be_of_two_types(small: Path) -> None:
    types = json.loads(open_checkpoint(small).metadata["mos"])["types"]
    types[1]["modules"] = types[0]["modules"]
    with pytest.raises(BadFileError, match="no module or projection type twice"):
        opened(rewrite(small, {"types": types}))


@pytest.mark.parametrize(
    ("metadata", "error", "why"),
    [
        ({"format": "pt"}, BadFileError, "is not a compact MoS file"),
        ({"version": "2"}, UnsupportedError, "format version 2; this paring reads 1"),
        ({"crc": "7"}, BadFileError, "the metadata is damaged"),
        ({"mos": ""}, BadFileError, "'mos' is not valid JSON"),
        ({"mos": "[]"}, BadFileError, "'mos' must be a JSON object"),
        ({"mos": '{"r": 1, "r": 2}'}, BadFileError, "'r' is given twice"),
    ],
)
def test_files_of_another_kind(small: Path, metadata: Any, error: type[ParingError], why: str) -> None:
    with pytest.raises(error, match=why):
        opened(rewrite(small, metadata=metadata))


def test_tensors_must_be_those_of_the_metadata(small: Path, tmp_path: Path) -> None:
    name = "model.layers.*.mlp.up_proj.pool_B"
    pool = open_checkpoint(small).read(name)
    for bad, why in (
        (None, "pool_B' is missing"),
        (Stored("F32", pool.data[:-1]), r"\[87, 4\]"),
        (Stored("I32", pool.data.view(np.int32)), "is I32"),
    ):
        with pytest.raises(BadFileError, match=why):
            opened(rewrite(small, tensors={name: bad}))
    with pytest.raises(BadFileError, match="'more' belongs to none"):
        opened(rewrite(small, tensors={"more": pool}))


@pytest.mark.parametrize(
    ("place", "value", "why"),
    [
        ((0, 0), 44, "outside the 44 public shards"),
        ((3, 1), 255, "outside the 44 public shards"),
        ((0, 23), 46, "must be the private shards"),
        ((0, 0), None, "draws one shard twice"),
    ],
)
def test_indices_are_checked_before_a_pool_is_read(
    tmp_path: Path, place: tuple[int, int], value: int | None, why: str
) -> None:
    write_mos(tmp_path / "x", *make(None))
    name = "model.layers.*.mlp.up_proj.index_B"
    index = open_checkpoint(tmp_path / "x").read(name).data.copy()
    index[place] = index[0, 1] if value is None else value
    with pytest.raises(BadFileError, match=f"makes no sense .*{why}"):
        opened(rewrite(tmp_path / "x", tensors={name: Stored("U8", index)}))
    wide = {name: Stored("U16", index.astype(np.uint16))}
    with pytest.raises(BadFileError, match=r"is U16 .* expected U8 "):
        opened(rewrite(tmp_path / "x", tensors=wide))


def test_damage_is_found_where_it_is_read(small: Path, tmp_path: Path) -> None:
    raw = bytearray(small.read_bytes())
    raw[-1] ^= 1
    (tmp_path / "bad").write_bytes(raw)
    found = opened(tmp_path / "bad")
    with pytest.raises(BadFileError, match="pool_B' is damaged"):
        for name in found:
            found.read(name)
    with pytest.raises(BadFileError, match="is damaged"):
        expand_file(tmp_path / "bad", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "bad").write_bytes(raw[:-5])
    with pytest.raises(BadFileError, match="truncated"):
        opened(tmp_path / "bad")


@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 2**32), indexed=st.booleans())
def test_nothing_but_errors_of_ours(
    tmp_path_factory: pytest.TempPathFactory, seed: int, indexed: bool
) -> None:
    """Any value in the metadata replaced, or any byte of the file."""
    folder = tmp_path_factory.mktemp("fuzz")
    write_mos(folder / "x", *make(None if indexed else 0))
    rng = random.Random(seed)
    if rng.random() < 0.5:
        facts = json.loads(open_checkpoint(folder / "x").metadata["mos"])
        at: Any = facts
        while True:
            key = rng.choice(list(at) if isinstance(at, dict) else range(len(at)))
            if not isinstance(at[key], dict | list) or not at[key] or rng.random() < 0.2:
                break
            at = at[key]
        at[key] = rng.choice([0, 1, -1, 2**31, 2**80, 0.5, None, True, "", "a", [], [1], {}, {"a": 1}, [[]]])
        facts.pop("crc", None)
        path = rewrite(folder / "x", facts)
    else:  # every byte of the tensors and of what they mean is covered by a checksum
        raw = bytearray((folder / "x").read_bytes())
        raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        path = folder / "x"
        path.write_bytes(raw)
    try:
        found = opened(path)
        for name in found:
            assert found.read(name).shape == found.tensors[name].shape
    except ParingError as error:
        assert len(str(error)) > 20


def test_every_command_takes_a_compact_file_for_the_lora_it_is(small: Path, tmp_path: Path) -> None:
    folder = tmp_path / "plain"
    expand_file(small, folder)
    seen = api.inspect(small)
    assert (seen.kind, len(seen.modules), seen.problems) == ("MoS", len(MODULES), [])
    assert api.verify(small).ok
    assert all(tensor.change[1] < 1e-9 for tensor in api.diff([small, folder]).tensors)
    packed = api.compress(small, tmp_path / "packed", error=0.3)
    assert packed.error <= 0.3 and len(packed.modules) == len(MODULES)
    made = [
        api.merge([source, source], tmp_path / f"merged{i}", weights=[1.0, 0.5])
        for i, source in enumerate((small, folder))
    ]
    ours, theirs = (open_checkpoint(report.output) for report in made)
    assert {name: ours.read(name).tobytes() for name in ours} == {
        name: theirs.read(name).tobytes() for name in theirs
    }
