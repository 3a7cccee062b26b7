"""The two families of ternary codings behind :mod:`paring.compress.compeft`.

:class:`Thresholded` keeps the largest magnitudes of shared vectors; its dial is the number kept.
:class:`Fitted` chooses every rank vector for itself; its dial is the price of a bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from paring import lowrank
from paring.codecs.ternary import Ternary, from_floats, from_trits
from paring.coding import F32, Coded, Factors, rounded
from paring.compress._priced import Priced
from paring.kernels import semidiscrete
from paring.stream import Item, Magnitudes, Moments, reduce

F64 = npt.NDArray[np.float64]

#: from so many entries on, trials take seconds: sizes are told beforehand
_LARGE = 4_000_000
#: fitted scales keep this many bits: within 3.2 %, exact in every dtype (fp16: from 1e-6 on), cheap to store
_BITS = 5


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """One tensor of a shared vector: ``values`` in fp32, of the stored tensor's shape."""

    name: str
    kind: str
    values: F32

    def item(self) -> Item:
        return Item(self.name, self.values.nbytes, lambda: self.values.reshape(-1))


class _Group:
    """Tensors that share one threshold and one scale, as one vector v of ``n`` values."""

    def __init__(self, parts: Sequence[_Part], threads: int, device: str) -> None:
        self.parts = parts
        items = [part.item() for part in parts]
        self._magnitudes = Magnitudes(items, threads=threads, device=device)
        self.n, _, self._std = reduce(items, Moments(), threads=threads)

    def encode(self, kept: int, alpha: float | Literal["lsq"]) -> Iterable[tuple[str, Ternary]]:
        """The ``kept`` largest magnitudes and whatever ties with the last."""
        # the smallest positive number: the sign of a zero is zero, also where zeros tie at the threshold
        t = max(self._magnitudes.kth_largest(min(kept, self.n)), np.nextafter(np.float32(0), np.float32(1)))
        scale = self._mean_of_survivors(t) if alpha == "lsq" else alpha * self._std
        return [(part.name, from_floats(part.values, float(t), scale)) for part in self.parts]

    def _mean_of_survivors(self, t: np.float32) -> float:
        total, count = 0.0, 0
        for part in self.parts:
            magnitudes = np.abs(part.values)
            keep = magnitudes >= t
            total += float(magnitudes[keep].sum(dtype=np.float64))
            count += int(keep.sum())
        return total / count if count else 0.0


class Thresholded:
    """The published rule on groups of tensors: the dial is ``int(d k)`` of the whole adapter's d values.

    A group of d' values keeps ``int(d' dial / d) + 1`` of them, and ties.
    """

    def __init__(
        self,
        modules: Sequence[Factors],
        basis: str,
        scope: str,
        alpha: float | Literal["lsq"],
        density: float | None,
        threads: int,
        device: str,
    ) -> None:
        groups: dict[str, list[_Part]] = {}
        for part in _parts(modules, basis):
            key = {"global": "", "factor": part.kind, "tensor": part.name}[scope]
            groups.setdefault(key, []).append(part)
        self._groups = [_Group(parts, threads, device) for parts in groups.values()]
        self._d = max(1, sum(group.n for group in self._groups))
        self._alpha, self._density = alpha, density
        self.dials, self.turns = self._d, _turns(self._groups, self._d)
        if self._d > _LARGE:
            shares = np.concatenate([[0], np.geomspace(1e-6, 1 / 64, 64)[:-1], np.linspace(1 / 64, 1, 64)])
            bits = _bits(self._groups, shares)
            self.sketch = lambda dial: (float(np.interp(dial / self._d, shares, bits)) / 8, None)
        # entries come and go one by one, files grow by whole words: that matters where files are small
        self.scan = min(128, 2**19 // self._d)
        self.fixed = None if density is None else int(self._d * density)

    def encode(self, dial: int) -> Coded:
        tensors: dict[str, Ternary] = {}
        for group in self._groups:
            # int(d k) with the k that was typed: the published count, in floating point as published
            fixed = self._density is not None and dial == self.fixed
            kept = int(group.n * self._density) if fixed and self._density else group.n * dial // self._d
            tensors.update(group.encode(kept + 1, self._alpha))
        return Coded(tensors)


def _turns(groups: Sequence[_Group], d: int) -> tuple[int, ...]:
    """The dials at which size turns: a tensor of n values takes about n (H(k) + k) bits when it keeps k of
    them.

    That peaks at k = 2/3, but tensors of unlike magnitudes reach it one after another; a sample tells where.
    """
    shares = np.linspace(0, 1, 65)
    bits = _bits(groups, shares)
    turns: list[int] = []
    rising, extreme = 1, 0
    for index in range(65):
        if rising * (bits[index] - bits[extreme]) >= 0:
            extreme = index
        elif rising * (bits[extreme] - bits[index]) > bits.max() / 50:  # less is not worth a stretch
            turns.append(int(d * shares[extreme]))
            rising, extreme = -rising, index
    return tuple(turns)


def _bits(groups: Sequence[_Group], shares: F64) -> F64:
    """Nearly the bits that the groups take when they keep these shares of their entries."""
    bits = np.zeros(len(shares))
    for group in groups:
        parts = [part for part in group.parts if part.values.size]
        if not parts:
            continue
        step = -(-group.n // 2**16)
        samples = [np.sort(np.abs(part.values.reshape(-1)[::step])) for part in parts]
        thresholds = np.quantile(np.concatenate(samples), 1 - shares, method="higher")
        for sample, part in zip(samples, parts, strict=True):
            below = np.searchsorted(sample, np.maximum(thresholds, np.finfo(np.float32).tiny))
            kept = np.clip(1 - below / len(sample), 1e-9, 1 - 1e-9)
            entropy = -kept * np.log2(kept) - (1 - kept) * np.log2(1 - kept)
            bits += part.values.size * (entropy + kept)
    return bits


def _parts(modules: Sequence[Factors], basis: str) -> Iterable[_Part]:
    for factors in modules:
        if factors.b is None:
            yield _Part(factors.a, "vector", factors.A.reshape(factors.shapes[0]))
            continue
        A, B = (factors.A, factors.B) if basis == "trained" else lowrank.balanced(factors.A, factors.B)
        yield _Part(factors.a, "A", np.asarray(A, np.float32).reshape(factors.shapes[0]))
        yield _Part(factors.b, "B", np.asarray(B, np.float32).reshape(factors.shapes[1]))


class Fitted(Priced):
    """Each rank vector with its own density and scale, as the price of a bit decides."""

    def __init__(
        self, modules: Sequence[Factors], basis: str, sweeps: int, density: float | None, threads: int
    ) -> None:
        self._modules, self._sweeps = modules, sweeps
        with ThreadPoolExecutor(threads) as pool:
            self._pieces = list(pool.map(lambda factors: _pieces(factors, basis), modules))
        most = max((lowrank.energy(A, B) for pieces in self._pieces for A, B in pieces), default=0.0)
        # a rank vector that comes or goes is a jump in size; among very many, jumps are too small to matter
        scan = min(128, 2**20 // max(1, sum(len(factors.A) for factors in modules)) ** 2)
        top = most / semidiscrete.SIDE_BITS or 1.0
        super().__init__(len(modules), self._encode, top, 40, scan, threads)
        self.fixed = None if density is None else self._dial_of(density)

    def _encode(self, index: int, price: float) -> list[tuple[str, Ternary]]:
        factors, pieces = self._modules[index], self._pieces[index]
        fits = [semidiscrete.fit(A, B, price, self._sweeps) for A, B in pieces]
        P, Q, scale = (np.concatenate(parts) for parts in zip(*fits, strict=True))
        P = P * np.int8(np.sign(factors.scale) or 1)
        scale = scale / abs(factors.scale) if factors.scale else scale * 0
        if factors.b is None:  # p is +1 or -1, and goes into q
            q = (Q[0] * (P[0, 0] or 1)).reshape(factors.shapes[0])
            return [(factors.a, from_trits(q, rounded(scale, _BITS), "whole"))]
        of_a, of_b = _split(scale, np.count_nonzero(Q, axis=1), np.count_nonzero(P, axis=1))
        a_trits, b_trits = Q.reshape(factors.shapes[0]), np.ascontiguousarray(P.T).reshape(factors.shapes[1])
        return [
            (factors.a, from_trits(a_trits, of_a, "rows")),
            (factors.b, from_trits(b_trits, of_b, "columns")),
        ]

    def _dial_of(self, density: float) -> int:
        """The largest dial whose share of non-zeros stays within ``density``; shares rise with the dial."""
        total = sum(factors.numel for factors in self._modules)
        low, high = 0, self.dials - 1
        while low < high:
            middle = (low + high + 1) // 2
            kept = sum(
                int(np.bitwise_count(item.mask).sum())
                for item in self.encode(middle).tensors.values()
                if isinstance(item, Ternary)
            )
            low, high = (middle, high) if kept <= density * total else (low, middle - 1)
        return low


def _pieces(factors: Factors, basis: str) -> list[tuple[F64, F64]]:
    """What is fitted on its own: the whole module, or each of its rank vectors, as (A, scale * B) in fp64."""
    B = factors.B * np.float64(factors.scale)
    if factors.b is None:
        return [(factors.A.astype(np.float64), B)]
    A, B = lowrank.balanced(factors.A, B) if basis != "trained" else (factors.A.astype(np.float64), B)
    if basis == "semidiscrete":
        return [(A, B)]
    return [(A[c : c + 1], B[:, c : c + 1]) for c in range(len(A))]


def _split(scale: F64, kept_a: npt.NDArray[Any], kept_b: npt.NDArray[Any]) -> tuple[F64, F64]:
    """Scales of a and b with the product ``scale``, near to equal norms; b's is a power of two: cheap."""
    used = scale > 0
    ratio = np.sqrt(np.where(used, kept_a, 1) / np.where(used, kept_b, 1))
    of_b = np.where(used, 2.0 ** np.round(np.log2(np.sqrt(np.where(used, scale, 1.0) * ratio))), 0.0)
    of_a = np.where(used, rounded(scale / np.where(used, of_b, 1.0), _BITS), 0.0)
    return of_a, of_b
