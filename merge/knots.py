"""KnOTS (Stoica et al. 2025): deltas in a basis that they share, merged there by ties.

Of every layer the deltas are put side by side along the input, ``[tau_1 ... tau_n] = U S [V_1 ... V_n]^T``;
``S V_i^T = U^T tau_i`` are model i's coordinates. They are merged as by ties, with one threshold for each
model over *all* layers, and ``U`` times the result is the delta. Tensors that are not 2-D take part as they
are. Where coordinates cancel the result is zero: signs here are those of singular vectors, arbitrary from
layer to layer, and have no majority.

The authors' code leaves out singular values up to 1e-5; here it is those below 1e-6 of a layer's largest, so
that the deltas' scale does not matter. Cost: a whole tensor of all models at a time; an eigendecomposition of
the smaller Gram matrix in fp64 for each of them. Bases are kept for the next visit as long as all of them fit
1 GiB (adapters, and models up to some 250 million parameters); otherwise they are made anew in each of the
four visits, of which three find the thresholds. When not to use it: full fine-tunes have all directions, and
gain little over ties for that price.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from typing import Literal

import numpy as np

from paring import ranks
from paring.kernels import merging
from paring.merge._common import check_density
from paring.merge._spectral import decomposed, is_matrix, left, matrices
from paring.merging.models import F32, F64, Blend, Chunk, Models, Place
from paring.registry import method

_KEPT_BYTES = 1 << 30


@method(
    sees="deltas",
    reference="Stoica et al.: Model Merging with SVD to Tie the Knots, arXiv:2410.19735, section 4",
    unit="tensor",
    invariants=("order", "homogeneous"),
)
def knots(
    models: Models,
    *,
    density: float = 0.2,
    sign: Literal["mass", "count"] = "mass",
    combine: Literal["mean", "sum", "max"] = "mean",
) -> Blend:
    """KnOTS: ties in the singular vectors that all deltas share.

    Options:
        density: share of each model's coordinates kept, in (0, 1]
        sign: elected by the mass of what is kept (published) or by the count of its signs
        combine: the mean (published), sum or largest of the entries that agree
    """
    check_density(density)
    bases = _Bases()
    thresholds = _thresholds(models, bases, density)

    def blend(chunk: F32, place: Place) -> F32:
        basis = bases.of(chunk, place)
        found = _coordinates(chunk, place, basis)
        merged = merging.ties(found, thresholds, place.weights, sign, combine, 0.0)
        if basis is None:
            return merged
        return (basis @ merged.reshape(-1, place.target.shape[1])).reshape(-1)

    return Blend(blend)


class _Bases:
    """``U (out, r)`` of each matrix in fp32, made when asked for and kept while there is room."""

    def __init__(self) -> None:
        self._kept: dict[int, F32] = {}
        self._room = _KEPT_BYTES
        self._lock = threading.Lock()

    def of(self, chunk: F32, place: Place) -> F32 | None:
        """The basis for a whole tensor of all models; None for one that is no matrix."""
        shape = place.target.shape
        if not is_matrix(shape):
            return None
        if place.index in self._kept:
            return self._kept[place.index]
        basis = _left(matrices(chunk, shape)).astype(np.float32)
        with self._lock:
            if basis.nbytes <= self._room and place.index not in self._kept:
                self._room -= basis.nbytes
                self._kept[place.index] = basis
        return basis


def _left(parts: Sequence[F32]) -> F64:
    """``U (out, r)`` of matrices ``(out, in)`` side by side, by the smaller of their Gram matrices."""
    out, n_in = parts[0].shape
    if out > n_in * len(parts):  # an embedding's rows: far more than all columns together
        return decomposed(np.concatenate(parts, axis=1).astype(np.float64))[0]
    gram = np.zeros((out, out))
    for part in parts:
        wide = part.astype(np.float64)
        gram += wide @ wide.T
    return left(gram)


def _coordinates(chunk: F32, place: Place, basis: F32 | None) -> F32:
    """``U^T tau_i`` of every model, flat: ``(models, r * in)``."""
    shape = place.target.shape
    if basis is None or not is_matrix(shape):
        return chunk
    out = np.empty((len(chunk), basis.shape[1], shape[1]), np.float32)
    for part, own in zip(matrices(chunk, shape), out, strict=True):
        np.matmul(basis.T, part, out=own)
    return out.reshape(len(chunk), -1)


def _thresholds(models: Models, bases: _Bases, density: float) -> F32:
    """The least magnitude that each model keeps, ``(models,)``; so many coordinates as ties keeps entries."""

    def over_all(work: Callable[[F32], list[ranks.Tally]]) -> list[ranks.Tally]:
        def tally(chunks: Iterator[Chunk]) -> list[ranks.Tally]:
            (chunk,) = chunks  # a span of a rule on tensors is one chunk
            return work(_coordinates(chunk.vectors, chunk.place, bases.of(chunk.vectors, chunk.place)))

        return reduce(ranks.merge, models.visit(tally, models.spans()))

    def size(chunk: F32, place: Place) -> F64:
        basis = bases.of(chunk, place)
        entries = chunk.shape[1] if basis is None else basis.shape[1] * place.target.shape[1]
        return np.array(float(entries))

    d = int(models.totals(size))
    if not d:
        return np.zeros(models.n, np.float32)
    wanted = [ranks.Wanted(row, max(0, d - int(d * density) - 1)) for row in range(models.n)]
    return ranks.find(wanted, d, None, over_all, signed=False)
