"""What goes into a pool: adapters with every tensor read, in the form they are compared in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from paring.adapters.view import Adapter
from paring.checkpoint import digest
from paring.codecs.residual import predicted
from paring.coding import Factors
from paring.dtypes import FLOATS, Stored, refuse_nonfinite
from paring.factors import read_factors
from paring.kernels.ternary.tensor import Layout, segments
from paring.packed import Packed
from paring.packing import Spec

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """One tensor of one adapter. ``name`` is that in the pool, ``layout`` says what its rank vectors are:
    the rows of A, the columns of B.
    """

    owner: str
    name: str
    tensor: Stored
    layout: Layout

    @property
    def spec(self) -> Spec:
        return Spec(self.name, self.tensor.dtype, self.tensor.shape)

    @property
    def length(self) -> int:
        """Entries of a rank vector."""
        return segments(self.tensor.shape, self.layout)[1]

    def rows(self) -> F64:
        """Its rank vectors (r, length), fp64."""
        return predicted(self.tensor, self.layout, None)


@dataclass(eq=False)
class Source:
    """One adapter: its module view and all its tensors, by their own names."""

    name: str
    adapter: Adapter
    parts: dict[str, Part]

    @cached_property
    def digest(self) -> str:
        """The canonical digest of its tensors."""
        return digest((name, part.tensor) for name, part in self.parts.items())

    @cached_property
    def modules(self) -> list[Factors]:
        """Its modules in fp32, as compression methods see them."""
        return read_factors(self.adapter, {name: part.tensor for name, part in self.parts.items()})

    @cached_property
    def bases(self) -> dict[tuple[str, int], F64]:
        """Orthonormal bases (rank, n) that have been computed, by module and side."""
        return {}


@dataclass(frozen=True, slots=True, eq=False)
class Pile:
    """All that is to share one pool. ``kept`` are the adapters of ``pool``, which stay as they are coded;
    ``error`` is the relative error allowed, None for none at all.
    """

    sources: Sequence[Source]
    kept: Sequence[Source]
    pool: Packed | None
    error: float | None


def read(name: str, adapter: Adapter) -> Source:
    """Read every tensor of ``adapter``. Raises BadValueError for NaN and infinity, naming the tensor."""
    checkpoint = adapter.checkpoint
    layouts = layouts_of(adapter)
    parts = {}
    for tensor in sorted(checkpoint.tensors):
        stored = checkpoint.read(tensor)
        refuse_nonfinite(stored, tensor, checkpoint.path)
        parts[tensor] = Part(name, f"{name}/{tensor}", stored, layouts[tensor])
    return Source(name, adapter, parts)


def layouts_of(adapter: Adapter) -> dict[str, Layout]:
    """Of each tensor what its rank vectors are; tensors that are no factors are cut in rows, too."""
    infos = adapter.checkpoint.tensors
    found: dict[str, Layout] = {
        name: "rows" if len(info.shape) > 1 else "whole" for name, info in infos.items()
    }
    for module in adapter.modules:
        if len(infos[module.b].shape) > 1:
            found[module.b] = "columns"
    return found


def is_float(tensor: Stored) -> bool:
    """Whether this can be computed with."""
    return tensor.dtype in FLOATS
