"""The modules of Stable Diffusion 1.x that cloneofsimo/lora adapts, in the order of its numbers.

That is the order in which its models register them: attention, the gated projection, cross-attention in each
block; down, up, and then the middle; in text encoders keys, values, queries, output.
"""

from __future__ import annotations

from collections.abc import Iterator


def _unet() -> Iterator[str]:
    places = [f"down_blocks.{i}.attentions.{j}" for i in range(3) for j in range(2)]
    places += [f"up_blocks.{i}.attentions.{j}" for i in range(1, 4) for j in range(3)]
    for place in [*places, "mid_block.attentions.0"]:
        block = f"{place}.transformer_blocks.0"
        yield from (f"{block}.attn1.{leaf}" for leaf in ("to_q", "to_k", "to_v", "to_out.0"))
        yield f"{block}.ff.net.0.proj"
        yield from (f"{block}.attn2.{leaf}" for leaf in ("to_q", "to_k", "to_v", "to_out.0"))


def _text_encoder() -> Iterator[str]:
    for i in range(12):
        for leaf in ("k_proj", "v_proj", "q_proj", "out_proj"):
            yield f"text_model.encoder.layers.{i}.self_attn.{leaf}"


#: part of the pipeline -> names of its modules, by number
TRAVERSAL = {"unet": tuple(_unet()), "text_encoder": tuple(_text_encoder())}
#: the same as a mapping from cloneofsimo's names
NAMES = {f"{part}:{i}": f"{part}.{name}" for part, names in TRAVERSAL.items() for i, name in enumerate(names)}
