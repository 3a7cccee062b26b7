"""``extract``: what PEFT makes of the result is the fine-tune; errors are those of the factors as written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from paring.api import extract, inspect, load, merge
from paring.cli.extract import command
from paring.errors import BadValueError, OptionError, OutputError, ParingError, UnsupportedError
from paring.lowrank import leading
from tests.tuned import Tensors, moved, put, weights


def factors(folder: Path, module: str) -> torch.Tensor:
    tensors = load(folder)
    A, B = (tensors[f"base_model.model.{module}.lora_{role}.weight"].double() for role in "AB")
    return B.flatten(1) @ A.flatten(1)


@pytest.mark.parametrize("small", [16, 1536])
def test_an_update_of_rank_r_is_found_exactly(
    tmp_path: Path, small: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole decomposition or sketch; merged into the base again it is the fine-tune."""
    monkeypatch.setattr("paring.lowrank._WHOLE", small)
    start = {"a.weight": torch.randn(60, 90), "b.weight": torch.randn(90, 50), "n.weight": torch.ones(5)}
    base = put(tmp_path / "base", start)
    tuned = put(
        tmp_path / "tuned",
        {
            name: t + torch.randn(t.shape[0], 3) @ torch.randn(3, t.shape[1]) if t.ndim == 2 else t
            for name, t in start.items()
        },
    )
    report = extract(tuned, tmp_path / "lora", base=base, rank=3)
    assert [m.rank for m in report.modules] == [3, 3] and not report.left_out and not report.warnings
    assert report.error is not None and report.error < 1e-6 and report.error == report.error_all
    merge([tmp_path / "lora"], tmp_path / "again", into=base)
    for name, tensor in load(tmp_path / "again").items():
        torch.testing.assert_close(tensor, load(tuned)[name], rtol=1e-5, atol=1e-5)


def test_factors_are_balanced_and_the_error_is_theirs_as_written(tmp_path: Path) -> None:
    start = weights()
    base, tuned = put(tmp_path / "base", start), put(tmp_path / "tuned", moved(start))
    report = extract(tuned, tmp_path / "lora", base=base, rank=4, dtype="bf16")
    lost = whole = 0.0
    for m in report.modules:
        delta = (load(tuned)[f"{m.name}.weight"] - load(base)[f"{m.name}.weight"]).double()
        apart = float((delta - factors(tmp_path / "lora", m.name)).norm())
        assert m.error == pytest.approx(apart / float(delta.norm()), rel=1e-6)
        best = torch.linalg.svdvals(delta)
        # rounding to bf16 costs a little more than the best approximation
        assert 1 < apart / float(best[4:].norm()) < 1.01
        lost, whole = lost + apart**2, whole + float(delta.norm()) ** 2
        A, B = (load(tmp_path / "lora")[f"base_model.model.{m.name}.lora_{r}.weight"] for r in "AB")
        assert A.dtype == torch.bfloat16
        torch.testing.assert_close(A.double().norm(dim=1), best[:4].sqrt(), rtol=1e-2, atol=0)
        torch.testing.assert_close(B.double().norm(dim=0), best[:4].sqrt(), rtol=1e-2, atol=0)
    assert report.error == pytest.approx((lost / whole) ** 0.5)
    norm = float(((load(tuned)["layers.0.norm.weight"] - start["layers.0.norm.weight"]) ** 2).sum())
    (left,) = report.left_out
    assert left.name == "layers.0.norm.weight" and left.share == pytest.approx(norm / (whole + norm))
    assert report.error_all == pytest.approx(((lost + norm) / (whole + norm)) ** 0.5)
    assert "layers.0.norm.weight" in report.warnings[0]


def test_energy_takes_the_fewest_components_that_hold_it(tmp_path: Path) -> None:
    start = weights(b__weight=(5, 40))
    base, tuned = put(tmp_path / "base", start), put(tmp_path / "tuned", moved(start))
    report = extract(tuned, tmp_path / "lora", base=base, energy=0.8)
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    for m in report.modules:
        s = torch.linalg.svdvals((load(tuned)[f"{m.name}.weight"] - start[f"{m.name}.weight"]).double())
        share = (s**2).cumsum(0) / (s**2).sum()
        assert m.rank is not None and share[m.rank - 1] >= 0.8 > share[m.rank - 2]
    ranks = [m.rank for m in report.modules]
    assert config["alpha_pattern"] == config["rank_pattern"] and len(set(ranks)) == 2
    assert [m.scale for m in inspect(tmp_path / "lora").modules] == [1.0] * 3
    capped = extract(tuned, tmp_path / "capped", base=base, energy=0.8, max_rank=2)
    assert [m.rank for m in capped.modules] == [2, 2, 2]


def test_sketches_are_nearly_as_good_as_whole_decompositions(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    U, V = (np.linalg.qr(rng.standard_normal((n, 200)))[0] for n in (200, 300))
    s = (1 + np.arange(200.0)) ** -0.5
    D = ((U * s) @ V.T).astype(np.float32)
    need = int((np.cumsum(s**2) / (s**2).sum() < 0.6).sum()) + 1
    monkeypatch.setattr("paring.lowrank._WHOLE", 100)
    for matrix in (D, D.T):
        u, found, v = leading(matrix, rank=20)
        apart = np.linalg.norm(matrix - (u * found) @ v) / np.linalg.norm(s[20:])
        assert len(found) == 20 and 1 <= apart < 1.002
        assert need <= len(leading(matrix, energy=0.6)[1]) <= need + 1
        assert len(leading(matrix, energy=0.6, rank=5)[1]) == 5
        assert len(leading(matrix, energy=1.0)[1]) == 200


def test_any_number_of_threads_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paring.lowrank._WHOLE", 8)  # so that some are sketched
    start = weights(embed__weight=(50, 16), layers__1__up__weight=(24, 16))
    base, tuned = put(tmp_path / "base", start), put(tmp_path / "tuned", moved(start))
    files = []
    for threads in (1, 3):
        out = tmp_path / f"{threads}.safetensors"
        extract(tuned, out, base=base, energy=0.2, max_rank=3, threads=threads, embeddings=True)
        files.append(out.read_bytes())
    assert files[0] == files[1]


def test_what_is_not_asked_for_is_left_out_by_name(tmp_path: Path) -> None:
    more = {"embed__weight": (50, 16), "layers__0__moe": (2, 4, 4), "layers__0__dw__weight": (4, 1, 3, 3)}
    start = weights(**more) | {"position_ids": torch.arange(4), "steps": torch.tensor(3)}
    tuned = moved(start, only=lambda name: start[name].is_floating_point()) | {"steps": torch.tensor(4)}
    del tuned["position_ids"]
    report = extract(
        put(tmp_path / "tuned", tuned), tmp_path / "lora", base=put(tmp_path / "base", start), rank=2,
        modules=["*up"], others="carry",
    )  # fmt: skip
    assert [m.name for m in report.modules] == ["layers.0.up"]
    assert {rest.name for rest in report.left_out} == {
        "embed.weight", "layers.0.moe", "layers.0.down.weight", "steps", "position_ids",
    }  # fmt: skip
    assert {tensor.name.split(".", 2)[2] for tensor in report.carried} == {
        "layers.0.norm.weight", "layers.0.dw.weight",
    }  # fmt: skip
    shares = sum(rest.share or 0 for rest in report.left_out)
    assert 0.5 < shares < 1 and report.error_all is not None and report.error_all**2 > shares


def test_names_may_differ_by_a_prefix(tmp_path: Path) -> None:
    """As those of gpt2 on the Hub, which its fine-tunes write after ``transformer.``"""
    start = weights()
    base = put(tmp_path / "base", start)
    tuned = put(tmp_path / "tuned", {f"transformer.{name}": t for name, t in moved(start).items()})
    report = extract(tuned, tmp_path / "lora", base=base, rank=2)
    assert [m.name for m in report.modules] == ["transformer.layers.0.down", "transformer.layers.0.up"]
    heads = (
        put(tmp_path / "bare", moved(start)),
        put(tmp_path / "full", {f"m.{k}": v for k, v in start.items()}),
    )
    assert extract(heads[0], tmp_path / "l2", base=heads[1], rank=1).modules[0].name == "m.layers.0.down"


HEAD = {"embed_tokens__weight": (30, 16), "lm_head__weight": (30, 16)}


def tied(tensors: Tensors) -> Tensors:
    return tensors | {"lm_head.weight": tensors["embed_tokens.weight"].clone()}


def test_a_tied_head_is_its_embedding(tmp_path: Path) -> None:
    start = weights(**HEAD)
    base = put(tmp_path / "base", tied(start))
    headless = moved(start)
    del headless["lm_head.weight"]
    for number, tensors in enumerate((tied(headless), headless)):
        tuned = put(tmp_path / f"tuned{number}", tensors)
        report = extract(tuned, tmp_path / f"lora{number}", base=base, rank=2, embeddings=True)
        assert [m.name for m in report.modules if "layers" not in m.name] == ["embed_tokens"]
        assert "lm_head.weight" not in {rest.name for rest in report.left_out}
    untied = put(tmp_path / "untied", moved(start))
    with pytest.raises(UnsupportedError, match=r"lm_head.weight is tied .*values of its own in .*untied"):
        extract(untied, tmp_path / "x", base=base, rank=2)


def broken(**more: Any) -> Callable[[Tensors], Tensors]:
    return lambda tensors: tensors | {key.replace("__", "."): value for key, value in more.items()}


@pytest.mark.parametrize(
    ("change", "options", "kind", "says"),
    [
        (broken(), {}, OptionError, "give one of --rank"),
        (broken(), {"rank": 2, "energy": 0.5}, OptionError, "give one of --rank"),
        (broken(), {"rank": 0}, OptionError, "at least 1"),
        (broken(), {"rank": 2.5}, OptionError, "a whole number"),
        (broken(), {"energy": 1.5}, OptionError, "at most 1"),
        (broken(), {"rank": 2, "max_rank": 3}, OptionError, "only with --energy"),
        (broken(), {"rank": 2, "others": "keep"}, OptionError, "expected report or carry"),
        (broken(), {"rank": 2, "missing": "copy"}, OptionError, "expected refuse or skip"),
        (broken(), {"rank": 2, "modules": ["*q"]}, OptionError, r"\*q: no weight matrix"),
        (broken(), {"rank": 2, "dtype": "int8"}, OptionError, "int8"),
        (lambda t: weights(), {"rank": 2}, UnsupportedError, "are equal: nothing to extract"),
        (lambda t: {"x.weight": torch.ones(2, 2)}, {"rank": 2}, UnsupportedError, "no tensor in common"),
        (broken(head__weight=torch.ones(2, 2)), {"rank": 2}, UnsupportedError, "is in .* but not"),
        (
            broken(layers__0__up__weight=torch.ones(25, 16)), {"rank": 2}, UnsupportedError,
            r"\[25, 16\] in .*vocabularies differ",
        ),
        (
            broken(layers__0__up__weight=torch.ones(24, 17)), {"rank": 2}, UnsupportedError,
            r"\[24, 17\] in .*not of one model",
        ),
        (
            broken(layers__0__up__weight=torch.ones(24, 16, dtype=torch.int8)), {"rank": 2}, UnsupportedError,
            "up.weight is I8 in",
        ),
        (
            broken(layers__0__up__weight=torch.full((24, 16), torch.nan)), {"rank": 2}, BadValueError,
            "tuned.*up.weight holds NaN",
        ),
    ],
)  # fmt: skip
def test_bad_input_is_refused_by_name(
    tmp_path: Path, change: Any, options: dict[str, Any], kind: type[ParingError], says: str
) -> None:
    base = put(tmp_path / "base", weights())
    tuned = put(tmp_path / "tuned", change(moved(weights())))
    with pytest.raises(kind, match=says):
        extract(tuned, tmp_path / "lora", base=base, **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "tuned"]


def test_more_refusals(tmp_path: Path) -> None:
    base, tuned = put(tmp_path / "base", weights()), put(tmp_path / "tuned", moved(weights()))
    extract(tuned, tmp_path / "lora", base=base, rank=2)
    for pair in ((tmp_path / "lora", base), (tuned, tmp_path / "lora")):
        with pytest.raises(UnsupportedError, match="lora is an adapter already"):
            extract(pair[0], tmp_path / "x", base=pair[1], rank=2)
    with pytest.raises(OutputError, match="exists"):
        extract(tuned, tmp_path / "lora", base=base, rank=2)
    with pytest.raises(OutputError, match="input"):
        extract(tuned, base, base=base, rank=2, overwrite=True)
    assert extract(tuned, tmp_path / "lora", base=base, rank=1, overwrite=True).modules[0].rank == 1
    conv1d = weights(h__0__c_attn__weight=(16, 48))
    with pytest.raises(UnsupportedError, match="may be a Conv1D"):
        extract(put(tmp_path / "g", moved(conv1d)), tmp_path / "x", base=put(tmp_path / "h", conv1d), rank=2)


def test_the_command(tmp_path: Path) -> None:
    base, tuned = put(tmp_path / "base", weights()), put(tmp_path / "tuned", moved(weights()))
    given = [str(tuned), "--base", str(base), "--rank", "2", "-o", str(tmp_path / "lora")]
    shown = CliRunner().invoke(command, [*given, "--dry-run", "-v"])
    assert shown.exit_code == 0 and not (tmp_path / "lora").exists()
    for text in (
        "2 modules would be extracted to",
        "of what these modules learnt",
        "layers.0.norm.weight",
        "24 × 16",
    ):
        assert text in shown.output.replace("\n", " ")
    told = json.loads(CliRunner().invoke(command, [*given, "--json"]).stdout)
    assert told["command"] == "extract" and told["left_out"][0]["why"] == "one axis"
    assert told["recipe"]["rank"] == 2 and told["bytes_out"] > 0
