"""What compression methods are given and what they hand back, so that budgets are solved in one place.

A method gets the :class:`Factors` of every module and returns a :class:`Family`: codings on one dial, larger
and better as it turns up. :mod:`paring.budget` finds the dial. :func:`loss_of` measures what a coding lost,
on the very values that a reader will decode.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from paring import lowrank
from paring.codecs.ternary import Ternary, to_trits
from paring.dtypes import Stored, from_f32

F32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Factors:
    """One module: A ``(r, in)`` and B ``(out, r)`` in fp32, under the names of their tensors.

    An (IA)^3 vector l is a module whose delta is ``l - 1``: A ``(1, n)`` holds it, ``b`` is None and B is
    ``[[1]]``. ``scale`` multiplies the product. ``dtypes`` and ``shapes`` are those of the stored tensors a,
    b.
    """

    name: str
    a: str
    b: str | None
    A: F32
    B: F32
    scale: float
    dtypes: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @property
    def numel(self) -> int:
        """Parameters stored: those of A and B, or of the vector."""
        return self.A.size + (self.B.size if self.b else 0)


@dataclass(frozen=True, slots=True)
class Coded:
    """A coding: tensor name -> ternary tensor of the stored tensor's shape."""

    tensors: Mapping[str, Ternary]


class Family(Protocol):
    """Codings on one dial, ``0 <= dial < dials``: larger dials take more bytes and lose less, nearly.

    From the first of ``turns`` on, larger dials take fewer bytes, from the second more again, and so on.
    """

    dials: int
    turns: tuple[int, ...]
    scan: int  #: how many dials apart two may be in the wrong order; 0 where that is not worth the trials
    fixed: int | None  #: the dial that the options asked for by themselves (a density), if they did

    def encode(self, dial: int) -> Coded: ...


@dataclass(frozen=True, slots=True)
class Loss:
    """What a coding lost of a module: ``lost``, ``energy`` are squared Frobenius norms of scaled deltas."""

    lost: float
    energy: float
    nonzero: int

    @property
    def error(self) -> float:
        """Relative error; 0 when there was nothing to lose."""
        return (self.lost / self.energy) ** 0.5 if self.energy else 0.0


def values(item: Ternary, dtype: str) -> npt.NDArray[np.float64]:
    """The dense values, fp64, that ``item`` decodes to in ``dtype``."""
    scale = from_f32(item.scale, dtype, "a scale")
    wide = (scale.data if dtype == "F64" else scale.f32()).astype(np.float64)
    trits = to_trits(item).astype(np.float64)
    if item.layout == "rows":
        return trits * wide.reshape(-1, *[1] * (trits.ndim - 1))
    if item.layout == "columns":
        return (trits.reshape(trits.shape[0], -1) * wide).reshape(trits.shape)
    return trits * float(wide[0])


def loss_of(factors: Factors, a: Ternary, b: Ternary | None) -> Loss:
    """The loss of a module whose tensors are coded as ``a`` and ``b``; ``O((in + out) r^2)``, in fp64."""
    if b is not None:
        A = values(a, factors.dtypes[0]).reshape(factors.A.shape)
        return _loss(factors, A, values(b, factors.dtypes[1]).reshape(factors.B.shape))
    # 1 + value is what gets rounded to the stored dtype
    vector = from_f32(values(a, "F64") + 1.0, factors.dtypes[0], factors.a).f32() - np.float32(1)
    return _loss(factors, vector.reshape(factors.A.shape), factors.B)


def measured(modules: Sequence[Factors], tensors: Mapping[str, Stored]) -> list[Loss]:
    """The same of decoded tensors, however they were coded."""
    out = []
    for factors in modules:
        A = tensors[factors.a].f32().reshape(factors.A.shape)
        B = tensors[factors.b].f32().reshape(factors.B.shape) if factors.b else factors.B
        out.append(_loss(factors, A if factors.b else A - np.float32(1), B))
    return out


def _loss(factors: Factors, A: lowrank.Floats, B: lowrank.Floats) -> Loss:
    square = factors.scale**2
    kept = int(np.count_nonzero(A)) + (int(np.count_nonzero(B)) if factors.b else 0)
    lost = square * lowrank.distance(factors.A, factors.B, A, B)
    return Loss(lost, square * lowrank.energy(factors.A, factors.B), kept)


def total_error(found: Sequence[Loss]) -> float:
    """sqrt(sum ||D - D'||^2 / sum ||D||^2) over modules."""
    energy = sum(loss.energy for loss in found)
    return float((sum(loss.lost for loss in found) / energy) ** 0.5) if energy else 0.0
