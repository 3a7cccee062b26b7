"""What compression methods are given and what they hand back, so that budgets are solved in one place.

A method gets the :class:`Factors` of every module and returns a :class:`Family`: codings on one dial, larger
and better as it turns up. :mod:`paring.budget` finds the dial. :func:`loss_of` measures what a coding lost,
on the very values that a reader will decode.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from paring import codecs, lowrank
from paring.codecs.ternary import Ternary
from paring.codecs.trellis import Levels
from paring.dtypes import Stored, from_f32

F32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Factors:
    """One module: A ``(r, in)`` and B ``(out, r)`` in fp32, under the names of their tensors.

    An (IA)^3 vector l is a module whose delta is ``l - 1``: A ``(1, n)`` holds it, ``b`` is None and B is
    ``[[1]]``. ``scale`` multiplies the product. ``dtypes`` and ``shapes`` are those of the stored tensors a,
    b. A module that is ``needed`` cannot be left out of a file.
    """

    name: str
    a: str
    b: str | None
    A: F32
    B: F32
    scale: float
    dtypes: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    needed: bool = False

    @property
    def numel(self) -> int:
        """Parameters stored: those of A and B, or of the vector."""
        return self.A.size + (self.B.size if self.b else 0)


#: a tensor as a codec takes it
Item = Ternary | Levels | Stored


@dataclass(frozen=True, slots=True)
class Coded:
    """A coding: tensor name -> item of a codec, of the shape that the tensor will have.

    A module may have fewer ranks than in the source, or be left out; the file then says so (:mod:`.imaging`).
    A :class:`Stored` item is the tensor itself, in the dtype that it will have; those of codecs decode to the
    source's.
    """

    tensors: Mapping[str, Item]

    def of(self, factors: Factors) -> tuple[Item | None, Item | None]:
        """The items of a module's tensors a, b; None for what is left out or what it has not."""
        return self.tensors.get(factors.a), self.tensors.get(factors.b) if factors.b else None


class Family(Protocol):
    """Codings on one dial, ``0 <= dial < dials``: larger dials take more bytes and lose less, nearly.

    From the first of ``turns`` on, larger dials take fewer bytes, from the second more again, and so on. A
    family may have ``sketch(dial)``: nearly the bytes and the error of that coding, found without coding.
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


def loss_of(factors: Factors, a: Item | None, b: Item | None) -> Loss:
    """The loss of a module whose tensors are coded as ``a`` and ``b``; ``O((in + out) r^2)``, in fp64.

    Without ``a`` the module is left out, and all of it is lost.
    """
    if a is None:
        return _all_of(factors)
    if b is not None:
        A = _values(a, factors.dtypes[0]).reshape(-1, factors.A.shape[1])
        B = _values(b, factors.dtypes[1]).reshape(len(factors.B), -1)
        return _loss(factors, A, B)
    return _loss(factors, (_vector(factors, a) - np.float32(1)).reshape(factors.A.shape), factors.B)


def measured(modules: Sequence[Factors], tensors: Mapping[str, Stored]) -> list[Loss]:
    """The same of decoded tensors, however they were coded; modules that are not there lost all."""
    out = []
    for factors in modules:
        if factors.a not in tensors:
            out.append(_all_of(factors))
            continue
        A = tensors[factors.a].f32().reshape(-1, factors.A.shape[1])
        B = tensors[factors.b].f32().reshape(len(factors.B), -1) if factors.b else factors.B
        out.append(_loss(factors, A if factors.b else A - np.float32(1), B))
    return out


def strayed(factors: Factors, coded: Coded, tensors: Mapping[str, Stored]) -> str | None:
    """The name of a tensor of the module that was decoded to other values than :func:`loss_of` measured, or
    that is there when it was left out, or the other way round; None where all is well."""
    for name, dtype in zip((factors.a, factors.b), factors.dtypes, strict=False):
        item, found = coded.tensors.get(name or ""), tensors.get(name or "")
        if item is None and found is None:
            continue
        if item is None or found is None:
            return name
        values = _vector(factors, item) if factors.b is None else _values(item, dtype)
        if not np.array_equal(values.reshape(-1), found.f64().reshape(-1)):
            return name
    return None


def _vector(factors: Factors, item: Item) -> npt.NDArray[np.floating[Any]]:
    """The (IA)^3 vector that ``item`` decodes to: of codecs 1 + value is what gets rounded to the dtype."""
    if isinstance(item, Stored):
        return item.f32()
    return from_f32(codecs.of(item).values(item, "F64") + 1.0, factors.dtypes[0], factors.a).f32()


def _values(item: Item, dtype: str) -> npt.NDArray[np.float64]:
    """What ``item`` decodes to: in ``dtype``, or a stored tensor in its own."""
    found: npt.NDArray[np.float64] = codecs.of(item).values(
        item, item.dtype if isinstance(item, Stored) else dtype
    )
    return found


def _all_of(factors: Factors) -> Loss:
    energy = factors.scale**2 * lowrank.energy(factors.A, factors.B)
    return Loss(energy, energy, 0)


def _loss(factors: Factors, A: lowrank.Floats, B: lowrank.Floats) -> Loss:
    square = factors.scale**2
    kept = int(np.count_nonzero(A)) + (int(np.count_nonzero(B)) if factors.b else 0)
    lost, energy = lowrank.compared(factors.A, factors.B, A, B)
    return Loss(square * lost, square * energy, kept)


def rounded(x: npt.NDArray[np.float64], bits: int | npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """``x`` (n,) rounded to so many ``bits``, one number or (n,), from the leading one on: scales that are
    cheap to store."""
    mantissa, exponent = np.frexp(x)
    found: npt.NDArray[np.float64] = np.ldexp(np.round(np.ldexp(mantissa, bits)), exponent - bits)
    return found


def total_error(found: Sequence[Loss]) -> float:
    """sqrt(sum ||D - D'||^2 / sum ||D||^2) over modules."""
    energy = sum(loss.energy for loss in found)
    return float((sum(loss.lost for loss in found) / energy) ** 0.5) if energy else 0.0
