"""Pictures of benchmark tables."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

#: a result as JSON has it
Found = Mapping[str, Any]


def signed(figure: Any, found: Found, file: Path) -> None:
    """Write a figure, with the machine and the commit that it is of below it."""
    figure.supxlabel(found["machine"], fontsize=7, color="0.5")
    figure.savefig(file, dpi=150)


#: rows of :mod:`benchmarks.adapters` that are drawn: what they are called, colour, marker
_DRAWN = {
    "spectral": ("spectral (default)", "C0", "o"), "ternary": ("compeft, fitted", "C1", "o"),
    "ComPEFT as published": ("ComPEFT as published", "C3", "o"), "truncate": ("truncate, fp16", "C2", "o"),
    "int4": ("int4", "0.35", "s"), "int2": ("int2", "0.35", "v"), "rank 1 in fp16": ("rank 1", "0.35", "x"),
}  # fmt: skip
_MOST = 110


def gain_and_error(found: Found, file: Path) -> None:
    """The gain that is kept, and the error, against the size; one line a method, a point where it has one
    size of its own. Of :mod:`benchmarks.adapters`.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for name, (label, colour, marker) in _DRAWN.items():
        mine = [row for row in found["rows"] if row["method"] == name and 1 < _ratio(row) < _MOST]
        if not mine:
            continue
        mine.sort(key=_ratio)
        sizes = [_ratio(row) for row in mine]
        style = {"marker": marker, "markersize": 5, "linewidth": 1.8, "label": label, "color": colour}
        kept = [row["kept"]["accuracy"] for row in mine]
        errors = [row["kept"]["accuracy_se"] for row in mine]
        axes[0].plot(sizes, kept, **style)
        low, high = ([k + sign * e for k, e in zip(kept, errors, strict=True)] for sign in (-1, 1))
        axes[0].fill_between(sizes, low, high, color=colour, alpha=0.1, linewidth=0)
        axes[1].plot(sizes, [mean(row["error"]) for row in mine], **style)
    titles = "share of the accuracy gain kept", "relative error of the update"
    for axis, title in zip(axes, titles, strict=True):
        axis.set_xscale("log", base=2)
        ticks = [4, 8, 16, 32, 64, 100]
        axis.set_xticks(ticks, [str(tick) for tick in ticks])
        axis.set_xlabel("times smaller than fp16")
        axis.set_title(title, fontsize=11)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].axhline(1, color="0.6", linewidth=0.8)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=9)
    signed(figure, found, file)
    pyplot.close(figure)


def _ratio(row: Mapping[str, Any]) -> float:
    return mean(row["ratio_fp16"])


def mean(by_task: Mapping[str, float | None]) -> float:
    """The mean over the tasks that have a value; 0 where none has."""
    values = [value for value in by_task.values() if value is not None]
    return sum(values) / len(values) if values else 0.0
