"""The trellis codec on Gaussian values: what a bit buys against the bound, and how fast search and coder are.

    python -m benchmarks.trellis [--size 400000] [--states 8,64,256] [--fit 13]

The first table has the rows of ``PLAN`` (``compress/_trellis.py``): R, bits a value as coded, all counted; D,
the share of energy that is lost when the scale is fitted afterwards; and R over the bound .5 log2(1 / D),
which no code passes. The second has 1e6 values a second on one thread, at three rows: ``search`` finds the
levels, ``encode`` and ``decode`` (to fp16) are the codec's, payload and all. Medians of runs that take turns.

Then the rows of ``_MEASURED`` are measured anew with 128 states. Where, on other values, another step or
class near by makes D + price R smaller by a thousandth or more, it takes the place of the row's own.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.codec import medians
from benchmarks.machine import describe
from paring.codecs import trellis
from paring.codecs.trellis import Levels
from paring.compress._trellis import PLAN
from paring.kernels.trellis import tables
from paring.kernels.trellis.tensor import quantise

F64 = npt.NDArray[np.float64]

FIT_STATES = 128
FIT_SIZE = 100_000
SPEED_ROWS = (2, 9, 24)


@dataclass(frozen=True)
class Found:
    """What values cost and keep: bits a value, share of energy lost, and the class that codes them."""

    bits: float
    lost: float
    cls: int

    @property
    def ratio(self) -> float:
        """Bits over those that no code can do without."""
        return self.bits / (0.5 * math.log2(1 / self.lost))


def gaussian(n: int, seed: int | list[int]) -> F64:
    """``n`` Gaussian values whose mean square is 1."""
    x = np.random.default_rng(seed).standard_normal(n)
    scaled: F64 = x / np.sqrt(np.mean(x * x))
    return scaled


def coded(x: F64, price: float, step: float, cls: int, states: int) -> tuple[Levels, npt.NDArray[np.int32]]:
    """``x`` as one segment, and its levels."""
    k, levels, best = quantise(x / step, price / step**2, cls, states.bit_length() - 1)
    scale = np.array([step], np.float32)
    item = Levels(x.shape, "whole", states.bit_length() - 1, np.array([best], np.uint8), scale, k[None])
    return item, levels


def measured(x: F64, price: float, step: float, cls: int, states: int) -> Found:
    """What ``x`` costs and keeps."""
    item, levels = coded(x, price, step, cls, states)
    kept = float(levels @ x) ** 2 / (float((levels.astype(np.float64) ** 2).sum()) * float(x @ x))
    return Found(8 * len(trellis.encode([item])) / len(x), 1 - kept, int(item.classes[0]))


def fitted(x: F64, price: float, step: float, cls: int) -> tuple[float, int]:
    """The step and class of least D + price R, ``step`` and ``cls`` unless others are better by .1 %."""

    def worth(near: float, told: int) -> float:
        found = measured(x, price, near, told, FIT_STATES)
        return found.lost + price * found.bits

    classes = [told for told in range(cls - 2, cls + 3) if 1 <= told <= tables.CLASSES]
    steps = [float(near) for near in step * 2.0 ** (np.arange(-4, 5) / 16)]
    best, near, told = min((worth(near, told), near, told) for near in steps for told in classes)
    return (near, told) if best < 0.999 * worth(step, cls) else (step, cls)


def kept_table(x: F64, states: Sequence[int], progress: Callable[[str], None]) -> Table:
    """R, D and their ratio to the bound of every row of ``PLAN``."""
    table = Table(box=box.SIMPLE_HEAD, header_style="bold")
    for head in ("row", "price", "step", "class", "PLAN R", "PLAN D"):
        table.add_column(head, justify="right")
    for count in states:
        for head in (f"R {count}", "D", "ratio"):
            table.add_column(head, justify="right")
    for row, (price, step, cls, bits, lost) in enumerate(PLAN.tolist()):
        progress(f"row {row} of {len(PLAN)}")
        cells = [f"{row}", f"{price:.4g}", f"{step:.4f}", f"{int(cls)}", f"{bits:.4f}", f"{lost:.4g}"]
        for count in states:
            found = measured(x, price, step, int(cls), count)
            cells += [f"{found.bits:.4f}", f"{found.lost:.4g}", f"{found.ratio:.4f}"]
        table.add_row(*cells)
    return table


def speed_table(x: F64, states: Sequence[int], repeats: int) -> Table:
    """1e6 values a second of search, encoder and decoder."""
    table = Table(box=box.SIMPLE_HEAD, header_style="bold")
    for head in ("states", "R", "search", "encode", "decode"):
        table.add_column(head, justify="right")
    for count in states:
        for row in SPEED_ROWS:
            price, step, cls = PLAN[row, :3].tolist()
            item, _ = coded(x, price, step, int(cls), count)
            payload = trellis.encode([item])
            seconds = medians(
                {
                    "search": partial(coded, x, price, step, int(cls), count),
                    "encode": partial(trellis.encode, [item]),
                    "decode": partial(trellis.decode, payload, [x.shape], ["F16"]),
                },
                repeats,
            )
            rates = (f"{len(x) / of / 1e6:.1f}" for of in seconds.values())
            table.add_row(f"{count}", f"{8 * len(payload) / len(x):.2f}", *rates)
    return table


def fitted_rows(x: F64, seed: int, rows: int, progress: Callable[[str], None]) -> list[str]:
    """The first rows of ``_MEASURED``, as source."""
    others = gaussian(FIT_SIZE, [seed, 1])
    lines = []
    for row, (price, step, cls, *_) in enumerate(PLAN[:rows].tolist()):
        progress(f"fitting row {row} of {rows}")
        step, cls = fitted(others, price, step, int(cls))
        found = measured(x, price, step, cls, FIT_STATES)
        lines.append(f"    ({price:.6g}, {step:.4f}, {cls}, {found.bits:.4f}, {found.lost:.6g}),")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the trellis codec.")
    parser.add_argument("--size", type=int, default=400_000, help="Gaussian values")
    parser.add_argument("--states", default="8,64,256", help="numbers of states, powers of two from 4 to 256")
    parser.add_argument("--fit", type=int, default=13, help="rows to fit anew; 0 for none")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    states = [int(count) for count in arguments.states.split(",")]
    x = gaussian(arguments.size, arguments.seed)
    console = Console() if sys.stdout.isatty() else Console(width=66 + 36 * len(states))
    console.print(describe("numpy", "numba"), highlight=False, soft_wrap=True)
    console.print(f"n = {len(x)}, unit variance, seed {arguments.seed}", highlight=False)
    with Console(stderr=True).status("") as status:
        console.print(kept_table(x, states, status.update))
        status.update("speed")
        console.print(speed_table(x, states, arguments.repeats))
        if arguments.fit:
            lines = fitted_rows(x, arguments.seed, arguments.fit, status.update)
            console.print(f"_MEASURED, {FIT_STATES} states:", highlight=False)
            console.print("\n".join(lines), highlight=False, markup=False)


if __name__ == "__main__":
    main()
