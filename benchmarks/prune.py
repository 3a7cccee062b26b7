"""Pruning, side by side: paring, a script with torch's topk, and the floor of the machine, in one run.

    python -m benchmarks.prune [--no-peer] [--runs N] [--only MODE] [--json FILE]

A model of 309 million parameters in bf16 is made under ``.bench/prune``; half of what is pruned by default
goes, by one threshold over the model (``--scope global``), by matrix, and 2 of 4. The page cache is warm,
start-up counts. *Floor*: two threads read the model twice and write and sync as many bytes. *torch*: load
with safetensors, ``topk`` of all magnitudes in fp32, save. ``anon`` is the peak of anonymous memory, sampled.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from benchmarks.commands import best, floor
from benchmarks.machine import describe, write
from benchmarks.merge import BENCH
from benchmarks.synthetic import MEDIUM, files_of, make, parameters

HOME = BENCH / "prune"
MODES: Mapping[str, Sequence[str]] = {
    "global": ("--sparsity", ".5", "--scope", "global"),
    "global, mask saved": ("--sparsity", ".5", "--scope", "global", "--save-mask", "MASK"),
    "by matrix": ("--sparsity", ".5"),
    "by row": ("--sparsity", ".5", "--scope", "row"),
    "2 of 4": ("--keep", "2", "--of", "4"),
    "erk": ("--sparsity", ".5", "--allocate", "erk"),
    "lamp": ("--sparsity", ".5", "--allocate", "lamp"),
}
#: what one writes with torch: one topk over all magnitudes, or one for each matrix
PEER = """
import sys, torch
from pathlib import Path
from safetensors.torch import load_file, save_file
source, out, scope = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
out.mkdir(parents=True, exist_ok=True)
files = {file.name: load_file(file) for file in sorted(source.glob("*.safetensors"))}
weights = [w for some in files.values() for name, w in sorted(some.items()) if name.endswith("_proj.weight")]
if scope == "global":
    sizes = torch.cat([w.abs().float().flatten() for w in weights])
    threshold = sizes.topk(sizes.numel() // 2, largest=False).values.max()
    for w in weights:
        w[w.abs() <= threshold] = 0
else:
    for w in weights:
        sizes = w.abs().float().flatten()
        w[w.abs() <= sizes.topk(sizes.numel() // 2, largest=False).values.max()] = 0
for name, tensors in files.items():
    save_file(tensors, out / name, {"format": "pt"})
"""


def ours(model: Path, out: Path, options: Sequence[str]) -> list[str | Path]:
    code = "from paring.cli import prune_main; prune_main()"
    named = [str(HOME / "mask.safetensors") if option == "MASK" else option for option in options]
    return [sys.executable, "-c", code, model, *named, "-o", out, "--overwrite", "-q"]


def line(row: Mapping[str, object]) -> str:
    """A row as text."""
    mine, low = row["paring"], float(str(row["floor"]))
    assert isinstance(mine, dict)
    text = (
        f"{row['mode']:20} floor {low:5.2f} s   paring {mine['wall']:6.2f} s"
        f" ({mine['wall'] / low:4.1f} floors)  cpu {mine['cpu']:6.2f} s  anon {mine['anon'] / 2**20:5.0f} MiB"
    )
    if isinstance(theirs := row.get("torch"), dict):
        text += (
            f"  torch {theirs['wall']:6.1f} s (cpu {theirs['cpu']:5.1f} s, {theirs['anon'] / 2**20:5.0f} MiB)"
            f"  {theirs['wall'] / mine['wall']:5.1f} times faster,"
            f" 1/{theirs['anon'] / mine['anon']:.0f} of the memory"
        )
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--no-peer", action="store_true")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", help="One mode.")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    out = Console(width=220, highlight=False)
    machine = describe("torch")
    out.print(machine)
    model = HOME / "model"
    make(model, MEDIUM, 0)
    inputs = files_of([model])
    rows: list[dict[str, object]] = []
    for mode, options in MODES.items():
        if asked.only not in (None, mode):
            continue
        low = min(floor([*inputs, *inputs], 2 * parameters(MEDIUM), HOME) for _ in range(asked.runs))
        mine = best(asked.runs, ours(model, HOME / "out", options), HOME / "out")
        row: dict[str, object] = {"mode": mode, "floor": low, "paring": asdict(mine)}
        if not asked.no_peer and mode in ("global", "by matrix"):
            scope = "global" if mode == "global" else "tensor"
            theirs: list[str | Path] = [sys.executable, "-c", PEER, model, HOME / "theirs", scope]
            row["torch"] = asdict(best(min(2, asked.runs), theirs, HOME / "theirs"))
        rows.append(row)
        out.print(line(row))
    for name in ("out", "theirs"):
        shutil.rmtree(HOME / name, ignore_errors=True)
    write(asked.json, machine, rows=rows)


if __name__ == "__main__":
    main()
