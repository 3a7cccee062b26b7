"""PEFT: ``base_model.model.<module>.lora_A.weight`` beside ``adapter_config.json``, and (IA)^3.

Scale: ``alpha / r``, or ``alpha / sqrt(r)`` with ``use_rslora``, with the module's own rank (from the tensor)
and alpha (``alpha_pattern``: regular expressions ``^(.*\\.)?(KEY)$`` against the module path, first match
wins).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from paring.adapters.view import Dialect
from paring.errors import BadFileError

_PREFIX = "base_model.model."
_LARGEST_ALPHA = 1e9  # beyond it a file is broken, and arithmetic with its squares would overflow


def _pattern(config: Mapping[str, Any], key: str, module: str) -> Any:
    """The first entry of ``rank_pattern`` or ``alpha_pattern`` whose key matches ``module``, or None."""
    patterns = config.get(key) or {}
    if not isinstance(patterns, Mapping):
        raise BadFileError(f"adapter_config.json: {key} must map names of modules to numbers")
    for pattern, value in patterns.items():
        try:
            if re.match(rf"^(.*\.)?({pattern})$", module):
                return value
        except re.error:
            continue
    return None


def _scale(
    module: str, rank: int, config: Mapping[str, Any] | None, scalar: Callable[[str], float | None]
) -> tuple[float, str]:
    if not config or config.get("lora_alpha") is None:
        return 1.0, "assumed 1: no lora_alpha (adapter_config.json missing?)"
    own = _pattern(config, "alpha_pattern", module.removeprefix(_PREFIX))
    alpha, source = (own, "alpha_pattern") if own is not None else (config["lora_alpha"], "lora_alpha")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not abs(alpha) < _LARGEST_ALPHA:
        raise BadFileError(f"adapter_config.json: {source} of module {module} is {alpha!r}, not a number")
    if config.get("use_rslora"):
        return alpha / math.sqrt(rank), f"{source} / sqrt(r) (rsLoRA)"
    return alpha / rank, f"{source} / r"


def _expected_rank(module: str, config: Mapping[str, Any] | None) -> int | None:
    # MoE parameters stack experts on the rank axis, AdaLoRA prunes ranks: there the tensor is the truth
    if not config or config.get("target_parameters") or config.get("peft_type", "LORA") != "LORA":
        return None
    own = _pattern(config, "rank_pattern", module)
    rank = own if own is not None else config.get("r")
    return rank if isinstance(rank, int) and rank > 0 else None


# fields that change nothing about what the factors mean, or that the code here reads
_KNOWN = frozenset({
    "alora_invocation_tokens", "alpha_pattern", "arrow_config", "auto_mapping", "base_model_name_or_path",
    "bias", "corda_config", "ensure_weight_tying", "eva_config", "exclude_modules", "fan_in_fan_out",
    "feedforward_modules", "inference_mode", "init_lora_weights", "kasa_config", "layer_replication",
    "layers_pattern", "layers_to_transform", "loftq_config", "lora_alpha", "lora_bias", "lora_dropout",
    "lora_ga_config", "megatron_config", "megatron_core", "modules_to_save", "monteclora_config",
    "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern", "revision", "runtime_config",
    "target_modules", "target_parameters", "task_type", "trainable_token_indices", "use_bdlora", "use_dora",
    "use_qalora", "use_rslora", "velora_config",
})  # fmt: skip
_BASE_CHANGED = ("pissa", "olora", "corda", "lora_ga", "loftq")


def _veto(module: str, rank: int, config: Mapping[str, Any] | None) -> str | None:
    """Why the factors of a module must not be taken as ``scale * B @ A``, or None."""
    if not config:
        return None
    init = str(config.get("init_lora_weights") or "").lower()
    if init.startswith(_BASE_CHANGED):
        return f"init_lora_weights={init}: the base was changed too, so B @ A is not the update"
    if unknown := [key for key, value in config.items() if value and key not in _KNOWN]:
        return f"adapter_config.json sets {unknown[0]!r}, which this version does not know"
    if config.get("peft_type", "LORA") not in ("LORA", None):
        return f"{config['peft_type']}: its update is not scale * B @ A"
    for key, kind in (("use_qalora", "QALoRA"), ("kasa_config", "KaSA"), ("use_bdlora", "BD-LoRA"),
                      ("alora_invocation_tokens", "aLoRA"), ("use_dora", "DoRA")):  # fmt: skip
        if config.get(key):
            return f"{kind}: its update is not a plain scale * B @ A"
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
    others=(
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
        (re.compile(r"^(?P<module>.+)\.lora_E$"), "AdaLoRA: its update is B @ diag(E) @ A"),
    ),
    vector=re.compile(r"^(?P<module>.+)\.ia3_l(?:\.weight)?$"),
    module_name=lambda module: module.removeprefix(_PREFIX),
    veto=_veto,
    expected_rank=_expected_rank,
    kind=_kind,
)
