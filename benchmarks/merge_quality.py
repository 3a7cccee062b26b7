"""How well merged adapters still do each adapter's task: three MiniLM adapters, every rule.

    python -m benchmarks.merge_quality [--rules ties,pcb] [--json FILE]

Each merge goes through files: the adapters are folded into the encoder's checkpoint (``--into``), and what
was added is evaluated under each task's own head. The scale is chosen on the first 200 test rows of each task
and reported on all others. *Closed* is how far a merge comes from the base to each adapter on its own
task, mean over tasks, with a standard error by a paired bootstrap over rows.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.machine import describe, write
from benchmarks.minilm import ADAPTERS, F32, Bench, Scores, dense_deltas
from benchmarks.real_data import MODEL, fetch
from paring import registry
from paring.api import merge
from paring.checkpoint import open_checkpoint

TASKS = ("rotten", "brown", "reuters8")
CHOSEN = 200
SCALES = (0.5, 0.7, 1.0, 1.4, 2.0, 2.8)
#: options of rules beside their defaults
VARIANTS: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "ties": ({}, {"trim": "tensor"}, {"density": 0.5}),
    "pcb": ({}, {"density": 0.2}, {"density": 0.05}),
    "iso_c": ({}, {"cts": True}),
    "dare": ({}, {"combine": "ties"}),
}
#: rules that do not make one model of three adapters: two models only, stacks of layers, all models kept
LEFT_OUT = {"slerp", "nuslerp", "passthrough", "emr"}


def merged(method: str, options: Mapping[str, Any], folder: Path) -> dict[str, F32]:
    """What a merge adds to each module of the encoder, (out, in)."""
    base = fetch() / MODEL
    out = folder / "out.safetensors"
    merge([ADAPTERS / task for task in TASKS], out, method=method, into=base, overwrite=True, **options)
    deltas = {}
    with open_checkpoint(out) as after, open_checkpoint(base) as before:
        for module in dense_deltas(ADAPTERS / TASKS[0]):
            name = f"{module}.weight"
            deltas[module] = after.read(name).f32() - before.read(name).f32()
    return deltas


def evaluate(bench: Bench, deltas: Mapping[str, F32], scale: float = 1.0) -> dict[str, Scores]:
    """Scores by task with ``scale`` times the deltas added."""
    scaled = {name: np.float32(scale) * delta for name, delta in deltas.items()}
    return {task: bench.evaluate(task, scaled) for task in TASKS}


def accuracy(scores: Mapping[str, Scores], rows: slice = slice(None)) -> dict[str, float]:
    return {task: float(found.correct[rows].mean()) for task, found in scores.items()}


def closed(
    method: Mapping[str, Scores],
    base: Mapping[str, Scores],
    alone: Mapping[str, Scores],
    resamples: int = 2000,
) -> tuple[float, float]:
    """The share of the way from base to each adapter alone, mean over tasks, and its standard error."""
    rng = np.random.default_rng(0)
    rows = slice(CHOSEN, None)
    right = {
        task: np.array([s[task].correct[rows] for s in (method, base, alone)], np.float64) for task in TASKS
    }

    def share(picks: Mapping[str, Any]) -> float:
        shares = []
        for task in TASKS:
            m, b, a = right[task][:, picks[task]].mean(axis=1)
            shares.append((m - b) / (a - b) if a != b else np.nan)
        return float(np.mean(shares))

    counts = {task: found.shape[1] for task, found in right.items()}
    whole = share({task: slice(None) for task in TASKS})
    drawn = [share({task: rng.integers(n, size=n) for task, n in counts.items()}) for _ in range(resamples)]
    return whole, float(np.nanstd(drawn, ddof=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rules", help="only these, with commas between")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    out = Console(width=150, highlight=False)
    machine = describe("torch", "transformers")
    out.print(machine)
    rules = (
        asked.rules.split(",") if asked.rules else [r for r in registry.names("merge") if r not in LEFT_OUT]
    )
    begun = time.perf_counter()
    choosing = Bench.open(TASKS, CHOSEN)
    reporting = Bench.open(TASKS)
    base = evaluate(reporting, {})
    alone = {task: reporting.evaluate(task, dense_deltas(ADAPTERS / task)) for task in TASKS}
    rows = slice(CHOSEN, None)
    table = Table("rule", "options", "scale", *TASKS, "mean", "closed", box=box.SIMPLE_HEAD)
    found: list[dict[str, Any]] = []

    def note(
        rule: str, options: Mapping[str, Any], scale: float | None, scores: Mapping[str, Scores]
    ) -> None:
        by_task = accuracy(scores, rows)
        share, error = closed(scores, base, alone)
        row = {"rule": rule, "options": dict(options), "scale": scale, "accuracy": by_task,
               "closed": share, "error": error}  # fmt: skip
        found.append(row)
        told = " ".join(f"--{key} {value}" for key, value in options.items())
        figures = [f"{by_task[task]:.3f}" for task in TASKS]
        mean = f"{np.mean(list(by_task.values())):.3f}"
        table.add_row(
            rule, told, "" if scale is None else f"{scale:g}", *figures, mean, f"{share:.2f} ± {error:.2f}"
        )
        print(f"{time.perf_counter() - begun:6.0f} s  {json.dumps(row)}", flush=True)

    note("base", {}, None, base)
    note("each alone", {}, None, alone)
    with tempfile.TemporaryDirectory() as folder:
        for rule in rules:
            for options in VARIANTS.get(rule, ({},)):
                deltas = merged(rule, options, Path(folder))
                tried = {s: np.mean(list(accuracy(evaluate(choosing, deltas, s)).values())) for s in SCALES}
                scale = max(SCALES, key=lambda s: (tried[s], -s))
                note(rule, options, scale, evaluate(reporting, deltas, scale))
    out.print(table)
    write(asked.json, machine, rows=found)


if __name__ == "__main__":
    main()
