"""The factors of an adapter, read: from names in the module view to arrays."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from paring.adapters.view import Adapter
from paring.coding import Factors
from paring.dtypes import Stored


def factor_names(adapter: Adapter) -> set[str]:
    """The tensors that :func:`read_factors` reads."""
    pairs = {name for module in adapter.modules for name in (module.a, module.b)}
    return pairs | {vector.tensor for vector in adapter.vectors}


def read_factors(adapter: Adapter, parts: Mapping[str, Stored] | None = None) -> list[Factors]:
    """All modules of ``adapter`` in fp32, then its (IA)^3 vectors; ``parts`` are tensors read already."""

    def read(name: str) -> Stored:
        return parts[name] if parts is not None else adapter.checkpoint.read(name)

    out = []
    for module in adapter.modules:
        a, b = read(module.a), read(module.b)
        A, B = a.f32().reshape(module.rank, module.n_in), b.f32().reshape(module.n_out, module.rank)
        out.append(
            Factors(
                module.name, module.a, module.b, A, B, module.scale, (a.dtype, b.dtype), (a.shape, b.shape)
            )
        )
    for vector in adapter.vectors:
        stored = read(vector.tensor)
        delta = (stored.f32() - np.float32(1)).reshape(1, -1)
        one = np.ones((1, 1), np.float32)
        out.append(
            Factors(vector.name, vector.tensor, None, delta, one, 1.0, (stored.dtype,), (stored.shape,))
        )
    return out
