"""Rules that PEFT and LyCORIS share: Hadamard products (LoHa), Kronecker products (LoKr), Tucker cores.

They differ in the scale, and PEFT in what LoKr does to one-dimensional convolutions; see the callers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from paring.adapters import algebra
from paring.adapters.algebra import F64, Pair
from paring.adapters.derived import BrokenError, Group, Made

#: (group, rank or None where no factor tells it) -> (scale, where it came from)
Scale = Callable[[Group, int | None], tuple[float, str]]


def loha(group: Group, scale: Scale) -> Sequence[Made]:
    """LoHa: ``(w1_a @ w1_b) * (w2_a @ w2_b)``, each with a Tucker core ``t1``, ``t2`` where there is one."""
    roles = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    shapes = group.need(*roles)
    if any(len(shape) != 2 for shape in shapes):
        raise BrokenError(f"a factor of LoHa module {group.name} has not two axes")
    cores = ("hada_t1", "hada_t2") if group.has("hada_t1") or group.has("hada_t2") else ()
    (o1, r1), (q1, i1), (o2, r2), (q2, i2) = shapes
    kernel: tuple[int, ...] = ()
    if cores:
        (o1, r1), (o2, r2) = (r1, o1), (r2, o2)  # stored the other way round then
        kernels = [_core(group, core, rank) for core, rank in zip(group.need(*cores), (r1, r2), strict=True)]
        if kernels[0] != kernels[1]:
            raise BrokenError(f"the kernels of LoHa module {group.name} disagree")
        kernel = kernels[0]
    group.agree(r1, q1, "ranks")
    group.agree(r2, q2, "ranks")
    out = group.agree(o1, o2, "outputs")
    width = group.agree(i1, i2, "inputs") * math.prod(kernel)
    number, source = scale(group, r1)
    rank = min(r1 * r2, out, width)
    names = group.names(*roles, *cores)
    return [Made(names, rank, width, out, number, source, _hadamard, kernel)]


def _hadamard(t: Mapping[str, F64]) -> Pair:
    parts = []
    for i in "12":
        a, b, core = t[f"hada_w{i}_a"], t[f"hada_w{i}_b"], t.get(f"hada_t{i}")
        parts.append((b, a) if core is None else algebra.tucker(core, b, a.T))
    return algebra.least(*algebra.khatri_rao(parts[0], parts[1]))


def lokr(group: Group, scale: Scale, *, by_kernel: bool) -> Sequence[Made]:
    """LoKr: ``kron(w1, w2)``, either whole or in two factors, w2 with a Tucker core ``t2`` if there is one.

    The construction of least rank is taken: a whole matrix counts as much as its shorter side.
    """
    (a, b), r1 = _side(group, "lokr_w1")
    (c, d), r2, kernel, flat = _second(group)
    rank = r1 * r2
    decomposed = group.has("lokr_w1_b") or group.has("lokr_w2_b")
    own = next((group.tensors[x].shape[0] for x in ("lokr_w1_b", "lokr_w2_b") if group.has(x)), None)
    number, source = scale(group, own if decomposed else None)
    names = group.names(
        "lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"
    )  # fmt: skip
    compute = partial(_kronecker, by_kernel=flat and by_kernel)
    return [Made(names, rank, b * d, a * c, number, source, compute, kernel)]


def _side(group: Group, role: str) -> tuple[tuple[int, int], int]:
    """The shape and rank of w1 or w2, which is a matrix or a product of two."""
    if group.has(role):
        (shape,) = group.need(role)
        if len(shape) != 2:
            raise BrokenError(f"{group.tensors[role].name} has shape {list(shape)}; two axes are expected")
        return (shape[0], shape[1]), min(shape)
    left, right = group.need(f"{role}_a", f"{role}_b")
    if len(left) != 2 or len(right) != 2:
        raise BrokenError(f"a factor of {role} of module {group.name} has not two axes")
    rank = group.agree(left[1], right[0], "ranks")
    return (left[0], right[1]), min(rank, left[0], right[1])


def _second(group: Group) -> tuple[tuple[int, int], int, tuple[int, ...], bool]:
    """w2 as a matrix (c, d * kernel): its shape, rank, kernel, and whether it is stored with three axes."""
    if group.has("lokr_w2") and len(group.need("lokr_w2")[0]) > 2:
        c, d, *kernel = group.tensors["lokr_w2"].shape
        width = d * math.prod(kernel)
        return (c, width), min(c, width), tuple(kernel), len(kernel) == 1
    if group.has("lokr_t2"):
        core, up, down = group.need("lokr_t2", "lokr_w2_a", "lokr_w2_b")
        if len(up) != 2 or len(down) != 2:
            raise BrokenError(f"a factor of lokr_w2 of module {group.name} has not two axes")
        axes = _core(group, core, up[0])
        group.agree(up[0], down[0], "ranks")
        width = down[1] * math.prod(axes)
        return (up[1], width), min(up[0], up[1], width), axes, False
    shape, rank = _side(group, "lokr_w2")
    return shape, rank, (), False


def _core(group: Group, core: tuple[int, ...], rank: int) -> tuple[int, ...]:
    """The kernel of a Tucker core (r, r, kernel...)."""
    if len(core) < 3 or core[0] != rank or core[1] != rank:
        raise BrokenError(f"a Tucker core of module {group.name} has shape {list(core)}, of rank {rank}")
    return core[2:]


def _kronecker(t: Mapping[str, F64], by_kernel: bool) -> Pair:
    first = _pair(t, "lokr_w1")
    if "lokr_t2" in t:
        second = algebra.least(*algebra.tucker(t["lokr_t2"], t["lokr_w2_b"], t["lokr_w2_a"].T))
    else:
        second = _pair(t, "lokr_w2")
    if by_kernel:
        return algebra.kronecker_by_kernel(first, second, t["lokr_w2"].shape[2])
    return algebra.kronecker(first, second)


def _pair(t: Mapping[str, F64], role: str) -> Pair:
    if role in t:
        return algebra.whole(t[role].reshape(len(t[role]), -1))
    return algebra.least(t[f"{role}_b"], t[f"{role}_a"])


def locon(group: Group, scale: Scale) -> Sequence[Made]:
    """LoCon with a Tucker core: ``up (out, m) x mid (m, n, k...) x down (n, in)``, of rank m."""
    up, mid, down = group.need("lora_up", "lora_mid", "lora_down")
    if any(axis != 1 for shape in (up, down) for axis in shape[2:]) or len(up) < 2 or len(down) < 2:
        raise BrokenError(f"the factors beside the Tucker core of module {group.name} are no matrices")
    if len(mid) < 3 or mid[0] != up[1] or mid[1] != down[0]:
        raise BrokenError(
            f"the Tucker core of module {group.name} has shape {list(mid)}, beside {up} and {down}"
        )
    width = down[1] * math.prod(mid[2:])
    number, source = scale(group, down[0])
    rank = min(mid[0], up[0], width)
    names = group.names("lora_up", "lora_mid", "lora_down")
    return [Made(names, rank, width, up[0], number, source, _tucker, mid[2:])]


def _tucker(t: Mapping[str, F64]) -> Pair:
    down, up = (t[role].reshape(t[role].shape[:2]) for role in ("lora_down", "lora_up"))
    return algebra.least(*algebra.tucker(t["lora_mid"], down, up))
