"""Tiny models of real shapes, pruned, with a tokenizer and text, for the tests of retraining."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from paring.checkpoint import open_checkpoint, write_safetensors
from paring.dtypes import from_f32
from paring.pruning.layers import layers
from paring.pruning.matrix import Budget, select

WORDS = [
    *("the", "a", "cat", "dog", "sat", "ran", "on", "under", "mat", "tree", "and", "then"),
    *("it", "was", "very", "old", "red", "blue", "house", "by", "sea"),
]


def text(words: int = 3000, seed: int = 0) -> str:
    """Sentences with some order to learn: each word leaves few choices for the next."""
    rng = np.random.default_rng(seed)
    at, out = 0, []
    for _ in range(words):
        out.append(WORDS[at])
        at = (3 * at + int(rng.integers(3))) % len(WORDS)
    return " ".join(out)


def tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    extra = ["<unk>", "<eos>", "<mask>", "<pad>"]
    vocabulary = {word: i for i, word in enumerate([*extra, *WORDS])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", eos_token="<eos>", mask_token="<mask>", pad_token="<pad>"
    )


def model(kind: str = "llama", seed: int = 0) -> Any:
    import transformers

    size = 4 + len(WORDS)
    torch.manual_seed(seed)
    if kind == "gpt2":
        return transformers.GPT2LMHeadModel(
            transformers.GPT2Config(
                vocab_size=size,
                n_embd=16,
                n_layer=2,
                n_head=2,
                n_positions=64,
                bos_token_id=1,
                eos_token_id=1,
            )
        )
    if kind in ("bert", "encoder"):
        config = transformers.BertConfig(
            vocab_size=size, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
            max_position_embeddings=64, pad_token_id=3, initializer_range=0.3,
        )  # fmt: skip
        return (transformers.BertForMaskedLM if kind == "bert" else transformers.BertModel)(config)
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=size, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, max_position_embeddings=64, bos_token_id=1, eos_token_id=1,
            tie_word_embeddings=kind != "untied",
        )
    )  # fmt: skip


def trained(kind: str, steps: int = 60) -> Any:
    """A model that knows something of the text, so that pruning takes something from it."""
    made = model(kind)
    if kind == "encoder":
        return made
    ids = torch.tensor(tokenizer()(text())["input_ids"][:2048]).reshape(-1, 32)
    optimizer = torch.optim.AdamW(made.parameters(), lr=1e-2)
    for step in range(steps):
        batch = ids[(8 * step) % 64 : (8 * step) % 64 + 8]
        optimizer.zero_grad()
        made(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
    return made


def folders(
    root: Path,
    kind: str = "llama",
    sparsity: float = 0.5,
    dtype: str = "BF16",
    pattern: tuple[int, int] | None = None,
) -> tuple[Path, Path, Path]:
    """Folders of the dense and the pruned model, and a text file."""
    dense, pruned, data = root / "dense", root / "pruned", root / "corpus.txt"
    made = trained(kind)
    made.to({"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}[dtype]).save_pretrained(
        dense
    )
    tokenizer().save_pretrained(dense)
    data.write_text(text())
    shutil.copytree(dense, pruned)
    prune(made, pruned, sparsity, pattern)
    return dense, pruned, data


def prune(made: nn.Module, folder: Path, sparsity: float, pattern: tuple[int, int] | None = None) -> None:
    """Prune the folder's matrices by magnitude, in place."""
    chosen = layers(made)
    with open_checkpoint(folder) as source:
        tensors = {name: source.read(name) for name in source}
    metadata = {"format": "pt"}
    for name, layer in chosen.items():
        values = tensors[name].f32().copy()
        matrix = values.T if layer.turned else values
        budget = Budget(pattern[0], of=pattern[1]) if pattern else Budget(round((1 - sparsity) * values.size))
        matrix[~select(np.abs(matrix), budget)] = 0
        tensors[name] = from_f32(values, tensors[name].dtype)
    write_safetensors(folder / "model.safetensors", tensors, metadata, overwrite=True)


def masks(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Which entries of each pruned tensor are not zero, by name in the file."""
    found = {}
    with open_checkpoint(folder) as source:
        for name in source:
            values = source.read(name).f32()
            if values.ndim > 1 and (values == 0).any():
                found[name] = values != 0
    return found


def loss(folder: Path, seed: int = 9) -> float:
    """The mean loss of the folder's model on text it has not seen."""
    from transformers import AutoModelForCausalLM

    read = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.tensor(tokenizer()(text(seed=seed))["input_ids"][:1024]).reshape(-1, 32)
    with torch.no_grad():
        return float(read(input_ids=ids, labels=ids).loss)


def metadata(folder: Path) -> dict[str, Any]:
    """The recipe that a result holds."""
    with open_checkpoint(folder) as source:
        found: dict[str, Any] = json.loads(source.metadata["paring"])
        return found
