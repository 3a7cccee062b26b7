"""A picture of a :class:`~.report.Difference`: layers by kinds of module, and how alike the deltas are.

Needs matplotlib, the extra ``paring[plot]``.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from paring import atomic
from paring.diffing.report import Difference, TensorDiff
from paring.errors import OptionError
from paring.merging.models import F64
from paring.merging.weights import layer_of

_KINDS = (".png", ".svg", ".pdf")
_SHOWN = 3  # models with a map of their own; more are drawn together
_OUTSIDE = 10  # tensors outside layers that are drawn
_GREY, _MISSING = "#555555", "#eeeeee"


def refuse(path: Path, overwrite: bool, inputs: Sequence[Any]) -> None:
    """Raise now for what :func:`draw` would refuse later. OptionError or OutputError."""
    if path.suffix.lower() not in _KINDS:
        raise OptionError(f"--plot {path}: a picture's name ends in {', '.join(_KINDS)}")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise OptionError('--plot needs matplotlib: pip install "paring[plot]"') from None
    atomic.refuse_same_file(path, inputs)
    atomic.refuse_existing(path, overwrite)


def draw(found: Difference, path: Path, overwrite: bool) -> None:
    """Draw to ``path``, whole or not at all."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    maps = _maps(found)
    outside = _outside(found)
    several = found.delta_cosine is not None and len(found.inputs) > 1
    rows, columns = len(maps[0][1]), len(maps[0][2])
    widths = [max(2.4, 0.34 * columns + 0.8)] * len(maps) * bool(columns)
    if outside:
        widths.append(2.6)
    if several:
        widths.append(max(3.2, 0.7 * len(found.inputs) + 2))
    height = min(30.0, max(3.6, 0.24 * rows + 1.8))
    figure = Figure(figsize=(sum(widths) + 0.6, height), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(widths), width_ratios=widths, squeeze=False)[0].tolist()
    if columns:
        top = max(float(np.nanmax(values)) for _, _, _, values in maps)
        for (title, layers, kinds, values), axis in zip(maps, axes, strict=False):
            image = _heat(axis, title, layers, kinds, values, top)
        bar = figure.colorbar(image, ax=axes[: len(maps)], pad=0.015, shrink=0.7, aspect=30)
        bar.set_label(_label(found), fontsize=7, color=_GREY)
        bar.ax.tick_params(labelsize=7, length=0)
        bar.outline.set_visible(False)
    if outside:
        _bars(axes[-1 - several], outside)
    if several:
        _matrix(axes[-1], found)
    save(figure, path, overwrite)


def save(figure: Any, path: Path, overwrite: bool) -> None:
    """Write a figure of matplotlib, whole or not at all; the same numbers give the same bytes."""
    from matplotlib import rc_context

    kind = path.suffix[1:].lower()
    undated: dict[str, dict[str, Any]] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    buffer = io.BytesIO()
    with rc_context({"svg.hashsalt": "paring"}):
        figure.savefig(buffer, format=kind, metadata=undated.get(kind))
    with atomic.atomic_file(path, overwrite) as file:
        file.write(buffer.getvalue())


def _label(found: Difference) -> str:
    if found.kind == "adapters":
        return "norm of the update"
    return "relative change  ‖model − base‖ / ‖base‖"


def _names(found: Difference) -> list[str]:
    """The inputs' last parts, or longer where those are the same."""
    paths = [Path(name) for name in found.inputs]
    for depth in (1, 2, 3):
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [f"{i + 1}: {path.name}" for i, path in enumerate(paths)]


def _kind(name: str) -> str:
    """A tensor's name within its layer."""
    inside = re.split(r"(?:^|\.)\d+\.", name, maxsplit=1)[-1]
    return inside.removesuffix(".weight")


def _values(found: Difference, tensor: TensorDiff, models: Sequence[int]) -> float:
    """The root mean square change, or norm of updates, of the models that have the tensor."""
    each = tensor.delta_norm if found.kind == "adapters" else tensor.change
    some = [x for i in models if (x := each[i]) is not None]
    return float(np.sqrt(np.mean(np.square(some)))) if some else np.nan


def _maps(found: Difference) -> list[tuple[str, list[int], list[str], F64]]:
    """Titles, layers, kinds and values of the heat maps: one a model, or one for all where there are many."""
    inside = [tensor for tensor in found.tensors if layer_of(tensor.name) is not None]
    layers = sorted({layer for t in inside if (layer := layer_of(t.name)) is not None})
    kinds = list(dict.fromkeys(_kind(tensor.name) for tensor in inside))
    models = list(range(len(found.inputs)))
    groups = [[i] for i in models] if len(models) <= _SHOWN else [models]
    names = _names(found)
    out = []
    for group in groups:
        values = np.full((len(layers), len(kinds)), np.nan)
        for tensor in inside:
            place = layers.index(layer_of(tensor.name) or 0), kinds.index(_kind(tensor.name))
            values[place] = np.fmax(values[place], _values(found, tensor, group))
        title = names[group[0]] if len(group) == 1 else f"{len(group)} models, root mean square"
        out.append((title, layers, kinds, values))
    return out


def _outside(found: Difference) -> list[tuple[str, float]]:
    """Tensors outside layers, most changed first."""
    models = range(len(found.inputs))
    some = [(t.name, _values(found, t, models)) for t in found.tensors if layer_of(t.name) is None]
    changed = [(name.removesuffix(".weight"), x) for name, x in some if x > 0]
    return sorted(changed, key=lambda pair: -pair[1])[:_OUTSIDE]


def _heat(axis: Any, title: str, layers: list[int], kinds: list[str], values: F64, top: float) -> Any:
    axis.set_facecolor(_MISSING)
    image = axis.imshow(
        values, aspect="auto", cmap="magma_r", vmin=0, vmax=1.12 * top or 1, interpolation="nearest"
    )
    axis.set_title(title, fontsize=9, loc="left")
    axis.set_xticks(range(len(kinds)), kinds, rotation=45, ha="right", rotation_mode="anchor", fontsize=7)
    step = max(1, len(layers) // 24)
    axis.set_yticks(range(0, len(layers), step), [str(x) for x in layers[::step]], fontsize=7)
    axis.set_ylabel("layer", fontsize=8, color=_GREY)
    # thin white lines between cells; the frame would only repeat them
    axis.set_xticks(np.arange(-0.5, len(kinds)), minor=True)
    axis.set_yticks(np.arange(-0.5, len(layers)), minor=True)
    axis.grid(which="minor", color="white", linewidth=0.6)
    axis.tick_params(which="both", length=0)
    axis.spines[:].set_visible(False)
    return image


def _bars(axis: Any, outside: list[tuple[str, float]]) -> None:
    names, values = zip(*outside, strict=True)
    axis.barh(range(len(values)), values, color="#8c2981", height=0.6)
    axis.set_yticks(range(len(names)), names, fontsize=7)
    axis.set_ylim(max(len(names), 6) - 0.4, -0.6)
    for place, value in enumerate(values):
        axis.annotate(
            f"{value:.3g}", (value, place), (3, 0), textcoords="offset points", va="center", fontsize=7
        )
    axis.set_xlim(0, max(values) * 1.25)
    axis.set_title("outside the layers", fontsize=9, loc="left")
    axis.set_xticks([])
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)


def _matrix(axis: Any, found: Difference) -> None:
    """Cosines of deltas, written in their cells."""
    assert found.delta_cosine is not None
    values = np.array([[np.nan if x is None else x for x in row] for row in found.delta_cosine])
    names, n = _names(found), len(values)
    axis.set_facecolor(_MISSING)
    axis.imshow(values, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
    axis.set_title("cosine of deltas", fontsize=9, loc="left")
    axis.set_xticks(range(n), names, rotation=45, ha="right", rotation_mode="anchor", fontsize=7)
    axis.set_yticks(range(n), names, fontsize=7)
    axis.set_xticks(np.arange(-0.5, n), minor=True)
    axis.set_yticks(np.arange(-0.5, n), minor=True)
    axis.grid(which="minor", color="white", linewidth=0.8)
    axis.tick_params(which="both", length=0)
    axis.spines[:].set_visible(False)
    for i, j in np.ndindex(n, n) if n <= 12 else ():
        if values[i, j] == values[i, j]:
            shade = "white" if abs(values[i, j]) > 0.6 else "black"
            axis.text(j, i, f"{values[i, j]:.2f}", ha="center", va="center", fontsize=7, color=shade)
