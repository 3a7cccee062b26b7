"""The table of adapters: copies through files, their measures, and no evaluation twice."""

from __future__ import annotations

import json
import math
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from benchmarks.adapters import PACKED, PLAIN, Copy, Referee, packed, plain, relative_error, told
from benchmarks.machine import describe
from benchmarks.minilm import ADAPTERS, Bench, Deltas, Scores, dense_deltas

TASK = "rotten"


class Examiner:
    """Stands in for the encoder: a row is right where the norm of the updates passes a mark."""

    def __init__(self) -> None:
        self.asked: list[float] = []
        self.exams = {TASK: SimpleNamespace(answers=np.zeros(8))}

    def evaluate(self, task: str, deltas: Deltas) -> Scores:
        norm = math.sqrt(sum(float(np.square(delta).sum()) for delta in deltas.values()))
        self.asked.append(norm)
        return Scores(np.arange(8) < norm, np.exp(np.linspace(0, 1, 8)) / (1 + norm))


@pytest.fixture
def examiner() -> Examiner:
    return Examiner()


@pytest.fixture
def referee(examiner: Examiner) -> Referee:
    return Referee(cast(Bench, examiner))


def test_a_packed_copy_meets_its_ratio() -> None:
    found = packed(TASK, 20, PACKED["ternary"])
    dense = dense_deltas(ADAPTERS / TASK)
    assert 20 <= found.ratio_fp16 < 20.5
    assert found.deltas.keys() == dense.keys()
    assert 0.4 < relative_error(found.deltas, dense) < 0.6


@pytest.mark.parametrize(("name", "ratio"), [("int4", 4), ("int2", 8), ("rank 1 in fp16", 8)])
def test_baselines_have_about_the_ratio_of_their_bits(name: str, ratio: float) -> None:
    found = plain(TASK, PLAIN[name])
    assert found.ratio_fp16 == pytest.approx(ratio, rel=0.02)
    assert 0 < relative_error(found.deltas, dense_deltas(ADAPTERS / TASK)) < 1


def test_relative_error_is_over_all_modules() -> None:
    dense = {"a": np.full((2, 2), 3, np.float32), "b": np.full((1, 4), 4, np.float32)}
    assert relative_error(dense, dense) == 0
    assert relative_error({}, dense) == 1
    assert relative_error({"a": dense["a"]}, dense) == pytest.approx(0.8)


def test_rows_are_scored_against_base_and_dense(referee: Referee) -> None:
    dense, base = referee.references()
    assert (dense.kept.nll, base.kept.nll) == (1, 0)
    assert (dense.error[TASK], base.error[TASK]) == (0, 1)
    half = referee.row("half", 2, partial(_shrunk, share=0.5, ratio=2.0))
    assert half.error[TASK] == pytest.approx(0.5)
    assert 0 < half.kept.nll < 1
    assert half.note == ""


def test_a_file_that_leaves_its_budget_unused_is_noted(referee: Referee) -> None:
    line = referee.row("half", 2, partial(_shrunk, share=0.5, ratio=3.0))
    assert line.note.startswith("saturated")
    assert referee.row("half", None, partial(_shrunk, share=0.5, ratio=3.0)).note == ""


def test_equal_updates_are_evaluated_once(examiner: Examiner, referee: Referee) -> None:
    list(referee.references())
    for asked in (2, 4):
        referee.row("half", asked, partial(_shrunk, share=0.5, ratio=4.0))
    assert len(examiner.asked) == len(set(examiner.asked)) == 3


def test_lines_are_json_with_null_for_what_is_not_finite(referee: Referee) -> None:
    found: dict[str, Any] = json.loads(json.dumps(told(list(referee.references())[1]), allow_nan=False))
    assert found["ratio_fp16"] == {TASK: None}
    assert found["kept"]["nll"] == 0


def test_the_machine_is_told_in_a_line() -> None:
    line = describe("numpy", "no-such-package")
    assert f"numpy {np.__version__}" in line and "no-such-package unknown" in line
    assert " cores of " in line and "commit " in line and "\n" not in line


def _shrunk(task: str, share: float, ratio: float) -> Copy:
    deltas = dense_deltas(ADAPTERS / task)
    return Copy({name: np.float32(share) * delta for name, delta in deltas.items()}, ratio)
