"""Iso-C and Iso-CTS (Marczak et al. 2025): the sum of deltas with all its singular values made equal.

Iso-C: ``sum_i w_i tau_i = U S V^T`` becomes ``mean(S) U V^T``. Iso-CTS (``--cts``) keeps the first ``common``
of the sum's directions and fills the rest with the first directions of each model's ``(I - U_c U_c^T)
tau_i``, makes both sides orthonormal and gives all the mean of their singular values. Tensors that are not
2-D get the mean of the weighted deltas.

Directions with singular values below 1e-6 of the largest are left out of the sum and of the mean: where a
sum has full rank, as the paper's, there are none; of low-rank deltas the published rule would put as much
into directions that rounding chose. Cost: one pass, a whole tensor of all models at a time, and for each
matrix an eigendecomposition of its smaller side in fp64 (with ``--cts`` one more for each model). When not
to use it: it is made for full fine-tunes of different tasks; for one task, small directions are noise.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from paring.errors import OptionError
from paring.kernels import merging
from paring.merge._spectral import decomposed, is_matrix, matrices, mean, orthogonal
from paring.merging.models import F32, F64, Blend, Models, Place
from paring.registry import method


@method(
    sees="deltas",
    reference="Marczak et al.: No Task Left Behind, Isotropic Model Merging, arXiv:2502.04959",
    unit="tensor",
    invariants=("order", "cancel", "homogeneous"),
)
def iso_c(models: Models, *, cts: bool = False, common: float = 0.8) -> Blend:
    """Iso-C: the sum of deltas, as much in every direction it has.

    Options:
        cts: Iso-CTS, which makes room for directions of each model's own
        common: with cts, share of the directions that are the sum's, in (0, 1]
    """
    if not 0 < common <= 1:
        raise OptionError(f"--common {common}: a share is a fraction in (0, 1]")

    def blend(chunk: F32, place: Place) -> F32:
        shape = place.target.shape
        if not is_matrix(shape):
            return merging.weighted_sum(chunk, mean(chunk, place))
        parts = [
            weight * part.astype(np.float64)
            for part, weight in zip(matrices(chunk, shape), place.target.weights, strict=True)
        ]
        total = np.sum(parts, axis=0)
        u, s, vt = _with_own(total, parts, common) if cts else decomposed(total)
        if len(s):
            u, vt = s.mean() * u, vt
        return (u @ vt).reshape(-1).astype(np.float32)

    return Blend(blend)


def _with_own(total: F64, parts: Sequence[F64], common: float) -> tuple[F64, F64, F64]:
    """Directions of the sum and of each model, orthonormal, with their singular values before that."""
    u, s, vt = decomposed(total)
    own = round((len(s) - int(len(s) * common)) / len(parts))
    most = len(s) - own * len(parts)
    found = [(u[:, :most], s[:most], vt[:most])]
    if own:
        for part in parts:
            rest = decomposed(part - found[0][0] @ (found[0][0].T @ part))
            found.append((rest[0][:, :own], rest[1][:own], rest[2][:own]))
    us, ss, vts = zip(*found, strict=True)
    return orthogonal(np.hstack(us)), np.concatenate(ss), orthogonal(np.vstack(vts).T).T
