"""Which shards each module takes: the published draw, from random numbers that are the same everywhere.

Section 3 of MoS (arXiv 2410.00938). Of a pool of ``e * L * l`` shards (L layers, l shards a vector), the last
``p * L * l`` are private: layer k owns ``p * l`` of them, in order. A module takes ``(r - p) * l`` of the
public ones, the beginning of a random permutation (subset selection), then its own. B draws a permutation of
its own (pair dissociation); the private shards are the same in both.

The published code draws from torch's generator, whose numbers may change between versions and devices. Here a
permutation is defined by arithmetic alone, see :func:`permutation`, so that a seed can stand for the indices.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from paring.errors import OptionError
from paring.kernels import random
from paring.kernels.random import reference

Indices = npt.NDArray[np.int64]
Factor = Literal["A", "B"]
FACTORS: tuple[Factor, Factor] = ("A", "B")

_LOW, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)


@dataclass(frozen=True, slots=True)
class Sizes:
    """The four numbers of MoS. ``r`` is the rank of every module, ``e`` the rank of the LoRA that would have
    as many parameters, ``private`` (p) how many of the r rank vectors are a layer's own, ``shards`` (l) how
    many pieces make a vector. ``r == e == private`` is plain LoRA.

    Raises OptionError for numbers that contradict each other.
    """

    r: int
    e: int
    private: int
    shards: int

    def __post_init__(self) -> None:
        for name, least in (("r", 1), ("e", 1), ("private", 0), ("shards", 1)):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise OptionError(f"MoS: {name} must be a whole number, {least} or more, not {value!r}")
        if self.private > min(self.r, self.e):
            raise OptionError(
                f"MoS: private = {self.private} of r = {self.r} and e = {self.e}: no more vectors can be "
                "private than a module has and its layer pays for"
            )
        if self.private == self.e != self.r:
            raise OptionError(
                f"MoS: private = e = {self.e} leaves no public shards for r = {self.r}: choose r = e, which "
                "is plain LoRA, or fewer private"
            )

    def pool(self, layers: int) -> int:
        """Shards in a pool."""
        return self.e * layers * self.shards

    def public(self, layers: int) -> int:
        """Shards in a pool that every layer may draw."""
        return (self.e - self.private) * layers * self.shards

    @property
    def drawn(self) -> int:
        """Public shards that a module takes."""
        return (self.r - self.private) * self.shards

    @property
    def length(self) -> int:
        """Shards that a module takes in all."""
        return self.r * self.shards

    def own(self, layers: int, layer: int) -> Indices:
        """The private shards of ``layer``, ``(private * shards,)``."""
        count = self.private * self.shards
        return self.public(layers) + layer * count + np.arange(count)

    def check(self, layers: int, n_out: int, n_in: int, where: str) -> None:
        """Raise OptionError, beginning with ``where``, for modules that these sizes do not fit."""
        for axis, size in (("in", n_in), ("out", n_out)):
            if size % self.shards:
                raise OptionError(
                    f"{where}: {axis} = {size} cannot be cut into {self.shards} equal shards: choose a "
                    "number of shards that divides it"
                )
        if self.drawn > self.public(layers):
            raise OptionError(
                f"{where}: {layers} layer(s) have {self.public(layers)} public shards, but each module draws "
                f"{self.drawn}: lower r, raise e, or leave out this type"
            )


def permutation(key: int, count: int) -> Indices:
    """A random order of ``0 .. count - 1``, ``(count,)``, that no version or device changes.

    Entry i has the 64-bit number ``w[2 i] + 2^32 w[2 i + 1]``, w being the words of Philox 4x32-10 under
    ``key`` (see :mod:`paring.kernels.random`) with counters 0, 1, ...; the order is that of these numbers
    ascending, equal ones by i.
    """
    blocks = np.arange(-(-count // 2), dtype=np.uint64)
    zeros = np.zeros_like(blocks)
    halves = np.array([key & 0xFFFFFFFF, key >> 32], np.uint64)[:, None]
    words = reference.philox(np.stack([blocks & _LOW, blocks >> _HALF, zeros, zeros]), halves)
    pairs = words.T.reshape(-1, 2)[:count]
    return np.argsort(pairs[:, 0] | pairs[:, 1] << _HALF, kind="stable")


def draw(sizes: Sizes, layers: int, layer: int, seed: int, projection: str, factor: Factor) -> Indices:
    """The shards of one module's factor, ``(r * shards,)``: public ones in the order drawn, then its own.

    The draw depends on the seed, the projection type's name, the layer and the factor, on nothing else.
    """
    key = random.key(seed, "mos", projection, str(layer), factor)
    public = permutation(key, sizes.public(layers))[: sizes.drawn]
    return np.concatenate([public, sizes.own(layers, layer)])


def check_indices(sizes: Sizes, indices: npt.NDArray[np.integer], where: str) -> None:
    """Raise OptionError, beginning with ``where``, unless ``indices`` are a draw of MoS.

    ``indices`` is ``(layers, r * shards)``: public shards without repeats, then the layer's private ones.
    """
    layers = len(indices)
    if indices.ndim != 2 or indices.shape[1] != sizes.length:
        raise OptionError(f"{where}: indices {list(indices.shape)} must be [layers, {sizes.length}]")
    public = np.sort(indices[:, : sizes.drawn], axis=1)
    if public.size and (public.min() < 0 or public.max() >= sizes.public(layers)):
        raise OptionError(f"{where}: an index lies outside the {sizes.public(layers)} public shards")
    if (public[:, 1:] == public[:, :-1]).any():
        raise OptionError(f"{where}: a module draws one shard twice")
    own = np.stack([sizes.own(layers, layer) for layer in range(layers)])
    if not np.array_equal(indices[:, sizes.drawn :], own):
        raise OptionError(f"{where}: the last indices of a module must be the private shards of its layer")


def index_dtype(shards: int) -> str:
    """The narrowest dtype (a safetensors code) that holds indices into a pool of that many shards."""
    return "U8" if shards <= 1 << 8 else "U16" if shards <= 1 << 16 else "U32"
