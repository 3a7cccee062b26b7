"""The ternary coder: size against entropy, speed against memcpy and BLAS, all in one run.

    python -m benchmarks.codec [--size 20000000] [--repeats 9] [--json FILE]

Independent trits with random signs, by density. ``size``: payload, all counted, over n (H(k) + k) bits, k
as drawn. All else is in 1e9 parameters a second. ``memcpy``: np.copyto of a dense fp16 array onto a warm one,
on one thread and two. ``decode``: to dense fp16 in warm memory, on one thread and two, both also as a share
of memcpy on one; ``fresh``: on one thread to memory that the system has yet to hand out. ``encode``: from
planes, and from fp32 through a threshold. ``popcount``: dot product of planes, against BLAS in fp32.

Medians of runs that take turns: a machine that changes its speed changes it for all, and each finds its
arrays out of the near caches. What two threads can gain at all, the line above the table and the second
memcpy tell: on hyperthreads of one core, or where memory is the limit, it is little.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from benchmarks.machine import describe, write
from paring.codecs import ternary
from paring.kernels import ternary as kernels

DENSITIES = (0.01, 0.05, 0.1, 0.2, 0.3, 0.5)


def medians(works: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each work; they take turns, after one round that does not count."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(repeats + 1):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            if turn:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(of) for name, of in times.items()}


@njit(nogil=True)
def _arithmetic(n: int, seed: int) -> Any:
    """``n`` rounds on eight independent states: all a core's integer units, no memory."""
    a = b = c = d = np.uint64(seed)
    e = f = g = h = ~a
    few, more = np.uint64(7), np.uint64(9)
    for i in range(n):
        u = np.uint64(i)
        a, b, c, d = (a ^ u) + (a >> few), (b ^ u) + (b >> more), (c ^ u) - (c >> few), (d ^ u) - (d >> more)
        e, f, g, h = (e ^ u) + (e >> few), (f ^ u) + (f >> more), (g ^ u) - (g >> few), (h ^ u) - (h >> more)
    return a ^ b ^ c ^ d ^ e ^ f ^ g ^ h


def gain_of_two_threads(repeats: int) -> float:
    """How many times the work of one thread two do, in arithmetic that fits in registers: 2 on two cores."""
    with ThreadPoolExecutor(2) as pool:
        times = medians(
            {
                "one": lambda: _arithmetic(8_000_000, 1),
                "two": lambda: list(pool.map(_arithmetic, (8_000_000, 8_000_000), (1, 2))),
            },
            repeats,
        )
    return 2 * times["one"] / times["two"]


def measure(n: int, density: float, repeats: int) -> dict[str, float]:
    """One row: the density, ``size`` over entropy, and 1e9 parameters a second of each work."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal(n, np.float32)
    t = float(np.quantile(np.abs(x[:1_000_000]), 1 - density))
    item = ternary.from_floats(x, t, 0.01)
    payload = ternary.encode([item])
    dense = ternary.decode(payload, [(n,)], ["F16"])[0].data
    k = np.count_nonzero(dense) / n
    entropy = n * (-k * math.log2(k) - (1 - k) * math.log2(1 - k) + k)
    warm, room = dense.copy(), np.zeros(2 * n + 64, np.uint8)
    halves = list(zip(np.array_split(warm, 2), np.array_split(dense, 2), strict=True))
    planes = item.mask, item.sign, item.mask, item.sign

    def decode(threads: int, buffer: npt.NDArray[np.uint8] | None = room) -> object:
        return ternary.decode(payload, [(n,)], ["F16"], threads=threads, buffer=buffer)

    with ThreadPoolExecutor(2) as pool:
        seconds = medians(
            {
                "copy": lambda: np.copyto(warm, dense),
                "copy 2": lambda: list(pool.map(lambda half: np.copyto(*half), halves)),
                "decode": lambda: decode(1),
                "decode 2": lambda: decode(2),
                "fresh": lambda: decode(1, None),
                "encode": lambda: ternary.encode([item]),
                "from floats": lambda: ternary.encode([ternary.from_floats(x, t, 0.01)]),
                "popcount": lambda: kernels.dot(*planes),
                "blas": lambda: x @ x,
            },
            repeats,
        )
    rates = {name: n / of / 1e9 for name, of in seconds.items()}
    return {"density": density, "size": 8 * len(payload) / entropy, **rates}


def line(rate: Mapping[str, float]) -> str:
    """A row as text."""
    copy, one, two = rate["copy"], rate["decode"], rate["decode 2"]
    return (
        f"{rate['density']:7.0%} {rate['size']:7.4f} {copy:7.2f} {rate['copy 2']:8.2f}"
        f" {one:8.2f} {one / copy:6.2f} {two:10.2f} {two / copy:6.2f} {rate['fresh']:7.2f}"
        f" {rate['encode']:8.2f} {rate['from floats']:9.2f} {rate['popcount']:9.1f} {rate['blas']:6.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the ternary coder.")
    parser.add_argument("--size", type=int, default=20_000_000)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows to FILE as well")
    arguments = parser.parse_args()
    machine, gain = describe("numpy", "numba"), gain_of_two_threads(arguments.repeats)
    print(machine)
    print(f"two threads do {gain:.2f} times the arithmetic of one")
    print(f"n = {arguments.size}; 1e9 parameters a second")
    print(
        "density    size  memcpy memcpy 2 decode 1  ratio   decode 2  ratio   fresh"
        "   encode  fp32+enc  popcount   BLAS"
    )
    rows = []
    for density in DENSITIES:
        rows.append(measure(arguments.size, density, arguments.repeats))
        print(line(rows[-1]), flush=True)
    write(arguments.json, machine, size=arguments.size, threads_gain=gain, rows=rows)


if __name__ == "__main__":
    main()
