"""Planted adapters: what they share is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from paring.checkpoint import write_safetensors
from paring.dtypes import Stored, from_f32
from paring.mos.pools import Layout, expand, projections
from paring.mos.routing import Sizes

CONFIG: dict[str, Any] = {
    "peft_type": "LORA",
    "r": 4,
    "lora_alpha": 8,
    "target_modules": ["q"],
    "base_model_name_or_path": "org/base",
}
Pair = tuple[Any, Any]


def gaussian(seed: int, layers: int = 3, r: int = 4, n_in: int = 96, n_out: int = 64) -> dict[str, Pair]:
    """Modules by name: A (r, in), B (out, r), fp32, unrelated."""
    rng = np.random.default_rng(seed)
    return {
        f"layers.{i}.q": (
            rng.standard_normal((r, n_in)).astype(np.float32),
            (rng.standard_normal((n_out, r)) * 0.1).astype(np.float32),
        )
        for i in range(layers)
    }


def put(folder: Path, modules: dict[str, Pair], dtype: str = "F32", form: str = "peft") -> Path:
    """An adapter in PEFT's form (a folder) or kohya's (a file), factors in ``dtype``."""
    tensors: dict[str, Stored] = {}
    for name, (A, B) in modules.items():
        if form == "kohya":
            stem = "lora_unet_" + name.replace(".", "_")
            names = f"{stem}.lora_down.weight", f"{stem}.lora_up.weight"
            tensors[f"{stem}.alpha"] = Stored("F32", np.array(8.0, np.float32))
        else:
            names = tuple(f"base_model.model.{name}.lora_{side}.weight" for side in "AB")
        for tensor, values in zip(names, (A, B), strict=True):
            tensors[tensor] = from_f32(np.ascontiguousarray(values), dtype)
    if form == "kohya":
        file = folder.with_suffix(".safetensors")
        write_safetensors(file, tensors, {"ss_network_module": "networks.lora"})
        return file
    folder.mkdir(exist_ok=True)
    r = len(next(iter(modules.values()))[0])
    write_safetensors(folder / "adapter_model.safetensors", tensors, {"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps({**CONFIG, "r": r, "lora_alpha": 2 * r}))
    return folder


def mos(sizes: Sizes, layers: int, n_in: int, n_out: int, seed: int = 0) -> tuple[dict[str, Pair], int]:
    """A MoS adapter, expanded as the published code does; and how many shards of both pools are used."""
    shapes = [(f"layers.{i}.q", (n_out, n_in)) for i in range(layers)]
    types = projections(shapes)
    layout = Layout(sizes, 16, types, seed)
    rng = np.random.default_rng(seed)
    (each,) = types
    modules: dict[str, Pair] = {}
    used: dict[str, set[int]] = {"A": set(), "B": set()}
    sides: dict[str, list[Any]] = {}
    for factor in ("A", "B"):
        count, width = layout.shape(each, factor)  # type: ignore[arg-type]
        pool = rng.standard_normal((count, width)).astype(np.float32)
        for layer in range(layers):
            route = layout.route(each, layer, factor)  # type: ignore[arg-type]
            used[factor] |= set(route.tolist())
            sides.setdefault(factor, []).append(expand(pool, route, sizes.shards))
    for layer, (name, _) in enumerate(shapes):
        modules[name] = sides["A"][layer], np.ascontiguousarray(sides["B"][layer].T)
    return modules, len(used["A"]) + len(used["B"])


def same_run(
    modules: dict[str, Pair], of_a: float = 0.007, of_b: float = 0.27, seed: int = 9
) -> dict[str, Pair]:
    """A later checkpoint: factors moved by these parts of their norms."""
    rng = np.random.default_rng(seed)

    def moved(values: Any, share: float) -> Any:
        step = rng.standard_normal(values.shape)
        step *= share * np.linalg.norm(values) / np.linalg.norm(step)
        return (values + step).astype(np.float32)

    return {name: (moved(A, of_a), moved(B, of_b)) for name, (A, B) in modules.items()}
