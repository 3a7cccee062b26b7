"""SIGKILL at random moments, then the same command: the same bytes. And little memory, whatever the size."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from paring.errors import OutputError
from tests.helpers import names
from tests.merging import put_model

ROOT = Path(__file__).parents[1]
RUN = """
import sys
from paring.api import merge
print("ready", flush=True)
base, *models, out = sys.argv[1:]
report = merge(models, out, method="ties", base=base, shard_size=4_000_000, density=0.3)
print(report.peak_rss_bytes)
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A base and two fine-tunes of 6 million parameters in 40 tensors."""
    folder = tmp_path_factory.mktemp("models")
    rng = np.random.default_rng(0)
    base = {f"layers.{i}.weight": rng.standard_normal((300, 500)).astype(np.float32) for i in range(40)}
    made = [put_model(folder / "base", base, "BF16")]
    for number in range(2):
        tuned = {name: x + 0.1 * rng.standard_normal(x.shape).astype(np.float32) for name, x in base.items()}
        made.append(put_model(folder / f"m{number}", tuned, "BF16"))
    return made


def command(models, out):
    return [sys.executable, "-c", RUN, *map(str, models), str(out)]


def start(models, out, **rest):
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive", "OPENBLAS_NUM_THREADS": "1"}
    return subprocess.Popen(
        command(models, out),
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **rest,
    )


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "README.md"}


def test_killed_and_resumed_is_the_same(models, tmp_path):
    with start(models, tmp_path / "whole") as run:
        assert run.stdout.readline() == b"ready\n"
        begun = time.monotonic()
        assert run.wait() == 0, run.stderr.read()
        took = time.monotonic() - begun
    expected = contents(tmp_path / "whole")
    assert len(expected) > 3
    dice = random.Random(7)
    kills = resumes = 0
    for number in range(4):
        out = tmp_path / f"out{number}"
        for _ in range(3):  # killed up to three times on the way
            with start(models, out) as run:
                assert run.stdout.readline() == b"ready\n"
                time.sleep(took * dice.uniform(0.2, 0.95))
                run.send_signal(signal.SIGKILL)
                kills += run.wait() == -signal.SIGKILL
            if out.exists():
                break
            journal = tmp_path / f".{out.name}.resume" / "journal"
            resumes += journal.exists() and journal.read_text().count("\n") > 1
        if not out.exists():
            with start(models, out) as run:
                assert run.communicate() and run.returncode == 0
        assert contents(out) == expected
        assert names(tmp_path) == sorted(["whole", *(f"out{i}" for i in range(number + 1))])
    assert kills


def test_interrupted_keeps_what_is_done_for_the_next_run(models, tmp_path, monkeypatch):
    from paring import resumable
    from paring.api import merge

    base, *tuned = models
    merge(tuned, tmp_path / "whole", method="ties", base=base, shard_size=4_000_000)
    real, done = resumable.Staging.complete, []

    def stop(self, name, checksum, noted=0):
        real(self, name, checksum, noted)
        done.append(name)
        if len(done) == 13:
            raise KeyboardInterrupt

    monkeypatch.setattr(resumable.Staging, "complete", stop)
    with pytest.raises(KeyboardInterrupt):
        merge(tuned, tmp_path / "out", method="ties", base=base, shard_size=4_000_000)
    assert names(tmp_path) == [".out.resume", "whole"]
    with pytest.raises(OutputError, match="other inputs or options"):
        merge(tuned, tmp_path / "out", method="ties", base=base, shard_size=4_000_000, density=0.25)
    merge(tuned, tmp_path / "out", method="ties", base=base, shard_size=4_000_000)
    assert len(done) == len(set(done)) == 40, "nothing was written twice"
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_two_runs_at_once(models, tmp_path):
    with start(models, tmp_path / "out") as first, start(models, tmp_path / "out") as second:
        told = [run.communicate()[1].decode() for run in (first, second)]
    assert sorted(run.returncode for run in (first, second)) in ([0, 1], [1, 0])
    assert any("another run is writing" in text or "exists" in text for text in told)
    assert names(tmp_path) == ["out"]
