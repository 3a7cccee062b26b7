"""Names of modules between dialects: the *canonical* name is dotted, with the part of a pipeline in front.

``unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_k``, ``text_encoder.text_model...``, or
without a part what a single model calls its module, ``model.layers.0.self_attn.q_proj``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cache, lru_cache

#: the parts of a pipeline
PARTS = ("unet", "text_encoder", "text_encoder_2", "text_encoder_3")
#: how the modules of a part begin, where the part itself is not named
_BEGINNINGS = {
    "unet": (
        "down_blocks", "mid_block", "up_blocks", "conv_in", "conv_out", "time_embedding", "add_embedding",
        "input_blocks", "middle_block", "output_blocks",
    ),
    "text_encoder": ("text_model",),
}  # fmt: skip

#: segments of names that hold underscores, or that stand beside ones that do
_WORDS = """
down_blocks mid_block up_blocks attentions transformer_blocks attn1 attn2 to_q to_k to_v to_out ff net proj
proj_in proj_out resnets conv1 conv2 conv conv_in conv_out conv_shortcut downsamplers upsamplers time_emb_proj
time_embedding add_embedding linear_1 linear_2 input_blocks middle_block output_blocks in_layers out_layers
emb_layers skip_connection op time_embed label_emb
text_model encoder layers self_attn q_proj k_proj v_proj out_proj mlp fc1 fc2 embeddings token_embedding
position_embedding text_projection final_layer_norm layer_norm1 layer_norm2
transformer single_transformer_blocks add_q_proj add_k_proj add_v_proj to_add_out norm norm1 norm1_context
norm_out linear ff_context proj_mlp context_embedder x_embedder time_text_embed timestep_embedder
text_embedder guidance_embedder double_blocks single_blocks img_attn txt_attn qkv img_mlp txt_mlp img_mod
txt_mod lin linear1 linear2 modulation final_layer adaLN_modulation
model decoder lm_head embed_tokens o_proj gate_proj up_proj down_proj gate_up_proj qkv_proj block_sparse_moe
experts gate w1 w2 w3 shared_expert input_layernorm post_attention_layernorm
bert roberta distilbert electra layer attention self query key value output dense intermediate pooler
pre_classifier classifier q_lin k_lin v_lin out_lin lin1 lin2 ffn word_embeddings position_embeddings
h attn c_attn c_proj c_fc q_attn wte wpe query_key_value dense_h_to_4h dense_4h_to_h word_embeddings_layernorm
gpt_neox embed_in embed_out
shared block SelfAttention EncDecAttention DenseReluDense q k v o wi wi_0 wi_1 wo relative_attention_bias
crossattention encoder_attn
"""
_SEGMENTS = frozenset(_WORDS.split())
_LONGEST = max(segment.count("_") for segment in _SEGMENTS) + 1


@lru_cache(maxsize=4096)
def dotted(underscored: str) -> str | None:
    """The name whose dots became underscores, if it consists of known segments and numbers; else None.

    The longest segments are tried first: ``ff_net_0_proj`` is ``ff.net.0.proj``.
    """
    words = underscored.split("_")

    @cache
    def rest(start: int) -> tuple[str, ...] | None:
        if start == len(words):
            return ()
        for stop in range(min(len(words), start + _LONGEST), start, -1):
            segment = "_".join(words[start:stop])
            if segment in _SEGMENTS or (stop == start + 1 and segment.isdecimal()):
                after = rest(stop)
                if after is not None:
                    return (segment, *after)
        return None

    found = rest(0)
    return None if found is None else ".".join(found)


def with_part(name: str) -> str:
    """The canonical name of a dotted one: with the part in front, where its beginning tells which."""
    if split(name)[0]:
        return name
    first = name.partition(".")[0]
    part = next((part for part, known in _BEGINNINGS.items() if first in known), None)
    return f"{part}.{name}" if part else name


def split(canonical: str) -> tuple[str, str]:
    """The part of a pipeline, or "", and the rest."""
    first, _, rest = canonical.partition(".")
    return (first, rest) if first in PARTS and rest else ("", canonical)


def parts(canonicals: Iterable[str]) -> list[str]:
    """The parts that occur, in order."""
    return list(dict.fromkeys(split(name)[0] for name in canonicals))


def natural(name: str) -> tuple[tuple[bool, int, str], ...]:
    """A key that sorts ``2`` before ``10``."""
    words: Sequence[str] = re.split(r"(\d+)", name)
    return tuple((word.isdecimal(), int(word) if word.isdecimal() else 0, word) for word in words)
