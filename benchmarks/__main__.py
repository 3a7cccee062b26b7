"""All benchmarks, side by side in one go, and the tables and pictures that the documentation has of them.

    python -m benchmarks                 # all that this machine can do: some hours on two cores
    python -m benchmarks merge prune     # only these
    python -m benchmarks --list          # what there is, and about how long it takes
    python -m benchmarks --render        # the documentation anew, from results that are there

Each runs in a process of its own, makes what it needs (models, texts, the environments of its peers) under
``.bench``, and leaves ``benchmarks/results/NAME.json``, which is committed: figures with the machine and the
commit that they are of. From these the marked blocks of README.md and docs/ are rendered, and pictures drawn.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.machine import ROOT
from benchmarks.page import RESULTS, draw, render


@dataclass(frozen=True, slots=True)
class Part:
    """A benchmark: the minutes it takes on two cores, its arguments, and if it wants a GPU."""

    minutes: int
    about: str
    arguments: Sequence[str] = ()
    cuda: bool = False


PARTS = {
    "codec": Part(4, "the ternary coder against entropy, memcpy and BLAS"),
    "adapters": Part(30, "accuracy at bytes, on real adapters"),
    "finetune": Part(15, "a full fine-tune as what it adds to its base"),
    "merge": Part(12, "speed and memory against mergekit and PEFT"),
    "merge_quality": Part(30, "what merged adapters still do"),
    "prune": Part(4, "speed and memory against a script with torch"),
    "prune_quality": Part(40, "perplexity after pruning, by method"),
    "perp": Part(70, "what retraining recovers", ("--rows", "five")),
    "gpu": Part(8, "whole runs and kernels on a GPU beside the CPU", cuda=True),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(PARTS)} (all)")
    parser.add_argument("--list", action="store_true", help="what there is")
    parser.add_argument("--render", action="store_true", help="only render, from results that are there")
    asked = parser.parse_args()
    if unknown := set(asked.names) - set(PARTS):
        parser.error(f"no benchmark {min(unknown)!r}: there are {', '.join(PARTS)}")
    if asked.list:
        for name, part in PARTS.items():
            print(f"{name:14} {part.minutes:3} min  {part.about}{', with CUDA' * part.cuda}")
        return
    names = asked.names or [name for name in PARTS if asked.render or not PARTS[name].cuda or cuda()]
    failed = [] if asked.render else run_all(names)
    for file in (*render(ROOT), *draw(ROOT, names)):
        print(f"{file.relative_to(ROOT)} rendered")
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


def run_all(names: Sequence[str]) -> list[str]:
    """Run these one after another, on past one that fails; returns those that have failed."""
    failed = []
    for name in names:
        print(f"== {name}, about {PARTS[name].minutes} min", flush=True)
        if not run(name, RESULTS / f"{name}.json"):
            failed.append(name)
    return failed


def run(name: str, result: Path) -> bool:
    command = [sys.executable, "-m", f"benchmarks.{name}", *PARTS[name].arguments, "--json", str(result)]
    return subprocess.run(command, cwd=ROOT, check=False).returncode == 0


def cuda() -> bool:
    import torch

    return torch.cuda.is_available()


if __name__ == "__main__":
    main()
