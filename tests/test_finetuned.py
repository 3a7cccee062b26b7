"""Full fine-tunes packed as deltas: what comes back, within which budget, and what is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from paring.api import compress, decompress, inspect, load, rerun, verify
from paring.checkpoint import open_checkpoint
from paring.cli.compress import command
from paring.errors import BadFileError, BadValueError, BudgetError, OptionError, OutputError, UnsupportedError
from tests.tuned import Tensors, moved, put

SHAPES = {"emb.weight": (120, 32), "layers.0.up.weight": (96, 32), "layers.0.down.weight": (32, 96),
          "layers.0.conv.weight": (24, 8, 3, 3)}  # fmt: skip


def start(dtype: torch.dtype = torch.float32) -> Tensors:
    generator = torch.Generator().manual_seed(0)
    out = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    out |= {"layers.0.norm.weight": torch.rand(32, generator=generator), "gate": torch.tensor(0.3)}
    return {name: tensor.to(dtype) for name, tensor in out.items()} | {"ids": torch.arange(5)}


def pair(folder: Path, dtype: torch.dtype = torch.float32, by: float = 0.05) -> tuple[Path, Path]:
    """A base and a fine-tune of it."""
    base = start(dtype)
    tuned = moved({n: t.float() for n, t in base.items() if t.is_floating_point()}, by)
    config = {"model_type": "bert"}
    return (
        put(folder / "tuned", {n: t.to(dtype) for n, t in tuned.items()} | {"ids": base["ids"]}, config),
        put(folder / "base", base, config),
    )


def delta(tuned: Path, base: Path) -> Tensors:
    a, b = load(tuned), load(base)
    return {name: a[name].double() - b[name].double() for name in a if a[name].is_floating_point()}


def apart(one: Path, other: Path, base: Path) -> float:
    """The error of ``other``'s deltas against those of ``one``."""
    true, made = delta(one, base), delta(other, base)
    lost = sum(float(((true[name] - made[name]) ** 2).sum()) for name in true)
    return float((lost / sum(float((d**2).sum()) for d in true.values())) ** 0.5)


@pytest.mark.parametrize("asked", [{"ratio": 10}, {"bits_per_param": 4}, {"error": 0.2}, {}])
def test_budgets_are_met_and_the_error_told_is_that_of_what_comes_back(
    tmp_path: Path, asked: dict[str, float]
) -> None:
    tuned, base = pair(tmp_path)
    report = compress(tuned, tmp_path / "p.paring.safetensors", base=base, carry="priced", **asked)  # type: ignore[arg-type]
    size = (tuned / "model.safetensors").stat().st_size
    assert report.bytes_out == (tmp_path / "p.paring.safetensors").stat().st_size and report.error
    assert report.ratio == size / report.bytes_out
    assert report.ratio >= asked.get("ratio", 0) and report.error <= asked.get("error", 1)
    assert (report.bits_per_param or 0) <= (asked.get("bits_per_param") or (16 if "error" in asked else 4))
    decompress(report.output or "", tmp_path / "back", base=base)
    assert apart(tuned, tmp_path / "back", base) == pytest.approx(report.error, abs=1e-6)
    assert {n: t.dtype for n, t in load(tmp_path / "back").items()} == {
        n: t.dtype for n, t in load(tuned).items()
    }
    assert (tmp_path / "back" / "config.json").read_bytes() == (tuned / "config.json").read_bytes()
    found = verify(report.output or "", tuned, base=base)
    assert found.ok and found.error == pytest.approx(report.error, abs=1e-5)


def test_more_bytes_lose_less(tmp_path: Path) -> None:
    tuned, base = pair(tmp_path)
    errors = [
        compress(tuned, tmp_path / f"{r}", base=base, ratio=r, carry="priced").error or 0 for r in (5, 8, 12)
    ]
    assert 0 < errors[0] < errors[1] < errors[2] < 1


def test_vectors_and_scalars_come_back_bit_for_bit(tmp_path: Path) -> None:
    tuned, base = pair(tmp_path)
    report = compress(tuned, tmp_path / "p", base=base, ratio=8)
    decompress(tmp_path / "p", tmp_path / "back.safetensors", base=base)
    back, true = load(tmp_path / "back.safetensors"), load(tuned)
    for name in ("layers.0.norm.weight", "gate", "ids"):
        assert torch.equal(back[name], true[name])
    assert {c.name for c in report.carried} == {"layers.0.norm.weight", "gate"}
    assert not torch.equal(back["emb.weight"], true["emb.weight"])


@pytest.mark.parametrize(("carry", "least", "most"), [("fp16", 1e-6, 1e-3), ("drop", 0.99, 1.01)])
def test_vectors_may_be_rounded_or_left_at_the_base(
    tmp_path: Path, carry: str, least: float, most: float
) -> None:
    tuned, base = pair(tmp_path)
    compress(tuned, tmp_path / "p", base=base, ratio=8, carry=carry)
    decompress(tmp_path / "p", tmp_path / "back", base=base)
    true, made = (delta(x, base)["layers.0.norm.weight"] for x in (tuned, tmp_path / "back"))
    assert least < float((true - made).norm() / true.norm()) < most


def test_rounding_to_a_narrow_dtype_is_in_the_error_and_counted(tmp_path: Path) -> None:
    tuned, base = pair(tmp_path, torch.bfloat16, by=0.004)
    report = compress(tuned, tmp_path / "p", base=base, ratio=6)
    decompress(tmp_path / "p", tmp_path / "back", base=base)
    assert apart(tuned, tmp_path / "back", base) == pytest.approx(report.error, abs=1e-6)
    assert any("lost to rounding" in text for text in report.warnings)
    assert load(tmp_path / "back")["emb.weight"].dtype == torch.bfloat16


def test_a_tied_head_is_held_once_and_what_is_new_is_carried(tmp_path: Path) -> None:
    tuned, base = pair(tmp_path)
    own = dict(load(tuned))
    put(tuned, own | {"head.weight": own["emb.weight"].clone(), "new.weight": torch.ones(3, 3)})
    report = compress(tuned, tmp_path / "p", base=base, ratio=8)
    assert not any(name.startswith("head") for name in load(tmp_path / "p"))
    decompress(tmp_path / "p", tmp_path / "back", base=base)
    back = load(tmp_path / "back")
    assert torch.equal(back["head.weight"], back["emb.weight"])
    assert torch.equal(back["new.weight"], torch.ones(3, 3)) and any(
        "new.weight" in w for w in report.warnings
    )


def test_shards_prefixes_and_threads_make_no_difference(tmp_path: Path) -> None:
    tuned, base = pair(tmp_path)
    one = compress(tuned, tmp_path / "one", base=base, ratio=8, threads=1)
    two = compress(tuned, tmp_path / "two", base=base, ratio=8, threads=2)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes() and one.error == two.error
    shards = tmp_path / "shards"
    shards.mkdir()
    (shards / "config.json").write_bytes((tuned / "config.json").read_bytes())
    own = dict(load(tuned))
    for number, some in enumerate((list(own)[:3], list(own)[3:]), 1):
        put(shards, {name: own[name] for name in some})
        (shards / "model.safetensors").rename(shards / f"model-0000{number}-of-00002.safetensors")
    places = {n: f"model-0000{1 + (n in list(own)[3:])}-of-00002.safetensors" for n in own}
    (shards / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    wrapped = put(tmp_path / "wrapped", {f"model.{n}": t for n, t in load(base).items()})
    again = compress(shards, tmp_path / "three", base=wrapped, error=one.error, overwrite=True)
    assert again.error == pytest.approx(one.error, rel=0.02)
    decompress(tmp_path / "three", tmp_path / "back", base=wrapped)
    assert sorted(load(tmp_path / "back")) == sorted(own)


def test_the_base_is_needed_and_must_be_the_very_one(tmp_path: Path) -> None:
    tuned, base = pair(tmp_path)
    packed = tmp_path / "p"
    compress(tuned, packed, base=base, ratio=8)
    with pytest.raises(OptionError, match="add --base"):
        decompress(packed, tmp_path / "back")
    other = dict(load(base))
    other["emb.weight"][3, 4] += 1
    with pytest.raises(BadFileError, match="is not the base"):
        decompress(packed, tmp_path / "back", base=put(tmp_path / "other", other))
    del other["emb.weight"]
    with pytest.raises(BadFileError, match=r"has no emb.weight"):
        decompress(packed, tmp_path / "back", base=put(tmp_path / "other", other))
    assert not (tmp_path / "back").exists()
    with pytest.raises(OptionError, match="needs its --base"):
        verify(packed, tuned)
    found = verify(packed, tuned, base=tmp_path / "other")
    assert not found.ok and "digest of the base" in found.failed[0]
    moved_on = {name: t + 1 if t.is_floating_point() else t for name, t in load(tuned).items()}
    assert not verify(packed, put(tmp_path / "later", moved_on), base=base).ok


def test_what_cannot_be_meant_is_refused_before_any_work(tmp_path: Path) -> None:
    tuned, base = pair(tmp_path)
    own = dict(load(tuned))

    def refused(kind: type[Exception], match: str, **more: object) -> None:
        with pytest.raises(kind, match=match):
            compress(tmp_path / "odd", tmp_path / "out", **({"base": base, "ratio": 8} | more))  # type: ignore[arg-type]
        assert not (tmp_path / "out").exists()

    put(tmp_path / "odd", own | {"emb.weight": torch.zeros(121, 32)})
    refused(UnsupportedError, "vocabularies differ")
    put(tmp_path / "odd", own | {"emb.weight": own["emb.weight"].to(torch.float8_e4m3fn)})
    refused(UnsupportedError, r"emb.weight is quantised \(F8_E4M3\)")
    put(tmp_path / "odd", own | {"emb.weight": own["emb.weight"].to(torch.int8)})
    refused(UnsupportedError, "emb.weight is quantised")
    put(tmp_path / "odd", own | {"layers.0.norm.weight": torch.full((32,), torch.nan)})
    refused(BadValueError, "layers.0.norm.weight holds NaN")
    put(tmp_path / "odd", own)
    refused(OptionError, "coded by spectral", method="compeft")
    refused(OptionError, "--carry some", carry="some")
    refused(OptionError, "--norm is for adapters", norm=0.5)
    refused(OptionError, "--states 5: a power of two", states=5)
    refused(BudgetError, "best that can be had", ratio=5000)
    refused(UnsupportedError, "are equal", base=tuned)
    with pytest.raises(OutputError, match="is an input"):
        compress(tuned, base / "model.safetensors", base=base, ratio=8, overwrite=True)
    refused(UnsupportedError, "with its --base", base=None)


def test_same_file_twice_is_said_plainly(tmp_path: Path) -> None:
    tuned, _ = pair(tmp_path)
    with pytest.raises(UnsupportedError, match="are equal: there is nothing to compress"):
        compress(tuned, tmp_path / "p", base=tuned, ratio=8)


def test_a_killed_run_leaves_nothing_under_the_name(tmp_path: Path) -> None:
    tuned, base = pair(tmp_path)
    code = (
        "import sys, time; from paring import packing\n"
        "write = packing.write_safetensors\n"
        "def slow(path, tensors, *a, **k):\n"
        "    def each():\n"
        "        for t in tensors:\n            print('writing', flush=True); yield t; time.sleep(60)\n"
        "    write(path, each(), *a, **k)\n"
        "packing.write_safetensors = slow\n"
        "from paring.api import compress; compress(sys.argv[1], sys.argv[3], base=sys.argv[2], ratio=8)"
    )
    out = tmp_path / "out" / "p.paring.safetensors"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tuned), str(base), str(out)], stdout=subprocess.PIPE, env=os.environ
    )
    assert process.stdout and process.stdout.readline() == b"writing\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not out.exists()
    compress(tuned, out, base=base, ratio=8)
    assert [found.name for found in out.parent.iterdir()] == [out.name]


def test_damage_and_senseless_manifests_are_told(tmp_path: Path) -> None:
    from paring.finetuned.table import read_table
    from paring.packed import Packed, open_source

    tuned, base = pair(tmp_path)
    compress(tuned, tmp_path / "p", base=base, ratio=8)
    opened = open_source(tmp_path / "p")
    assert isinstance(opened, Packed)
    table = opened.facts["delta"]
    for wrong in ({}, {**table, "tensors": table["tensors"] * 2}, {**table, "base": 3},
                  {**table, "files": ["../up"]}, {**table, "tensors": [["x", "F32"]]},
                  {**table, "tensors": [[row[0], row[1], None] for row in table["tensors"]]}):  # fmt: skip
        opened.facts = dict(opened.facts) | {"delta": wrong}
        with pytest.raises(BadFileError, match="makes no sense"):
            read_table(opened)
    data = bytearray((tmp_path / "p").read_bytes())
    data[-200] ^= 1
    (tmp_path / "p").write_bytes(data)
    with pytest.raises(BadFileError, match="damaged"):
        decompress(tmp_path / "p", tmp_path / "back", base=base)
    assert not (tmp_path / "back").exists()


def test_rerun_and_command_line(tmp_path: Path) -> None:
    tuned, base = pair(tmp_path)
    out = tmp_path / "p.paring.safetensors"
    arguments = [str(tuned), "--base", str(base), "--ratio", "8", "-o", str(out), "--json"]
    result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    told = json.loads(result.stdout)
    assert told["ratio"] >= 8 and told["inputs"] == [str(tuned), str(base)]
    assert {m["name"] for m in told["modules"]} == set(SHAPES) and all(m["bits"] > 0 for m in told["modules"])
    again = rerun(out, tmp_path / "again.paring.safetensors", source=tuned)
    assert again.same
    found = inspect(out)
    assert found.kind == "delta of a fine-tune" and found.base == "base" and not found.problems
    assert open_checkpoint(out).metadata["version"] == "1"
