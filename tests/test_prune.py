"""prune: exact counts, the right entries, whatever the dtype, layout, threads and memory."""

from __future__ import annotations

import json

import numpy as np
import pytest

from paring.api import prune
from paring.pruning import cutting, reading
from tests.helpers import names
from tests.prunable import ELEMENTS, PRUNED, SHAPES, arrays, floor, kept, least, put, read

DTYPES = ["BF16", "F16", "F32", "F64"]


@pytest.fixture(params=DTYPES)
def model(request, tmp_path):
    return put(tmp_path / "model", arrays(), request.param)


@pytest.fixture
def small(monkeypatch):
    """Pieces of 100 entries, so that there are many of them."""
    for module in (reading, cutting):
        if hasattr(module, "SPAN"):
            monkeypatch.setattr(module, "SPAN", 96)
    monkeypatch.setattr(reading.spans, "__defaults__", (96,))


@pytest.mark.parametrize("share", ["0", ".29", "0.5", ".7", "999/1000"])
@pytest.mark.parametrize("scope", ["global", "tensor"])
def test_the_least_go_of_equal_ones_the_first(model, tmp_path, scope, share, small):
    out, mask = tmp_path / "out", tmp_path / "mask.safetensors"
    report = prune(model, out, sparsity=share, scope=scope, save_mask=mask)
    before, after, found = read(model), read(out), kept(mask)
    groups = [PRUNED] if scope == "global" else [[name] for name in PRUNED]
    for group in groups:
        n = sum(before[name].size for name in group)
        for name, expected in least(before, group, floor(share, n)).items():
            np.testing.assert_array_equal(found[name], expected)
            np.testing.assert_array_equal(after[name], np.where(expected, before[name], 0))
    for name in SHAPES:
        if name not in PRUNED:
            np.testing.assert_array_equal(after[name], before[name])
    assert report.elements == ELEMENTS
    assert report.zeros == sum(int((after[name] == 0).sum()) for name in PRUNED)
    assert report.kept == sum(int(found[name].sum()) for name in PRUNED)
    lost = sum(float(((after[n] - before[n]).astype(np.float64) ** 2).sum()) for n in PRUNED)
    total = sum(float((before[n].astype(np.float64) ** 2).sum()) for n in PRUNED)
    assert report.error == pytest.approx(np.sqrt(lost / total), rel=1e-6, abs=1e-12)


def test_rows_keep_the_same_number(model, tmp_path):
    prune(model, tmp_path / "out", sparsity=".3", scope="row", save_mask=tmp_path / "m.safetensors")
    before, found = read(model), kept(tmp_path / "m.safetensors")
    for name in PRUNED:
        for row, mask in zip(before[name], found[name], strict=True):
            expected = least({"row": row}, ["row"], floor(".3", len(row)))["row"]
            np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize(("keep", "of"), [(2, 4), (1, 4), (3, 4), (4, 6), (1, 2)])
def test_groups_keep_n_of_m(model, tmp_path, keep, of):
    report = prune(model, tmp_path / "out", keep=keep, of=of, save_mask=tmp_path / "m.safetensors")
    before, found = read(model), kept(tmp_path / "m.safetensors")
    for name in PRUNED:
        groups = zip(before[name].reshape(-1, of), found[name].reshape(-1, of), strict=True)
        for group, mask in groups:
            np.testing.assert_array_equal(mask, least({"g": group}, ["g"], of - keep)["g"])
    assert report.kept == ELEMENTS * keep // of
    assert report.pattern == f"keeps {keep} of {of}"


@pytest.mark.parametrize("lines", ["outputs", "inputs"])
def test_whole_lines_by_their_norms(tmp_path, lines):
    model = put(tmp_path / "model", arrays(decimals=None), "F32")
    prune(model, tmp_path / "out", sparsity=".25", lines=lines)
    before, after = read(model), read(tmp_path / "out")
    axis = 1 if lines == "outputs" else 0
    for name in PRUNED:
        norms = np.linalg.norm(before[name].astype(np.float64), axis=axis)
        gone = np.argsort(norms)[: len(norms) // 4]
        np.testing.assert_array_equal(np.flatnonzero(~after[name].any(axis=axis)), np.sort(gone))


def test_the_decimal_is_as_typed(tmp_path):
    """.29 of 100 is 29, though the float is less; published code drops int(n s) + 1 and all ties."""
    model = put(tmp_path / "model", arrays(shapes={"a.q_proj.weight": (10, 10)}, decimals=None), "F32")
    for share in (0.29, ".29", "0.290"):
        report = prune(model, tmp_path / "out", sparsity=share, overwrite=True)
        assert (report.zeros, report.recipe["sparsity"]) == (29, "0.29")


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_massive_ties_do_not_prune_more(tmp_path, dtype):
    """All of a grid of 16 values, where `<= threshold` prunes 4 % too much."""
    rng = np.random.default_rng(0)
    values = {"a.q_proj.weight": (rng.integers(-7, 9, (300, 300)) / 8).astype(np.float32)}
    model = put(tmp_path / "model", values, dtype)
    report = prune(model, tmp_path / "out", sparsity=".7", scope="global")
    assert report.zeros == 63_000
    size = np.abs(values["a.q_proj.weight"])
    threshold = np.sort(size, axis=None)[63_000]
    assert (size <= threshold).sum() > 63_000  # the published mask


@pytest.mark.parametrize("decimals", [1, None])
@pytest.mark.parametrize("sample", ["fair", "none", "misleading"])
def test_fp32_by_a_sample_or_without(tmp_path, monkeypatch, decimals, sample):
    """Whatever the sample says, the result is exact."""
    from paring import ranks

    values = arrays(4, {"a.q_proj.weight": (200, 300), "b.q_proj.weight": (100, 100)}, decimals)
    model = put(tmp_path / "model", values, "F32")
    monkeypatch.setattr(ranks, "FEW", 1000 if sample != "none" else 1 << 40)
    if sample == "misleading":
        monkeypatch.setattr(cutting, "_sample", lambda reader, pool: np.full((1, 4096), 9, np.float32))
    mask = tmp_path / "k.safetensors"
    prune(model, tmp_path / "out", sparsity=".43", scope="global", save_mask=mask)
    for name, expected in least(values, sorted(values), 30_100).items():
        np.testing.assert_array_equal(kept(mask)[name], expected)


def test_zeros_that_are_there_count(tmp_path):
    values = arrays(shapes={"a.q_proj.weight": (20, 20)}, decimals=None)
    values["a.q_proj.weight"].reshape(-1)[::4] = 0.0
    values["a.q_proj.weight"].reshape(-1)[::8] = -0.0
    model = put(tmp_path / "model", values, "F32")
    report = prune(model, tmp_path / "half", sparsity=".5")
    assert (report.zeros, report.zeros_before, report.warnings) == (200, 100, [])
    report = prune(model, tmp_path / "fifth", sparsity=".2")
    assert (report.zeros, report.kept) == (100, 320)
    assert "more zeros already" in report.warnings[0]


def test_a_global_threshold_finds_zeros_where_they_are(tmp_path):
    """One tensor is zero already: the others lose less."""
    values = arrays(shapes={"a.q_proj.weight": (20, 20), "b.q_proj.weight": (20, 20)}, decimals=None)
    values["a.q_proj.weight"][:] = 0
    report = prune(put(tmp_path / "m", values, "BF16"), tmp_path / "out", sparsity=".6", scope="global")
    assert [module.zeros for module in report.modules] == [400, 80]


def test_mixed_dtypes_share_one_threshold(tmp_path, small):
    """bf16 and fp32 tensors, ordered by value."""
    from paring.checkpoint import write_safetensors
    from paring.dtypes import from_f32

    values = arrays(3)
    kinds = dict(zip(PRUNED, ["BF16", "F32", "F16", "BF16", "F32"], strict=True))
    tensors = {name: from_f32(values[name], kind) for name, kind in kinds.items()}
    write_safetensors(tmp_path / "m.safetensors", tensors)
    report = prune(tmp_path / "m.safetensors", tmp_path / "o.safetensors", sparsity=".41", scope="global",
                   save_mask=tmp_path / "k.safetensors")  # fmt: skip
    before, found = read(tmp_path / "m.safetensors"), kept(tmp_path / "k.safetensors")
    for name, expected in least(before, PRUNED, floor(".41", ELEMENTS)).items():
        np.testing.assert_array_equal(found[name], expected)
    assert report.kept == ELEMENTS - floor(".41", ELEMENTS)


@pytest.mark.parametrize("options", [
    {"scope": "global"}, {}, {"scope": "row"}, {"allocate": "erk"}, {"allocate": "lamp"},
    {"lines": "outputs"},
])  # fmt: skip
def test_layout_threads_and_memory_do_not_matter(tmp_path, options, monkeypatch):
    from paring.pruning import masking

    values = arrays(1)
    found = set()
    for number, limit in enumerate((1 << 40, 2000)):  # one file, and seven
        model = put(tmp_path / f"m{number}", values, "BF16", limit=limit)
        for threads in (1, 2):
            out, mask = tmp_path / f"o{number}{threads}", tmp_path / f"k{number}{threads}.safetensors"
            prune(model, out, sparsity=".37", threads=threads, memory=1 << 24, save_mask=mask, **options)
            found.add(masking.stats(mask).digest)
            assert {n: x.tobytes() for n, x in read(out).items()} == {
                n: x.tobytes() for n, x in read(tmp_path / "o01").items()
            }
    assert len(names(tmp_path / "m1")) > 7
    assert len(found) == 1


def test_what_lies_beside_comes_along(tmp_path):
    model = put(tmp_path / "model", arrays(), limit=2000)
    report = prune(model, tmp_path / "out", sparsity=".5", shard_size=3000)
    there = names(tmp_path / "out")
    assert {"config.json", "tokenizer.json", "README.md", "model.safetensors.index.json"} < set(there)
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == json.loads(
        (model / "config.json").read_text()
    )
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"{report.zeros:,} of {ELEMENTS:,}" in card
    assert "- prune" in card
    assert "Pruned by paring" in card


def test_a_dry_run_writes_nothing(tmp_path):
    model = put(tmp_path / "model", arrays())
    mask = tmp_path / "m.safetensors"
    report = prune(model, tmp_path / "out", sparsity=".5", dry_run=True, save_mask=mask)
    assert (report.dry_run, report.zeros, report.elements) == (True, None, ELEMENTS)
    assert names(tmp_path) == ["model"]


@pytest.mark.parametrize("dtype", ["BF16", "F32"])
@pytest.mark.parametrize("options", [
    {"scope": "global"}, {}, {"scope": "row"}, {"keep": 2, "of": 4, "sparsity": None},
])  # fmt: skip
def test_other_devices_keep_the_same(tmp_path, monkeypatch, dtype, options):
    """torch's kernels, on whatever torch has here."""
    import torch

    from paring.pruning import plan

    model = put(tmp_path / "model", arrays(), dtype)
    how = {"sparsity": ".37", **options}
    first = prune(model, tmp_path / "a", **how)
    there = "cuda" if torch.cuda.is_available() else "cpu:0"
    monkeypatch.setattr(plan, "pick", lambda device: there)
    second = prune(model, tmp_path / "b", **how)
    assert (first.zeros, second.device) == (second.zeros, there)
    assert second.error == pytest.approx(first.error)
    a, b = read(tmp_path / "a"), read(tmp_path / "b")
    assert all(a[name].tobytes() == b[name].tobytes() for name in a)
