"""What a GPU does for merging and compressing: whole runs beside the CPU's, and kernels beside the roofline.

    python -m benchmarks.gpu [--quick] [--json FILE]

In one process and one run: every rule with a torch path merges a base and three fine-tunes of 309 million
parameters on the CPU and on the GPU, page cache warm, the best of three; the *floor* reads the same inputs
and writes and syncs as many bytes. A rule's compute is hidden when it takes no longer on the GPU than
``linear`` or ``task_arithmetic``, which hardly compute; rules that need several passes are held to as many
readings. Kernels run on a chunk of 64 Mi entries of three models: bytes that must be moved, over the time,
beside what a device-to-device copy reaches. ``components`` is the SVD step of ``compress --method spectral``
for a LoRA of LLaMA-7B, all linear layers, rank 64.
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
        for where in ("cpu", device):
            run = partial(merge, chosen, out, method=name, base=from_base, device=where, overwrite=True)
            row[where] = best(run)
        found.append(row)
        console.print(row)
    return found


def kernels(n: int, device: str) -> list[dict[str, Any]]:
    """Kernels on a chunk of three models: GB/s of the bytes that must be moved at least."""
    import torch

    generator = torch.Generator(device).manual_seed(0)
    chunk: Any = torch.randn(3, n, device=device, generator=generator)
    low, high = np.full(3, 0.02, np.float32), np.full(3, 2.2, np.float32)
    weights = np.ones(3)
    read, written = chunk.nbytes, chunk.nbytes // 3
    jobs: dict[str, tuple[Callable[[], object], int]] = {
        "copy": (lambda: chunk.clone(), 2 * read),
        "weighted_sum": (lambda: merging.weighted_sum(chunk, weights), read + written),
        "ties": (lambda: merging.ties(chunk, low, weights, "mass", "mean", 1.0), read + written),
        "pcb_scores": (lambda: merging.pcb_scores(chunk, low, high, "E"), 2 * read),
        "pcb": (lambda: merging.pcb(chunk, low, high, high, high * 5, weights, "E"), read + written),
        "gram": (lambda: merging.gram(chunk), read),
        "order.count": (lambda: order.count(chunk[0], False, 0, 16), read // 3),
        "order.brackets": (
            lambda: order.brackets(chunk, False, [(0, 1 << 30, (1 << 30) + 10_000)]),
            read // 3,
        ),
    }
    found = []
    for name, (job, nbytes) in jobs.items():

        def timed(job: Callable[[], object] = job) -> None:
            job()
            torch.cuda.synchronize()

        timed()
        seconds = best(timed, 5)
        found.append({"kernel": name, "seconds": seconds, "GB/s": nbytes / seconds / 1e9})
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
    return {"layers": layers, "cpu": best(lambda: run("cpu"), 2), device: best(lambda: run(device), 2)}


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
    told = {
        "spectra": spectra(2 if arguments.quick else 32, device),
        "kernels": kernels(1 << (20 if arguments.quick else 26), device),
        "merges": merges(SMALL if arguments.quick else MEDIUM, device, console),
    }
    for title in ("kernels", "merges"):
        rows: Any = told[title]
        table = Table(*rows[0], box=box.SIMPLE_HEAD, title=title)
        for row in rows:
            table.add_row(*(f"{x:.4g}" if isinstance(x, float) else str(x) for x in row.values()))
        console.print(table)
    console.print(told["spectra"])
    write(arguments.json, machine, **told)


if __name__ == "__main__":
    main()
