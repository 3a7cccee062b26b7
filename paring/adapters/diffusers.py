"""diffusers before its PEFT days: ``unet.A.to_k.lora.down.weight``, ``A.processor.to_k_lora.down.weight``.

The format stores no alpha: scale 1. Newer diffusers files use PEFT's factor names and are read by
:mod:`.peft`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from paring.adapters import ldm, naming, peft
from paring.adapters.view import Dialect, Dotted

_FILE = "pytorch_lora_weights.safetensors"


def _canonical(module: str, dotted: Dotted) -> str:
    """Attention processors held the factors of modules that are named otherwise: ``to_out`` is a list."""
    plain = re.sub(r"\.processor\.to_out$", ".to_out.0", module).replace(".processor.", ".")
    return naming.with_part(plain)


def _newer(canonicals: Sequence[str]) -> list[str]:
    return [ldm.in_diffusers(naming.with_part(name)) for name in canonicals]


def _named(canonicals: Sequence[str]) -> list[str]:
    """Text encoders have a name of their own for the pair of factors."""
    names = _newer(canonicals)
    return [f"{n}.lora_linear_layer" if n.startswith("text_encoder") else f"{n}.lora" for n in names]


DIALECT = Dialect(
    name="diffusers",
    factor=re.compile(r"^(?P<module>.+?)(?:\.lora|_lora|\.lora_linear_layer)\.(?P<role>down|up)\.weight$"),
    roles={"down": "a", "up": "b"},
    plain=("{module}.down.weight", "{module}.up.weight"),
    file=_FILE,
    canonical=_canonical,
    named=_named,
    scale=lambda module, rank, config, scalar: (1.0, "the format stores no alpha: 1"),
)

#: what diffusers writes now: PEFT's names for factors, its own for modules; :mod:`.peft` reads it
NEWER = Dialect(
    name="diffusers (new)",
    factor=peft.DIALECT.factor,
    roles=peft.DIALECT.roles,
    file=_FILE,
    canonical=peft.DIALECT.canonical,
    named=_newer,
    scale=peft.DIALECT.scale,
)
