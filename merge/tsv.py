"""TSV-Merge (Gargiulo et al. 2025): the first singular vectors of each delta, orthogonal to all others'.

``tau_i = U_i S_i V_i^T``; of min(out, in) directions each of the n models keeps its first min(out, in) // n,
at least one; all ``U_i`` side by side are replaced by the nearest orthonormal matrix, all ``V_i`` likewise,
and the product ``U S V^T`` is the merged delta. Weights multiply ``S_i``. Tensors that are not 2-D get the
mean of the weighted deltas.

Where models share directions no orthonormal matrix is nearest, and the published rule takes any; here the
shared ones stay shared (a partial isometry), so that a model merged with itself is itself, cut to its share
of directions. Cost: one pass, a whole tensor of all models at a time; an eigendecomposition for each model
and matrix, and two more, in fp64. When not to use it: with many models each keeps few directions.
"""

from __future__ import annotations

import numpy as np

from paring.kernels import merging
from paring.merge._spectral import decomposed, is_matrix, matrices, mean, orthogonal
from paring.merging.models import F32, Blend, Models, Place
from paring.registry import method


@method(
    sees="deltas",
    reference="Gargiulo et al.: Task Singular Vectors, arXiv:2412.00081, algorithm 1",
    unit="tensor",
    invariants=("identity", "order", "cancel", "homogeneous"),
)
def tsv(models: Models) -> Blend:
    """TSV-Merge: singular vectors of all models, orthogonalised."""

    def blend(chunk: F32, place: Place) -> F32:
        shape = place.target.shape
        if not is_matrix(shape):
            return merging.weighted_sum(chunk, mean(chunk, place))
        kept = max(1, min(shape) // models.n)
        found = [decomposed(part.astype(np.float64)) for part in matrices(chunk, shape)]
        u = np.hstack([u[:, :kept] for u, _, _ in found])
        v = np.hstack([vt[:kept].T for _, _, vt in found])
        s = np.concatenate(
            [weight * s[:kept] for (_, s, _), weight in zip(found, place.target.weights, strict=True)]
        )
        merged = (orthogonal(u) * s) @ orthogonal(v).T
        out: F32 = merged.reshape(-1).astype(np.float32)
        return out

    return Blend(blend)
