"""``merge`` as a user types it: output, exit codes, streams."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from paring.checkpoint import open_checkpoint
from tests.helpers import names
from tests.merging import arrays, put_model
from tests.test_cli import ROOT, run

ADAPTERS = [ROOT / "fixtures" / "adapters" / name for name in ("rotten", "brown")]
BASE = arrays(0)


@pytest.fixture
def models(tmp_path: Path) -> list[Path]:
    return [
        put_model(tmp_path / n, BASE if n == "base" else arrays(i, BASE))
        for i, n in enumerate(("base", "a", "b"))
    ]


def test_adapters_merge_and_say_so(tmp_path: Path) -> None:
    done = run("merge", *ADAPTERS, "--weights", ".7,.3", "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "2 inputs merged to" in done.stdout and "error" in done.stdout
    assert done.stderr == ""
    assert names(tmp_path / "out") == ["README.md", "adapter_config.json", "adapter_model.safetensors"]


def test_json_is_one_object(models: list[Path], tmp_path: Path) -> None:
    base, *tuned = models
    done = run("paring", "merge", *tuned, "--base", base, "--method", "ties", "-o", tmp_path / "o", "--json")
    report = json.loads(done.stdout)
    fields = {"command", "method", "recipe", "inputs", "output", "bytes_in", "bytes_out", "seconds", "device"}
    assert fields <= report.keys()
    assert report["recipe"]["options"]["density"] == 0.2 and report["merged"] == len(BASE)


def test_a_dry_run_shows_the_plan(models: list[Path], tmp_path: Path) -> None:
    _, *tuned = models
    done = run("merge", *tuned, "-o", tmp_path / "out", "--dry-run", "--shard-size", "100kB")
    assert done.returncode == 0, done.stderr
    assert "would be merged to" in done.stdout and f"{len(BASE)} merged" in done.stdout
    assert "files" in done.stdout and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--method", "tise"], 2, "did you mean 'ties'?"),
        (["--method", "ties", "--densty", ".2"], 2, "--density"),
        (["--method", "ties", "--density", "2"], 2, "a density is a fraction"),
        (["--weights", "1,x"], 2, "expected numbers"),
        (["--weights", "1"], 2, "1 numbers for 2 models"),
        (["--shard-size", "many"], 2, "not a size"),
        (["--device", "tpu"], 2, "expected auto, cpu or cuda"),
        (["--base", "nowhere"], 1, "nowhere does not exist"),
        (["--search", "x", "--weights", "1,1"], 2, "leave out --weights"),
    ],
)
def test_wrong_options(tmp_path: Path, arguments: list[str], code: int, words: str) -> None:
    done = run("merge", *ADAPTERS, "-o", tmp_path / "out", *arguments)
    assert done.returncode == code, done.stderr
    assert words in " ".join(done.stderr.split()) and "Traceback" not in done.stderr
    assert done.stdout == "" and names(tmp_path) == []


def test_help_has_the_methods_options() -> None:
    done = run("merge", "--method", "pcb", "--help")
    assert done.returncode == 0
    assert "--rule E|A|N|V|paper" in done.stdout and "MODEL..." not in done.stdout.split("Options:")[1]
    assert "--normalise / --no-normalise" in run("merge", "--help").stdout


def test_ctrl_c_says_how_to_go_on(tmp_path: Path) -> None:
    values = {
        f"layers.{i}.weight": BASE["model.layers.0.mlp.down_proj.weight"].repeat(40, 0) for i in range(9)
    }
    tuned = [put_model(tmp_path / name, values) for name in ("a", "b")]
    code = "from paring.cli import merge_main; merge_main()"
    command = [sys.executable, "-c", code, *map(str, tuned), "-o", str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        journal = tmp_path / ".out.resume" / "journal"
        while process.poll() is None and not journal.exists():
            time.sleep(0.001)
        process.send_signal(signal.SIGINT)
        told = process.communicate()[1]
    if process.returncode == 0:
        pytest.skip("it was faster than the interruption")
    assert process.returncode == 130
    assert "the same command goes on" in told and "interrupted" in told
    done = run("merge", *tuned, "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert names(tmp_path) == ["a", "b", "out"] and len(open_checkpoint(tmp_path / "out")) == 9
