"""The tensors of a model by family: checked against its configuration, and what is left of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from paring.checkpoint import Checkpoint, TensorInfo
from paring.dtypes import FLOATS, Stored
from paring.errors import BadFileError, UnsupportedError
from paring.shrinking.cuts import Sizes
from paring.shrinking.families import Family

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Part:
    """One tensor: its name, dtype and shape, the layer and expert that it is of, and its axes.

    ``axes`` are pieces of each axis, by name; None for a tensor that the family does not know.
    """

    info: TensorInfo
    layer: int | None
    expert: int | None
    axes: tuple[tuple[str, ...], ...] | None

    @property
    def name(self) -> str:
        return self.info.name


@dataclass(frozen=True, slots=True)
class Kept:
    """What stays: layers in order; by layer (and expert), indices in ascending order; None for all.

    ``neurons`` are by (layer, expert), the expert being None where there are none.
    """

    layers: Sequence[int]
    hidden: Indices | None = None
    heads: Mapping[int, Indices] = field(default_factory=dict)
    kv_heads: Mapping[int, Indices] = field(default_factory=dict)
    experts: Mapping[int, Indices] = field(default_factory=dict)
    neurons: Mapping[tuple[int, int | None], Indices] = field(default_factory=dict)


def parts_of(source: Checkpoint, family: Family, sizes: Sizes, after: Sizes) -> list[Part]:
    """All tensors, in the order of the source.

    Raises BadFileError for a shape that the configuration does not imply, UnsupportedError for a tensor that
    is not known and would have to be cut, or is quantised.
    """
    found = [_part(source, family, sizes, info) for info in source.tensors.values()]
    within = {part.layer for part in found if part.layer is not None}
    if within != set(range(sizes.layers)):
        raise BadFileError(
            f"{source.path}: config.json says {sizes.layers} layers, and {len(within)} have tensors"
        )
    for part in found:
        if part.axes is None:
            inside = part.layer is not None and _other(sizes, after)
            if inside or after.hidden != sizes.hidden:
                raise UnsupportedError(
                    f"{source.path}: {part.name} is no tensor that models of its kind have: "
                    "what of it would have to go is not known"
                )
        elif part.info.dtype not in FLOATS and any(
            cut(piece, sizes, after) for a in part.axes for piece in a
        ):
            raise UnsupportedError(
                f"{source.path}: {part.name} is quantised ({part.info.dtype}): give the weights it is of"
            )
    return found


def cut(axis: str, before: Sizes, after: Sizes) -> bool:
    """Whether an axis loses entries."""
    return before.axis(axis) != after.axis(axis)


def _other(before: Sizes, after: Sizes) -> bool:
    return any(cut(axis, before, after) for axis in ("hidden", "q", "kv", "neurons", "experts"))


def _part(source: Checkpoint, family: Family, sizes: Sizes, info: TensorInfo) -> Part:
    plain, layer, expert = family.place(info.name)
    axes = family.axes.get(plain)
    if layer is not None and layer >= sizes.layers:
        raise BadFileError(f"{source.path}: {info.name} is of a layer that config.json does not count")
    if axes is None:
        return Part(info, layer, None, None)
    if expert is not None and expert >= sizes.experts:
        raise BadFileError(f"{source.path}: {info.name} is of an expert that config.json does not count")
    pieces = tuple(tuple(axis.split("+")) for axis in axes)
    expected = [_length(axis, sizes) for axis in pieces]
    fits = len(info.shape) == len(expected) and all(
        want in (None, size) for want, size in zip(expected, info.shape, strict=True)
    )
    if not fits:
        implied = ", ".join("any" if want is None else str(want) for want in expected)
        raise BadFileError(
            f"{source.path}: {info.name} is {list(info.shape)}, and its config.json implies [{implied}]"
        )
    return Part(info, layer, expert, pieces)


def _length(pieces: Sequence[str], sizes: Sizes) -> int | None:
    lengths = [sizes.axis(piece) for piece in pieces]
    return None if None in lengths else sum(length or 0 for length in lengths)


def renamed(part: Part, kept: Kept, family: Family) -> str | None:
    """The name of what is left of a tensor: layers and experts numbered anew; None for nothing."""
    name = part.name
    if part.layer is None:
        return name
    if part.layer not in kept.layers:
        return None
    head = name.index(f"{family.stack}.{part.layer}.") + len(family.stack) + 1
    tail = name[head + len(str(part.layer)) :]
    experts = kept.experts.get(part.layer)
    if part.expert is not None and experts is not None:
        place = np.flatnonzero(experts == part.expert)
        if not len(place):
            return None
        tail = tail.replace(f".{part.expert}.", f".{int(place[0])}.", 1)
    return f"{name[:head]}{list(kept.layers).index(part.layer)}{tail}"


def shape_left(part: Part, after: Sizes) -> tuple[int, ...]:
    """The shape of what is left of a tensor."""
    if part.axes is None:
        return part.info.shape
    lengths = (_length(pieces, after) for pieces in part.axes)
    return tuple(
        size if length is None else length for length, size in zip(lengths, part.info.shape, strict=True)
    )


def left(part: Part, tensor: Stored, kept: Kept, sizes: Sizes) -> Stored:
    """What is left of a tensor."""
    data = tensor.data
    if part.axes is None:
        return tensor
    for axis, pieces in enumerate(part.axes):
        if len(part.axes) == 3 and "neurons" in pieces:
            continue
        chosen = _chosen(part, pieces, kept, sizes)
        if chosen is not None:
            data = np.take(data, chosen, axis=axis)
    if len(part.axes) == 3:
        data = _stacked(part, data, kept, sizes)
    return Stored(tensor.dtype, np.ascontiguousarray(data))


def _stacked(part: Part, data: npt.NDArray[np.generic], kept: Kept, sizes: Sizes) -> npt.NDArray[np.generic]:
    """Stacked experts, of which each keeps neurons of its own."""
    assert part.axes is not None and part.layer is not None
    experts = kept.experts.get(part.layer, np.arange(sizes.experts))
    if (part.layer, int(experts[0])) not in kept.neurons:
        return data
    axis = next(axis for axis, pieces in enumerate(part.axes) if "neurons" in pieces)
    pieces = part.axes[axis]
    slices = []
    for own, expert in zip(data, experts.tolist(), strict=True):
        single = Part(part.info, part.layer, expert, part.axes)
        chosen = _chosen(single, pieces, kept, sizes)
        assert chosen is not None, "every expert has its neurons"
        slices.append(np.take(own, chosen, axis=axis - 1))
    return np.stack(slices)


def _chosen(part: Part, pieces: Sequence[str], kept: Kept, sizes: Sizes) -> Indices | None:
    """The indices of an axis that stay; None for all."""
    own = [_indices(part, piece, kept, sizes) for piece in pieces]
    if all(found is None for found in own):
        return None
    start, out = 0, []
    for piece, found in zip(pieces, own, strict=True):
        size = sizes.axis(piece)
        assert size is not None, "axes of any size are not cut"
        out.append(start + (np.arange(size) if found is None else found))
        start += size
    return np.concatenate(out)


def _indices(part: Part, piece: str, kept: Kept, sizes: Sizes) -> Indices | None:
    if piece == "hidden":
        return kept.hidden
    if part.layer is None:
        return None
    if piece in ("q", "kv"):
        heads = (kept.heads if piece == "q" else kept.kv_heads).get(part.layer)
        return None if heads is None else within_heads(heads, sizes.head_dim)
    if piece == "experts":
        return kept.experts.get(part.layer)
    return kept.neurons.get((part.layer, part.expert)) if piece == "neurons" else None


def within_heads(heads: Indices, dim: int) -> Indices:
    """The entries of ``heads``, each of ``dim``."""
    return (heads[:, None] * dim + np.arange(dim)).reshape(-1)
