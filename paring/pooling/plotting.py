"""A picture of who shares what in a pool. Needs matplotlib, the extra ``paring[plot]``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from paring.diffing.plotting import refuse, save
from paring.pooling.report import SharingReport

__all__ = ["draw", "refuse"]

_GREY = "#555555"
_WRITTEN = 12  # adapters up to which numbers stand in the cells


def draw(found: SharingReport, path: Path, overwrite: bool) -> None:
    """Draw to ``path``, whole or not at all: a matrix of decoded bytes in common, and what each one needs."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    n = len(found.adapters)
    side = min(14.0, max(2.6, 0.5 * n + 1.4))
    figure = Figure(figsize=(side + 4.6, side + 0.6), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=[side, 3.6])
    _matrix(left, found)
    _bars(right, found)
    save(figure, path, overwrite)


def shares(found: SharingReport) -> Any:
    """The matrix (n, n): the part of the row's adapter, in decoded bytes, that the column's has too; on the
    diagonal the part that repeats within it.
    """
    names = [member.name for member in found.adapters]
    out = np.zeros((len(names), len(names)))
    for i, member in enumerate(found.adapters):
        whole = max(1, member.bytes_decoded)
        out[i, i] = member.repeated_within / whole
        for other, nbytes in member.shared_with.items():
            out[i, names.index(other)] = nbytes / whole
    return out


def _matrix(axis: Any, found: SharingReport) -> None:
    names, values = [member.name for member in found.adapters], shares(found)
    axis.imshow(values, cmap="magma_r", vmin=0, vmax=1.12, interpolation="nearest")
    axis.set_title("part of the row's that the column's has too", fontsize=9, loc="left")
    step = max(1, len(names) // 40)
    places = range(0, len(names), step)
    axis.set_xticks(places, names[::step], rotation=45, ha="right", rotation_mode="anchor", fontsize=7)
    axis.set_yticks(places, names[::step], fontsize=7)
    axis.set_xticks(np.arange(-0.5, len(names)), minor=True)
    axis.set_yticks(np.arange(-0.5, len(names)), minor=True)
    axis.grid(which="minor", color="white", linewidth=0.8)
    axis.tick_params(which="both", length=0)
    axis.spines[:].set_visible(False)
    for i, j in np.ndindex(values.shape) if len(names) <= _WRITTEN else ():
        shade = "white" if values[i, j] > 0.55 else "black"
        axis.text(j, i, f"{values[i, j]:.2f}", ha="center", va="center", fontsize=7, color=shade)


def _bars(axis: Any, found: SharingReport) -> None:
    """Of each adapter: its file, all that it needs here, and what it alone needs."""
    kinds = (
        ("its own file", "#d9d9d9", [member.bytes_source or 0 for member in found.adapters]),
        ("to decode it alone", "#8c2981", [member.bytes_alone for member in found.adapters]),
        ("needed by it only", "#fe9f6d", [member.bytes_own for member in found.adapters]),
    )
    rows = np.arange(len(found.adapters))
    for at, (label, color, values) in enumerate(kinds):
        axis.barh(rows + 0.26 * (at - 1), np.array(values) / 1e3, color=color, height=0.24, label=label)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.set_yticks(rows, [""] * len(rows))
    axis.set_xlabel("kB", fontsize=8, color=_GREY)
    axis.tick_params(labelsize=7, length=0)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.legend(fontsize=7, frameon=False, loc="lower left", bbox_to_anchor=(0, 1), borderpad=0)
