"""Tiny models of every architecture that shrink knows, as transformers saves them; and masked copies."""

import json
import re

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file

from paring.api import shrink

LAYERS, HIDDEN, DIM = 4, 32, 8
_COMMON = {
    "hidden_size": HIDDEN, "intermediate_size": 48, "num_hidden_layers": LAYERS, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 64, "max_position_embeddings": 64, "bos_token_id": 1,
    "eos_token_id": 2, "pad_token_id": 0, "initializer_range": 0.3,
}  # fmt: skip
_MOE = {**_COMMON, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "num_experts": 4}
_BERT = {key: value for key, value in _COMMON.items() if key != "num_key_value_heads"}
_GPT2 = {"n_embd": HIDDEN, "n_head": 4, "n_layer": LAYERS, "n_positions": 64, "initializer_range": 0.3,
         "vocab_size": 64, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
MODELS = {
    "llama": ("LlamaForCausalLM", {**_COMMON, "attention_bias": True, "mlp_bias": True}),
    "mistral": ("MistralForCausalLM", _COMMON),
    "qwen2": ("Qwen2ForCausalLM", _COMMON),
    "qwen3": ("Qwen3ForCausalLM", {**_COMMON, "head_dim": DIM}),
    "gemma": ("GemmaForCausalLM", {**_COMMON, "head_dim": DIM}),
    "gemma2": ("Gemma2ForCausalLM", {**_COMMON, "head_dim": DIM, "sliding_window": 4}),
    "gemma3_text": ("Gemma3ForCausalLM", {**_COMMON, "head_dim": DIM, "sliding_window": 4}),
    "phi3": ("Phi3ForCausalLM", _COMMON),
    "gpt2": ("GPT2LMHeadModel", _GPT2),
    "bert": ("BertForMaskedLM", _BERT),
    "roberta": ("RobertaForSequenceClassification", {**_BERT, "max_position_embeddings": 80}),
    "distilbert": (
        "DistilBertForMaskedLM",
        {"dim": HIDDEN, "hidden_dim": 48, "n_layers": LAYERS, "n_heads": 4, "vocab_size": 64,
         "initializer_range": 0.3},
    ),
    "mixtral": ("MixtralForCausalLM", {**_COMMON, "num_experts_per_tok": 2, "num_local_experts": 4}),
    "qwen2_moe": ("Qwen2MoeForCausalLM", {**_MOE, "shared_expert_intermediate_size": 40}),
    "qwen3_moe": ("Qwen3MoeForCausalLM", {**_MOE, "head_dim": DIM}),
}  # fmt: skip
TIED = ("gpt2", "bert", "roberta", "distilbert")
GROUPED = [kind for kind in MODELS if kind not in TIED]
EXPERTS = ("mixtral", "qwen2_moe", "qwen3_moe")
IDS = torch.arange(3, 21).reshape(2, 9)
#: what a layer's output matrices of heads and neurons are called, and whether they are stored as (in, out)
OUTPUTS = {
    "gpt2": ("attn.c_proj.weight", "mlp.c_proj.weight", True),
    "bert": ("attention.output.dense.weight", r"layer\.\d+\.output.dense.weight", False),
    "roberta": ("attention.output.dense.weight", r"layer\.\d+\.output.dense.weight", False),
    "distilbert": ("out_lin.weight", "lin2.weight", False),
}


def made_in(home):
    """Folders of tiny models with noise in every tensor, biases and norms too."""
    made = {}

    def model(kind):
        if kind not in made:
            torch.manual_seed(7)
            architecture, config = MODELS[kind]
            model = getattr(transformers, architecture)(transformers.AutoConfig.for_model(kind, **config))
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(0.1 * torch.randn(parameter.shape))
            model.save_pretrained(home / kind)
            (home / kind / "tokenizer.json").write_text("{}")
            made[kind] = home / kind
        return made[kind]

    return model


def load(kind, folder):
    found, info = getattr(transformers, MODELS[kind][0]).from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    return found.eval()


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits


def masked(kind, source, target, *, heads=None, neurons=None):
    """A copy of a model whose heads and neurons other than those of ``heads[layer]`` say nothing."""
    target.mkdir()
    for file in source.glob("*.json"):
        (target / file.name).write_bytes(file.read_bytes())
    tensors = load_file(source / "model.safetensors")
    usual = ("o_proj.weight", r"(mlp|experts\.\d+)\.(down_proj|w2)\.weight", False)
    of_heads, of_neurons, turned = OUTPUTS.get(kind, usual)
    for name, tensor in tensors.items():
        numbers = re.findall(r"\.(\d+)\.", name)
        columns = tensor.mT if turned and tensor.ndim == 2 else tensor
        if heads is not None and re.search(of_heads, name):
            rows = (DIM * np.array(heads[numbers[0]])[:, None] + np.arange(DIM)).reshape(-1)
            columns[:, np.setdiff1d(np.arange(columns.shape[1]), rows)] = 0
        if neurons is not None and re.search(of_neurons, name):
            rows = neurons[".".join(numbers)]
            columns[:, np.setdiff1d(np.arange(columns.shape[1]), rows)] = 0
    save(tensors, target)
    return target


def save(tensors, folder):
    told = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(told, folder / "model.safetensors", {"format": "pt"})


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def kept(folder):
    return json.loads((folder / "shrink.json").read_text())


def changed(tiny, kind, tmp_path, config, **how):
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "model.safetensors").symlink_to(tiny(kind) / "model.safetensors")
    own = json.loads((tiny(kind) / "config.json").read_text()) | config
    own = {key: value for key, value in own.items() if value != "gone"}
    (folder / "config.json").write_text(json.dumps(own))
    shrink(folder, tmp_path / "out", **how)
    return json.loads((tmp_path / "out" / "config.json").read_text())
