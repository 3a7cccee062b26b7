"""What a GPU does for merging and compressing: whole runs beside the CPU's, and kernels beside the roofline.

    python -m benchmarks.gpu [--quick] [--json FILE]

In one process and one run: every rule with a torch path merges a base and three fine-tunes of 309 million
parameters on the CPU and on the GPU, page cache warm, the best of three; the *floor* reads the same inputs
and writes and syncs as many bytes. A rule's compute is hidden when it takes no longer on the GPU than
``linear`` or ``task_arithmetic``, which hardly compute; rules that need several passes are held to as many
readings. Kernels run on a chunk of 64 Mi entries of three models: bytes that must be moved, over the time,
beside what a copy within the device reaches, and beside one thread of the CPU. ``spectra`` is the SVD step of
``compress --method spectral`` for a LoRA of LLaMA-7B, all linear layers, rank 64; ``eight`` is PCB over eight
models of a billion parameters. Retraining on a GPU is ``python -m benchmarks perp``, which takes one if there
is one.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.commands import floor
from benchmarks.machine import describe, write
from benchmarks.merge import HOME
from benchmarks.synthetic import MEDIUM, Size, files_of, make, parameters
from paring import lowrank, registry
from paring.api import merge
from paring.devices import pick
from paring.kernels import merging, order

SMALL = Size(512, 4, 1408, 8_192)
#: a billion parameters
BILLION = Size(2048, 18, 5632, 50_304, tied=True)
#: of :func:`measured`
QUICK = 2, 1 << 20, SMALL, SMALL
WHOLE = 32, 1 << 26, MEDIUM, BILLION
#: the shapes of the modules of a layer of LLaMA-7B, (out, in)
LAYER = (*[(4096, 4096)] * 4, (11008, 4096), (11008, 4096), (4096, 11008))


def best(work: Callable[[], object], times: int = 3) -> float:
    """The least seconds of a few runs."""
    took = []
    for _ in range(times):
        begun = time.perf_counter()
        work()
        took.append(time.perf_counter() - begun)
    return min(took)


def merges(size: Size, device: str, console: Console) -> list[dict[str, Any]]:
    """Whole merges by every rule with a torch path, on the CPU and on ``device``."""
    home = HOME / str(size.hidden)
    models = [home / f"m{seed}" for seed in range(4)]
    for seed, model in enumerate(models):
        make(model, size, seed)
    base, *tuned = models
    out = home / "out"
    found = []
    for name in registry.names("merge"):
        rule = registry.load("merge", name)
        if not rule.torch:
            continue
        chosen = tuned[:2] if name == "slerp" else tuned
        from_base = None if rule.sees == "weights" else base
        inputs = files_of([*chosen, *([from_base] if from_base else [])])
        row: dict[str, Any] = {"rule": name, "floor": floor(inputs, 2 * parameters(size), HOME)}
        for side, where in (("cpu", "cpu"), ("device", device)):
            run = partial(merge, chosen, out, method=name, base=from_base, device=where, overwrite=True)
            row[side] = best(run)
        found.append(row)
        console.print(row)
    return found


def kernels(n: int, device: str) -> list[dict[str, Any]]:
    """Kernels on a chunk of three models: GB/s of the bytes that must be moved at least, on the device and
    by one thread of the CPU. ``copy`` is the roof: it only moves them.
    """
    import torch

    mine = np.random.default_rng(0).standard_normal((3, n), np.float32)
    sides: dict[str, Any] = {"cpu": mine, "device": torch.from_numpy(mine).to(device)}
    low, high = np.full(3, 0.02, np.float32), np.full(3, 2.2, np.float32)
    weights = np.ones(3)
    read, written = mine.nbytes, mine.nbytes // 3
    wanted = [(0, 1 << 30, (1 << 30) + 10_000)]
    jobs: dict[str, tuple[Callable[[Any], object], int]] = {
        "copy": (lambda chunk: chunk.copy() if chunk is mine else chunk.clone(), 2 * read),
        "weighted_sum": (lambda chunk: merging.weighted_sum(chunk, weights), read + written),
        "ties": (lambda chunk: merging.ties(chunk, low, weights, "mass", "mean", 1.0), read + written),
        "pcb_scores": (lambda chunk: merging.pcb_scores(chunk, low, high, "E"), 2 * read),
        "pcb": (lambda chunk: merging.pcb(chunk, low, high, high, high * 5, weights, "E"), read + written),
        "gram": (lambda chunk: merging.gram(chunk), read),
        "order.count": (lambda chunk: order.count(chunk[0], False, 0, 16), read // 3),
        "order.brackets": (lambda chunk: order.brackets(chunk, False, wanted), read // 3),
    }
    found = []
    for name, (job, nbytes) in jobs.items():
        row: dict[str, Any] = {"kernel": name}
        for side, chunk in sides.items():

            def timed(job: Callable[[Any], object] = job, chunk: Any = chunk) -> None:
                job(chunk)
                if device.startswith("cuda"):
                    torch.cuda.synchronize()

            timed()
            row[side] = nbytes / best(timed, 5) / 1e9
        found.append(row)
    return found


def eight(size: Size, device: str) -> dict[str, Any]:
    """PCB over eight fine-tunes of some billion parameters, on the CPU and the device: seconds, one run."""
    home = HOME / str(size.hidden)
    for seed in range(9):
        make(home / f"m{seed}", size, seed)
    base, *tuned = [home / f"m{seed}" for seed in range(9)]
    found: dict[str, Any] = {
        "models": len(tuned), "parameters": parameters(size),
        "floor": floor(files_of([base, *tuned]), 2 * parameters(size), HOME),
    }  # fmt: skip
    for name, where in (("cpu", "cpu"), ("device", device)):
        run = partial(merge, tuned, home / "out", method="pcb", base=base, device=where, overwrite=True)
        found[name] = best(run, 1)
    return found


def spectra(layers: int, device: str) -> dict[str, float]:
    """Seconds for the singular components of a LoRA of so many layers, rank 64, on the CPU and the GPU."""
    rng = np.random.default_rng(0)
    pairs = [
        (rng.standard_normal((64, n_in), np.float32), rng.standard_normal((n_out, 64), np.float32))
        for n_out, n_in in LAYER
    ]

    def run(where: str) -> None:
        for _ in range(layers):
            for A, B in pairs:
                lowrank.components(A, B, where)

    run(device)
    return {"layers": layers, "cpu": best(lambda: run("cpu"), 2), "device": best(lambda: run(device), 2)}


def measured(device: str, sizes: tuple[int, int, Size, Size], console: Console) -> dict[str, Any]:
    """All figures: for so many layers, entries of a chunk, and models of these sizes."""
    layers, n, medium, large = sizes
    return {
        "spectra": spectra(layers, device),
        "kernels": kernels(n, device),
        "merges": merges(medium, device, console),
        "eight": eight(large, device),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Merging and compressing on a GPU, beside the CPU.")
    parser.add_argument("--quick", action="store_true", help="a model of some million parameters")
    parser.add_argument("--device", default="cuda", help="the device (cuda)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE as well")
    arguments = parser.parse_args()
    device = pick(arguments.device)
    import torch

    console = Console(width=120)
    machine = f"{describe('numpy', 'torch')}, {torch.cuda.get_device_name(device)}"
    console.print(machine, highlight=False)
    told = measured(device, QUICK if arguments.quick else WHOLE, console)
    for title in ("kernels", "merges"):
        table = Table(*told[title][0], box=box.SIMPLE_HEAD, title=title)
        for row in told[title]:
            table.add_row(*(f"{x:.4g}" if isinstance(x, float) else str(x) for x in row.values()))
        console.print(table)
    console.print(told["spectra"], told["eight"])
    write(arguments.json, machine, **told)


if __name__ == "__main__":
    main()
