"""What :mod:`benchmarks.perp` found: perplexities and shares of a gain, in a line, a table, a picture."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.plots import signed

#: the sources of the texts, each counted alike
PARTS = ("austen", "brown")


def mean(row: dict[str, Any], source: str | None = None) -> float:
    """The mean loss of a row, of one source or of both alike."""
    return float(np.mean([np.mean(row["losses"][each]) for each in ((source,) if source else PARTS)]))


def summary(row: dict[str, Any]) -> str:
    """One line."""
    texts = ", ".join(f"{source} {math.exp(mean(row, source)):.2f}" for source in PARTS)
    return f"perplexity {math.exp(mean(row)):.2f} ({texts}), {row.get('minutes', 0):.1f} min"


def table(found: dict[str, Any]) -> str:
    """The rows as Markdown: perplexities, the share of full retraining's gain, and what it cost."""
    lines = [
        "| model | Persuasion | Brown | both | of full retraining's gain | trained | minutes | peak memory |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, row in found.items():
        kind = (row["row"]["pruned"] or "").partition(" ")[0]
        bare, full = found.get(f"{kind} bare"), found.get(f"{kind} full retraining")
        gain = ""
        if kind and row["row"]["recipe"] and bare and full:
            share, error = recovered(row, bare, full)
            gain = f"{share:.1%} ± {error:.1%}"
        cells = [f"{math.exp(mean(row, source)):.2f}" for source in (*PARTS, None)]
        parts = [f"{row['trained']:.2%}"] if row.get("trained") else []
        by_block = row["row"]["recipe"] == "reconstruct" or "reconstruct" in row["row"]["options"]
        trained = ", then ".join(["each block whole"] * by_block + parts)
        memory = row.get("peak_gpu_bytes") or row.get("peak_rss_bytes") or 0
        cost = [f"{row['minutes']:.1f}", f"{memory / 2**30:.1f} GiB"] if "minutes" in row else ["", ""]
        lines.append(f"| {' | '.join([name, *cells, gain, trained, *cost])} |")
    return "\n".join(lines)


def recovered(
    row: dict[str, Any], bare: dict[str, Any], full: dict[str, Any], draws: int = 2000
) -> tuple[float, float]:
    """The share of full retraining's gain in loss that ``row`` has; its standard error (paired bootstrap)."""
    rng = np.random.default_rng(0)
    whole = np.zeros(2)
    drawn = np.zeros((draws, 2))
    for source in PARTS:
        gains = np.array(bare["losses"][source]) - np.array([r["losses"][source] for r in (row, full)])
        picks = rng.integers(gains.shape[1], size=(draws, gains.shape[1]))
        whole += gains.mean(1)
        drawn += gains[:, picks].mean(2).T
    return float(whole[0] / whole[1]), float((drawn[:, 0] / drawn[:, 1]).std(ddof=1))


def plot(found: Mapping[str, Any], file: Path) -> None:
    """Perplexity of every row of a result of :mod:`benchmarks.perp`."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = found["rows"]
    figure, axis = pyplot.subplots(figsize=(8.5, 0.36 * len(rows) + 1.3), layout="constrained")
    names = list(rows)[::-1]
    colours = ["0.6" if rows[name]["row"]["recipe"] is None else "C0" for name in names]
    values = [math.exp(mean(rows[name])) for name in names]
    axis.barh(names, values, color=colours, height=0.65)
    for place, value in enumerate(values):
        axis.text(value * 1.03, place, f"{value:.1f}", va="center", fontsize=9)
    axis.set_xscale("log")
    ticks = [tick for tick in (50, 100, 200, 500, 1000, 2000, 5000) if tick < 1.2 * max(values)]
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axis.set_xticks([], minor=True)
    axis.set_xlabel("perplexity on held-out books (log scale)")
    axis.spines[["top", "right"]].set_visible(False)
    signed(figure, found, file)
    pyplot.close(figure)
