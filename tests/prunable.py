"""Small checkpoints to prune, and what of them a plain reference would keep."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from paring.checkpoint import open_checkpoint
from paring.pruning.masks import open_mask
from tests.merging import put_model

CONFIG = {"model_type": "llama", "hidden_size": 24}
SHAPES = {
    "model.embed_tokens.weight": (50, 24),
    **{f"model.layers.{i}.self_attn.q_proj.weight": (24, 24) for i in range(3)},
    **{f"model.layers.{i}.mlp.down_proj.weight": (24, 60) for i in range(2)},
    "model.layers.0.mlp.gate.weight": (4, 24),
    "model.layers.0.input_layernorm.weight": (24,),
    "model.norm.weight": (24,),
    "lm_head.weight": (50, 24),
}
PRUNED = sorted(name for name in SHAPES if "_proj" in name)
ELEMENTS = sum(int(np.prod(SHAPES[name])) for name in PRUNED)
Arrays = dict[str, npt.NDArray[np.float32]]


def arrays(seed: int = 0, shapes: Mapping[str, tuple[int, ...]] = SHAPES, decimals: int | None = 1) -> Arrays:
    """Values of few different magnitudes, so that many are tied."""
    rng = np.random.default_rng(seed)
    made = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    return {
        name: (x if decimals is None else x.round(decimals)).astype(np.float32) for name, x in made.items()
    }


def put(folder: Path, values: Arrays, dtype: str = "BF16", **rest: Any) -> Path:
    return put_model(folder, values, dtype, **{"config": CONFIG, **rest})


def read(folder: Path) -> Arrays:
    """A checkpoint's tensors in fp32."""
    with open_checkpoint(folder) as opened:
        return {name: opened.read(name).f32() for name in opened}


def kept(mask: Path) -> dict[str, npt.NDArray[np.bool_]]:
    """What a mask keeps, in the tensors' shapes."""
    opened = open_mask(mask)
    found = opened.arrays()
    opened.close()
    return found


def least(values: Mapping[str, npt.NDArray[Any]], names: list[str], count: int) -> dict[str, Any]:
    """The mask that drops the ``count`` smallest of all, of equal ones the first by name and place."""
    flat = np.concatenate([np.abs(values[name]).reshape(-1) for name in names])
    keep = np.ones(len(flat), np.bool_)
    keep[np.argsort(flat, kind="stable")[:count]] = False
    ends = np.cumsum([values[name].size for name in names])[:-1]
    return {
        name: part.reshape(values[name].shape) for name, part in zip(names, np.split(keep, ends), strict=True)
    }


def floor(share: str, n: int) -> int:
    return int(Fraction(share) * n)
