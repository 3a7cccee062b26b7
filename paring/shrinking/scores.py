"""What is worth keeping: scores of layers, heads, neurons, experts and of the residual stream's entries.

By the weights alone, a unit that others are multiplied by scores the product of the Euclidean norms of what
makes it up, which does not change when one factor is scaled up and another down: of a neuron its rows and its
column in the feed-forward matrices, of a head those of the query and of the output (and of its keys and
values), of a group of heads that share these, keys times values times the sum over its heads, of an expert
its matrices. An entry of the residual stream scores
the sum of magnitudes that read or write it, every matrix voting with its share (after LST's fallback), a
layer the sum of squares of all its weights.

By Fisher scores (Sung et al.: LST, arXiv:2206.06522; squared gradients, summed over samples), a unit scores
the sum over every entry that would go with it. All sums are fp64, in order of the tensors' names. Of equal
scores, those that come first go first.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from paring.checkpoint import Checkpoint
from paring.dtypes import FLOATS, refuse_nonfinite
from paring.errors import BadFileError, BadValueError
from paring.shrinking.cuts import Sizes
from paring.shrinking.parts import Kept, Part, cut
from paring.stream import in_order

F64 = npt.NDArray[np.float64]
Where = tuple[str, int | None, int | None]
_UNITS = ("q", "kv", "neurons", "experts")


@dataclass(slots=True)
class Scores:
    """By axis, layer and expert: a score for each index, logarithms of products, or sums; sums by layer."""

    units: dict[Where, F64] = field(default_factory=dict)
    layers: dict[int, float] = field(default_factory=lambda: defaultdict(float))

    def add(self, where: Where, more: F64) -> None:
        """Add ``more (n,)`` to the scores of the ``n`` indices there."""
        self.units[where] = self.units[where] + more if where in self.units else more


def scores_of(
    source: Checkpoint, fisher: Checkpoint | None, parts: Sequence[Part], before: Sizes, after: Sizes,
    threads: int, *, layers: bool,
) -> Scores:  # fmt: skip
    """One pass over what is needed. Raises BadValueError for NaN, BadFileError for another model's scores."""
    wanted = {axis for axis in ("hidden", *_UNITS) if cut(axis, before, after)}
    needed = [
        part for part in sorted(parts, key=lambda part: part.name)
        if part.axes is not None and ((layers and part.layer is not None)
        or any(piece in wanted for pieces in part.axes for piece in pieces) or _is_expert(part, wanted))
    ]  # fmt: skip
    if fisher is not None:
        _refuse_fisher(fisher, needed)

    def one(part: Part) -> tuple[Part, list[tuple[Where, F64]], float]:
        values = _importance(source if fisher is None else fisher, part, squared=fisher is None)
        found = _measured(part, values, wanted, before, products=fisher is None)
        return part, found, float(values.sum()) if layers else 0.0

    scores = Scores()
    for part, found, total in in_order(one, needed, threads):
        for where, more in found:
            scores.add(where, more)
        if part.layer is not None:
            scores.layers[part.layer] += total
    return scores


def _is_expert(part: Part, wanted: set[str]) -> bool:
    return "experts" in wanted and part.expert is not None


def _refuse_fisher(fisher: Checkpoint, parts: Sequence[Part]) -> None:
    for part in parts:
        info = fisher.tensors.get(part.name)
        if info is None or info.shape != part.info.shape or info.dtype not in FLOATS:
            what = "is missing" if info is None else f"is {info.dtype} {list(info.shape)}"
            raise BadFileError(
                f"{fisher.path}: {part.name} {what}, and the model's is {list(part.info.shape)}: scores of "
                "another model?"
            )


def _importance(source: Checkpoint, part: Part, *, squared: bool) -> F64:
    """Squares of weights, or Fisher scores as they are, fp64."""
    stored = source.read(part.name)
    refuse_nonfinite(stored, part.name, source.path)
    values = stored.f64()
    if squared:
        return values * values
    if values.size and float(values.min()) < 0:
        raise BadValueError(f"{source.path}: {part.name} holds a negative score; squared gradients have none")
    return values


def _measured(
    part: Part, values: F64, wanted: set[str], sizes: Sizes, *, products: bool
) -> list[tuple[Where, F64]]:
    """What a tensor adds to the scores of the units that have a part in it."""
    found: list[tuple[Where, F64]] = []
    for expert, axes, x in _matrices(part, values, sizes):
        if products and x.ndim < 2:
            continue  # norms and biases have no product
        if expert is not None and "experts" in wanted:
            found.append((("experts", part.layer, expert), _log(x.sum(), products).reshape(1)))
        for axis, name in enumerate(axes):
            if name not in wanted:
                continue
            others = tuple(i for i in range(x.ndim) if i != axis)
            if name == "hidden":
                along = np.sqrt(x) if products else x
                share = float(along.sum()) or 1.0 if products else 1.0
                found.append((("hidden", None, None), along.sum(axis=others) / share))
            elif name in ("q", "kv"):
                heads = x.sum(axis=others).reshape(-1, sizes.head_dim).sum(axis=1)
                found.append(((name, part.layer, None), _log(heads, products)))
            elif name == "neurons":
                found.append(((name, part.layer, expert), _log(x.sum(axis=others), products)))
            elif not products:  # a router's row says how often, not how much
                found.append(((name, part.layer, None), x.sum(axis=others)))
    return found


def _matrices(part: Part, values: F64, sizes: Sizes) -> Iterator[tuple[int | None, tuple[str, ...], F64]]:
    """A tensor as the matrices that it is made of: those of each expert, and each piece of an axis."""
    assert part.axes is not None
    stacked = len(part.axes) == 3
    for expert, own in enumerate(values) if stacked else [(part.expert, values)]:
        axes = part.axes[1:] if stacked else part.axes
        joined = next((axis for axis, pieces in enumerate(axes) if len(pieces) > 1), None)
        if joined is None:
            yield expert, tuple(name for (name,) in axes), own
            continue
        ends = np.cumsum([sizes.axis(name) or 0 for name in axes[joined]])
        for name, piece in zip(axes[joined], np.split(own, ends[:-1], axis=joined), strict=True):
            yield expert, tuple(name if i == joined else each[0] for i, each in enumerate(axes)), piece


def _log(squares: F64 | np.float64, products: bool) -> F64:
    """Logarithms of norms, that products may be sums; or sums as they are."""
    if not products:
        return np.asarray(squares, np.float64)
    with np.errstate(divide="ignore"):
        return np.asarray(0.5 * np.log(squares), np.float64)


def best(scores: F64, keep: int) -> npt.NDArray[np.int64]:
    """The indices ``(keep,)`` of the best ``scores (n,)``, in ascending order; of equal ones the last."""
    return np.sort(np.argsort(scores, kind="stable")[len(scores) - keep :]).astype(np.int64)


def choose(scores: Scores, before: Sizes, after: Sizes, layers: Sequence[int], *, products: bool) -> Kept:
    """What stays of everything that is cut."""
    units, kept = scores.units, Kept(layers)
    hidden = units.get(("hidden", None, None))
    if hidden is not None:
        kept = Kept(layers, best(hidden, after.hidden))
    heads: dict[int, npt.NDArray[np.int64]] = {}
    groups: dict[int, npt.NDArray[np.int64]] = {}
    experts: dict[int, npt.NDArray[np.int64]] = {}
    neurons: dict[tuple[int, int | None], npt.NDArray[np.int64]] = {}
    for layer in layers:
        if (before.heads, before.kv_heads) != (after.heads, after.kv_heads):
            heads[layer], groups[layer] = _heads(units, layer, before, after, products=products)
        if before.experts != after.experts:
            rows = [units.get(("experts", layer, e)) for e in range(before.experts)]
            whole = units.get(("experts", layer, None), np.zeros(before.experts))
            own = np.concatenate([np.zeros(1) if row is None else row for row in rows])
            if ("experts", layer, 0) in units or ("experts", layer, None) in units:
                experts[layer] = best(own + whole, after.experts)
        for (axis, where, expert), found in units.items():
            if axis == "neurons" and where == layer:
                neurons[layer, expert] = best(found, after.neurons)
    return Kept(layers, kept.hidden, heads, groups, experts, neurons)


def _heads(
    units: Mapping[Where, F64], layer: int, before: Sizes, after: Sizes, *, products: bool
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Heads and groups that stay: the best groups, and of each its best heads."""
    each, keep = before.heads // before.kv_heads, after.heads // after.kv_heads
    nothing = np.zeros(before.heads)
    queries = units.get(("q", layer, None), nothing).reshape(before.kv_heads, each)
    shared = units.get(("kv", layer, None), np.zeros(before.kv_heads))
    if products:
        most = queries.max(axis=1, keepdims=True)
        most = np.where(np.isfinite(most), most, 0.0)
        with np.errstate(divide="ignore"):
            whole = shared + most[:, 0] + np.log(np.exp(queries - most).sum(axis=1))
    else:
        whole = shared + queries.sum(axis=1)
    groups = best(whole, after.kv_heads)
    heads = [group * each + best(queries[group], keep) for group in groups.tolist()]
    return np.concatenate(heads).astype(np.int64), groups


def choose_layers(
    asked: Sequence[int], count: int, total: int, by: str, scores: Callable[[], Mapping[int, float]]
) -> list[int]:
    """The layers that stay: all but those ``asked`` to go; or ``count`` of them, evenly spread from the first
    to the last (LST, and the stepwise choice of recursive transformers), or those of the best scores.
    """
    if asked:
        return [layer for layer in range(total) if layer not in set(asked)]
    if count == total:
        return list(range(total))
    if by == "score":
        found = scores()
        return [int(layer) for layer in best(np.array([found[layer] for layer in range(total)]), count)]
    if count == 1:
        return [0]
    return [(2 * i * (total - 1) + (count - 1)) // (2 * (count - 1)) for i in range(count)]
