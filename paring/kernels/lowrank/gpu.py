"""torch: singular components by Gram matrices in fp64, on any device."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
T = torch.Tensor


def components(A: F32, B: F32, device: str) -> tuple[F32, F64, F32]:
    """``B @ A = U @ diag(s) @ V`` of A ``(r, in)`` and B ``(out, r)``: U ``(out, k)``, s ``(k,)`` falling, V
    ``(k, in)``; as :func:`paring.lowrank.components`, to rounding and to signs.
    """
    right, left = (torch.as_tensor(np.ascontiguousarray(part), device=device) for part in (A, B))
    root_b, back_b = _root(left.double().T @ left.double())
    root_a, back_a = _root(right.double() @ right.double().T)
    u, s, v = torch.linalg.svd(root_b @ root_a.T, full_matrices=False)
    U = left @ (back_b @ u).float()
    V = (v @ back_a.T).float() @ right
    return U.cpu().numpy(), s.cpu().numpy(), V.cpu().numpy()


def _root(gram: T) -> tuple[T, T]:
    values, vectors = torch.linalg.eigh(gram)
    values = torch.where(values > values.max().clamp(min=0) * 1e-15, values, 0.0)
    root = values.sqrt()
    inverse = torch.where(root > 0, 1 / torch.where(root > 0, root, 1.0), 0.0)
    return root[:, None] * vectors.T, vectors * inverse
