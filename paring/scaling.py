"""Where a module's scale goes in another dialect, and what its tensors are there."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from paring import lowrank
from paring.adapters.algebra import F64
from paring.adapters.derived import wide
from paring.adapters.view import Dialect, LowRank
from paring.dtypes import FLOATS, Stored, cast, from_f32
from paring.folders import CONFIG
from paring.report import ModuleReport, ScaleReport

_KEPT = {"alpha": "alpha", "config": CONFIG}


@dataclass(frozen=True, slots=True)
class How:
    """The dialect, the dtype that was asked for, and the ``--adapter-scale``."""

    dialect: Dialect
    dtype: str | None
    factor: float


@dataclass(frozen=True, slots=True, eq=False)
class Placed:
    """One module of the result: ``tensors`` under the names there, ``alpha`` if its scale is kept.

    ``lost`` and ``energy`` are squared norms of what rounding took, and of the update; ``factor`` is the
    ``--adapter-scale``, which is in ``scale``.
    """

    module: LowRank
    name: str
    tensors: dict[str, Stored]
    rank: int
    scale: float
    source: str
    kept: str
    alpha: float
    factor: float
    lost: float
    energy: float
    held: bool = False

    @property
    def flat(self) -> bool:
        """Whether this may be a convolution whose kernel is not known."""
        derived = self.module.derived
        return derived is not None and "conv" in self.module.name and len(derived.shapes[0]) == 2

    def report(self) -> ModuleReport:
        error = (self.lost / self.energy) ** 0.5 if self.energy else 0.0
        shape = (self.module.n_out, self.module.n_in)
        return ModuleReport(
            self.name, shape, self.rank, error=error, scale=self.scale, scale_source=self.source
        )


def scales_of(placed: Sequence[Placed]) -> list[ScaleReport]:
    """Modules by scale, source, and how it is kept."""
    groups = Counter((one.scale, one.source, one.kept) for one in placed)
    return [ScaleReport(scale, source, kept, count) for (scale, source, kept), count in groups.items()]


def place(
    module: LowRank,
    parts: Mapping[str, Stored],
    name: str,
    how: How,
    embedding: bool,
) -> Placed:
    """``module`` as plain factors under the file's name ``name``, in the dtype asked for or its own.

    Factors that had to be computed, and B where a scale that is no power of two was multiplied into it, are
    fp32 unless another dtype is asked for. Raises BadValueError for a value too large for its dtype.
    """
    dialect, wanted, factor = how.dialect, how.dtype, how.factor
    scale, source = module.scale * factor, _source(module, factor)
    A, B, dtypes = _factors(module, parts)
    # zero cannot be an alpha: readers take that for r
    folded = dialect.scale_in is None or not scale
    kept, alpha, left = _KEPT.get(dialect.scale_in or "", ""), scale * module.rank, 1.0
    if folded:
        left, alpha = scale, float(module.rank)
        dtypes, kept = _folded(B, scale, dtypes, wanted)
    forms = (dialect.embedding if embedding else None) or dialect.plain
    names = [form.format(module=name) for form in forms]
    shapes = _shapes(module, parts)
    stored = [
        from_f32((values if values is A else values * left).reshape(shape), wanted or dtype, own)
        for values, dtype, own, shape in zip((A, B), dtypes, names, shapes, strict=True)
    ]
    tensors = dict(zip(names, stored, strict=True))
    if dialect.alpha is not None and dialect.scale_in == "alpha":
        own = dialect.alpha.format(module=name)
        tensors[own] = _alpha(alpha, module.rank, 1.0 if folded else scale, own)
    a, b = (wide(tensor).reshape(values.shape) for tensor, values in zip(stored, (A, B), strict=True))
    energy = scale**2 * lowrank.energy(A, B)
    same = np.array_equal(a, A) and np.array_equal(b, B * left)
    lost = 0.0 if same else lowrank.distance(A, B * scale, a, b * (1.0 if folded else scale))
    return Placed(
        module, name, tensors, module.rank, scale, source, kept, alpha, factor, max(lost, 0.0), energy
    )  # fmt: skip


def place_held(
    module: LowRank,
    parts: Mapping[str, Stored],
    name: str,
    how: How,
) -> Placed | None:
    """``module`` in its own tensors, where the dialect has that kind and reads the same update in them."""
    dialect, wanted, factor, derived = how.dialect, how.dtype, how.factor, module.derived
    if derived is None or derived.kind not in dialect.holds:
        return None
    scale = module.scale * factor
    told = [derived.tensors.get(role) for role in ("hada_w1_b", "lokr_w1_b", "lokr_w2_b")]
    rank = next((parts[tensor].shape[0] for tensor in told if tensor), None)
    by_kernel = "lokr_w2" in derived.tensors and len(parts[derived.tensors["lokr_w2"]].shape) == 3
    if by_kernel or not scale or (rank is None and scale != 1):
        return None
    tensors = {f"{name}.{role}": _cast(parts[own], wanted, own) for role, own in derived.tensors.items()}
    alpha = scale * (rank or 1)
    assert dialect.alpha is not None
    if rank is not None:
        own = dialect.alpha.format(module=name)
        tensors[own] = _alpha(alpha, rank, scale, own)
    A, B = derived.factors(lambda own: wide(parts[own]))
    a, b = derived.compute({role: wide(tensors[f"{name}.{role}"]) for role in derived.tensors})
    lost = scale**2 * lowrank.distance(A, B, a.reshape(len(a), -1), b)
    return Placed(
        module, name, tensors, module.rank, scale, _source(module, factor), "alpha", alpha, factor,
        max(lost, 0.0) if wanted else 0.0, scale**2 * lowrank.energy(A, B), True,
    )  # fmt: skip


def _source(module: LowRank, factor: float) -> str:
    return module.scale_source if factor == 1 else f"{module.scale_source}, times {factor:g} as asked"


def _factors(module: LowRank, parts: Mapping[str, Stored]) -> tuple[F64, F64, tuple[str, str]]:
    """A ``(r, in)``, B ``(out, r)`` in fp64, and the dtypes that they are written in."""
    if module.derived is not None:
        A, B = module.derived.factors(lambda name: wide(parts[name]))
        return A, B, ("F32", "F32")
    a, b = parts[module.a], parts[module.b]
    shape = (module.n_out, module.rank)
    return wide(a).reshape(module.rank, module.n_in), wide(b).reshape(shape), (a.dtype, b.dtype)


def _shapes(module: LowRank, parts: Mapping[str, Stored]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    if module.derived is not None:
        return module.derived.shapes
    return parts[module.a].shape, parts[module.b].shape


def _folded(B: F64, scale: float, dtypes: tuple[str, str], wanted: str | None) -> tuple[tuple[str, str], str]:
    """The dtypes of factors when ``scale`` is multiplied into B, and what is told of it."""
    if scale == 1:
        return dtypes, "1, not stored"
    if math.frexp(scale)[0] in (0.5, -0.5, 0.0) and _fits(B * scale, dtypes[1]):
        return dtypes, "multiplied into B"
    dtype = "F64" if dtypes[1] == "F64" else "F32"
    return (dtypes[0], dtype), f"multiplied into B, rounded to {wanted or dtype}"


def _fits(values: F64, dtype: str) -> bool:
    """Whether ``dtype`` holds all of ``values`` exactly."""
    limit = {"F16": 65504.0}.get(dtype, float(np.finfo(np.float32).max))
    if dtype != "F64" and (np.abs(values) > limit).any():
        return False
    return np.array_equal(wide(from_f32(values, dtype)), values)


def _alpha(alpha: float, rank: int, scale: float, name: str) -> Stored:
    """A scalar from which a reader finds the same scale: fp32, or fp64 where that is not enough."""
    narrow = float(np.float32(alpha))
    dtype = "F32" if narrow and narrow / rank == scale else "F64"
    return from_f32(np.array(alpha), dtype, name)


def _cast(stored: Stored, wanted: str | None, name: str) -> Stored:
    return stored if wanted is None or stored.dtype not in FLOATS else cast(stored, wanted, name)
