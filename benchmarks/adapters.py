"""Real adapters on real tasks: what is left of their gain when they are compressed, method by method.

    python -m benchmarks.adapters [--rows N] [--methods A,B] [--ratios 8,16] [--json FILE]

Methods of paring go through files, as a user would: compress to a packed file, decompress to a PEFT folder,
evaluate what that folder holds. Ratios are ``ratio_fp16``: 16 bits for each of the adapter's parameters over
all bytes of the file, the mean over tasks. The baselines (integers, fewer ranks) have a ratio of their own,
in which names, shapes and headers are not counted. Errors are relative, of the updates; ``kept`` is the share
of the adapters' gain over the base that is left, summed over tasks, with its standard error.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.baselines import F32, Factors, int_quantised, squeezed, truncated
from benchmarks.bound import bound_bytes
from benchmarks.machine import describe, write
from benchmarks.minilm import ADAPTERS, Bench, Deltas, Kept, Scores, dense_deltas, factors, kept
from paring import adapters
from paring.api import compress, decompress
from paring.checkpoint import open_checkpoint
from paring.errors import BudgetError
from paring.factors import read_factors

TASKS = ("rotten", "brown", "reuters8")
RATIOS = (4, 8, 16, 20, 32, 64, 100)
#: a file this much smaller than its budget has nothing left to spend it on
SLACK = 1.02

#: name -> options of paring.api.compress
PACKED: Mapping[str, Mapping[str, Any]] = {
    "spectral": {"method": "spectral"},
    "spectral --norm 0": {"method": "spectral", "norm": 0.0},
    "auto": {"method": "auto"},
    "ternary": {"method": "compeft"},
    "ternary --basis svd": {"method": "compeft", "basis": "svd", "scope": "component"},
    "ternary by tensor": {"method": "compeft", "basis": "trained", "scope": "tensor", "alpha": "lsq"},
    "ComPEFT as published": {"method": "compeft", "basis": "trained", "scope": "global", "alpha": 1.0},
    "truncate": {"method": "truncate", "store": "fp16"},
}
#: name -> a baseline, from the factors of one module
PLAIN: Mapping[str, Callable[[F32, F32], Factors]] = {
    "fp16 through xz": squeezed,
    "int4": partial(int_quantised, bits=4),
    "int2": partial(int_quantised, bits=2),
    "rank 1 in fp16": partial(truncated, rank=1),
    "rank 2 in fp16": partial(truncated, rank=2),
}


class Copy(NamedTuple):
    """What an adapter comes back as, and how many times smaller than in fp16 it was meanwhile."""

    deltas: Deltas
    ratio_fp16: float


@dataclass(frozen=True)
class Row:
    """One line of the table; ``asked`` is None where a method has a ratio of its own. By task: the rest."""

    method: str
    asked: float | None
    ratio_fp16: dict[str, float]
    error: dict[str, float]
    accuracy: dict[str, float]
    kept: Kept
    over_bound: dict[str, float]
    note: str = ""


def packed(task: str, ratio: float, options: Mapping[str, Any]) -> Copy:
    """Compress the adapter of ``task`` to a file of this ``ratio_fp16`` or more, and read that file again."""
    with tempfile.TemporaryDirectory() as scratch:
        file, folder = Path(scratch, "packed.safetensors"), Path(scratch, "adapter")
        report = compress(ADAPTERS / task, file, bits_per_param=16 / ratio, **options)
        decompress(file, folder)
        assert report.ratio_fp16 is not None
        return Copy(dense_deltas(folder), report.ratio_fp16)


def plain(task: str, code: Callable[[F32, F32], Factors]) -> Copy:
    """The adapter of ``task`` with the factors of each module sent through a baseline."""
    elements = nbytes = 0
    deltas = {}
    for name, (A, B) in factors(ADAPTERS / task).items():
        a, b, size = code(A, B)
        deltas[name] = b @ a
        elements += A.size + B.size
        nbytes += size
    return Copy(deltas, 2 * elements / nbytes)


def relative_error(deltas: Deltas, dense: Deltas) -> float:
    """sqrt(sum ||D - D'||^2 / sum ||D||^2) over modules, in fp64; a module that is left out is zero."""
    lost = sum(float(np.square(D - deltas.get(name, 0), dtype=np.float64).sum()) for name, D in dense.items())
    energy = sum(float(np.square(D, dtype=np.float64).sum()) for D in dense.values())
    return math.sqrt(lost / energy)


class Referee:
    """Scores copies against the adapters themselves; the same updates are not run twice."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._seen: dict[tuple[str, str], Scores] = {}
        self._dense = {task: dense_deltas(ADAPTERS / task) for task in bench.exams}
        self._full = {task: self._score(task, deltas) for task, deltas in self._dense.items()}
        self._base = {task: self._score(task, {}) for task in bench.exams}

    def row(self, method: str, asked: float | None, copy: Callable[[str], Copy]) -> Row:
        """The line of a method that makes of each task's adapter what ``copy`` returns."""
        copies = {task: copy(task) for task in self._bench.exams}
        scores = {task: self._score(task, found.deltas) for task, found in copies.items()}
        got = {task: found.ratio_fp16 for task, found in copies.items()}
        spare = asked is not None and mean(got) > SLACK * asked
        return Row(
            method,
            asked,
            got,
            {task: relative_error(found.deltas, self._dense[task]) for task, found in copies.items()},
            {task: float(found.correct.mean()) for task, found in scores.items()},
            kept(scores, self._base, self._full),
            {task: self._over_bound(task, found) for task, found in copies.items()},
            "saturated: more bytes would not help it" if spare else "",
        )

    def _over_bound(self, task: str, found: Copy) -> float:
        """Bytes over the least that any code needs for Gaussian rank vectors at the same error."""
        error = relative_error(found.deltas, self._dense[task])
        if not 0 < error < 1:
            return math.nan
        modules = read_factors(adapters.read(open_checkpoint(ADAPTERS / task)))
        nbytes = 2 * sum(factors.numel for factors in modules) / found.ratio_fp16
        return nbytes / bound_bytes(modules, error)

    def references(self) -> Iterator[Row]:
        """The adapters as they are, counted as if stored in fp16 bare of headers, and the base alone."""
        yield self.row("dense", None, lambda task: Copy(self._dense[task], 1.0))
        yield self.row("base alone", None, lambda task: Copy({}, math.inf))

    def _score(self, task: str, deltas: Deltas) -> Scores:
        found = hashlib.sha256()
        for name in sorted(deltas):
            found.update(name.encode() + np.ascontiguousarray(deltas[name]).tobytes())
        key = task, found.hexdigest()
        if key not in self._seen:
            self._seen[key] = self._bench.evaluate(task, deltas)
        return self._seen[key]


def rows(bench: Bench, methods: Sequence[str], ratios: Sequence[float]) -> Iterator[Row]:
    """The table, line by line; a budget that a method cannot meet is left out and told on stderr."""
    referee = Referee(bench)
    yield from referee.references()
    for method, options in PACKED.items():
        for ratio in ratios if method in methods else ():
            try:
                yield referee.row(method, ratio, partial(packed, ratio=ratio, options=options))
            except BudgetError as error:
                print(f"{method}: {error}", file=sys.stderr)
    for method, code in PLAIN.items():
        if method not in methods:
            continue
        yield referee.row(method, None, partial(plain, code=code))


def mean(by_task: Mapping[str, float]) -> float:
    """The mean over tasks."""
    return sum(by_task.values()) / len(by_task)


def table(lines: list[Row]) -> Table:
    """``lines`` for a terminal; what is by task is in the order of the tasks."""
    tasks = "\n" + " ".join(lines[0].error)
    out = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("method", "asked", "ratio\nfp16", "relative error" + tasks, "accuracy" + tasks):
        out.add_column(heading, justify="left" if heading == "method" else "right", no_wrap=True)
    for heading in ("kept\naccuracy", "kept\nnll", "bytes over\nthe bound"):
        out.add_column(heading, justify="right", no_wrap=True)
    out.add_column("")
    for line in lines:
        accuracy, accuracy_se, nll, nll_se = line.kept
        out.add_row(
            line.method,
            "" if line.asked is None else f"{line.asked:g}",
            f"{mean(line.ratio_fp16):.2f}",
            " ".join(f"{x:.3f}" for x in line.error.values()),
            " ".join(f"{x:.4f}" for x in line.accuracy.values()),
            f"{accuracy:.3f} +- {accuracy_se:.3f}",
            f"{nll:.3f} +- {nll_se:.3f}",
            f"{mean(line.over_bound):.2f}" if math.isfinite(mean(line.over_bound)) else "",
            line.note,
        )
    return out


def told(line: Row) -> dict[str, Any]:
    """``line`` as JSON has it: what is infinite or not a number is null."""

    def plainly(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plainly(item) for key, item in value.items()}
        return None if isinstance(value, float) and not math.isfinite(value) else value

    found: dict[str, Any] = plainly({**asdict(line), "kept": line.kept._asdict()})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Compress real adapters and evaluate what is left.")
    parser.add_argument("--rows", type=int, help="the first N test rows of each task (all)")
    parser.add_argument("--methods", help="only these, with commas between them (all)")
    parser.add_argument("--ratios", default=",".join(map(str, RATIOS)), help="fp16 bytes over bytes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table to FILE as well")
    arguments = parser.parse_args()
    start = time.perf_counter()
    machine = describe("numpy", "torch", "transformers")  # the commit at the start: it may move meanwhile
    bench = Bench.open(TASKS, arguments.rows)
    lines = []
    methods = arguments.methods.split(",") if arguments.methods else [*PACKED, *PLAIN]
    for line in rows(bench, methods, [float(ratio) for ratio in arguments.ratios.split(",")]):
        lines.append(line)
        print(f"{time.perf_counter() - start:6.0f} s  {told(line)}", file=sys.stderr, flush=True)
    seconds = round(time.perf_counter() - start, 1)
    tested = {task: len(exam.answers) for task, exam in bench.exams.items()}
    console = Console() if sys.stdout.isatty() else Console(width=180)
    console.print(table(lines))
    console.print(f"{machine}\ntest rows: {tested}; {seconds:g} s in all", highlight=False, soft_wrap=True)
    write(arguments.json, machine, seconds=seconds, test_rows=tested, rows=[told(line) for line in lines])


if __name__ == "__main__":
    main()
