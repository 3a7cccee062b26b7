"""The UNet of Stable Diffusion as its first code named it, in diffusers' names.

kohya's files for SDXL have ``input_blocks``, ``middle_block``, ``output_blocks``; each level has two layers
(three on the way up) and then what changes the resolution.
"""

from __future__ import annotations

import re

_BLOCK = re.compile(r"^(?P<side>input|output)_blocks\.(?P<i>\d+)\.(?P<j>\d+)\.(?P<rest>.+)$")
_MIDDLE = {"0": "resnets.0", "1": "attentions.0", "2": "resnets.1"}
_RESNET = {
    "in_layers.0": "norm1", "in_layers.2": "conv1", "out_layers.0": "norm2", "out_layers.3": "conv2",
    "emb_layers.1": "time_emb_proj", "skip_connection": "conv_shortcut",
}  # fmt: skip
_WHOLE = {
    "input_blocks.0.0": "conv_in", "out.0": "conv_norm_out", "out.2": "conv_out",
    "time_embed.0": "time_embedding.linear_1", "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1", "label_emb.0.2": "add_embedding.linear_2",
}  # fmt: skip


def in_diffusers(canonical: str) -> str:
    """The canonical name in diffusers' words; a name that is not of the first code's UNet stays."""
    part, _, name = canonical.partition(".")
    return f"unet.{_renamed(name)}" if part == "unet" else canonical


def _renamed(name: str) -> str:
    if name in _WHOLE:
        return _WHOLE[name]
    if middle := re.match(r"middle_block\.([012])\.(.+)$", name):
        return f"mid_block.{_MIDDLE[middle[1]]}.{_RESNET.get(middle[2], middle[2])}"
    found = _BLOCK.match(name)
    if found is None:
        return name
    i, rest = int(found["i"]), found["rest"]
    level, layer = divmod(i - 1, 3) if found["side"] == "input" else divmod(i, 3)
    side = "down_blocks" if found["side"] == "input" else "up_blocks"
    if rest == "op" or rest == "conv":
        return f"{side}.{level}.{'downsamplers' if rest == 'op' else 'upsamplers'}.0.conv"
    if rest in _RESNET:
        return f"{side}.{level}.resnets.{layer}.{_RESNET[rest]}"
    return f"{side}.{level}.attentions.{layer}.{rest}"
