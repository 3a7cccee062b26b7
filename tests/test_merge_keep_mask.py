"""Merges into sparse bases: zeros stay zeros, patterns stay patterns, and the cost is told."""

import json
from fractions import Fraction

import numpy as np
import pytest
from click.testing import CliRunner

from paring import adapters
from paring.api import merge, merge_recipe, prune, rerun
from paring.checkpoint import open_checkpoint
from paring.cli import paring
from paring.dtypes import Stored, from_f32
from paring.errors import BadValueError, OptionError, UnsupportedError
from paring.factors import read_factors
from paring.merging import keeping
from paring.packed import open_source
from paring.pruning import masking
from tests.helpers import names, put_adapter
from tests.make_golden import LORA, ia3
from tests.merging import put_model
from tests.prunable import kept
from tests.test_codec_sparse import two_of_four

SHAPES = {"model.layers.0.q_proj.weight": (24, 40), "model.layers.1.down.weight": (40, 64)}
PREFIX = "base_model.model."


def sparse_base(folder, dtype="BF16", minus=True, limit=1 << 40):
    """One weight of half zeros, some of them -0, and one that is 2:4."""
    rng = np.random.default_rng(0)
    half = rng.standard_normal((24, 40)).astype(np.float32) * (rng.random((24, 40)) < 0.5)
    values = {
        "model.layers.0.q_proj.weight": half if minus else half + np.float32(0),
        "model.layers.1.down.weight": two_of_four("F32", (40, 64), fewer=0.0).data,
        "model.norm.weight": np.ones(24, np.float32),
    }
    return put_model(folder, values, dtype, limit=limit)


def adapter(folder, seed=0, *, ones=False, rank=3, alpha=6, size=0.1, **more):
    """A plain LoRA, or with ``ones`` products of about one."""
    rng, tensors = np.random.default_rng(seed), {}
    for name, (rows, columns) in SHAPES.items():
        module = PREFIX + name.removesuffix(".weight")
        a, b = size * rng.standard_normal((rank, columns)), size * rng.standard_normal((rows, rank))
        if ones:
            a[0], b[:, 0] = 1.0, 1.0
        tensors[f"{module}.lora_A.weight"] = from_f32(a.astype(np.float32), "F32")
        tensors[f"{module}.lora_B.weight"] = from_f32(b.astype(np.float32), "F32")
    return put_adapter(
        folder, tensors | more, LORA | {"r": rank, "lora_alpha": alpha, "target_modules": "all-linear"}
    )


def read(path):
    with open_checkpoint(path) as opened:
        return {name: opened.read(name) for name in opened}


def updates(path, scaled=True):
    found = {}
    for f in read_factors(adapters.read(open_source(path))):
        name = f.name.removeprefix(PREFIX) + ".weight"
        left = f.B * np.float32(f.scale if scaled else 1.0)
        found[name] = (left @ f.A).astype(np.float32)
    return found


def groups_of_two(data):
    return (np.count_nonzero(data.reshape(-1, 4), axis=1) <= 2).all()


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("weights", [None, [0.25, 1.5]])
def test_mask_adds_where_weights_are(tmp_path, dtype, weights):
    base = sparse_base(tmp_path / "base", dtype)
    loras = [adapter(tmp_path / "a", 1), adapter(tmp_path / "b", 2)]
    report = merge(
        loras, tmp_path / "out", method="task_arithmetic", into=base, weights=weights, keep_mask="mask"
    )
    before, after = read(base), read(tmp_path / "out")
    parts = [updates(path) for path in loras]
    discarded = energy = 0.0
    for name in SHAPES:
        W, ones = before[name].f32(), weights or [1.0, 1.0]
        D = sum(np.float32(w) * part[name] for w, part in zip(ones, parts, strict=True))
        expected = from_f32(np.where(W == 0, W, W + D), dtype)
        assert np.abs(after[name].f64() - expected.f64()).max() <= 2e-2 * np.abs(expected.f64()).max()
        dead = W == 0
        assert (after[name].data[dead].tobytes()) == before[name].data[dead].tobytes()  # -0 stays -0
        discarded += (D[dead].astype(float) ** 2).sum()
        energy += (D.astype(float) ** 2).sum()
        (row,) = (row for row in report.kept if row.name == name)
        share = (D[dead].astype(float) ** 2).sum() / (D.astype(float) ** 2).sum()
        assert row.discarded == pytest.approx(share**0.5, rel=1e-5) and row.sparsity == dead.mean()
        same = after[name].data.tobytes() == expected.data.tobytes()
        assert same or dtype == "F32"
    assert groups_of_two(after["model.layers.1.down.weight"].f32())
    assert report.discarded == pytest.approx((discarded / energy) ** 0.5, rel=1e-6)
    assert after["model.norm.weight"].tobytes() == before["model.norm.weight"].tobytes()


def test_a_plain_merge_densifies_and_this_one_does_not(tmp_path):
    base, lora = sparse_base(tmp_path / "base"), adapter(tmp_path / "a")
    merge([lora], tmp_path / "plain", into=base)
    merge([lora], tmp_path / "kept", into=base, keep_mask="mask")
    for name in SHAPES:
        zeros = [
            (read(path)[name].f32() == 0).mean() for path in (base, tmp_path / "plain", tmp_path / "kept")
        ]
        assert zeros[0] == zeros[2] > 0.4 and zeros[1] < 0.01


def test_scale_multiplies_and_leaves_the_scale_out(tmp_path):
    base, lora = sparse_base(tmp_path / "base", "F16"), adapter(tmp_path / "a", ones=True, alpha=600)
    report = merge([lora], tmp_path / "out", into=base, keep_mask="scale")
    before, after, products = read(base), read(tmp_path / "out"), updates(lora, scaled=False)
    for name in SHAPES:
        W = before[name].f32()
        expected = from_f32(np.where(W == 0, W, W * products[name]), "F16")
        assert after[name].tobytes() == expected.tobytes()
    assert report.discarded == 0 and report.updates_lost < report.updates


def test_updates_lost_to_rounding_are_counted(tmp_path):
    base, lora = sparse_base(tmp_path / "base"), adapter(tmp_path / "a", size=0.01)
    report = merge([lora], tmp_path / "out", into=base, keep_mask="mask")
    before, after = read(base), read(tmp_path / "out")
    live = sum(np.count_nonzero(before[name].data & 0x7FFF) for name in SHAPES)
    same = sum(np.count_nonzero((before[n].data == after[n].data) & (before[n].f32() != 0)) for n in SHAPES)
    assert report.updates == live and report.updates_lost == same > live / 4
    assert sum(row.updates_lost for row in report.kept) == same
    assert not any("lost in rounding" in warning for warning in report.warnings)  # it is in the report


def test_full_models_and_rules_on_deltas_keep_zeros_too(tmp_path):
    base = sparse_base(tmp_path / "base", "F32")
    values = {name: t.f32() + np.float32(0.1) for name, t in read(base).items()}
    tuned = put_model(tmp_path / "tuned", values)
    report = merge([tuned, tuned], tmp_path / "out", method="ties", base=base, keep_mask="mask", density=0.9)
    for name in SHAPES:
        assert ((read(base)[name].f32() == 0) <= (read(tmp_path / "out")[name].f32() == 0)).all()
    assert 0 < report.discarded < 1 and {row.name for row in report.kept} == {*SHAPES, "model.norm.weight"}


def test_the_same_bits_and_figures_for_any_threads_shards_and_memory(tmp_path, monkeypatch):
    from paring.merging import models

    monkeypatch.setattr(models, "SPAN", 512)
    monkeypatch.setattr(models, "CHUNK", 128)
    lora, found = adapter(tmp_path / "a"), []
    for i, (limit, threads) in enumerate([(1 << 40, 1), (2000, 1), (1 << 40, 3)]):
        base = sparse_base(tmp_path / f"base{i}", limit=limit)
        report = merge([lora], tmp_path / f"out{i}", into=base, keep_mask="mask", threads=threads)
        found.append(
            ([t.tobytes() for t in read(tmp_path / f"out{i}").values()], report.discarded, report.kept)
        )
    assert found[0] == found[1] == found[2]


def test_figures_survive_a_run_that_was_stopped(tmp_path, monkeypatch):
    base, lora = sparse_base(tmp_path / "base"), adapter(tmp_path / "a")
    whole = merge([lora], tmp_path / "whole", into=base, keep_mask="mask", threads=1)
    applied, calls = keeping.applied, []

    def stopped(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return applied(*arguments)

    monkeypatch.setattr("paring.merging.writing.applied", stopped)
    with pytest.raises(KeyboardInterrupt):
        merge([lora], tmp_path / "out", into=base, keep_mask="mask", threads=1)
    again = merge([lora], tmp_path / "out", into=base, keep_mask="mask", threads=1)
    assert len(calls) == 3  # the tensor that was done is not done again
    assert (again.discarded, again.kept) == (whole.discarded, whole.kept)
    assert {n: t.tobytes() for n, t in read(tmp_path / "out").items()} == {
        n: t.tobytes() for n, t in read(tmp_path / "whole").items()
    }


@pytest.mark.parametrize("keep", ["mask", "scale"])
@pytest.mark.parametrize("dtype", ["BF16", "F32"])
def test_with_a_mask_beside(tmp_path, keep, dtype):
    """Both hold, and what either discards is counted."""
    base, lora = sparse_base(tmp_path / "base", dtype), adapter(tmp_path / "a", ones=keep == "scale")
    mask = tmp_path / "mask.safetensors"
    prune(base, tmp_path / "pruned", sparsity=".8", include=["*proj*", "*down*"], save_mask=mask)
    alone = merge([lora], tmp_path / "alone", into=base, keep_mask=keep)
    report = merge([lora], tmp_path / "out", into=base, keep_mask=keep, mask=mask)
    before, without, after, stays = read(base), read(tmp_path / "alone"), read(tmp_path / "out"), kept(mask)
    for name, update in updates(lora, scaled=keep == "mask").items():
        expected = np.where(stays[name], without[name].f32(), 0)
        np.testing.assert_array_equal(after[name].f32(), expected)
        W = before[name].f32()
        D = update.astype(float) if keep == "mask" else W * (update - 1.0)
        lost = (W == 0) | ~stays[name]
        (row,) = (row for row in report.kept if row.name == name)
        assert row.sparsity == lost.mean() > 0.75
        assert row.discarded == pytest.approx(((D[lost] ** 2).sum() / (D**2).sum()) ** 0.5, rel=1e-4)
        assert row.updates == np.count_nonzero(D[~lost])
    assert report.discarded > alone.discarded and masking.verify(mask, tmp_path / "out").ok
    assert rerun(tmp_path / "out", tmp_path / "again").same


def test_recipes_and_rerun(tmp_path):
    base, lora = sparse_base(tmp_path / "base"), adapter(tmp_path / "a")
    (tmp_path / "r.yaml").write_text("models: [a]\ninto: base\nkeep_mask: mask\n")
    report = merge_recipe(tmp_path / "r.yaml", tmp_path / "one")
    merge([lora], tmp_path / "two", into=base, keep_mask="mask")
    assert report.discarded > 0.5
    assert read(tmp_path / "one").keys() == read(tmp_path / "two").keys()
    assert all(read(tmp_path / "two")[n].tobytes() == t.tobytes() for n, t in read(tmp_path / "one").items())
    assert rerun(tmp_path / "two", tmp_path / "three").same
    (tmp_path / "r.yaml").write_text("models: [a]\ninto: base\nkeep_mask: maks\n")
    with pytest.raises(OptionError, match="did you mean 'mask'"):
        merge_recipe(tmp_path / "r.yaml", tmp_path / "x")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"keep_mask": "both"}, "expected mask or scale"),
        ({"keep_mask": "mask", "into": None}, "add --into"),
        ({"keep_mask": "mask", "into": None, "base": "base"}, "folded in with --into"),
        ({"keep_mask": "mask", "tokenizer": "base"}, "not with --tokenizer"),
        ({"keep_mask": "scale", "method": "task_arithmetic", "scale": 2.0}, "takes no --method"),
        ({"keep_mask": "scale", "weights": [2]}, "takes no --method"),
        ({"keep_mask": "scale", "method": "ties"}, "takes no --method"),
        ({"keep_mask": "scale", "models": 2}, "takes one adapter"),
        ({"keep_mask": "mask", "device": "cuda"}, "on the CPU only"),
    ],
)
def test_what_cannot_be_meant(tmp_path, options, told):
    base, loras = (
        sparse_base(tmp_path / "base"),
        [adapter(tmp_path / "a", ones=True), adapter(tmp_path / "b")],
    )
    asked = {"into": base, **options}
    if asked.get("base"):
        asked["base"] = base
    with pytest.raises((OptionError, UnsupportedError), match=told):
        merge(loras[: asked.pop("models", 1)], tmp_path / "out", **asked)
    assert names(tmp_path) == ["a", "b", "base"]


def test_what_is_no_scale_adapter(tmp_path):
    base = sparse_base(tmp_path / "base")
    with pytest.raises(BadValueError, match=r"a: its products B @ A are .* mask for plain ones"):
        merge([adapter(tmp_path / "a")], tmp_path / "out", into=base, keep_mask="scale")
    with pytest.raises(UnsupportedError, match="it is no adapter"):
        merge([base], tmp_path / "out", into=base, keep_mask="scale")
    with pytest.raises(UnsupportedError, match="multiplies activations"):
        merge([put_adapter(tmp_path / "v", ia3("F32"), {"peft_type": "IA3"})], tmp_path / "out", into=base,
              keep_mask="mask")  # fmt: skip
    assert names(tmp_path) == ["a", "base", "v"]


def test_a_base_without_zeros_is_told(tmp_path):
    base = put_model(tmp_path / "base", {name: np.ones(shape, np.float32) for name, shape in SHAPES.items()})
    report = merge([adapter(tmp_path / "a")], tmp_path / "out", into=base, keep_mask="mask")
    assert report.discarded == 0 and any("no zeros" in warning for warning in report.warnings)


def test_a_product_too_large_is_refused(tmp_path):
    base = sparse_base(tmp_path / "base", "F16")
    huge = adapter(tmp_path / "a", ones=True, size=300.0)
    with pytest.raises(BadValueError, match=r"q_proj\.weight: a merged value is too large for F16"):
        merge([huge], tmp_path / "out", into=base, keep_mask="scale")
    assert names(tmp_path) == ["a", "base"]


def test_on_the_command_line(tmp_path):
    base, lora, run = sparse_base(tmp_path / "base"), adapter(tmp_path / "a"), CliRunner()
    out = str(tmp_path / "out")
    arguments = ["merge", str(lora), "--into", str(base), "--keep-mask", "mask", "-o", out]
    done = run.invoke(paring, [*arguments, "-v"])
    assert done.exit_code == 0 and "stay so" in done.stdout and "lost in rounding" in done.stdout
    assert "model.layers.1.down.weight" in done.stdout
    told = json.loads(run.invoke(paring, [*arguments, "--overwrite", "--json"]).stdout)
    assert told["discarded"] > 0.5 and {row["name"] for row in told["kept"]} == set(SHAPES)
    dry = run.invoke(paring, [*arguments, "--overwrite", "--dry-run"])
    assert dry.exit_code == 0 and "would be merged" in dry.stdout


@pytest.mark.parametrize("keep", ["mask", "scale"])
def test_against_exact_numbers(keep):
    rng = np.random.default_rng(0)
    base = (rng.standard_normal(400) * (rng.random(400) < 0.5)).astype(np.float32)
    merged = rng.standard_normal(400).astype(np.float32)
    values, update, tally = keeping.applied(keep, merged, base)
    pairs = [(Fraction(float(b)), Fraction(float(m))) for b, m in zip(base, merged, strict=True)]
    exact = [b * m if keep == "scale" else b + m for b, m in pairs]
    expected = np.array([0.0 if b == 0 else float(x) for b, x in zip(base, exact, strict=True)], np.float32)
    assert (values == expected).all() and not update[base == 0].any()
    assert tally.zeros == (base == 0).sum() and tally.updates == np.count_nonzero(update)
    energy = merged if keep == "mask" else update
    assert tally.energy == pytest.approx(float((energy.astype(float) ** 2).sum()))
    assert isinstance(Stored("F32", values).f64(), np.ndarray)
