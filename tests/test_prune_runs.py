"""prune killed and taken up again, in little memory, and repeated from its recipe."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from paring import resumable
from paring.api import prune, rerun
from paring.errors import OptionError, OutputError
from paring.pruning import masking
from tests.helpers import names
from tests.merging import put_model
from tests.prunable import arrays, put
from tests.test_merge_kill import contents

ROOT = Path(__file__).parents[1]
RUN = """
import sys
from paring.api import prune
print("ready", flush=True)
model, out = sys.argv[1:]
prune(model, out, sparsity=".5", scope="global", shard_size=4_000_000, save_mask=out + ".mask.safetensors")
"""
ENVIRONMENT = {**os.environ, "OMP_WAIT_POLICY": "passive", "OPENBLAS_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """12 million parameters in 61 tensors."""
    rng = np.random.default_rng(0)
    block = rng.standard_normal((400, 500)).astype(np.float32)
    values = {f"layers.{i}.q_proj.weight": np.roll(block, i * 977) for i in range(60)}
    values["model.embed_tokens.weight"] = block
    return put_model(tmp_path_factory.mktemp("model") / "m", values, "BF16")


def start(model, out):
    return subprocess.Popen(
        [sys.executable, "-c", RUN, str(model), str(out)],
        cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def test_killed_and_resumed_is_the_same(model, tmp_path):
    with start(model, tmp_path / "whole") as run:
        assert run.stdout.readline() == b"ready\n"
        begun = time.monotonic()
        assert run.wait() == 0, run.stderr.read()
        took = time.monotonic() - begun
    expected = contents(tmp_path / "whole")
    mask = (tmp_path / "whole.mask.safetensors").read_bytes()
    digest = masking.stats(tmp_path / "whole.mask.safetensors").digest
    dice = random.Random(7)
    kills = 0
    for number in range(2):
        out = tmp_path / f"out{number}"
        for _ in range(3):
            with start(model, out) as run:
                assert run.stdout.readline() == b"ready\n"
                time.sleep(took * dice.uniform(0.2, 0.95))
                run.send_signal(signal.SIGKILL)
                kills += run.wait() == -signal.SIGKILL
            if out.exists():
                break
        if not out.exists():
            with start(model, out) as run:
                assert run.communicate() and run.returncode == 0
        assert contents(out) == expected
        again = tmp_path / f"out{number}.mask.safetensors"
        assert masking.stats(again).digest == digest
        assert len(again.read_bytes()) == len(mask)
    assert kills
    # killed once the result was in place, a run leaves its lock, which nobody holds
    assert not [name for name in names(tmp_path) if name.startswith(".") and not name.endswith(".lock")]


@pytest.mark.parametrize("when", [1, 20, 60])
def test_interrupted_keeps_what_is_done(model, tmp_path, monkeypatch, when):
    """The report of a run taken up again is that of one in a go."""
    how = {"sparsity": ".5", "scope": "global", "save_mask": tmp_path / "m.safetensors"}
    whole = prune(model, tmp_path / "whole", **{**how, "save_mask": tmp_path / "w.safetensors"})
    real, done = resumable.Staging.complete, []

    def stop(self, name, checksum, noted=0):
        real(self, name, checksum, noted)
        done.append((id(self), name))
        if len(done) == 2 * when + 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(resumable.Staging, "complete", stop)
    with pytest.raises(KeyboardInterrupt):
        prune(model, tmp_path / "out", **how)
    assert not (tmp_path / "out").exists()
    with pytest.raises(OutputError, match="other inputs or options"):
        prune(model, tmp_path / "out", **{**how, "sparsity": ".4"})
    report = prune(model, tmp_path / "out", **how)
    assert len(done) == 121, "nothing was written twice"
    assert (report.zeros, report.error, report.modules) == (whole.zeros, whole.error, whole.modules)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    found = [masking.stats(tmp_path / f"{name}.safetensors").digest for name in "mw"]
    assert found[0] == found[1]


def test_killed_between_the_mask_and_the_model(model, tmp_path, monkeypatch):
    """The mask has its name, the model not yet."""
    how = {"sparsity": ".5", "save_mask": tmp_path / "m.safetensors"}
    real, published = resumable.atomic.publish_folder, []

    def stop(*arguments):
        published.append(arguments)
        if len(published) == 1:
            raise KeyboardInterrupt
        real(*arguments)

    monkeypatch.setattr(resumable.atomic, "publish_folder", stop)
    with pytest.raises(KeyboardInterrupt):
        prune(model, tmp_path / "out", **how)
    assert (tmp_path / "m.safetensors").exists()
    prune(model, tmp_path / "out", **how)
    assert names(tmp_path) == ["m.safetensors", "out"]


LIMIT = 300 << 20


@pytest.mark.skipif(sys.platform != "linux", reason="limits on data are Linux's")
@pytest.mark.parametrize("options", [
    'sparsity=".5", scope="global"', "keep=2, of=4",
])  # fmt: skip
def test_under_a_limit(tmp_path_factory, tmp_path, options):
    """Far less memory than the model, or its largest tensor, takes."""
    folder = tmp_path_factory.getbasetemp() / "large-prune"
    if not folder.exists():
        block = np.random.default_rng(0).standard_normal((4000, 1000)).astype(np.float32)
        values = {"a.q_proj.weight": np.concatenate([block] * 12), "b.q_proj.weight": block}
        values["embed_tokens.weight"] = np.concatenate([block] * 28)
        put_model(folder, values, "BF16")
    size = (folder / "model.safetensors").stat().st_size
    assert size > LIMIT
    code = f"import sys; from paring.api import prune; prune(*sys.argv[1:], {options}, threads=2)"
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder), str(tmp_path / "out")],
        cwd=ROOT, capture_output=True, text=True, check=False, env=ENVIRONMENT,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (LIMIT, LIMIT)),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_memory_that_is_too_little_is_refused(model, tmp_path):
    with pytest.raises(OptionError, match="--memory 1000"):
        prune(model, tmp_path / "out", sparsity=".5", memory=1000, dry_run=True)
    assert names(tmp_path) == []


@pytest.mark.parametrize("options", [
    {"sparsity": 0.29, "scope": "global"}, {"keep": 2, "of": 4, "exclude": ["layers.1"]},
    {"sparsity": ".5", "allocate": "erk", "include": ["down_proj"]},
    {"sparsity": ".6", "budgets": {"*q_proj*": "1:4", "layers.0": "dense", "layers.1": ".3"}},
])  # fmt: skip
def test_again_by_rerun(tmp_path, options):
    from dataclasses import asdict

    model = put(tmp_path / "m", arrays(), limit=4000)
    first = prune(model, tmp_path / "out", **options)
    again = rerun(tmp_path / "out", tmp_path / "again")
    assert again.same
    assert asdict(again)["modules"] == asdict(first)["modules"]


def test_again_by_rerun_with_a_mask(tmp_path):
    from paring.api import apply_mask, merge

    model = put(tmp_path / "m", arrays())
    prune(model, tmp_path / "out", sparsity=".5", save_mask=tmp_path / "k.safetensors")
    apply_mask(tmp_path / "k.safetensors", model, tmp_path / "masked")
    assert rerun(tmp_path / "masked", tmp_path / "masked2").same
    other = put(tmp_path / "n", arrays(1))
    merge([model, other], tmp_path / "merged", mask=tmp_path / "k.safetensors")
    assert rerun(tmp_path / "merged", tmp_path / "merged2").same
