"""Which tensors of a checkpoint are pruned, and how their matrices lie in them: by names, shapes, config.

What is left alone by default: embeddings, heads, norms, biases, routers, depthwise convolutions and all that
has less than two axes. A stack of experts ``(experts, ...)`` is a matrix each; a convolution is ``(out, in *
kernel)``; fused projections are one matrix.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from paring.checkpoint import Checkpoint, TensorInfo
from paring.dtypes import FLOATS, numel
from paring.errors import OptionError, UnsupportedError
from paring.layers import EMBEDDING, turned

_HEAD = re.compile(r"lm_head|embed_out|classifier|score|qa_outputs|output_layer|.*_head|heads?|cls|output")
_NORM = re.compile(r".*norm(_?\d+)?|.*_norm_.*|ln(_?\w+)?|.*_ln|.*LayerNorm|bn\d*|norm\w*")
_ROUTER = re.compile(r"router|gate|wg|shared_expert_gate|.*_router")
#: parts of the names of tensors that hold weights packed in some way
_PACKED = re.compile(
    r"\.(qweight|qzeros|weight_packed|weight_scale(_inv)?|weight_zero_point|absmax|quant_state\S*|SCB|"
    r"g_idx|scales|_scale_inv|weight_shape|bitmask|compressed|row_offsets|\w+_blocks|\w+_scales)$"
)
_EXPERTS = re.compile(r"(^|\.)(experts?|moe)(\.|$)")
#: model types whose stacked experts are stored as (experts, in, out)
_STACKED_TURNED = ("gpt_oss", "llama4", "llama4_text")


@dataclass(frozen=True, slots=True)
class Target:
    """A tensor that is pruned: ``stack`` matrices, each ``(out, inn)``, stored as ``(inn, out)`` where it is
    ``turned``; None where nothing tells which it is.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    stack: int
    out: int
    inn: int
    turned: bool | None

    @property
    def numel(self) -> int:
        return numel(self.shape)

    @property
    def size(self) -> int:
        """Entries of one matrix."""
        return self.out * self.inn

    def matrix(self, number: int) -> str:
        """The name of one of its matrices."""
        return self.name if self.stack == 1 and len(self.shape) != 3 else f"{self.name}[{number}]"


@dataclass(frozen=True, slots=True)
class Left:
    """A tensor that is left alone, and why."""

    name: str
    nbytes: int
    why: str


def sort(
    checkpoint: Checkpoint,
    config: Mapping[str, Any],
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> tuple[list[Target], list[Left]]:
    """What is pruned, in order of names, and what is left alone, in that of the file.

    ``include`` are patterns over names: what fits one is pruned even if it is left alone by default, and
    nothing else is. What fits a pattern of ``exclude`` is left alone in any case. Raises OptionError for
    patterns that fit nothing, UnsupportedError for quantised weights, with the tensor.
    """
    _refuse_quantised(checkpoint, config)
    for option, patterns in (("include", include), ("exclude", exclude)):
        for pattern in patterns:
            if not any(fits(name, pattern) for name in checkpoint.tensors):
                some = ", ".join(sorted(checkpoint.tensors)[:3])
                raise OptionError(f"--{option} {pattern!r} fits no tensor; there are {some}, ...")
    targets, left = [], []
    for info in checkpoint.tensors.values():
        why = _why_not(info, include, exclude)
        if why is None:
            targets.append(_target(info, config))
        else:
            left.append(Left(info.name, info.nbytes, why))
    return sorted(targets, key=lambda target: target.name), left


def fits(name: str, pattern: str) -> bool:
    """Whether a pattern is for a tensor: a glob over its name, or over a part of it."""
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"*{pattern}*")


def _why_not(info: TensorInfo, include: Sequence[str], exclude: Sequence[str]) -> str | None:
    """Why a tensor is left alone, None where it is pruned."""
    if info.dtype not in FLOATS:
        return f"{info.dtype}, no numbers to prune"
    if len(info.shape) < 2:
        return "a bias" if info.name.endswith("bias") else f"{len(info.shape)} axes"
    if not info.numel:
        return "no entries"
    if any(fits(info.name, pattern) for pattern in exclude):
        return "--exclude"
    if include:
        return None if any(fits(info.name, pattern) for pattern in include) else "not --include"
    return _by_default(info)


def _by_default(info: TensorInfo) -> str | None:
    parts = info.name.split(".")
    module, leaf = (parts[:-1], parts[-1]) if parts[-1] in ("weight", "in_proj_weight") else (parts, "")
    last = module[-1] if module else ""
    if leaf == "" and not _EXPERTS.search(".".join(module[:-1])):
        return "a bias" if last.endswith("bias") else "no layer's weight"
    if last.endswith("bias"):
        return "an embedding" if EMBEDDING.fullmatch(last) else "a bias"
    if EMBEDDING.fullmatch(last):
        return "an embedding"
    outside = not any(part.isdigit() for part in module)
    if outside and any(_HEAD.fullmatch(part) for part in module):
        return "a head"
    if _NORM.fullmatch(last):
        return "a norm"
    if _ROUTER.fullmatch(last):
        return "a router"
    if len(info.shape) > 2 and info.shape[1] == 1 < info.shape[0] and not _EXPERTS.search(info.name):
        return "a depthwise convolution"
    return None


def _target(info: TensorInfo, config: Mapping[str, Any]) -> Target:
    shape = info.shape
    if len(shape) == 3 and _EXPERTS.search(info.name):
        way = _stacked(info, config)
        out, inn = (shape[2], shape[1]) if way else (shape[1], shape[2])
        return Target(info.name, shape, info.dtype, shape[0], out, inn, way)
    if len(shape) == 2:
        way = turned(info.name, config)
        out, inn = (shape[1], shape[0]) if way else shape
        return Target(info.name, shape, info.dtype, 1, out, inn, way)
    return Target(info.name, shape, info.dtype, 1, shape[0], info.numel // shape[0], False)


def _stacked(info: TensorInfo, config: Mapping[str, Any]) -> bool | None:
    """Whether experts are stored as (experts, in, out): the model's type tells, or the width does."""
    text = config.get("text_config")
    told = {**config, **text} if isinstance(text, dict) else config
    if {config.get("model_type"), told.get("model_type")} & set(_STACKED_TURNED):
        return True
    hidden = told.get("hidden_size", told.get("d_model"))
    _, rows, columns = info.shape
    if rows == columns:
        return False if hidden else None
    if hidden not in (rows, columns):
        return None
    to_hidden = bool(re.search(r"down|w2|output|proj_out|fc2", info.name.rpartition("experts")[2]))
    return bool((columns if to_hidden else rows) == hidden)


def _refuse_quantised(checkpoint: Checkpoint, config: Mapping[str, Any]) -> None:
    for info in checkpoint.tensors.values():
        matrix = len(info.shape) > 1 and info.name.endswith("weight") and info.dtype not in FLOATS
        if _PACKED.search(info.name) or matrix:
            told = config.get("quantization_config")
            method = f" ({told.get('quant_method')})" if isinstance(told, dict) else ""
            raise UnsupportedError(
                f"{checkpoint.path}: {info.name} ({info.dtype}) holds packed or quantised weights{method}: "
                "prune the checkpoint that was quantised"
            )
