"""What ``adapter_config.json`` says of factors: patterns, alphas, fields; and one for a plain LoRA."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from paring.errors import BadFileError

Config = Mapping[str, Any]
PREFIX = "base_model.model."
_LARGEST_ALPHA = 1e9  # beyond it a file is broken, and arithmetic with its squares would overflow

#: fields that change nothing about what the factors mean, or that the code here reads
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
_TRAINING = frozenset({"init_weights", "module_dropout", "rank_dropout", "rank_dropout_scale"})
#: the same of other kinds, beside those above
_OWN = {
    "ADALORA": frozenset({
        "beta1", "beta2", "deltaT", "init_r", "orth_reg_weight", "target_r", "tfinal", "tinit", "total_step",
    }),
    "LOHA": _TRAINING | {"alpha", "use_effective_conv2d"},
    "LOKR": _TRAINING | {"alpha", "use_effective_conv2d", "decompose_both", "decompose_factor"},
    "VERA": _TRAINING | {"d_initial", "projection_prng_key", "save_projection", "vera_dropout"},
    "VBLORA": frozenset({
        "init_logits_std", "init_vector_bank_bound", "num_vectors", "save_only_topk_weights", "topk",
        "vblora_dropout", "vector_length",
    }),
}  # fmt: skip


def pattern(config: Config, key: str, module: str) -> Any:
    """The first entry of ``rank_pattern`` or ``alpha_pattern`` whose key matches ``module``, or None. Raises
    BadFileError for patterns that are none.
    """
    patterns = config.get(key) or {}
    if not isinstance(patterns, Mapping):
        raise BadFileError(f"adapter_config.json: {key} must map names of modules to numbers")
    for own, value in patterns.items():
        try:
            if re.match(rf"^(.*\.)?({own})$", module):
                return value
        except re.error:
            continue
    return None


def alpha_of(config: Config, module: str, key: str = "lora_alpha") -> tuple[float, str]:
    """The alpha of a module, by its name in the view, and the field that says so. Raises BadFileError."""
    own = pattern(config, "alpha_pattern", module)
    alpha, source = (own, "alpha_pattern") if own is not None else (config.get(key), key)
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not abs(alpha) < _LARGEST_ALPHA:
        raise BadFileError(f"adapter_config.json: {source} of module {module} is {alpha!r}, not a number")
    return alpha, source


def scale_of(config: Config, module: str, rank: int) -> tuple[float, str]:
    """The scale of a LoRA module of this rank, and where it comes from. Raises BadFileError."""
    alpha, source = alpha_of(config, module)
    if config.get("use_rslora"):
        return alpha / math.sqrt(rank), f"{source} / sqrt(r) (rsLoRA)"
    return alpha / rank, f"{source} / r"


def rank_of(config: Config, module: str) -> int | None:
    """The rank that the configuration states for a module, or None."""
    own = pattern(config, "rank_pattern", module)
    rank = own if own is not None else config.get("r")
    return rank if isinstance(rank, int) and rank > 0 else None


def unknown(config: Config) -> str | None:
    """Why arithmetic must stop: a field that is set and not known, as a sentence; or None."""
    known = _KNOWN | _OWN.get(str(config.get("peft_type")), frozenset())
    found = next((key for key, value in config.items() if value and key not in known), None)
    return found and f"adapter_config.json sets {found!r}, which this version does not know"


_BASE_CHANGED = ("pissa", "olora", "corda", "lora_ga", "loftq")
_VARIANTS = {"use_qalora": "QALoRA", "kasa_config": "KaSA", "use_bdlora": "BD-LoRA",
             "alora_invocation_tokens": "aLoRA", "use_dora": "DoRA"}  # fmt: skip


def obstacle(config: Config) -> str | None:
    """Why no LoRA factors of an adapter may be taken as ``scale * B @ A``, or None."""
    init = str(config.get("init_lora_weights") or "").lower()
    if init.startswith(_BASE_CHANGED):
        return f"init_lora_weights={init}: the base was changed too, so B @ A is not the update"
    if reason := unknown(config):
        return reason
    if config.get("peft_type", "LORA") not in ("LORA", None):
        return f"{config['peft_type']}: its update is not scale * B @ A"
    kind = next((kind for key, kind in _VARIANTS.items() if config.get(key)), None)
    return kind and f"{kind}: its update is not a plain scale * B @ A"


@dataclass(frozen=True, slots=True)
class Plain:
    """One module of a plain LoRA: its name, rank, and the alpha that gives its scale."""

    name: str
    rank: int
    alpha: float


#: fields of any configuration that mean the same in one of a plain LoRA
_SHARED = ("base_model_name_or_path", "revision", "task_type", "modules_to_save", "bias", "fan_in_fan_out")


def lora_config(
    modules: Sequence[Plain], donor: Config | None = None, base: str | None = None
) -> dict[str, Any]:
    """``adapter_config.json`` of a plain LoRA with these modules, for ``PeftModel.from_pretrained``.

    What ``donor`` says of the base, the task and the full tensors stays; ranks and alphas that are not the
    commonest stand in the patterns, under names that match no other module.
    """
    donor = donor or {}
    names = {module.name for module in modules}
    rank = Counter(module.rank for module in modules).most_common(1)[0][0] if modules else 1
    alpha = Counter(m.alpha for m in modules if m.rank == rank).most_common(1)[0][0] if modules else 1
    ranks = {exact(m.name, names): m.rank for m in modules if m.rank != rank}
    alphas = {exact(m.name, names): number(m.alpha) for m in modules if m.alpha != alpha}
    return {
        "peft_type": "LORA", "auto_mapping": None, "bias": "none", "fan_in_fan_out": False,
        "base_model_name_or_path": base, "revision": None, "task_type": None, "modules_to_save": None,
        **{key: donor[key] for key in _SHARED if donor.get(key) is not None},
        "inference_mode": True, "r": rank, "lora_alpha": number(alpha), "lora_dropout": 0.0,
        "rank_pattern": ranks, "alpha_pattern": alphas, "target_modules": sorted(names),
        "init_lora_weights": True, "use_rslora": False, "use_dora": False,
    }  # fmt: skip


def number(alpha: float) -> int | float:
    """As JSON has it best: a whole number without its point."""
    return int(alpha) if float(alpha).is_integer() else float(alpha)


def is_end(name: str, known: Iterable[str]) -> bool:
    """Whether one of the names ``known`` ends like ``name``: PEFT would take it for that."""
    return any(other.endswith("." + name) for other in known)


def exact(name: str, known: Iterable[str]) -> str:
    """A pattern that matches ``name`` alone of those ``known``."""
    return ("^" if is_end(name, known) else "") + re.escape(name)
