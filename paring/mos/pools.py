"""Pools of shards, what modules they stand for, and the way to a module's factors and back.

A pool is ``(shards, width)``, one shard a row. The published code keeps the pool of B transposed; a file of
rows lets both be gathered alike. Gathering moves bits and computes nothing, so it works on any dtype, bf16
held as uint16 included, and expanding and folding are exact.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from paring.dtypes import Array
from paring.errors import BadValueError, OptionError
from paring.mos.routing import FACTORS, Factor, Indices, Sizes, check_indices, draw

_NUMBER = re.compile(r"(?:^|(?<=\.))\d+(?=\.|$)")
_MOST = 1e9  # alpha beyond it is a mistake, and its square would overflow


@dataclass(frozen=True, slots=True)
class Projection:
    """One projection type: modules of one shape that share a pair of pools, layer by layer."""

    name: str
    modules: tuple[str, ...]
    n_out: int
    n_in: int

    @property
    def layers(self) -> int:
        return len(self.modules)

    def width(self, factor: Factor) -> int:
        """The length of a whole vector of A (in) or B (out)."""
        return self.n_in if factor == "A" else self.n_out


@dataclass(frozen=True, eq=False)
class Layout:
    """A whole MoS adapter but for the values in its pools.

    Indices come from ``seed``, or are given: ``indices[projection, factor]`` is ``(layers, r * shards)``.
    Raises OptionError for what does not fit together.
    """

    sizes: Sizes
    alpha: float
    projections: tuple[Projection, ...]
    seed: int | None
    indices: Mapping[tuple[str, Factor], npt.NDArray[np.integer]] | None = None

    def __post_init__(self) -> None:
        if type(self.alpha) not in (int, float) or not abs(self.alpha) < _MOST:
            raise OptionError(f"MoS: alpha must be a number below {_MOST:g}, not {self.alpha!r}")
        if (self.seed is None) == (self.indices is None):
            raise OptionError("MoS: give a seed or the indices themselves, one of the two")
        if self.seed is not None and type(self.seed) is not int:
            raise OptionError(f"MoS: seed must be a whole number, not {self.seed!r}")
        names = [projection.name for projection in self.projections]
        modules = [module for projection in self.projections for module in projection.modules]
        if not modules or len(set(names)) < len(names) or len(set(modules)) < len(modules):
            raise OptionError("MoS: needs at least one module, and no module or projection type twice")
        for projection in self.projections:
            where = f"MoS of {projection.name}"
            self.sizes.check(projection.layers, projection.n_out, projection.n_in, where)
            if self.indices is not None:
                for factor in FACTORS:
                    given = self.indices.get((projection.name, factor))
                    if given is None or len(given) != projection.layers:
                        raise OptionError(f"{where}: {factor} needs indices of {projection.layers} layer(s)")
                    check_indices(self.sizes, given, f"{where}, {factor}")

    @property
    def scale(self) -> float:
        """``alpha / r``, r the rank that is active in a module."""
        return self.alpha / self.sizes.r

    @property
    def parameters(self) -> int:
        """Trained parameters: those of LoRA of rank ``e``. Indices are none."""
        return sum(self.sizes.e * each.layers * (each.n_out + each.n_in) for each in self.projections)

    def route(self, projection: Projection, layer: int, factor: Factor) -> Indices:
        """The shards of one module's factor, ``(r * shards,)``."""
        if self.indices is not None:
            given: Indices = self.indices[projection.name, factor][layer].astype(np.int64)
            return given
        assert self.seed is not None
        return draw(self.sizes, projection.layers, layer, self.seed, projection.name, factor)

    def shape(self, projection: Projection, factor: Factor) -> tuple[int, int]:
        """The shape of a pool, ``(shards, width)``."""
        return self.sizes.pool(projection.layers), projection.width(factor) // self.sizes.shards


def projections(shapes: Iterable[tuple[str, tuple[int, int]]]) -> tuple[Projection, ...]:
    """Modules (name, (out, in)) by projection type: names that differ in their numbers alone are one type.

    ``model.layers.3.mlp.up_proj`` is of type ``model.layers.*.mlp.up_proj``; the order of modules is that of
    layers. Where a type comes in several shapes, each is a type: ``NAME[out,in]``.
    """
    groups: dict[tuple[str, tuple[int, int]], list[str]] = {}
    for module, shape in shapes:
        groups.setdefault((_NUMBER.sub("*", module), shape), []).append(module)
    names = [name for name, _ in groups]
    return tuple(
        Projection(name if names.count(name) == 1 else f"{name}[{shape[0]},{shape[1]}]", tuple(found), *shape)
        for (name, shape), found in groups.items()
    )


def expand(pool: Array, index: npt.NDArray[np.integer], shards: int) -> Array:
    """The rank vectors, ``(r, length)``, made of the shards ``index``, ``(r * shards,)``.

    Vector sharding as published: ``M = pool[index]``, and vector j is ``M[j l], ..., M[j l + l - 1]`` one
    after another, that is ``cat([M[i::l] for i in range(l)], axis=1)``. For A they are ``A (r, in)``, for B
    its transpose, ``(r, out)``.
    """
    vectors: Array = pool[index].reshape(len(index) // shards, shards * pool.shape[1])
    return vectors


def fold(
    vectors: Sequence[Array], indices: Sequence[npt.NDArray[np.integer]], shards: int, count: int
) -> tuple[Array, npt.NDArray[np.bool_]]:
    """The pool, ``(count, width)``, that expands to ``vectors``, each layer ``(r, length)``, bit for bit.

    Also returns which shards any layer uses, ``(count,)``; the others cannot be known and are zero. Raises
    BadValueError when layers disagree on a shard, naming the layer: an adapter trained further after it was
    expanded, or other ``indices`` than its own.
    """
    first = vectors[0]
    pool = np.zeros((count, first.shape[1] // shards), first.dtype)
    used = np.zeros(count, np.bool_)
    for each, index in zip(vectors, indices, strict=True):
        pool[index] = each.reshape(len(index), -1)
        used[index] = True
    for layer, (each, index) in enumerate(zip(vectors, indices, strict=True)):
        if pool[index].tobytes() != each.tobytes():  # bits: NaN is itself, and -0 is not 0
            raise BadValueError(
                f"layer {layer} does not fold: its shards differ from those of other layers that share them"
            )
    return pool, used
