"""Small checkpoints and fine-tunes of them, in torch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

Tensors = dict[str, torch.Tensor]


def put(folder: Path, tensors: Tensors, config: dict[str, Any] | None = None) -> Path:
    from safetensors.torch import save_file

    folder.mkdir(exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def weights(seed: int = 0, **more: tuple[int, ...]) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"layers.0.up.weight": (24, 16), "layers.0.down.weight": (16, 24), "layers.0.norm.weight": (16,)}
    return {
        name: torch.randn(shape, generator=generator)
        for name, shape in (shapes | {key.replace("__", "."): value for key, value in more.items()}).items()
    }


def moved(tensors: Tensors, by: float = 0.1, only: Callable[[str], bool] = lambda name: True) -> Tensors:
    generator = torch.Generator().manual_seed(1)
    return {
        name: t + by * torch.randn(t.shape, generator=generator) if only(name) else t.clone()
        for name, t in tensors.items()
    }
