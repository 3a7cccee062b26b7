"""Truncation: every module cut to fewer ranks, in a basis in which any number of them is the best choice.

The update of a module is ``B A = sum_c s_c u_c v_c`` (QR of both factors, SVD of the r x r core). Its
factors become ``A' = sqrt(s) V``, ``B' = U sqrt(s)``: then the first k rank vectors are the best update of
rank k that there is, for every k at once, and the error is ``sqrt(sum of the squares of the s left out)``.
How many stay is a rank, a share of the energy, or found from the budget over all modules together: rank
vectors are kept in order of ``(scale s)^2`` a byte. What the file says beside its factors (PEFT's ``r``,
``lora_alpha``, ``rank_pattern`` and ``alpha_pattern``, kohya's ``.alpha``) is rewritten, so that every
scale stays what it was.

**Nested.** A file that was cut by this method is already in that basis, which is recognised: cutting it
again is slicing, bit for bit, so cutting to 8, then 4, then 2 gives the tensors that cutting to 2 at once
does, in every dtype. (Of values that fp16 holds as subnormals only, the basis may not be recognised: then
the same to rounding.) So one file of full rank serves every smaller one.

**DyLoRA** trains ranks nested already, in order, with a scale for each that only the trainer knows: the
first k of r were scaled by ``r / k`` or by ``sqrt(r / k)`` on top of alpha's, depending on whose code it
was. Give ``--gauge trained`` to keep its order, and ``--adapter-scale`` to say the scale of the rank that
is cut to.

Cost: O((in + out) r^2) a module. When not to use it: to make an adapter as small as can be; ``spectral``
spends bits on rank vectors instead of all or nothing. This is for runtimes that load plain factors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import numpy as np

from paring.coding import Coded, Factors, Family
from paring.compress import _ranks
from paring.errors import OptionError
from paring.registry import method

#: bytes as coded over bytes, by dtype: estimates, for what is tried first
_CODED = {"F64": 0.95, "F32": 0.84, "F16": 0.85, "BF16": 0.68}


@method(
    sees="modules",
    reference=(
        "Eckart and Young 1936; nested ranks: Valipour, Rezagholizadeh, Kobyzev, Ghodsi: DyLoRA, "
        "arXiv:2210.07558"
    ),
    fixes=("rank", "energy"),
)
def truncate(
    modules: Sequence[Factors],
    threads: int = 1,
    device: str = "cpu",
    *,
    rank: int | None = None,
    energy: float | None = None,
    gauge: Literal["svd", "trained"] = "svd",
    store: Literal["source", "fp16", "bf16", "fp32"] = "source",
    adapter_scale: float | None = None,
) -> Family:
    """Truncation: fewer ranks, nested, as plain factors.

    Options:
        rank: ranks kept of every module (those of smaller rank stay as they are); leave it and energy out to
            have it solved from the budget, over all modules together
        energy: share of the squared norm kept of every module, in (0, 1]
        gauge: which rank vectors: svd = the best update of each rank; trained = the first ones as they are,
            for DyLoRA
        store: the dtype of the factors; within a budget, 16 bits have room for twice the ranks of fp32
        adapter_scale: scale of every module instead of the one that the file says; DyLoRA's trainer knows it

    Returns the family over the number of rank vectors kept. Raises OptionError for what cannot be meant, and
    UnsupportedError where nothing has ranks. Decompositions are in fp64, factors are rounded once.
    """
    if rank is not None and energy is not None:
        raise OptionError("--rank and --energy both say what is kept: give one of them")
    if rank is not None and rank < 1:
        raise OptionError(f"--rank {rank}: at least 1")
    if energy is not None and not 0.0 < energy <= 1.0:
        raise OptionError(f"--energy {energy}: a share of the squared norm, in (0, 1]")
    if adapter_scale is not None and not (math.isfinite(adapter_scale) and adapter_scale):
        raise OptionError(f"--adapter-scale {adapter_scale}: a number other than 0")
    parts, vectors = _ranks.parts(modules, gauge, threads)
    largest = max(part.rank for part in parts)
    if rank is not None and rank > largest:
        raise OptionError(f"--rank {rank}: the largest rank of this adapter is {largest}")
    return _Truncated(parts, vectors, rank, energy, store)


class _Truncated:
    """The dial is the number of rank vectors kept, less one."""

    turns: tuple[int, ...] = ()

    def __init__(
        self,
        parts: Sequence[_ranks.Part],
        vectors: Sequence[Factors],
        rank: int | None,
        energy: float | None,
        store: str,
    ) -> None:
        self._parts, self._vectors, self._store = parts, vectors, store
        self._ranks = None if rank is None and energy is None else [_asked(p, rank, energy) for p in parts]
        self.fixed = None if self._ranks is None else 0
        price = np.concatenate([part.gains / _ranks.bytes_of(part, store) for part in parts])
        owner = np.concatenate([np.full(part.rank, i) for i, part in enumerate(parts)])
        first = np.append(0, np.cumsum([part.rank for part in parts]))
        price[[first[i] for i, part in enumerate(parts) if part.factors.needed]] = np.inf
        order = np.argsort(-price, kind="stable")
        self._owner = owner[order]  # whose rank vector comes next
        # a file without any module would be no adapter; numbered modules must all be there
        self._least = max(1, sum(part.factors.needed for part in parts))
        self.dials = len(order) - self._least + 1
        self.scan = 2 if len(order) < 2000 else 0
        size = np.array([_ranks.bytes_of(part, store) * self._share(part) for part in parts])[self._owner]
        gain = np.concatenate([part.lost[:-1] - part.lost[1:] for part in parts])[order]
        self._bytes, self._lost = np.cumsum(size), sum(part.energy for part in parts) - np.cumsum(gain)
        self._energy = sum(part.energy for part in parts)
        # neighbouring dials share all modules but one
        self._kept = lru_cache(maxsize=2 * len(parts))(
            lambda index, count: _ranks.kept(parts[index], np.arange(count), store)
        )

    def _share(self, part: _ranks.Part) -> float:
        return _CODED.get(_ranks.DTYPES.get(self._store, part.factors.dtypes[0]), 1.0)

    def sketch(self, dial: int) -> tuple[float, float]:
        """The bytes of factors and the relative error to be expected at ``dial``."""
        at = dial + self._least - 1
        lost = max(0.0, float(self._lost[at]))
        return float(self._bytes[at]), math.sqrt(lost / self._energy) if self._energy else 0.0

    def encode(self, dial: int) -> Coded:
        if self._ranks is None:
            counts = np.bincount(self._owner[: dial + self._least], minlength=len(self._parts)).tolist()
        else:
            counts = self._ranks
        tensors = dict(_ranks.whole(self._vectors))
        for index, count in enumerate(counts):
            tensors.update(self._kept(index, count))
        return Coded(tensors)


def _asked(part: _ranks.Part, rank: int | None, energy: float | None) -> int:
    """The rank of a module by the options; 0 where a share of nothing was asked."""
    if rank is not None:
        return min(rank, part.rank)
    enough = part.lost <= (1.0 - (energy or 0.0) + 1e-13) * part.energy
    return max(int(enough.argmax()), int(part.factors.needed))
