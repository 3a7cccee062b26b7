"""What a tensor is to its model, by its name and the configuration: files tell nothing else."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

#: the last part of an embedding's name; files do not tell an embedding from a linear layer otherwise
EMBEDDING = re.compile(
    r"(\w+_)?(embeddings?|emb|embed|embed_in|embed_tokens(_\w+)?|embed_positions|wte|wpe|shared)"
    r"|(\w+_)?relative_attention_bias|tokens_embed|positions_embed"
)
#: model types whose Conv1D layers store weights as (in, out), and what those layers are called
_FAN_IN = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")
_CONV1D = ("c_attn", "c_proj", "c_fc", "q_attn")


def turned(name: str, config: Mapping[str, Any]) -> bool | None:
    """Whether a linear layer's weight is stored as (in, out), as Conv1D does; None when nothing tells."""
    if name.removesuffix(".weight").rpartition(".")[2] not in _CONV1D:
        return False
    return bool(config["model_type"] in _FAN_IN) if "model_type" in config else None
