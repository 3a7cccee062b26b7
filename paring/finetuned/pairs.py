"""A fine-tune and its base, read side by side, some rows at a time."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from paring.checkpoint import Checkpoint
from paring.dtypes import Stored, cast, from_f32, itemsize
from paring.finetuned.parts import Matrix, spans
from paring.finetuned.table import Row
from paring.merging.sources import Weights

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

BLOCK = 1 << 20  # entries


class Pairs:
    """Reads both checkpoints. Reading is safe from several threads."""

    def __init__(self, tuned: Checkpoint, base: Checkpoint) -> None:
        self.tuned, self.base = tuned, base
        self._sources = Weights(tuned), Weights(base)

    def matrix(self, row: Row) -> Matrix:
        """The delta of a tensor as (rows, columns); a vector is one row."""
        rows, columns = self.shape(row)

        def read(start: int, stop: int) -> F32:
            mine, below = self.read(row, start * columns, stop * columns)
            delta: F32 = (mine.f64() - below.f64()).astype(np.float32).reshape(stop - start, columns)
            return delta

        return Matrix(row.name, rows, columns, read)

    def shape(self, row: Row) -> tuple[int, int]:
        """That of :meth:`matrix`."""
        info = self.tuned.tensors[row.name]
        count = info.shape[0] if len(info.shape) > 1 else 1
        return count, info.numel // max(1, count)

    def read(self, row: Row, start: int, stop: int) -> tuple[Stored, Stored]:
        """Entries ``start:stop`` of both, flat, as stored."""
        found = []
        for source, checkpoint, name in zip(
            self._sources, (self.tuned, self.base), (row.name, str(row.base)), strict=True
        ):
            dtype = checkpoint.tensors[name].dtype
            buffer = np.empty((stop - start) * itemsize(dtype), np.uint8)
            found.append(Stored(dtype, source.read(name, start, stop, buffer)))
        return found[0], found[1]

    def whole(self, row: Row) -> tuple[Stored, Stored]:
        """All of both, the base in the dtype of the fine-tune."""
        return self.tuned.read(row.name), cast(self.base.read(str(row.base)), row.dtype, row.name)

    def close(self) -> None:
        for source in self._sources:
            source.close()


def squares(a: Stored, b: Stored) -> float:
    """``||a - b||^2`` of two tensors, by blocks, in fp64."""
    one, other = a.data.reshape(-1), b.data.reshape(-1)
    total = 0.0
    for start, stop in spans(len(one), 1, BLOCK):
        first, second = (Stored(x.dtype, y[start:stop]).f64() for x, y in ((a, one), (b, other)))
        total += float(((first - second) ** 2).sum())
    return total


def rounded(below: Stored, delta: F64, dtype: str, name: str) -> tuple[Stored, int, int]:
    """``base + delta``, of the base's shape, in ``dtype``; how many entries change, and how many of these
    changes rounding undoes. Raises BadValueError where it overflows."""
    made = from_f32(below.f64() + delta.reshape(below.shape), dtype, name)
    moving = delta.reshape(-1) != 0
    still = made.data.reshape(-1) == cast(below, dtype, name).data.reshape(-1)
    return made, int(moving.sum()), int((moving & still).sum())
