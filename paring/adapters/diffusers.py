"""diffusers before its PEFT days: ``unet.A.to_k.lora.down.weight``, ``A.processor.to_k_lora.down.weight``.

The format stores no alpha: scale 1. Newer diffusers files use PEFT's factor names and are read by
:mod:`.peft`.
"""

from __future__ import annotations

import re

from paring.adapters.view import Dialect

DIALECT = Dialect(
    name="diffusers",
    factor=re.compile(r"^(?P<module>.+?)(?:\.lora|_lora|\.lora_linear_layer)\.(?P<role>down|up)\.weight$"),
    roles={"down": "a", "up": "b"},
    scale=lambda module, rank, config, scalar: (1.0, "the format stores no alpha: 1"),
)
