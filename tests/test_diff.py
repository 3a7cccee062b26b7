"""``diff``: its numbers are those of plain numpy, and nothing that cannot be compared goes unmentioned."""

from __future__ import annotations

import json
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from paring.api import diff, extract, load
from paring.cli.diff import command
from paring.dtypes import from_f32
from paring.errors import BadValueError, OptionError, OutputError, ParingError, UnsupportedError
from paring.spectrum import ranks_of
from tests.helpers import put_adapter
from tests.make_golden import LORA
from tests.tuned import Tensors, moved, put, weights


def sparse(tensors: Tensors, seed: int) -> Tensors:
    """A fine-tune that leaves most entries alone."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: t
        + 0.1 * torch.randn(t.shape, generator=generator) * (torch.rand(t.shape, generator=generator) < 0.4)
        for name, t in tensors.items()
    }


def vectors(folder: Path, name: str | None = None) -> np.ndarray[Any, np.dtype[np.float64]]:
    tensors = load(folder)
    names = sorted(tensors) if name is None else [name]
    return np.concatenate([tensors[n].double().numpy().ravel() for n in names])


def test_numbers_are_those_of_plain_numpy(tmp_path: Path) -> None:
    start = weights(big__weight=(300, 900))
    base = put(tmp_path / "base", start)
    models = [put(tmp_path / f"m{i}", sparse(start, i)) for i in (1, 2, 3)]
    found = diff(models, base=base, threads=2)
    assert found.to_json() | {"seconds": 0, "peak_rss_bytes": 0} == diff(
        models, base=base, threads=1
    ).to_json() | {"seconds": 0, "peak_rss_bytes": 0}
    assert [tensor.name for tensor in found.tensors] == list(load(base)) and not found.not_compared
    for tensor in [*found.tensors, None]:
        name = None if tensor is None else tensor.name
        told: Any = found if tensor is None else tensor
        b, xs = vectors(base, name), [vectors(m, name) for m in models]
        for i, x in enumerate(xs):
            d = x - b
            assert told.change[i] == pytest.approx(np.linalg.norm(d) / np.linalg.norm(b), rel=1e-5)
            assert told.delta_norm[i] == pytest.approx(np.linalg.norm(d), rel=1e-5)
            assert told.cosine[i] == pytest.approx(b @ x / np.linalg.norm(b) / np.linalg.norm(x), rel=1e-9)
            assert told.changed[i] == np.count_nonzero(d) / len(d)
        for number, (i, j) in enumerate(combinations(range(3), 2)):
            d, e = xs[i] - b, xs[j] - b
            both = (d != 0) & (e != 0)
            cosine = d @ e / np.linalg.norm(d) / np.linalg.norm(e)
            agree = (np.sign(d) == np.sign(e))[both].mean()
            at = (lambda m, i=i, j=j: m[i][j]) if tensor is None else (lambda m, n=number: m[n])
            assert at(told.delta_cosine) == pytest.approx(cosine, abs=1e-6)
            assert at(told.agreement) == pytest.approx(agree, abs=1e-12)


def test_ranks_of_deltas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = weights(wide__weight=(20, 70), kernel__weight=(6, 2, 3, 3))
    tuned = moved(start)
    tuned["wide.weight"] = start["wide.weight"] + torch.randn(20, 2) @ torch.randn(2, 70)
    base, model = put(tmp_path / "base", start), put(tmp_path / "tuned", tuned)
    found = {tensor.name: tensor for tensor in diff([base, model]).tensors}
    for name, tensor in found.items():
        if name == "layers.0.norm.weight":
            assert tensor.effective_rank is None and tensor.rank_90 is None
            continue
        s = torch.linalg.svdvals((load(model)[name] - load(base)[name]).double().flatten(1)).numpy()
        p = s / s.sum()
        assert tensor.effective_rank == [pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-3)]
        share = np.cumsum(s**2) / (s**2).sum()
        assert tensor.rank_90 == [int(np.searchsorted(share, 0.9)) + 1]
    assert found["wide.weight"].effective_rank is not None
    assert 1 < (found["wide.weight"].effective_rank[0] or 0) < 2.01
    assert ranks_of(np.zeros(3)) is None
    equal = ranks_of(np.ones(10))
    assert equal is not None and equal[0] == pytest.approx(10) and equal[1] == 9
    monkeypatch.setattr("paring.diffing.run.QUICK", 16)
    quick = {t.name: t.effective_rank is not None for t in diff([base, model]).tensors}
    assert not quick["wide.weight"] and quick["layers.0.up.weight"]
    ranked = {t.name: t.effective_rank is not None for t in diff([base, model], rank=True).tensors}
    assert ranked == {**quick, "wide.weight": True}
    assert all(t.effective_rank is None for t in diff([base, model], rank=False).tensors)


def test_what_does_not_compare_is_listed(tmp_path: Path) -> None:
    start = weights(embed__weight=(30, 16), odd__weight=(4, 5)) | {
        "ids": torch.arange(4), "step": torch.tensor(3),
        "mask": torch.ones(2, dtype=torch.bool), "old": torch.ones(2),
    }  # fmt: skip
    tuned = {**start, "step": torch.tensor(4), "mask": torch.ones(2), "new": torch.ones(2)}
    tuned["embed.weight"] = torch.cat([start["embed.weight"] * 2, torch.randn(3, 16)])
    tuned["odd.weight"], tuned["layers.0.up.weight"] = (
        torch.ones(5, 4),
        start["layers.0.up.weight"].bfloat16(),
    )
    del tuned["old"]
    base = put(tmp_path / "base", start)
    model = put(tmp_path / "tuned", {f"model.{name}": t for name, t in tuned.items()})
    found = diff([base, model])
    why = {item.name: item.why for item in found.not_compared}
    assert why == {
        "ids": "I64, equal", "step": f"I64, differs in {model}",
        "mask": "BOOL and F32: of different kinds or shapes",
        "old": f"only in {base}", "new": f"only in {model}", "odd.weight": "shapes differ: [4, 5], [5, 4]",
    }  # fmt: skip
    tensors = {tensor.name: tensor for tensor in found.tensors}
    assert tensors["embed.weight"].change == [pytest.approx(1)] and tensors["embed.weight"].shape == (30, 16)
    assert tensors["embed.weight"].note == "the first 30 rows of [30, 16], [33, 16]"
    assert tensors["layers.0.up.weight"].note == "F32 and BF16"
    assert set(tensors) == {name for name in start if name.endswith("weight")} - {"odd.weight"}
    third = put(tmp_path / "third", {name: t for name, t in start.items() if name != "layers.0.up.weight"})
    three = diff([base, model, third])
    (up,) = (tensor for tensor in three.tensors if tensor.name == "layers.0.up.weight")
    assert up.change[0] is not None and up.change[1] is None and up.delta_cosine == [None]
    assert f"not in {third}" in {item.why for item in three.not_compared}
    assert three.change[1] == 0 and three.delta_cosine == [[1.0, None], [None, 1.0]]


def lora(folder: Path, factors: dict[str, tuple[Any, Any]], alpha: float = 8) -> Path:
    rank = next(iter(factors.values()))[0].shape[0]
    tensors = {
        f"base_model.model.{module}.lora_{role}.weight": from_f32(x.astype(np.float32), "F32")
        for module, pair in factors.items()
        for role, x in zip("AB", pair, strict=True)
    }
    return put_adapter(folder, tensors, LORA | {"r": rank, "lora_alpha": alpha})


def test_adapters_are_compared_by_their_updates(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    one = {m: (rng.standard_normal((4, 20)), rng.standard_normal((30, 4))) for m in ("l.0.q", "l.1.q")}
    gauge = rng.standard_normal((4, 4))
    same = {m: (np.linalg.inv(gauge) @ A, 2 * B @ gauge) for m, (A, B) in one.items()}
    other = {"l.0.q": (rng.standard_normal((2, 20)), rng.standard_normal((30, 2)))}
    folders = [lora(tmp_path / "a", one, 8), lora(tmp_path / "b", same, 4), lora(tmp_path / "c", other, 1)]
    found = diff(folders)
    dense = [
        {m: alpha / A.shape[0] * B @ A for m, (A, B) in factors.items()}
        for factors, alpha in ((one, 8), (same, 4), (other, 1))
    ]
    assert found.kind == "adapters" and found.base is None and found.inputs == [str(f) for f in folders]
    assert found.change[0] == 0 and found.change[1] == pytest.approx(0, abs=1e-4)
    assert found.delta_cosine is not None and found.delta_cosine[0][1] == pytest.approx(1, abs=1e-6)
    first, second = found.tensors
    x, z = dense[0]["l.0.q"], dense[2]["l.0.q"]
    assert first.change[2] == pytest.approx(np.linalg.norm(z - x) / np.linalg.norm(x), rel=1e-5)
    assert first.delta_cosine is not None and first.delta_cosine[1] == pytest.approx(
        (x * z).sum() / np.linalg.norm(x) / np.linalg.norm(z), abs=1e-6
    )
    assert first.agreement is not None and first.agreement[1] == pytest.approx(
        (np.sign(x) == np.sign(z)).mean(), abs=2e-3
    )
    s = np.linalg.svd(x)[1][:4]
    assert first.effective_rank is not None and first.effective_rank[0] == pytest.approx(
        ranks_of(s)[0], rel=1e-5
    )  # type: ignore[index]
    assert second.change[2] is None and second.delta_norm[2] is None
    y = dense[0]["l.1.q"]
    whole = np.sqrt(((z - x) ** 2).sum() + (y**2).sum()) / np.sqrt((x**2).sum() + (y**2).sum())
    assert found.change[2] == pytest.approx(whole, rel=1e-5)
    assert [(item.name, item.why) for item in found.not_compared] == [
        ("l.1.q", f"not in {folders[2]}: an update of zero")
    ]


def test_norms_of_adapters_never_take_the_dense_product(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A million by a million would not fit; signs, which need entries, are left out of this test."""
    rng = np.random.default_rng(0)
    a, b = ({"m": (rng.standard_normal((1, 10**6)), rng.standard_normal((10**6, 1)))} for _ in "ab")
    monkeypatch.setattr(
        "paring.diffing.adapters._agreements", lambda opened, rows, threads: np.zeros((1, 2, 2, 2))
    )
    found = diff([lora(tmp_path / "a", a, 1), lora(tmp_path / "b", b, 1)])
    assert found.change[1] == pytest.approx(np.sqrt(2), rel=1e-2)


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_a_picture(tmp_path: Path, suffix: str) -> None:
    start = weights(layers__1__up__weight=(24, 16), head__weight=(9, 16))
    base, models = (
        put(tmp_path / "base", start),
        [put(tmp_path / f"m{i}", sparse(start, i)) for i in range(4)],
    )
    for given in (models[:1], models[:2], models) if suffix == "png" else (models[:2],):
        pictures = [tmp_path / f"{i}.{suffix}" for i in "ab"]
        for picture in pictures:
            assert diff(given, base=base, plot=picture, overwrite=True).plot == str(picture)
        assert len(pictures[0].read_bytes()) > 2000
        assert pictures[0].read_bytes() == pictures[1].read_bytes()
    if suffix == "png":
        from matplotlib.image import imread

        image = imread(pictures[0])
        assert image.shape[1] > image.shape[0] > 300 and len(np.unique(image.reshape(-1, 4), axis=0)) > 50
    flat = (
        put(tmp_path / "flat", {"weight": torch.ones(3)}),
        put(tmp_path / "flat2", {"weight": torch.zeros(3)}),
    )
    diff(flat, plot=tmp_path / f"flat.{suffix}")
    with pytest.raises(OutputError, match="exists"):  # before the models are looked for
        diff(["no", "where"], plot=tmp_path / f"flat.{suffix}")


def test_no_picture_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = put(tmp_path / "base", weights())
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(OptionError, match=r"needs matplotlib: pip install \"paring\[plot\]\""):
        diff([base, base], plot=tmp_path / "x.png")
    assert diff([base, base]).change == [0]


def nan(tensors: Tensors) -> Tensors:
    return tensors | {"layers.0.up.weight": torch.full((24, 16), torch.inf)}


@pytest.mark.parametrize(
    ("models", "options", "kind", "says"),
    [
        (["a"], {}, OptionError, "name two models"),
        ([], {"base": "a"}, OptionError, "name two models"),
        (["a", "lora"], {}, UnsupportedError, "lora is an adapter, others are not"),
        (["lora"], {"base": "a"}, UnsupportedError, "lora is an adapter, others are not"),
        (["lora"], {"base": "lora"}, OptionError, "--base is for checkpoints"),
        (["a", "other"], {}, UnsupportedError, "no float tensor in common"),
        (["a", "nan"], {}, BadValueError, "nan.*up.weight holds NaN, infinity"),
        (["a", "b"], {"plot": "x.gif"}, OptionError, "ends in .png"),
        (["a", "b"], {"threads": 0}, OptionError, "at least 1"),
    ],
)
def test_bad_input_is_refused(
    tmp_path: Path, models: list[str], options: dict[str, Any], kind: type[ParingError], says: str
) -> None:
    put(tmp_path / "a", weights())
    put(tmp_path / "b", moved(weights()))
    put(tmp_path / "nan", nan(weights()))
    put(tmp_path / "other", {"z": torch.ones(3)})
    extract(tmp_path / "b", tmp_path / "lora", base=tmp_path / "a", rank=1)
    if "base" in options:
        options = options | {"base": tmp_path / options["base"]}
    with pytest.raises(kind, match=says):
        diff([tmp_path / name for name in models], **options)


def test_the_command(tmp_path: Path) -> None:
    start = weights() | {"ids": torch.arange(3)}
    base = put(tmp_path / "base", start)
    a, b = (
        put(tmp_path / n, moved(weights(), size) | {"ids": torch.arange(3)})
        for n, size in (("a", 0.1), ("b", 0.2))
    )
    shown = CliRunner().invoke(command, [str(base), str(a)])
    assert shown.exit_code == 0
    rows = [line.split()[0] for line in shown.output.splitlines() if line.strip()]
    names = ["layers.0.norm", "layers.0.down", "layers.0.up"]
    changes = {t.name.removesuffix(".weight"): t.change[0] or 0 for t in diff([base, a]).tensors}
    assert [row for row in rows if row in names] == sorted(names, key=lambda name: -changes[name])
    assert "I64, equal" in shown.output and "100.0%" in shown.output
    several = CliRunner().invoke(command, [str(a), str(b), "--base", str(base)])
    assert several.exit_code == 0 and "A B" in several.output and "same signs" in several.output
    told = json.loads(CliRunner().invoke(command, [str(a), str(b), "--base", str(base), "--json"]).stdout)
    assert told["command"] == "diff" and told["delta_cosine"][0][1] == pytest.approx(1, abs=1e-3)
    assert told["agreement"][0][1] == pytest.approx(1, abs=0.01) and told["base"] == str(base)


def test_tensors_without_entries_differ_in_nothing(tmp_path: Path) -> None:
    from tests.merging import put_model

    models = [put_model(tmp_path / name, {"x": np.zeros((0, 4), np.float32)}) for name in "ab"]
    found = diff(models)
    assert found.tensors[0].delta_norm == [0.0] and found.change == [None]
