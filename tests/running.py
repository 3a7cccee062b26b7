"""Tiny models that transformers runs, with a tokenizer and a text."""

from __future__ import annotations

import numpy as np
import torch
import transformers
from torch import nn

from tests import tokenizing

TEXT = " ".join(["the cat sat on the mat", "the dog ate the log", "a cat and a dog"] * 12)


def put(folder, kind="llama", seed=0, **more):
    """A model of two blocks in ``folder``, with a tokenizer; returns the folder."""
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizing.tokenizer("BPE", "base"), eos_token="<eos>", pad_token="<pad>"
    )
    sizes = {"vocab_size": len(fast), "pad_token_id": fast.pad_token_id, "eos_token_id": fast.eos_token_id}
    torch.manual_seed(seed)
    if kind == "llama":
        config = transformers.LlamaConfig(
            **sizes, hidden_size=16, intermediate_size=24, num_attention_heads=2, num_key_value_heads=1,
            bos_token_id=None, **({"num_hidden_layers": 2, "max_position_embeddings": 64} | more),
        )  # fmt: skip
        model = transformers.LlamaForCausalLM(config)
    elif kind == "gpt2":
        config = transformers.GPT2Config(
            vocab_size=len(fast), n_embd=16, n_layer=2, n_head=2, n_positions=64, bos_token_id=None,
            eos_token_id=fast.eos_token_id,
        )  # fmt: skip
        model = transformers.GPT2LMHeadModel(config)
    else:
        config = transformers.BertConfig(
            **sizes, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
            max_position_embeddings=64,
        )  # fmt: skip
        model = transformers.BertModel(config)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3) if parameter.ndim > 1 else None
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def loaded(folder, kind="AutoModelForCausalLM"):
    return getattr(transformers, kind).from_pretrained(folder, dtype=torch.float32).eval()


def given(model, windows, names):
    """What the layers called ``names`` are given: ``(tokens, in)`` each, all windows one after the other."""
    seen = {name: [] for name in names}
    hooks = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, x, name=name: seen[name].append(
                x[0].detach().reshape(-1, x[0].shape[-1]).double().numpy()
            )
        )
        for name in names
    ]
    with torch.no_grad():
        for window in windows:
            model(input_ids=window[None])
    for hook in hooks:
        hook.remove()
    return {name: np.concatenate(parts) for name, parts in seen.items()}
