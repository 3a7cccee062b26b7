"""Tiny language models with tokenizers of their own."""

import json

import numpy as np
import tokenizers as hf
import transformers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from paring.checkpoint import write_safetensors
from paring.dtypes import from_f32

TEXTS = {
    "base": ["the cat sat on the mat", "the dog ate the log", "a cat and a dog"],
    "a": ["the cat sat on the mat", "zebras run quickly at night", "running zebras"],
    "b": ["the dog ate the log", "quantum physics is quick", "physics of quanta"],
}
#: added tokens, with ids that differ between the models
ADDED = {"base": ["<pad>", "<eos>"], "a": ["<eos>", "<|user|>", "<pad>"], "b": ["<pad>", "<tool>", "<eos>"]}
EMBED, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
KINDS = ["BPE", "WordPiece", "Unigram", "metaspace"]


def tokenizer(kind, name):
    """A small one, trained on the texts of that name; its added tokens come last."""
    if kind in ("BPE", "metaspace"):
        made = hf.Tokenizer(models.BPE())
        space = (
            pre_tokenizers.ByteLevel(add_prefix_space=False) if kind == "BPE" else pre_tokenizers.Metaspace()
        )
        made.pre_tokenizer, made.decoder = (
            space,
            decoders.ByteLevel() if kind == "BPE" else decoders.Metaspace(),
        )
        trainer = trainers.BpeTrainer(vocab_size=60, show_progress=False)
    elif kind == "WordPiece":
        made = hf.Tokenizer(models.WordPiece(unk_token="[UNK]"))
        made.normalizer, made.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
        trainer = trainers.WordPieceTrainer(vocab_size=60, special_tokens=["[UNK]"], show_progress=False)
    else:
        made = hf.Tokenizer(models.Unigram())
        made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=50, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False
        )
    made.train_from_iterator(TEXTS[name] * 3, trainer)
    made.add_special_tokens([hf.AddedToken(token, normalized=False) for token in ADDED[name]])
    return made


def put(folder, kind, name, seed, *, tied=False, pad=0, dtype="F32", template=None):
    """A tiny llama with its tokenizer and ``pad`` rows beyond it; returns the folder."""
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer(kind, name), eos_token="<eos>", pad_token="<pad>"
    )
    fast.chat_template = template
    fast.save_pretrained(folder)
    rows = len(fast) + pad
    config = transformers.LlamaConfig(
        vocab_size=rows, hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=32, tie_word_embeddings=tied, eos_token_id=fast.eos_token_id,
        pad_token_id=fast.pad_token_id, bos_token_id=None,
    )  # fmt: skip
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [fast.eos_token_id]}))
    shapes = {n: tuple(x.shape) for n, x in transformers.LlamaForCausalLM(config).state_dict().items()}
    rng = np.random.default_rng(seed)
    tensors = {
        n: from_f32(rng.standard_normal(shape).astype(np.float32), dtype, n)
        for n, shape in shapes.items()
        if not (tied and n == HEAD)
    }
    write_safetensors(folder / "model.safetensors", tensors, {"format": "pt"}, overwrite=True)
    return folder


def loaded(folder):
    return transformers.AutoTokenizer.from_pretrained(folder)


def vocabulary(folder):
    return loaded(folder).get_vocab()


def put_all(tmp_path, kind="BPE", **options):
    return [put(tmp_path / n, kind, n, i, **options) for i, n in enumerate(("base", "a", "b"))]
