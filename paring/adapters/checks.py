"""What headers tell of a pair of factors: whether they fit each other, and are a product of matrices."""

from __future__ import annotations

from collections.abc import Mapping

from paring.checkpoint import Checkpoint, TensorInfo
from paring.dtypes import FLOATS


def problem(checkpoint: Checkpoint, module: str, roles: Mapping[str, str]) -> str | None:
    """What is wrong with the factors of one module, as a sentence, or None."""
    where = checkpoint.path
    if len(roles) < 2:
        have, other = next(iter(roles.values())), "B" if "a" in roles else "A"
        return f"{where}: {have} has no matching {other}; the file is incomplete"
    a, b = checkpoint.tensors[roles["a"]], checkpoint.tensors[roles["b"]]
    for info in (a, b):
        if info.numel == 0:
            return (
                f"{where}: {info.name} is empty, shape {list(info.shape)}; sharded training saved only a "
                "placeholder: gather the full weights and save again"
            )
        if len(info.shape) < 2:
            shape = list(info.shape)
            return f"{where}: {info.name} has shape {shape}; a factor needs two axes (a sharded save?)"
    if a.shape[0] != b.shape[1] and not grouped(a, b):
        return (
            f"{where}: ranks disagree in module {module}: "
            f"{a.name} {list(a.shape)} against {b.name} {list(b.shape)}"
        )
    return None


def grouped(a: TensorInfo, b: TensorInfo) -> bool:
    """A grouped convolution: B is (out, r / groups, 1, ...)."""
    rank, part = a.shape[0] if len(a.shape) > 2 else 0, b.shape[1] if len(b.shape) > 2 else 0
    return rank > part > 0 and rank % part == 0


def unfit(a: TensorInfo, b: TensorInfo) -> str | None:
    """Why two complete factors are still not a plain product of matrices."""
    if grouped(a, b):
        return "grouped convolution: its factors are not one matrix product"
    if any(axis != 1 for axis in b.shape[2:]):
        return "the up factor has a kernel: not one matrix product"
    for info in (a, b):
        if info.dtype not in FLOATS:
            return f"quantised or integer factor ({info.dtype})"
    return None


def scalar_of(checkpoint: Checkpoint, name: str) -> float | None:
    """The value of a one-element floating-point or integer tensor, or None when there is none."""
    info = checkpoint.tensors.get(name)
    if info is None or info.numel != 1:
        return None
    stored = checkpoint.read(name)
    narrow = info.dtype in FLOATS and info.dtype != "F64"
    return float((stored.f32() if narrow else stored.data).reshape(-1)[0])
