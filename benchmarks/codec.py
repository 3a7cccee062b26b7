"""The ternary coder: size against entropy, speed against memcpy and BLAS, all in one run.

    python -m benchmarks.codec [--size 20000000] [--repeats 7]

Independent trits with random signs, by density. ``size``: payload, all counted, over n (H(k) + k) bits, k
as drawn. ``decode``: to dense fp16 in warm memory, in 1e9 parameters a second on one thread and two, and as
a share of the speed at which np.copyto copies the same array onto a warm one. ``encode``: from planes, and
from fp32 through a threshold. ``popcount``: dot product of planes, against BLAS in fp32. Medians of several
runs.
"""

from __future__ import annotations

import argparse
import math
import platform
import statistics
import time
from collections.abc import Callable

import numpy as np

from paring.codecs import ternary
from paring.kernels import ternary as kernels

DENSITIES = (0.01, 0.05, 0.1, 0.2, 0.3, 0.5)


def seconds(work: Callable[[], object], repeats: int) -> float:
    """Median time of ``work``, after one run that does not count."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def measure(n: int, density: float, repeats: int) -> str:
    """One line of the table."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal(n, np.float32)
    t = float(np.quantile(np.abs(x[:1_000_000]), 1 - density))
    item = ternary.from_floats(x, t, 0.01)
    payload = ternary.encode([item])
    dense = ternary.decode(payload, [(n,)], ["F16"])[0].data
    warm, room = dense.copy(), np.zeros(2 * n + 64, np.uint8)
    k = np.count_nonzero(dense) / n
    entropy = n * (-k * math.log2(k) - (1 - k) * math.log2(1 - k) + k)

    def rate(work: Callable[[], object]) -> float:
        return n / seconds(work, repeats) / 1e9

    copy = rate(lambda: np.copyto(warm, dense))
    one, two = (
        rate(lambda threads=threads: ternary.decode(payload, [(n,)], ["F16"], threads=threads, buffer=room))
        for threads in (1, 2)
    )
    encode = rate(lambda: ternary.encode([item]))
    from_floats = rate(lambda: ternary.encode([ternary.from_floats(x, t, 0.01)]))
    planes = item.mask, item.sign, item.mask, item.sign
    popcount = rate(lambda: kernels.dot(*planes))
    blas = rate(lambda: x @ x)
    return (
        f"{density:7.0%} {8 * len(payload) / entropy:7.4f} {copy:7.2f} {one:8.2f} {one / copy:6.2f}"
        f" {two:10.2f} {two / copy:6.2f} {encode:8.2f} {from_floats:9.2f} {popcount:9.1f} {blas:6.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the ternary coder.")
    parser.add_argument("--size", type=int, default=20_000_000)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, n = {arguments.size}; 1e9 parameters a second")
    print("density    size  memcpy decode 1  ratio decode 2  ratio   encode  fp32+enc  popcount   BLAS")
    for density in DENSITIES:
        print(measure(arguments.size, density, arguments.repeats), flush=True)


if __name__ == "__main__":
    main()
