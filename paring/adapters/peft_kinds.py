"""PEFT's kinds whose update is a matrix product after algebra. Scales are PEFT's, by kind:

AdaLoRA ``alpha / (init_r + 1e-5)`` (alpha, or r where it is not positive); LoHa and LoKr ``alpha / r``, with
the patterns; VeRA and VB-LoRA 1; stacked experts and grouped convolutions as any LoRA, by one expert's rank.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from paring.adapters import algebra, peft_config, products
from paring.adapters.algebra import F64, Pair
from paring.adapters.checks import grouped
from paring.adapters.derived import BrokenError, Group, Made, RefusedError, Rule, shared
from paring.dtypes import numel
from paring.errors import BadFileError

ADALORA = "AdaLoRA: its update is B @ diag(E) @ A"
_FACTORS = r"^(?P<module>.+)\.(?P<role>lora_[AB])(?:\.weight)?$"

_NO_BASE = (
    "VeRA: how many inputs a module has stands in the base alone: `paring convert --base BASE` makes a plain "
    "LoRA of it"
)


def _config(group: Group, obstacle: Callable[[Mapping[str, Any]], str | None]) -> Mapping[str, Any]:
    """The configuration. Raises RefusedError where there is none, or something in it is in the way."""
    if not group.config:
        raise RefusedError("the scale is in adapter_config.json, which is missing")
    if reason := obstacle(group.config):
        raise RefusedError(reason)
    return group.config


def _known(group: Group) -> Mapping[str, Any]:
    return _config(group, peft_config.unknown)


def _lora(group: Group, rank: int) -> tuple[float, str]:
    """The scale of any LoRA of that rank."""
    return peft_config.scale_of(_config(group, peft_config.obstacle), group.name, rank)


def _number(config: Mapping[str, Any], key: str, least: int = 1) -> int:
    value = config.get(key)
    if type(value) is not int or value < least:
        raise BrokenError(f"adapter_config.json: {key} is {value!r}; a number from {least} on is expected")
    return value


def _alpha_over_r(group: Group, rank: int | None) -> tuple[float, str]:
    """LoHa and LoKr: ``alpha / r``, r of the configuration, which LoKr's factors need not show."""
    config = _known(group)
    stated = peft_config.rank_of(config, group.name)
    if stated is None:
        raise BrokenError(f"adapter_config.json states no rank for module {group.name}")
    if rank is not None:
        group.agree(rank, stated, "ranks, and adapter_config.json,")
    alpha, source = peft_config.alpha_of(config, group.name, "alpha")
    return alpha / stated, f"{source} / r"


def _adalora(group: Group) -> Sequence[Made]:
    config = _known(group)
    a, b, e = group.need("lora_A", "lora_B", "lora_E")
    if len(a) != 2 or len(b) != 2:
        raise BrokenError(f"a factor of AdaLoRA module {group.name} has not two axes")
    rank = group.agree(group.agree(a[0], b[1], "ranks"), numel(e), "ranks")
    r = _number(config, "init_r") if config.get("init_r") is not None else 12
    alpha, source = peft_config.alpha_of({**config, "alpha_pattern": None}, group.name)
    scale = (alpha if alpha > 0 else r) / (r + 1e-5)

    def compute(t: Mapping[str, F64]) -> Pair:
        return algebra.diagonal(t["lora_A"], t["lora_B"], None, t["lora_E"])

    names = group.names("lora_A", "lora_B", "lora_E")
    return [Made(names, rank, a[1], b[0], scale, f"{source} / (init_r + 1e-5)", compute)]


def _vera(group: Group) -> Sequence[Made]:
    config = _known(group)
    out, rank = (numel(shape) for shape in group.need("vera_lambda_b", "vera_lambda_d"))
    names = group.names("vera_lambda_b", "vera_lambda_d")
    weight = group.shapes(group.name)
    if "base_model.vera_A" not in group.checkpoint.tensors and config.get("save_projection", True) is False:
        n_in, make = _width(weight, out), _seeded(group, config, rank)
    else:
        A, B = shared(group, "base_model.vera_A", "base_model.vera_B")
        group.agree(rank, A.shape[0], "ranks")
        group.agree(rank, B.shape[1], "ranks")
        n_in = A.shape[1] if group.fellows == 1 and weight is None else _width(weight, out)
        if n_in > A.shape[1] or out > B.shape[0]:
            raise BrokenError(
                f"the shared projections are too small for module {group.name} ({out} x {n_in})"
            )
        names |= {"A": A.name, "B": B.name}

        def make(t: Mapping[str, F64]) -> Pair:
            return t["A"], t["B"]

    def compute(t: Mapping[str, F64]) -> Pair:
        A, B = make(t)
        return algebra.diagonal(A[:, :n_in], B[:out], t["vera_lambda_b"], t["vera_lambda_d"])

    return [Made(names, rank, n_in, out, 1.0, "VeRA has none: 1", compute)]


def _width(weight: tuple[int, ...] | None, out: int) -> int:
    """How many inputs a module has, from the shape of its weight."""
    if weight is None:
        raise RefusedError(_NO_BASE)
    if len(weight) != 2 or out not in weight:
        raise BrokenError(
            f"a VeRA module has {out} outputs, and its weight in the base the shape {list(weight)}"
        )
    return weight[1] if weight[0] == out else weight[0]


def _seeded(group: Group, config: Mapping[str, Any], rank: int) -> Callable[[Mapping[str, F64]], Pair]:
    """The shared projections as PEFT draws them: Kaiming-uniform from torch's CPU generator, A and then B,
    as large as the largest module on either side.
    """
    key = _number(config, "projection_prng_key", 0)
    found = [name for name in group.checkpoint.tensors if name.endswith(".vera_lambda_b")]
    n_out, n_in = 0, 0
    for name in found:
        module = name.removeprefix(peft_config.PREFIX).removesuffix(".vera_lambda_b")
        out = group.checkpoint.tensors[name].numel
        n_out, n_in = max(n_out, out), max(n_in, _width(group.shapes(module), out))

    def make(t: Mapping[str, F64]) -> Pair:
        import torch

        generator = torch.Generator(device="cpu").manual_seed(key)
        drawn = []
        for shape in ((rank, n_in), (n_out, rank)):
            bound = math.sqrt(3.0) * (math.sqrt(2.0) / math.sqrt(shape[1]))
            drawn.append(torch.empty(shape).uniform_(-bound, bound, generator=generator).double().numpy())
        return drawn[0], drawn[1]

    return make


def _vblora(group: Group) -> Sequence[Made]:
    config = _known(group)
    sparse = group.has("vblora_logits_A_topk_indices")
    ends = ("_topk_indices", "_topk_weights") if sparse else ("",)
    roles = [f"vblora_logits_{side}{end}" for side in "AB" for end in ends]
    shapes = dict(zip(roles, group.need(*roles), strict=True))
    (bank,) = shared(group, "base_model.vblora_vector_bank")
    a, b = shapes[f"vblora_logits_A{ends[0]}"], shapes[f"vblora_logits_B{ends[0]}"]
    if len(a) != 3 or len(b) != 3 or len(bank.shape) != 2:
        raise BrokenError(f"the logits of VB-LoRA module {group.name} have not three axes")
    rank = group.agree(a[0], b[1], "ranks")
    for name in "AB" if sparse else "":
        indices, weights = (shapes[f"vblora_logits_{name}{end}"] for end in ends)
        if weights != (*indices[:2], indices[2] - 1):
            raise BrokenError(f"indices and weights of VB-LoRA module {group.name} disagree")
    topk, length = a[2] if sparse else _number(config, "topk"), bank.shape[1]

    def side(t: Mapping[str, F64], role: str) -> F64:
        if not sparse:
            return algebra.mixtures(t["bank"], *algebra.top(t[role], topk))
        weights = t[role + "_topk_weights"]
        last = 1.0 - weights.sum(axis=-1, keepdims=True)
        indices = t[role + "_topk_indices"].astype(np.int64)
        if indices.size and not 0 <= indices.min() <= indices.max() < len(t["bank"]):
            raise BadFileError(f"{bank.file}: an index of module {group.name} is outside the vector bank")
        return algebra.mixtures(t["bank"], indices, np.concatenate([weights, last], axis=-1))

    def compute(t: Mapping[str, F64]) -> Pair:
        A, B = side(t, "vblora_logits_A"), side(t, "vblora_logits_B")
        return A.reshape(rank, -1), B.transpose(0, 2, 1).reshape(-1, rank)

    names = {**group.names(*roles), "bank": bank.name}
    return [Made(names, rank, a[1] * length, b[0] * length, 1.0, "VB-LoRA has none: 1", compute)]


def _is_stacked(group: Group) -> bool:
    config = group.config or {}
    plain = group.has("lora_A", "lora_B") and not config.get("use_dora")
    return (
        plain
        and bool(config.get("target_parameters"))
        and group.tensors["lora_A"].shape[0] != config.get("r")
    )


def _experts(group: Group) -> Sequence[Made]:
    config = _known(group)
    a, b = group.need("lora_A", "lora_B")
    rank = _number(config, "r")
    if config.get("rank_pattern"):
        raise RefusedError("target_parameters with a rank_pattern: how many experts there are is not told")
    if len(a) != 2 or len(b) != 2 or a[0] % rank or a[0] != b[1]:
        raise BrokenError(
            f"experts of module {group.name}: {list(a)} and {list(b)} are no stacks of rank {rank}"
        )
    experts = a[0] // rank
    scale, told = _lora(group, rank)
    names = group.names("lora_A", "lora_B")

    def compute(index: int, t: Mapping[str, F64]) -> Pair:
        return algebra.expert(t["lora_A"], t["lora_B"], experts, index)

    return [
        Made(names, rank, a[1], b[0], scale, told, partial(compute, i), suffix=f".{i}")
        for i in range(experts)
    ]


def _is_grouped(group: Group) -> bool:
    if not group.has("lora_A", "lora_B") or (group.config or {}).get("use_dora"):
        return False
    return grouped(group.tensors["lora_A"], group.tensors["lora_B"])


def _grouped(group: Group) -> Sequence[Made]:
    a, b = group.need("lora_A", "lora_B")
    groups, rank = a[0] // b[1], a[0]
    if b[0] % groups or any(axis != 1 for axis in b[2:]):
        raise BrokenError(f"the {list(b)} of module {group.name} do not fall into {groups} groups")
    scale, told = _lora(group, rank)

    def compute(t: Mapping[str, F64]) -> Pair:
        A, B = (t[role].reshape(len(t[role]), -1) for role in ("lora_A", "lora_B"))
        return algebra.grouped(A, B, groups)

    names = group.names("lora_A", "lora_B")
    return [Made(names, rank, numel(a[1:]), b[0], scale, told, compute, a[2:])]


def _rule(kind: str, roles: str, make: Callable[[Group], Sequence[Made]]) -> Rule:
    return Rule(kind, re.compile(rf"^(?P<module>.+)\.(?P<role>{roles})$"), make)


RULES = (
    Rule(
        "AdaLoRA", re.compile(r"^(?P<module>.+)\.(?P<role>lora_[ABE])$"), _adalora,
        when=lambda group: group.has("lora_E"), lifts=ADALORA,
    ),
    _rule("LoHa", "hada_w[12]_[ab]|hada_t[12]", lambda group: products.loha(group, _alpha_over_r)),
    _rule(
        "LoKr", "lokr_w[12]|lokr_w[12]_[ab]|lokr_t2",
        lambda group: products.lokr(group, _alpha_over_r, by_kernel=True),
    ),
    _rule("VeRA", "vera_lambda_[bd]", _vera),
    _rule("VB-LoRA", "vblora_logits_[AB](?:_topk_(?:indices|weights))?", _vblora),
    Rule("stacked experts", re.compile(_FACTORS), _experts, when=_is_stacked, native=True),
    Rule("grouped convolution", re.compile(_FACTORS), _grouped, when=_is_grouped, native=True),
)  # fmt: skip
