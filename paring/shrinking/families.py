"""Architectures as data: what every tensor's axes are, and what configurations call their sizes.

Axes are named ``hidden`` (the residual stream), ``q`` and ``kv`` (heads times their size), ``neurons`` (of
the feed-forward part, or of each expert), ``experts``, and others that are never cut: ``dense`` and
``shared`` (neurons beside experts) and ``*``. ``q+kv+kv`` is one axis of several, one after the other. In
names ``{}`` stands for a layer's number, the second one for an expert's; what ``prefix`` says may be missing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

#: axis (or size) -> what a configuration may call it
Keys = Mapping[str, tuple[str, ...]]
_NUMBER = re.compile(r"(?<=\.)(0|[1-9]\d{0,6})(?=\.)")


@dataclass(frozen=True, slots=True)
class Family:
    """One kind of architecture: the ``types`` that configurations call it, names of tensors and their axes.

    ``tied`` says that a head's size is always the width over the number of heads. ``alternates`` is how many
    layers make one round of attention kinds, for types whose configuration need not list them.
    """

    types: tuple[str, ...]
    prefix: str
    stack: str
    keys: Keys
    axes: Mapping[str, tuple[str, ...]]
    tied: bool = False
    alternates: Mapping[str, int] = field(default_factory=dict)

    def place(self, name: str) -> tuple[str, int | None, int | None]:
        """``("layers.{}.mlp.weight", 3, None)``: a name without prefix and numbers, its layer, its expert."""
        plain = name.removeprefix(self.prefix)
        if not plain.startswith(self.stack + "."):
            return plain, None, None
        numbers = [int(number) for number in _NUMBER.findall(plain)]
        layer, expert = [*numbers, None, None][:2]
        return _NUMBER.sub("{}", plain), layer, expert


def _linear(name: str, out: str, into: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    yield f"{name}.weight", (out, into)
    yield f"{name}.bias", (out,)


def _turned(name: str, into: str, out: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """A Conv1D of GPT-2, stored as (in, out)."""
    yield f"{name}.weight", (into, out)
    yield f"{name}.bias", (out,)


def _norm(name: str, axis: str = "hidden") -> Iterator[tuple[str, tuple[str, ...]]]:
    for part in ("weight", "bias", "gamma", "beta"):
        yield f"{name}.{part}", (axis,)


def _axes(*rows: Iterator[tuple[str, tuple[str, ...]]]) -> dict[str, tuple[str, ...]]:
    return {name: axes for row in rows for name, axes in row}


_L = "layers.{}."
#: decoders as LLaMA's; heads for classes and the like stand beside the language model's
_DECODER = _axes(
    _linear("embed_tokens", "*", "hidden"),
    _norm("norm"),
    _linear("lm_head", "*", "hidden"),
    _linear("score", "*", "hidden"),
    _linear("qa_outputs", "*", "hidden"),
    *(
        _norm(f"{_L}{name}")
        for name in ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm",
                     "post_feedforward_layernorm")
    ),
    _linear(f"{_L}self_attn.q_proj", "q", "hidden"),
    _linear(f"{_L}self_attn.k_proj", "kv", "hidden"),
    _linear(f"{_L}self_attn.v_proj", "kv", "hidden"),
    _linear(f"{_L}self_attn.qkv_proj", "q+kv+kv", "hidden"),
    _linear(f"{_L}self_attn.o_proj", "hidden", "q"),
    _norm(f"{_L}self_attn.q_norm", "*"),
    _norm(f"{_L}self_attn.k_norm", "*"),
)  # fmt: skip
_DECODER[f"{_L}self_attn.rotary_emb.inv_freq"] = ("*",)
_KEYS: Keys = {
    "layers": ("num_hidden_layers",),
    "hidden": ("hidden_size",),
    "heads": ("num_attention_heads",),
    "kv_heads": ("num_key_value_heads",),
    "head_dim": ("head_dim",),
}


def _gated(name: str, neurons: str) -> dict[str, tuple[str, ...]]:
    """A gated feed-forward part."""
    return _axes(
        _linear(f"{name}.gate_proj", neurons, "hidden"),
        _linear(f"{name}.up_proj", neurons, "hidden"),
        _linear(f"{name}.gate_up_proj", f"{neurons}+{neurons}", "hidden"),
        _linear(f"{name}.down_proj", "hidden", neurons),
    )


_STACKED = {
    f"{_L}mlp.experts.gate_up_proj": ("experts", "neurons+neurons", "hidden"),
    f"{_L}mlp.experts.down_proj": ("experts", "hidden", "neurons"),
}
_DENSE = Family(
    ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3"), "model.", "layers",
    {**_KEYS, "neurons": ("intermediate_size",)}, _DECODER | _gated(f"{_L}mlp", "neurons"),
    alternates={"gemma2": 2, "gemma3_text": 6},
)  # fmt: skip
_MIXTRAL = Family(
    ("mixtral",), "model.", "layers",
    {**_KEYS, "neurons": ("intermediate_size",), "experts": ("num_local_experts",),
     "chosen": ("num_experts_per_tok",)},
    _DECODER | _STACKED | _axes(
        *(_linear(f"{_L}{name}.gate", "experts", "hidden") for name in ("block_sparse_moe", "mlp")),
        _linear(f"{_L}block_sparse_moe.experts.{{}}.w1", "neurons", "hidden"),
        _linear(f"{_L}block_sparse_moe.experts.{{}}.w2", "hidden", "neurons"),
        _linear(f"{_L}block_sparse_moe.experts.{{}}.w3", "neurons", "hidden"),
    ),
)  # fmt: skip
_QWEN_MOE = Family(
    ("qwen2_moe", "qwen3_moe"), "model.", "layers",
    {**_KEYS, "neurons": ("moe_intermediate_size",), "dense": ("intermediate_size",),
     "shared": ("shared_expert_intermediate_size",), "experts": ("num_experts", "num_local_experts"),
     "chosen": ("num_experts_per_tok",)},
    _DECODER | _STACKED | _gated(f"{_L}mlp", "dense") | _gated(f"{_L}mlp.shared_expert", "shared")
    | _gated(f"{_L}mlp.experts.{{}}", "neurons") | _axes(
        _linear(f"{_L}mlp.gate", "experts", "hidden"), _linear(f"{_L}mlp.shared_expert_gate", "*", "hidden"),
    ),
)  # fmt: skip
_H = "h.{}."
_GPT2 = Family(
    ("gpt2",), "transformer.", "h",
    {"layers": ("n_layer",), "hidden": ("n_embd",), "heads": ("n_head",), "neurons": ("n_inner",)},
    _axes(
        _linear("wte", "*", "hidden"), _linear("wpe", "*", "hidden"), _norm("ln_f"),
        _linear("lm_head", "*", "hidden"), _linear("score", "*", "hidden"),
        _norm(f"{_H}ln_1"), _norm(f"{_H}ln_2"),
        _turned(f"{_H}attn.c_attn", "hidden", "q+q+q"), _turned(f"{_H}attn.c_proj", "q", "hidden"),
        _turned(f"{_H}mlp.c_fc", "hidden", "neurons"), _turned(f"{_H}mlp.c_proj", "neurons", "hidden"),
    ) | {f"{_H}attn.bias": ("*", "*", "*", "*"), f"{_H}attn.masked_bias": ()},
    tied=True,
)  # fmt: skip
_E = "encoder.layer.{}."
_ENCODER = _axes(
    *(_linear(f"embeddings.{name}_embeddings", "*", "hidden") for name in ("word", "position", "token_type")),
    _norm("embeddings.LayerNorm"),
    *(_linear(f"{_E}attention.self.{name}", "q", "hidden") for name in ("query", "key", "value")),
    _linear(f"{_E}attention.output.dense", "hidden", "q"),
    _norm(f"{_E}attention.output.LayerNorm"),
    _linear(f"{_E}intermediate.dense", "neurons", "hidden"),
    _linear(f"{_E}output.dense", "hidden", "neurons"),
    _norm(f"{_E}output.LayerNorm"),
    _linear("pooler.dense", "hidden", "hidden"),
    _linear("qa_outputs", "*", "hidden"),
) | {"embeddings.position_ids": ("*", "*"), "embeddings.token_type_ids": ("*", "*")}
_ENCODER_KEYS: Keys = {
    "layers": ("num_hidden_layers",), "hidden": ("hidden_size",), "heads": ("num_attention_heads",),
    "neurons": ("intermediate_size",),
}  # fmt: skip
_BERT = Family(
    ("bert",), "bert.", "encoder.layer", _ENCODER_KEYS,
    _ENCODER | _axes(
        _linear("cls.predictions.transform.dense", "hidden", "hidden"),
        _norm("cls.predictions.transform.LayerNorm"),
        _linear("cls.predictions.decoder", "*", "hidden"),
        _linear("cls.seq_relationship", "*", "hidden"), _linear("classifier", "*", "hidden"),
    ) | {"cls.predictions.bias": ("*",)},
    tied=True,
)  # fmt: skip
_ROBERTA = Family(
    ("roberta", "xlm-roberta"), "roberta.", "encoder.layer", _ENCODER_KEYS,
    _ENCODER | _axes(
        _linear("lm_head.dense", "hidden", "hidden"), _norm("lm_head.layer_norm"),
        _linear("lm_head.decoder", "*", "hidden"), _linear("classifier.dense", "hidden", "hidden"),
        _linear("classifier.out_proj", "*", "hidden"), _linear("classifier", "*", "hidden"),
    ) | {"lm_head.bias": ("*",)},
    tied=True,
)  # fmt: skip
_D = "transformer.layer.{}."
_DISTILBERT = Family(
    ("distilbert",), "distilbert.", "transformer.layer",
    {"layers": ("n_layers",), "hidden": ("dim",), "heads": ("n_heads",), "neurons": ("hidden_dim",)},
    _axes(
        *(_linear(f"embeddings.{name}_embeddings", "*", "hidden") for name in ("word", "position")),
        _norm("embeddings.LayerNorm"),
        *(_linear(f"{_D}attention.{name}_lin", "q", "hidden") for name in "qkv"),
        _linear(f"{_D}attention.out_lin", "hidden", "q"),
        _norm(f"{_D}sa_layer_norm"), _norm(f"{_D}output_layer_norm"),
        _linear(f"{_D}ffn.lin1", "neurons", "hidden"), _linear(f"{_D}ffn.lin2", "hidden", "neurons"),
        _linear("vocab_transform", "hidden", "hidden"), _norm("vocab_layer_norm"),
        _linear("vocab_projector", "*", "hidden"), _linear("pre_classifier", "hidden", "hidden"),
        _linear("classifier", "*", "hidden"), _linear("qa_outputs", "*", "hidden"),
    ),
    tied=True,
)  # fmt: skip

FAMILIES = (_DENSE, _MIXTRAL, _QWEN_MOE, _GPT2, _BERT, _ROBERTA, _DISTILBERT)


def find(model_type: object) -> Family | None:
    """The family of a configuration's ``model_type``, None for one that is not known."""
    return next((family for family in FAMILIES if model_type in family.types), None)


def known_types() -> list[str]:
    """The types that are known."""
    return sorted(kind for family in FAMILIES for kind in family.types)
