"""PEFT: ``base_model.model.<module>.lora_A.weight`` beside ``adapter_config.json``, and (IA)^3.

Scale: ``alpha / r``, or ``alpha / sqrt(r)`` with ``use_rslora``, with the module's own rank (from the tensor)
and alpha (``alpha_pattern``: regular expressions ``^(.*\\.)?(KEY)$`` against the module path, first match
wins).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from paring.adapters import ldm, naming, peft_config, peft_kinds
from paring.adapters.view import Dialect, Dotted


def _scale(
    module: str, rank: int, config: Mapping[str, Any] | None, scalar: Callable[[str], float | None]
) -> tuple[float, str]:
    if alpha := scalar(f"{module}.alpha"):
        return alpha / rank, "alpha tensor / r"
    if not config or config.get("lora_alpha") is None:
        return 1.0, "assumed 1: no lora_alpha (adapter_config.json missing?)"
    return peft_config.scale_of(config, module.removeprefix(peft_config.PREFIX), rank)


def _expected_rank(module: str, config: Mapping[str, Any] | None) -> int | None:
    # MoE parameters stack experts on the rank axis, AdaLoRA prunes ranks: there the tensor is the truth
    if not config or config.get("target_parameters") or config.get("peft_type", "LORA") != "LORA":
        return None
    return peft_config.rank_of(config, module)


def _canonical(module: str, dotted: Dotted) -> str:
    return naming.with_part(module)


def _named(canonicals: Sequence[str]) -> list[str]:
    """A single part is a model by itself, whose own names PEFT uses."""
    whole = len(naming.parts(canonicals)) > 1
    names = map(ldm.in_diffusers, canonicals)
    return [peft_config.PREFIX + (name if whole else naming.split(name)[1]) for name in names]


def _veto(module: str, rank: int, config: Mapping[str, Any] | None) -> str | None:
    """Why the factors of a module must not be taken as ``scale * B @ A``, or None."""
    if not config:
        return None
    if reason := peft_config.obstacle(config):
        return reason
    if config.get("target_parameters") and rank != config.get("r"):
        return "target_parameters: experts are stacked on the rank axis"
    return None


def _kind(config: Mapping[str, Any] | None) -> str:
    kind = str((config or {}).get("peft_type") or "LORA")
    if kind != "LORA":
        return {"IA3": "(IA)^3"}.get(kind, kind)
    flags = (("use_dora", "DoRA"), ("use_rslora", "rsLoRA"), ("use_qalora", "QALoRA"))
    return next((name for key, name in flags if (config or {}).get(key)), "LoRA")


DIALECT = Dialect(
    name="peft",
    factor=re.compile(
        r"^(?P<module>.+)\.(?P<role>lora_A|lora_B|lora_embedding_A|lora_embedding_B)(?:\.weight)?$"
    ),
    roles={"lora_A": "a", "lora_B": "b", "lora_embedding_A": "a", "lora_embedding_B": "b"},
    scale=_scale,
    plain=("{module}.lora_A.weight", "{module}.lora_B.weight"),
    embedding=("{module}.lora_embedding_A", "{module}.lora_embedding_B"),
    alpha="{module}.alpha",
    scale_in="config",
    rules=peft_kinds.RULES,
    canonical=_canonical,
    named=_named,
    others=(
        (re.compile(r"\.alpha$"), "alpha of a module"),
        (re.compile(r"\.lora_magnitude_vector"), "DoRA magnitude"),
        (re.compile(r"\.lora_E$"), "AdaLoRA singular values"),
        (re.compile(r"\.lora_B\.bias$"), "bias of the update"),
        (re.compile(r"\.trainable_tokens_delta$"), "trained token embeddings"),
        (re.compile(r"\.bias$"), "bias (a full replacement value)"),
        (
            re.compile(r"\.(hada|lokr|vera|vblora|oft|boft|fourierft|randlora)_"),
            "factor of a kind this version carries",
        ),
        (re.compile(r"^base_model\."), "full tensor (modules_to_save or an embedding)"),
    ),
    nonlinear=(
        (
            re.compile(r"^(?P<module>.+)\.lora_magnitude_vector(?:\.weight)?$"),
            "DoRA: its update is not scale * B @ A",
        ),
        (re.compile(r"^(?P<module>.+)\.lora_E$"), peft_kinds.ADALORA),
    ),
    vector=re.compile(r"^(?P<module>.+)\.ia3_l(?:\.weight)?$"),
    module_name=lambda module: module.removeprefix(peft_config.PREFIX),
    veto=_veto,
    expected_rank=_expected_rank,
    kind=_kind,
)
