"""The factors of an adapter, read: from names in the module view to arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache

import numpy as np

from paring.adapters.algebra import F64
from paring.adapters.derived import wide
from paring.adapters.view import Adapter, LowRank
from paring.coding import Factors
from paring.dtypes import Stored, from_f32


def factor_names(adapter: Adapter) -> set[str]:
    """The tensors that :func:`read_factors` reads."""
    pairs = {name for module in adapter.modules for name in module.tensors}
    return pairs | {vector.tensor for vector in adapter.vectors}


def read_factors(adapter: Adapter, parts: Mapping[str, Stored] | None = None) -> list[Factors]:
    """All modules of ``adapter`` in fp32, then its (IA)^3 vectors; ``parts`` are tensors read already.

    Factors of a derived module have the names and shapes that a plain LoRA would have, and the dtype of the
    first tensor that they are derived from. Raises BadValueError for values that fp32 does not hold.
    """

    def read(name: str) -> Stored:
        return parts[name] if parts is not None else adapter.checkpoint.read(name)

    @lru_cache(maxsize=8)  # what many modules share
    def values(name: str) -> F64:
        return wide(read(name))

    out = []
    for module in adapter.modules:
        if module.derived is not None:
            out.append(_derived(adapter, module, values))
            continue
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


def _derived(adapter: Adapter, module: LowRank, read: Callable[[str], F64]) -> Factors:
    """A derived module, computed in fp64 and rounded once."""
    assert module.derived is not None
    pair = module.derived.factors(read)
    A, B = (from_f32(values, "F32", f"a factor of {module.name}").data for values in pair)
    dtype = next((adapter.checkpoint.tensors[name].dtype for name in module.tensors), "F32")
    return Factors(module.name, module.a, module.b, A, B, module.scale, (dtype, dtype), module.derived.shapes)
