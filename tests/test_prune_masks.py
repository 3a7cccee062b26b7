"""Masks as files: saved, applied elsewhere, checked, compared, joined, kept through merges."""

from __future__ import annotations

import json
from fractions import Fraction

import numpy as np
import pytest

from paring.api import apply_mask, merge, prune, verify
from paring.checkpoint import open_checkpoint, write_safetensors
from paring.dtypes import Stored, from_f32
from paring.errors import BadFileError, OptionError, OutputError, UnsupportedError
from paring.pruning import masking
from tests.helpers import names
from tests.prunable import ELEMENTS, PRUNED, SHAPES, arrays, floor, kept, put, read


@pytest.fixture
def model(tmp_path):
    return put(tmp_path / "model", arrays(decimals=None))


@pytest.fixture
def mask(model, tmp_path):
    path = tmp_path / "mask.safetensors"
    prune(model, tmp_path / "out", keep=2, of=4, save_mask=path)
    return path


def test_a_mask_survives_fine_tuning_and_another_dtype(model, mask, tmp_path):
    tuned = put(tmp_path / "tuned", arrays(5, decimals=None), "F32", limit=2000)
    report = apply_mask(mask, tuned, tmp_path / "masked")
    before, after, found = read(tuned), read(tmp_path / "masked"), kept(mask)
    for name, x in before.items():
        np.testing.assert_array_equal(after[name], np.where(found[name], x, 0) if name in found else x)
    assert report.zeros == ELEMENTS // 2
    assert masking.verify(mask, tmp_path / "masked", keep=2, of=4).ok
    assert verify(tmp_path / "masked", sparsity=".5", keep=2, of=4).ok


@pytest.mark.parametrize("method", ["linear", "ties", "slerp"])
@pytest.mark.parametrize("dtype", ["BF16", "F32"])
def test_merge_keeps_to_a_mask(model, mask, tmp_path, method, dtype):
    base = put(tmp_path / "base", arrays(decimals=None), dtype)
    tuned = [put(tmp_path / f"t{i}", arrays(7 + i, decimals=None), dtype) for i in range(2)]
    how = {"base": base} if method == "ties" else {}
    merge(tuned, tmp_path / "plain", method=method, **how)
    merge(tuned, tmp_path / "merged", method=method, mask=mask, **how)
    before, after, found = read(tmp_path / "plain"), read(tmp_path / "merged"), kept(mask)
    for name, x in before.items():
        np.testing.assert_array_equal(after[name], np.where(found[name], x, 0) if name in found else x)
    assert masking.verify(mask, tmp_path / "merged").ok


def test_verify_finds_what_is_not_masked(model, mask):
    found = masking.verify(mask, model)
    assert not found.ok
    assert len(found.failed) == len(PRUNED)
    assert "entries are not" in found.failed[0]


def test_verify_counts_zeros_and_groups(model, mask, tmp_path):
    assert verify(tmp_path / "out", sparsity=".5").ok
    assert not verify(tmp_path / "out", sparsity=".51").ok
    assert not verify(tmp_path / "out", keep=1, of=4).ok
    assert verify(tmp_path / "out", keep=3, of=4).ok
    assert not verify(model, sparsity=".1").ok
    with pytest.raises(OptionError, match="go together"):
        verify(model, keep=2)


WAYS = {
    "tensor": {}, "row": {"scope": "row"}, "global": {"scope": "global"}, "erk": {"allocate": "erk"},
    "lamp": {"allocate": "lamp"}, "outputs": {"lines": "outputs"}, "inputs": {"lines": "inputs"},
    "some": {"exclude": ["q_proj"]}, "2:3": {"sparsity": None, "keep": 2, "of": 3},
}  # fmt: skip


def revived(folder, count):
    """The checkpoint with so many zeros made something else, its recipe as it was."""
    (file,) = folder.glob("*.safetensors")
    with open_checkpoint(file) as opened:
        tensors, metadata = {name: opened.read(name) for name in opened}, opened.metadata
    for name in PRUNED:
        values = tensors[name].f32().copy().reshape(-1)
        places = np.flatnonzero(values == 0)[:count]
        values[places] = 1
        count -= len(places)
        tensors[name] = from_f32(values.reshape(tensors[name].shape), tensors[name].dtype)
    assert not count
    write_safetensors(file, tensors, metadata, overwrite=True)
    return folder


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("share", [".6", ".29", "1/3"])
def test_verify_asks_for_what_prune_writes_and_no_zero_less(model, tmp_path, way, share):
    if way == "2:3":
        share = "1/3"
    prune(model, tmp_path / "out", **{"sparsity": share, **WAYS[way]})
    assert verify(tmp_path / "out", sparsity=share).ok
    more = Fraction(share) + Fraction(1, 40)  # for lines at least one more of 24
    assert not verify(tmp_path / "out", sparsity=str(more + (way in ("outputs", "inputs")) / 40)).ok
    found = verify(revived(tmp_path / "out", 1), sparsity=share)
    assert not found.ok and "entries are zero, not" in found.failed[0]


def test_verify_of_rows_of_unequal_shares(model, tmp_path):
    """Each loses the whole part of a share of its own: less than one entry a row may be missing."""
    zeros = prune(model, tmp_path / "out", sparsity=".6", scope="row", allocate="erk").zeros
    assert zeros < floor(".6", ELEMENTS) and verify(tmp_path / "out", sparsity=".6").ok
    rows = sum(SHAPES[name][0] for name in PRUNED)
    assert not verify(revived(tmp_path / "out", zeros - floor(".6", ELEMENTS) + rows), sparsity=".6").ok


def test_verify_of_what_others_pruned(model, tmp_path):
    """Tensor by tensor, as far as it goes; and a mask that was applied tells no more."""
    prune(model, tmp_path / "out", sparsity=".6", save_mask=tmp_path / "m.safetensors")
    values = read(tmp_path / "out")
    theirs = put(tmp_path / "theirs", values, "BF16")
    assert verify(theirs, sparsity=".6").ok and not verify(theirs, sparsity=".601").ok
    assert not verify(revived(theirs, 1), sparsity=".6").ok
    apply_mask(tmp_path / "m.safetensors", model, tmp_path / "masked")
    assert verify(tmp_path / "masked", sparsity=".6").ok
    assert not verify(revived(tmp_path / "masked", 1), sparsity=".6").ok


def test_a_stack_of_experts_is_a_matrix_each(tmp_path):
    shapes = {"model.layers.0.mlp.experts.gate_up_proj": (5, 3, 9)}
    model = put(tmp_path / "m", arrays(shapes=shapes, decimals=None), config={"hidden_size": 9})
    assert prune(model, tmp_path / "out", sparsity=".6").zeros == 5 * 16
    assert verify(tmp_path / "out", sparsity=".6").ok
    prune(model, tmp_path / "less", sparsity=".59")
    assert not verify(tmp_path / "less", sparsity=".6").ok


@pytest.mark.parametrize("config", [{"model_type": "gpt2"}, None])
def test_rows_of_layers_that_store_their_inputs_first(tmp_path, config):
    """A single file has no config.json that would tell: then it is the lesser of both."""
    shapes = {"h.0.attn.c_attn.weight": (13, 7)}
    model = put(tmp_path / "m", arrays(shapes=shapes, decimals=None), config={"model_type": "gpt2"})
    out = tmp_path / ("out" if config else "out.safetensors")
    assert prune(model, out, sparsity=".6", scope="row").zeros == 7 * floor(".6", 13)
    assert verify(out, sparsity=".6").ok and not verify(out, sparsity=".7").ok


def test_stats_diff_and_joins(model, mask, tmp_path):
    other = tmp_path / "other.safetensors"
    prune(model, tmp_path / "out2", sparsity=".7", scope="global", save_mask=other)
    a, b = kept(mask), kept(other)
    both = sum(int((a[n] & b[n]).sum()) for n in PRUNED)
    either = sum(int((a[n] | b[n]).sum()) for n in PRUNED)
    found = masking.diff(mask, other)
    assert (found.both, found.both + found.only_first + found.only_second) == (both, either)
    assert found.iou == pytest.approx(both / either)
    union = masking.join([mask, other], tmp_path / "u.safetensors", "union")
    common = masking.join([mask, other], tmp_path / "i.safetensors", "intersect")
    assert (union.kept, common.kept) == (either, both)
    for name, x in kept(tmp_path / "i.safetensors").items():
        np.testing.assert_array_equal(x, a[name] & b[name])
    stats = masking.stats(mask)
    assert {tensor.pattern for tensor in stats.tensors} == {"2:4"}
    assert stats.digest != masking.stats(other).digest
    again = masking.join([mask, mask], tmp_path / "same.safetensors", "union")
    assert again.digest == stats.digest
    with pytest.raises(OutputError, match="exists"):
        masking.join([mask, other], tmp_path / "u.safetensors", "union")


def test_what_a_mask_does_not_name_it_keeps(model, tmp_path):
    one, two = tmp_path / "q.safetensors", tmp_path / "d.safetensors"
    prune(model, tmp_path / "o1", sparsity=".5", include=["q_proj", "layers.0.mlp.down"], save_mask=one)
    prune(model, tmp_path / "o2", sparsity=".5", include=["down_proj"], save_mask=two)
    union = masking.join([one, two], tmp_path / "u.safetensors", "union")
    assert list(kept(tmp_path / "u.safetensors")) == ["model.layers.0.mlp.down_proj.weight"]
    assert union.kept == union.elements // 2
    masking.join([one, two], tmp_path / "i.safetensors", "intersect")
    assert sorted(kept(tmp_path / "i.safetensors")) == PRUNED
    assert masking.diff(one, two).missing


def test_the_mask_of_a_model_that_others_pruned(mask, tmp_path):
    found = masking.extract(tmp_path / "out", tmp_path / "x.safetensors")
    assert found.digest == masking.stats(mask).digest


def test_the_mask_of_a_model_that_says_what_was_pruned(model, tmp_path):
    """Patterns may add what is left alone by default, and leave out what is not."""
    how = {"sparsity": ".5", "include": ["embed_tokens", "q_proj"], "exclude": ["layers.1"]}
    prune(model, tmp_path / "o", save_mask=tmp_path / "k.safetensors", **how)
    found = masking.extract(tmp_path / "o", tmp_path / "x.safetensors")
    assert found.digest == masking.stats(tmp_path / "k.safetensors").digest
    wrong = json.dumps({"command": "prune", "include": "q_proj"})
    with pytest.raises(BadFileError, match="include and exclude are patterns"):
        masking.extract(broken(tmp_path / "o", tmp_path, paring=wrong), tmp_path / "y.safetensors")


def test_experts_of_a_size_that_bytes_do_not_divide(tmp_path):
    """27 entries a matrix: each has bytes of its own."""
    shapes = {"model.layers.0.mlp.experts.gate_up_proj": (5, 3, 9)}
    model = put(tmp_path / "m", arrays(shapes=shapes, decimals=None), config={"hidden_size": 9})
    mask = tmp_path / "k.safetensors"
    prune(model, tmp_path / "out", sparsity=".4", scope="global", save_mask=mask)
    (found,), after = kept(mask).values(), read(tmp_path / "out")
    np.testing.assert_array_equal(found, after[next(iter(shapes))] != 0)
    assert masking.verify(mask, tmp_path / "out").ok
    tuned = put(tmp_path / "t", arrays(9, shapes, None), "F32", config={"hidden_size": 9})
    apply_mask(mask, tuned, tmp_path / "masked")
    np.testing.assert_array_equal(read(tmp_path / "masked")[next(iter(shapes))] != 0, found)


def test_another_models_mask(mask, tmp_path):
    other = arrays(decimals=None)
    other[PRUNED[0]] = other[PRUNED[0]][:12]
    model = put(tmp_path / "other", other)
    for refuse in (
        lambda: apply_mask(mask, model, tmp_path / "x"),
        lambda: masking.verify(mask, model),
        lambda: merge([model, model], tmp_path / "x", mask=mask),
    ):
        with pytest.raises(BadFileError, match=r"down_proj.weight is \[24, 60\].*another model's"):
            refuse()
    del other[PRUNED[0]]
    with pytest.raises(BadFileError, match="has not: it is another model's"):
        apply_mask(mask, put(tmp_path / "third", other), tmp_path / "x")
    assert not (tmp_path / "x").exists()


def broken(mask, tmp_path, **changes):
    """The mask with other metadata."""
    with open_checkpoint(mask) as opened:
        tensors = {name: opened.read(name) for name in opened}
        metadata = {**opened.metadata, **changes}
    path = tmp_path / "broken.safetensors"
    write_safetensors(path, tensors, metadata, overwrite=True)
    return path


@pytest.mark.parametrize(("changes", "why"), [
    ({"format": "pt"}, "is no mask"),
    ({"version": "2"}, "version 2"),
    ({"shapes": "{}"}, "not those of its tensors"),
    ({"shapes": "nothing"}, "shapes"),
    ({"shapes": json.dumps({key: [3, 3] for key in PRUNED})}, "no mask of a tensor"),
    ({"shapes": json.dumps({key: ["a"] for key in PRUNED})}, "no mask of a tensor"),
    ({"shapes": json.dumps({key: [-24, -24] for key in PRUNED})}, "no mask of a tensor"),
])  # fmt: skip
def test_damaged_masks(mask, model, tmp_path, changes, why):
    with pytest.raises(BadFileError, match=why):
        apply_mask(broken(mask, tmp_path, **changes), model, tmp_path / "x")
    assert "x" not in names(tmp_path)


def test_a_mask_where_none_can_be(model, mask, tmp_path):
    with pytest.raises(BadFileError, match="is no mask"):
        masking.stats(model)
    with pytest.raises(OptionError, match="outside"):
        prune(model, tmp_path / "x", sparsity=".5", save_mask=tmp_path / "x" / "m.safetensors")
    with pytest.raises(OptionError, match=r"ends in \.safetensors"):
        prune(model, tmp_path / "x", sparsity=".5", save_mask=tmp_path / "m.bin")
    with pytest.raises(OutputError, match="exists"):
        prune(model, tmp_path / "x", sparsity=".5", save_mask=mask)
    with pytest.raises(OptionError, match="two masks"):
        masking.join([mask], tmp_path / "x.safetensors", "union")
    integers = {name: Stored("I32", np.zeros((24, 60), np.int32)) for name in PRUNED if "down" in name}
    integers |= {name: Stored("I32", np.zeros((24, 24), np.int32)) for name in PRUNED if "q_proj" in name}
    write_safetensors(tmp_path / "int.safetensors", integers)
    with pytest.raises(UnsupportedError, match="I32"):
        apply_mask(mask, tmp_path / "int.safetensors", tmp_path / "x.safetensors")
    assert not [name for name in names(tmp_path) if name.startswith(("x", ".x"))]
