"""cloneofsimo/lora: ``text_encoder:0:up (out, r)``, ``unet:17:down (r, in)``.

Modules are numbered in the model's traversal order; neither their names nor an alpha is stored, and the
strength is chosen at use: scale 1. The canonical name of a module is ``unet.17``, unless names are given.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence

from paring.adapters import naming, stable_diffusion
from paring.adapters.view import Dialect


def _named(canonicals: Sequence[str]) -> list[str]:
    """Numbers as they were; else those of Stable Diffusion 1.x, where it has all of a part's modules; else in
    the natural order of names, which need not be the order in which a model is traversed.
    """
    by_part: dict[str, list[str]] = defaultdict(list)
    for name in canonicals:
        part, rest = naming.split(name)
        by_part[part].append(rest)
    numbers = {part: _numbers(part, rests) for part, rests in by_part.items()}
    return [f"{part or 'model'}:{numbers[part][rest]}" for part, rest in map(naming.split, canonicals)]


def _numbers(part: str, rests: Sequence[str]) -> dict[str, int]:
    known = {name: i for i, name in enumerate(stable_diffusion.TRAVERSAL.get(part, ()))}
    if all(rest.isdecimal() for rest in rests):
        return {rest: int(rest) for rest in rests}
    if all(rest in known for rest in rests):
        return {rest: known[rest] for rest in rests}
    return {rest: i for i, rest in enumerate(sorted(rests, key=naming.natural))}


def in_order(canonicals: Sequence[str]) -> bool:
    """Whether the numbers of these modules are known to be those of a model's traversal."""
    pairs = [naming.split(name) for name in canonicals]
    return all(rest.isdecimal() or rest in stable_diffusion.TRAVERSAL.get(part, ()) for part, rest in pairs)


DIALECT = Dialect(
    name="cloneofsimo",
    factor=re.compile(r"^(?P<module>[^:]+:\d+):(?P<role>down|up)$"),
    roles={"down": "a", "up": "b"},
    plain=("{module}:down", "{module}:up"),
    canonical=lambda module, dotted: module.replace(":", "."),
    named=_named,
    scale=lambda module, rank, config, scalar: (1.0, "the format stores no alpha: 1"),
    others=((re.compile(r"^<.+>$"), "learned token embedding"),),
)
