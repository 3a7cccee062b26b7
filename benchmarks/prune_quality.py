"""What pruning costs a language model: perplexity of SmolLM2-135M on Austen, by method.

    python -m benchmarks.prune_quality [--only "wanda,alps"] [--amounts 2:4] [--windows 24] [--json FILE]

The model is calibrated once, dense, on the Brown corpus (``paring calibrate --gram``); each method then
prunes the checkpoint to half, or to two of four, and the result is evaluated as ``paring eval`` does, by
windows of 256 tokens spread over Austen's novels. All are given the same windows, so that differences are
paired: of each method the table has what it loses against the dense model, in nats a token, with its standard
error over windows, and how much more than the method in the line above. ``sequential`` lines are calibrated
behind blocks that are pruned already.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks import smollm
from benchmarks.machine import ROOT, describe, write
from paring import registry
from paring.api import calibrate, evaluate, prune
from paring.evaluating import Evaluation, standard_error

HOME = ROOT / ".bench" / "prune_quality"
WINDOW = 256


@dataclass(frozen=True)
class Case:
    """One line of the table: a method with its options, how much goes, and if calibration is sequential."""

    method: str
    options: dict[str, Any] = field(default_factory=dict)
    sequential: bool = False

    @property
    def name(self) -> str:
        told = [f"--{key}" if value is True else f"--{key} {value}" for key, value in self.options.items()]
        return " ".join([self.method, *told, *(["(sequential)"] if self.sequential else [])])


CASES = (
    Case("magnitude"), Case("wanda"), Case("ria"), Case("sparsegpt"), Case("alps"),
    Case("magnitude", {"refit": True}), Case("wanda", {"refit": True}), Case("sparsegpt", sequential=True),
    Case("wanda", {"scope": "tensor"}), Case("ria", {"scope": "row"}), Case("ria", {"exponent": 1.0}),
)  # fmt: skip
AMOUNTS: dict[str, dict[str, Any]] = {"50 %": {"sparsity": ".5"}, "2:4": {"keep": 2, "of": 4}}


def statistics(samples: int, threads: int, **sequential: Any) -> Path:
    """The file of statistics, measured on first use."""
    told = "-".join(str(value) for value in sequential.values())
    path = HOME / f"stats-{samples}{'-' + told if told else ''}.safetensors"
    if not path.exists():
        calibrate(
            smollm.model(), smollm.brown(), path, gram=True, samples=samples, window=WINDOW,
            threads=threads, **sequential,
        )  # fmt: skip
    return path


def evaluated(model: Path, windows: int, threads: int) -> Evaluation:
    return evaluate(model, smollm.austen(), window=WINDOW, samples=windows, threads=threads)


def run(
    case: Case, amount: dict[str, Any], samples: int, windows: int, threads: int
) -> tuple[Evaluation, float]:
    """The evaluation of what the case makes, and the seconds that pruning takes."""
    needs = registry.load("prune", case.method).sees in ("norms", "grams") or "refit" in case.options
    stats = None
    if case.sequential:
        stats = statistics(samples, threads, sequential=True, method=case.method, **amount)
    elif needs:
        stats = statistics(samples, threads)
    out = HOME / "pruned"
    begun = time.perf_counter()
    prune(smollm.model(), out, method=case.method, stats=stats, overwrite=True, threads=threads,
          **amount, **case.options)  # fmt: skip
    seconds = time.perf_counter() - begun
    return evaluated(out, windows, threads), seconds


def paired(found: Evaluation, against: Sequence[float]) -> tuple[float, float]:
    """The mean difference in nats a token over windows, and its standard error."""
    differences = np.array(found.nlls) - np.array(against)
    return float(differences.mean()), standard_error(differences)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", help="only these lines, as the table calls them, with commas between")
    parser.add_argument("--amounts", default=",".join(AMOUNTS), help="only these of the amounts")
    parser.add_argument("--windows", type=int, default=24)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    HOME.mkdir(parents=True, exist_ok=True)
    out = Console(width=130, highlight=False)
    machine = describe("torch", "transformers")
    out.print(machine)
    dense = evaluated(smollm.model(), asked.windows, asked.threads)
    found: list[dict[str, Any]] = [{"case": "dense", "perplexity": dense.perplexity, "nlls": dense.nlls}]
    table = Table(
        "amount", "method", "perplexity", "loses, nats", "against the line above", "s", box=box.SIMPLE_HEAD
    )
    table.add_row("", "dense", f"{dense.perplexity:.1f}", f"{dense.nll:.3f} in all", "", "")
    for told in asked.amounts.split(","):
        amount = AMOUNTS[told]
        above: list[float] | None = None
        for case in CASES:
            alone = "of" in amount and "scope" in case.options  # groups are compared among themselves
            if alone or (asked.only and case.name not in asked.only.split(",")):
                continue
            got, seconds = run(case, amount, asked.samples, asked.windows, asked.threads)
            loss, error = paired(got, dense.nlls)
            more = "" if above is None else "{:+.3f} ± {:.3f}".format(*paired(got, above))
            above = got.nlls
            row = {"amount": told, "case": case.name, "perplexity": got.perplexity, "loss": loss,
                   "error": error, "seconds": seconds, "nlls": got.nlls}  # fmt: skip
            found.append(row)
            print(json.dumps({key: value for key, value in row.items() if key != "nlls"}), flush=True)
            figures = f"{math.exp(got.nll):.1f}", f"{loss:.3f} ± {error:.3f}", more, f"{seconds:.0f}"
            table.add_row(told, case.name, *figures)
            write(asked.json, machine, rows=found)
    out.print(table)


if __name__ == "__main__":
    main()
