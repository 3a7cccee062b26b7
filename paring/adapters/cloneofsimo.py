"""cloneofsimo/lora: ``text_encoder:0:up (out, r)``, ``unet:17:down (r, in)``.

Modules are numbered in the model's traversal order; neither their names nor an alpha is stored, and the
strength is chosen at use: scale 1.
"""

from __future__ import annotations

import re

from paring.adapters.view import Dialect

DIALECT = Dialect(
    name="cloneofsimo",
    factor=re.compile(r"^(?P<module>[^:]+:\d+):(?P<role>down|up)$"),
    roles={"down": "a", "up": "b"},
    scale=lambda module, rank, config, scalar: (1.0, "the format stores no alpha: 1"),
    others=((re.compile(r"^<.+>$"), "learned token embedding"),),
)
