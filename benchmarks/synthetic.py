"""Synthetic checkpoints in the llama layout: a base and its fine-tunes, bf16, sharded as on the Hub."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from paring.dtypes import from_f32
from paring.resumable import index_of, shards

#: values that tensors are filled with, in turn; tensors repeat them from different places on
_POOL = 1 << 24


@dataclass(frozen=True, slots=True)
class Size:
    """Hyper-parameters of the llama layout."""

    hidden: int
    layers: int
    inner: int
    vocabulary: int
    tied: bool = False
    shards: int = 4

    def layout(self) -> list[tuple[str, str, tuple[int, ...]]]:
        """Name, dtype and shape of every tensor."""
        h, f, v = self.hidden, self.inner, self.vocabulary
        parts: list[tuple[str, tuple[int, ...]]] = [("model.embed_tokens.weight", (v, h))]
        for i in range(self.layers):
            layer = f"model.layers.{i}."
            parts += [(layer + f"self_attn.{x}_proj.weight", (h, h)) for x in "qkvo"]
            parts += [(layer + f"mlp.{x}_proj.weight", (f, h)) for x in ("gate", "up")]
            parts += [(layer + "mlp.down_proj.weight", (h, f))]
            parts += [(layer + f"{x}_layernorm.weight", (h,)) for x in ("input", "post_attention")]
        parts.append(("model.norm.weight", (h,)))
        if not self.tied:
            parts.append(("lm_head.weight", (v, h)))
        return [(name, "BF16", shape) for name, shape in parts]

    def config(self) -> dict[str, object]:
        return {
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": self.hidden,
            "intermediate_size": self.inner, "num_hidden_layers": self.layers, "num_attention_heads": 16,
            "num_key_value_heads": 16, "vocab_size": self.vocabulary, "tie_word_embeddings": self.tied,
            "torch_dtype": "bfloat16",
        }  # fmt: skip


#: the size of the peers' table: 309 million parameters
MEDIUM = Size(1024, 16, 2816, 50_304)
#: 4 billion parameters
LARGE = Size(2560, 36, 9728, 151_936, tied=True, shards=40)


def parameters(size: Size) -> int:
    """How many a model of this size has."""
    return sum(int(np.prod(shape)) for _, _, shape in size.layout())


def make(folder: Path, size: Size, seed: int) -> None:
    """Write a model: seed 0 is the base, others are fine-tunes of it (deltas of a tenth its size)."""
    if (folder / "config.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    layout = size.layout()
    files = shards(layout, "model", 2 * parameters(size) // size.shards + 1, {"format": "pt"})
    pool = 0.02 * np.random.default_rng(0).standard_normal(_POOL, dtype=np.float32)
    if seed:
        pool = pool + 0.002 * np.random.default_rng(seed).standard_normal(_POOL, dtype=np.float32)
    bits = from_f32(pool, "BF16").data
    starts = {name: i * 40_503 % _POOL for i, (name, _, _) in enumerate(layout)}
    for shard in files:
        with (folder / shard.name).open("wb") as file:
            file.write(shard.head)
            for name, place in sorted(shard.places.items(), key=lambda pair: pair[1].start):
                _fill(file, bits, starts[name], place.numel)
    if len(files) > 1:
        (folder / "model.safetensors.index.json").write_text(json.dumps(index_of(files)))
    (folder / "config.json").write_text(json.dumps(size.config()))


def _fill(file: BinaryIO, bits: npt.NDArray[np.uint16], start: int, count: int) -> None:
    while count:
        part = bits[start : start + count]
        file.write(part.tobytes())
        count -= len(part)
        start = 0


def link(source: Path, folder: Path) -> None:
    """The same model under another name, by hard links: no more disk."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in source.iterdir():
        if not (folder / file.name).exists():
            os.link(file, folder / file.name)


def many_tensors(folder: Path, count: int, seed: int) -> None:
    """A model of ``count`` tiny tensors in one file."""
    if (folder / "config.json").exists():
        return
    from paring.checkpoint import write_safetensors

    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    tensors = {
        f"model.layers.{i}.weight": from_f32(rng.standard_normal((8, 8)).astype(np.float32), "BF16")
        for i in range(count)
    }
    write_safetensors(folder / "model.safetensors", tensors, {"format": "pt"})
    (folder / "config.json").write_text("{}")


def lora(file: Path, rank: int = 64, layers: int = 32) -> None:
    """A LoRA with the shapes of LLaMA-7B, all linear layers, fp16: 2,498,560 parameters a rank.

    A is as PEFT initialises it; B has rank vectors whose sizes fall like those of trained adapters.
    """
    from paring.checkpoint import write_safetensors

    shapes = {f"self_attn.{x}_proj": (4096, 4096) for x in "qkvo"}
    shapes |= {"mlp.gate_proj": (11008, 4096), "mlp.up_proj": (11008, 4096), "mlp.down_proj": (4096, 11008)}
    rng = np.random.default_rng(0)
    sizes = 1.0 / (1 + np.arange(rank, dtype=np.float32))
    tensors = {}
    for layer in range(layers):
        for name, (n_out, n_in) in shapes.items():
            prefix = f"base_model.model.model.layers.{layer}.{name}"
            A = rng.uniform(-1, 1, (rank, n_in)).astype(np.float32) / np.sqrt(n_in)
            B = 0.02 * rng.standard_normal((n_out, rank), np.float32) * sizes
            tensors[f"{prefix}.lora_A.weight"] = from_f32(A, "F16")
            tensors[f"{prefix}.lora_B.weight"] = from_f32(B, "F16")
    write_safetensors(file, tensors, {"format": "pt"})
    told = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": "all-linear"}
    file.with_name("adapter_config.json").write_text(json.dumps(told))


def files_of(folders: Sequence[Path]) -> list[Path]:
    """All tensor files of these models."""
    return [file for folder in folders for file in sorted(folder.glob("*.safetensors"))]
