"""Random numbers by counting: entry ``i`` of a stream depends on the stream's key and on ``i`` alone.

Philox 4x32-10 (Salmon et al. 2011, Parallel Random Numbers: As Easy as 1, 2, 3). Word ``i % 4`` of block
``i // 4`` gives entry ``i``, so any part of a stream can be made anywhere, in any order, by any thread.
``reference.py`` is the specification, ``cpu.py`` numba loops.
"""

from __future__ import annotations

import hashlib
import json

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
Keys = npt.NDArray[np.uint64]


def key(seed: int, *names: str) -> int:
    """The 64-bit key of the stream that ``seed`` and ``names`` stand for."""
    text = json.dumps([seed, *names]).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def uniform(keys: Keys, start: int, count: int) -> F32:
    """Entries ``start .. start + count`` of each stream, ``(keys, count)``: multiples of 2^-24 in [0, 1)."""
    from paring.kernels.random import cpu

    return cpu.uniform(keys, start, count)
