"""The benchmark of a GPU runs from end to end, on torch's CPU: what it would measure is all there."""

from __future__ import annotations

import pytest
from rich.console import Console

from benchmarks import gpu, page
from benchmarks.synthetic import Size
from paring import registry

TINY = Size(32, 1, 64, 128, tied=True)


def test_all_that_a_gpu_does_is_measured_and_told(monkeypatch, tmp_path):
    pytest.importorskip("torch")
    monkeypatch.setattr("paring.merging.verb.pick", lambda asked: asked)
    monkeypatch.setattr(gpu, "HOME", tmp_path)
    monkeypatch.setattr(gpu, "LAYER", [(96, 64)])
    found = gpu.measured("cpu:0", (1, 4096, TINY, TINY), Console(quiet=True))
    rules = {name for name in registry.names("merge") if registry.load("merge", name).torch}
    assert {row["rule"] for row in found["merges"]} == rules
    assert found["eight"]["models"] == 8
    told = page.gpu(found)
    for rule in rules:
        assert f"| `{rule}` |" in told
    assert "| `copy` |" in told and "| 1.00 |" in told
    assert "PCB over 8 models" in told
