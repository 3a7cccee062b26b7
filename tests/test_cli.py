"""The commands as a user types them: output, exit codes, streams."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from paring.cli import main

ROOT = Path(__file__).parent.parent
ROTTEN = ROOT / "fixtures" / "adapters" / "rotten"
WEIGHTS = ROTTEN / "adapter_model.safetensors"


def run(entry: str, *args: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run ``paring``, ``compress`` or ``merge`` in a process of its own."""
    function = {"paring": "main", "compress": "compress_main", "merge": "merge_main"}[entry]
    code = f"from paring.cli import {function}; {function}()"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "passive"}
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, args)],
        cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=200,
    )  # fmt: skip


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    packed = tmp_path_factory.mktemp("cli") / "small.paring.safetensors"
    done = run("compress", WEIGHTS, "--ratio", 20, "-o", packed)
    assert done.returncode == 0, done.stderr
    assert "times smaller" in done.stdout
    assert "of the update (0: nothing" in done.stdout
    assert done.stderr == ""
    return packed


def test_ratio_is_met_on_disk(small: Path) -> None:
    assert WEIGHTS.stat().st_size / small.stat().st_size >= 20


def test_json_is_one_object_with_the_promised_fields(tmp_path: Path) -> None:
    packed = tmp_path / "x.paring.safetensors"
    done = run("paring", "compress", ROTTEN, "--bits-per-param", 0.8, "--json", "-o", packed)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert {
        "command", "method", "recipe", "inputs", "output", "bytes_in", "bytes_out", "ratio", "ratio_fp16",
        "bits_per_param", "error", "modules", "carried", "seconds", "peak_rss_bytes", "device",
    } <= report.keys()  # fmt: skip
    assert report["bytes_out"] == packed.stat().st_size
    assert report["bits_per_param"] <= 0.8
    assert len(report["modules"]) == 24
    assert {"name", "shape", "rank", "density", "bits", "error"} <= report["modules"][0].keys()


def test_decompress_inspect_verify(small: Path, tmp_path: Path) -> None:
    folder = tmp_path / "back"
    assert run("paring", "decompress", small, "-o", folder).returncode == 0
    assert {path.name for path in folder.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    inspected = run("paring", "inspect", small)
    assert inspected.returncode == 0
    assert "packed LoRA" in inspected.stdout
    assert "spectral" in inspected.stdout
    verified = run("paring", "verify", small, "--source", WEIGHTS)
    assert verified.returncode == 0, verified.stderr
    assert "digest of the source" in verified.stdout
    other = run("paring", "verify", small, "--source", ROTTEN.parent / "brown")
    assert other.returncode == 1
    assert "FAILED" in other.stderr


def test_verify_fails_on_a_flipped_byte(small: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.paring.safetensors"
    raw = bytearray(small.read_bytes())
    raw[-100] ^= 1
    bad.write_bytes(raw)
    done = run("paring", "verify", bad)
    assert done.returncode == 1
    assert "checksum" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["--ratoi", "20"], 2, "ratio"),
        (["--ratio", "20", "--error", "0.1"], 2, "give one of them"),
        (["--method", "compfet"], 2, "compeft"),
        (["--method", "compeft", "--basis", "sdv"], 2, "trained or svd or semidiscrete"),
        (["--ratio", "-1"], 2, "positive"),
        (["--device", "tpu"], 2, "auto, cpu or cuda"),
        (["--ratio", "100000"], 1, "the best that can be had is --ratio"),
        (["--error", "0.0001"], 1, "the best that can be had is --error"),
        (["--method", "compeft", "--density", "0.1", "--ratio", "20"], 2, "give one of them"),
    ],
)
def test_wrong_options(tmp_path: Path, arguments: list[str], code: int, text: str) -> None:
    done = run("compress", WEIGHTS, "-o", tmp_path / "x.safetensors", *arguments)
    assert done.returncode == code, done.stderr
    assert text in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not list(tmp_path.iterdir())


def test_missing_file_and_existing_output(tmp_path: Path) -> None:
    missing = run("compress", tmp_path / "nowhere.safetensors")
    assert missing.returncode == 1
    assert missing.stderr.startswith("error: ")
    assert missing.stderr.count("\n") == 1
    taken = tmp_path / "taken.safetensors"
    taken.write_bytes(b"mine")
    done = run("compress", WEIGHTS, "-o", taken)
    assert done.returncode == 1
    assert "--overwrite" in done.stderr
    assert taken.read_bytes() == b"mine"


def test_debug_shows_a_traceback(tmp_path: Path) -> None:
    assert "Traceback" in run("compress", tmp_path / "nowhere.safetensors", "--debug").stderr


def test_many_go_on_past_a_bad_one(tmp_path: Path) -> None:
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"")
    adapters = [ROTTEN, bad, ROTTEN.parent / "brown"]
    done = run("compress", *adapters, "--ratio", 30, "-o", tmp_path / "out")
    assert done.returncode == 1
    assert "failed" in done.stderr
    assert "bad.safetensors" in done.stderr
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["brown.paring.safetensors", "rotten.paring.safetensors"]
    again = run("compress", *adapters, "--ratio", 30, "-o", tmp_path / "out", "--json", "--overwrite")
    found = json.loads(again.stdout)
    assert len(found["reports"]) == 2
    assert len(found["failures"]) == 1


def test_files_of_one_name_take_their_folders_names(tmp_path: Path) -> None:
    weights = [ROTTEN / "adapter_model.safetensors", ROTTEN.parent / "brown" / "adapter_model.safetensors"]
    done = run("compress", *weights, "-o", tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "brown.paring.safetensors", "rotten.paring.safetensors",
    ]  # fmt: skip


def test_dry_run_writes_nothing(tmp_path: Path) -> None:
    done = run("compress", WEIGHTS, "--ratio", 20, "-o", tmp_path / "x.safetensors", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "would be written" in done.stdout
    assert not list(tmp_path.iterdir())


def test_paper_warns_where_the_published_rule_empties_a_factor(tmp_path: Path) -> None:
    done = run(
        "compress",
        WEIGHTS,
        "--method",
        "compeft",
        "--paper",
        "--density",
        0.05,
        "-o",
        tmp_path / "x.safetensors",
    )
    assert done.returncode == 0, done.stderr
    assert "decode to the base model" in done.stderr


def test_quiet_and_verbose(tmp_path: Path) -> None:
    quiet = run("compress", WEIGHTS, "-q", "-o", tmp_path / "q.safetensors")
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")
    verbose = run("compress", WEIGHTS, "-v", "-o", tmp_path / "v.safetensors")
    assert verbose.stdout.count("encoder.layer.") == 24
    assert "bytes" in verbose.stderr


def test_help_names_the_methods_options_and_methods_lists_them() -> None:
    help_text = run("compress", "--method", "compeft", "--help").stdout
    assert "--basis" in help_text
    assert "--paper" in help_text
    listed = run("paring", "methods", "--json")
    assert "compeft" in {method["name"] for method in json.loads(listed.stdout)["methods"]}
    lines = run("paring", "methods").stdout.splitlines()
    assert all(line.startswith(("    ", "compress ", "merge ", "prune ")) for line in lines)
    typo = run("paring", "compres")
    assert typo.returncode == 2
    assert "'compress'" in typo.stderr


def test_an_input_is_no_folder_to_write_in(tmp_path: Path) -> None:
    shutil.copytree(ROTTEN, tmp_path / "a")
    before = sorted((tmp_path / "a").iterdir())
    done = run("compress", tmp_path / "a", "-o", tmp_path / "a", "--overwrite")
    assert (done.returncode, done.stdout) == (1, "")
    assert "a is an input, and inputs are never changed" in done.stderr
    assert sorted((tmp_path / "a").iterdir()) == before


@pytest.mark.parametrize("entry", ["compress", "merge"])
def test_an_empty_name_is_not_the_current_folder(entry: str, tmp_path: Path) -> None:
    shutil.copytree(ROTTEN, tmp_path / "a")
    done = run(entry, "", "-o", tmp_path / "x.safetensors", cwd=tmp_path / "a")
    assert done.returncode == 2
    assert "the name of an input is empty" in done.stderr
    assert not (tmp_path / "x.safetensors").exists()
    among = run(entry, ROTTEN, "", "-o", f"{tmp_path / 'y'}/", cwd=tmp_path / "a")
    assert among.returncode == 2 and "the name of an input is empty" in among.stderr


def test_the_root_is_no_output() -> None:
    done = run("merge", WEIGHTS, WEIGHTS, "-o", "/", "--dry-run")
    assert done.returncode == 1
    assert "should not happen" not in done.stderr


def test_what_the_system_refuses_is_no_bug_of_ours(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "locked/a")

    monkeypatch.setattr(Path, "exists", refused)
    monkeypatch.setattr(sys, "argv", ["paring", "inspect", "locked/a"])
    with pytest.raises(SystemExit, match="1"):
        main()
    assert capsys.readouterr().err == "error: locked/a: Permission denied\n"


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX terminals")
@pytest.mark.parametrize(("value", "coloured"), [("", True), ("1", False)])
def test_no_color_is_heard(value: str, coloured: bool, tmp_path: Path) -> None:
    ours, theirs = os.openpty()
    code = "from paring.cli import main; main()"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": value, "TERM": "xterm"}
    command = [sys.executable, "-c", code, "verify", str(tmp_path / "none")]
    subprocess.run(command, env=environment, stderr=theirs, check=False, timeout=200)
    text = os.read(ours, 4096)
    os.close(ours)
    os.close(theirs)
    assert b"does not exist" in text
    assert (b"\x1b[31m" in text) == coloured


def test_inspect_lists_a_checkpoint_without_excuses(tmp_path: Path) -> None:
    save_file({"layer.weight": torch.ones(2, 2)}, tmp_path / "model.safetensors")
    shown = run("paring", "inspect", tmp_path)
    assert "kind  checkpoint" in shown.stdout
    assert "other tensor" not in shown.stdout
    assert "adapter" not in shown.stdout


def test_inspect_shows_no_column_without_a_number(small: Path) -> None:
    assert "density" not in run("paring", "inspect", small).stdout


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_ctrl_c_leaves_the_old_output(tmp_path: Path) -> None:
    target = tmp_path / "x.paring.safetensors"
    target.write_bytes(b"old")
    code = "from paring.cli import compress_main; compress_main()"
    arguments = [
        str(WEIGHTS),
        "--error",
        "0.45",
        "--method",
        "compeft",
        "--sweeps",
        "4000",
        "-o",
        str(target),
        "--overwrite",
    ]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    time.sleep(3)
    assert process.poll() is None, "finished before it could be interrupted"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "interrupted" in errors
    assert "Traceback" not in errors
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == [target.name]
