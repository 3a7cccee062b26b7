"""Small checkpoints to merge, as the Hub has them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from paring.checkpoint import write_safetensors
from paring.dtypes import Stored, from_f32
from paring.resumable import index_of, shards

SHAPES = {
    "model.embed_tokens.weight": (50, 24),
    **{f"model.layers.{i}.self_attn.q_proj.weight": (24, 24) for i in range(3)},
    **{f"model.layers.{i}.mlp.down_proj.weight": (24, 3000) for i in range(2)},
    "model.norm.weight": (24,),
    "model.empty": (0, 4),
    "model.scalar": (),
}
CONFIG = {"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 3, "torch_dtype": "float32"}
Arrays = dict[str, npt.NDArray[np.float32]]


def arrays(seed: int, base: Mapping[str, npt.NDArray[np.float32]] | None = None, size: float = 0.1) -> Arrays:
    """A base, or a fine-tune of one: fp32 values by name."""
    rng = np.random.default_rng(seed)
    if base is None:
        return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}
    return {
        name: (x + size * rng.standard_normal(x.shape) * (rng.random(x.shape) < 0.8)).astype(np.float32)
        for name, x in base.items()
    }


def put_model(
    folder: Path,
    values: Mapping[str, npt.NDArray[np.float32]],
    dtype: str = "F32",
    *,
    limit: int = 1 << 40,
    extra: Mapping[str, Stored] | None = None,
    config: Any = CONFIG,
) -> Path:
    """A checkpoint folder in ``dtype``, cut in shards of ``limit`` bytes; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: from_f32(x, dtype, name) for name, x in values.items()} | dict(extra or {})
    layout = [(name, tensor.dtype, tensor.shape) for name, tensor in tensors.items()]
    files = shards(layout, "model", limit, {"format": "pt"})
    for shard in files:
        write_safetensors(
            folder / shard.name, {name: tensors[name] for name in shard.places}, {"format": "pt"}
        )
    if len(files) > 1:
        (folder / "model.safetensors.index.json").write_text(json.dumps(index_of(files)))
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(json.dumps({"from": folder.name}))
    return folder
