"""What pruning reads: pieces of the tensors to be pruned, as stored or in fp32, in threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from paring.checkpoint import Checkpoint
from paring.dtypes import itemsize
from paring.errors import BadValueError
from paring.merging.models import SPAN
from paring.merging.sources import Bits, Weights
from paring.pruning.tensors import Target
from paring.stream import in_order

F32 = npt.NDArray[np.float32]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Piece:
    """Entries ``start:stop`` of the flat target number ``index``; all of them in its matrix ``number``."""

    index: int
    number: int
    start: int
    stop: int

    def nbytes(self, dtype: str) -> int:
        """What it takes as stored."""
        return (self.stop - self.start) * itemsize(dtype)


class Reader:
    """The targets of one checkpoint, read by pieces. Safe from several threads."""

    def __init__(self, checkpoint: Checkpoint, targets: Sequence[Target], threads: int) -> None:
        self.targets, self.threads = targets, threads
        self.source = Weights(checkpoint)
        self._local = threading.local()

    def bits(self, piece: Piece) -> Bits:
        """The entries ``(n,)`` as stored, in memory of this thread's until it reads again."""
        target = self.targets[piece.index]
        buffer = self.buffer("read", piece.nbytes(target.dtype))
        return self.source.read(target.name, piece.start, piece.stop, buffer)

    def values(self, piece: Piece, bits: Bits | None = None) -> F32:
        """The entries in fp32 ``(n,)``. Raises BadValueError, with the tensor, for NaN and infinity."""
        from paring.kernels import elementwise

        dtype = self.targets[piece.index].dtype
        out = np.empty(piece.stop - piece.start, np.float32)
        if not elementwise.widen(self.bits(piece) if bits is None else bits, dtype, out):
            raise self.broken(piece)
        return out

    def broken(self, piece: Piece) -> BadValueError:
        """What is said of NaN and infinity."""
        return BadValueError(
            f"{self.source.path}: {self.targets[piece.index].name} holds NaN, infinity or a value too large "
            "for fp32: this model is broken, get or train it again"
        )

    def buffer(self, what: str, need: int) -> npt.NDArray[np.uint8]:
        """Bytes ``(need,)`` of this thread's memory, one buffer for each use."""
        held: npt.NDArray[np.uint8] = getattr(self._local, what, np.empty(0, np.uint8))
        if len(held) < need:
            held = np.empty(need, np.uint8)
            setattr(self._local, what, held)
        return held[:need]

    def visit(
        self, work: Callable[[Piece], T], pieces: Sequence[Piece], threads: int | None = None
    ) -> Iterator[T]:
        """``work`` done on all pieces, in threads; results come in order."""
        return in_order(work, pieces, threads or self.threads)

    def close(self) -> None:
        """Close all files. Raises BadFileError when one has changed since it was opened."""
        self.source.close()


def spans(index: int, target: Target, size: int = SPAN) -> Iterator[Piece]:
    """The pieces of a target in flat order: ``size`` entries each, never of two matrices."""
    for number in range(target.stack):
        begin = number * target.size
        for start in range(begin, begin + target.size, size):
            yield Piece(index, number, start, min(start + size, begin + target.size))


def slabs(index: int, target: Target, whole: bool) -> Iterator[Piece]:
    """Pieces of whole rows, a multiple of eight but for the last, or ``whole`` matrices."""
    rows = max(8, SPAN // max(1, target.inn) // 8 * 8)
    yield from spans(index, target, max(1, target.size if whole else rows * target.inn))


def wholes(targets: Sequence[Target]) -> list[Piece]:
    """All matrices, a piece each."""
    return [piece for index, target in enumerate(targets) for piece in slabs(index, target, True)]


def matrices(targets: Sequence[Target]) -> Iterator[tuple[int, int]]:
    """The numbers of all matrices: of the target, and within it."""
    return ((index, number) for index, target in enumerate(targets) for number in range(target.stack))


def shapes(targets: Sequence[Target]) -> dict[str, tuple[int, int]]:
    """``(out, in)`` of every matrix by name, in order."""
    return {
        targets[index].matrix(number): (targets[index].out, targets[index].inn)
        for index, number in matrices(targets)
    }


def keyed(values: Any) -> npt.NDArray[np.uint32]:
    """The bits of magnitudes ``values (n,)``, which order as they do."""
    from paring.kernels import order

    return order.keys(values, False)
