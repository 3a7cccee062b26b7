"""Merging takes little memory, however large the models: under a limit far below their size."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.merging import put_model

ROOT = Path(__file__).parents[1]
RUN = """
import sys
from paring.api import merge
base, *models, out = sys.argv[1:]
merge(models, out, method=sys.argv[0], base=base, threads=2)
"""
LIMIT = 400 << 20


@pytest.mark.skipif(sys.platform != "linux", reason="limits on data are Linux's")
@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "pcb"])
def test_under_a_limit(tmp_path_factory, tmp_path, method):
    models = _models(tmp_path_factory)
    total = sum(file.stat().st_size for model in models for file in model.glob("*.safetensors"))
    assert total > LIMIT
    code = RUN.replace("sys.argv[0]", repr(method))
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, models), str(tmp_path / "out")],
        cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "OMP_WAIT_POLICY": "passive", "OPENBLAS_NUM_THREADS": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (LIMIT, LIMIT)),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "model.safetensors").stat().st_size > total // 4


def _models(factory):
    """A base and two fine-tunes of 144 MB each, one tensor of 72 MB among them; made once."""
    folder = factory.getbasetemp() / "large"
    if not folder.exists():
        rng = np.random.default_rng(0)
        block = rng.standard_normal((6000, 1000)).astype(np.float32)
        for number, name in enumerate(("base", "a", "b")):
            values = {"embed.weight": np.concatenate([block * (1 + 0.01 * number)] * 6)}
            values |= {f"layers.{i}.weight": block[:, ::-1] * (1 + 0.01 * number * i) for i in range(6)}
            put_model(folder / name, values, "BF16")
    return [folder / name for name in ("base", "a", "b")]
