"""Adapters in any naming dialect, made canonical: the module view.

One file a dialect (:mod:`.peft`, :mod:`.kohya`, :mod:`.lycoris`, :mod:`.diffusers`, :mod:`.cloneofsimo`);
each holds a :class:`~paring.adapters.view.Dialect`, which is data: how factor names look, where the scale
comes from, and by which rules (:mod:`.derived`) other tensors become factors.
:func:`read` tries them and returns an :class:`~paring.adapters.view.Adapter`.
"""

from __future__ import annotations

import importlib
from functools import cache
from pathlib import Path

from paring.adapters.derived import Shapes
from paring.adapters.view import Adapter, Dialect, build
from paring.checkpoint import Checkpoint

__all__ = ["dialects", "read"]


@cache
def dialects() -> tuple[Dialect, ...]:
    """All dialects, by file name; a file is one when it holds a ``DIALECT``."""
    files = sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem != "__init__")
    modules = [importlib.import_module(f"{__name__}.{stem}") for stem in files]
    return tuple(module.DIALECT for module in modules if hasattr(module, "DIALECT"))


def read(
    checkpoint: Checkpoint, *, derived: bool = False, native: bool = True, shapes: Shapes | None = None
) -> Adapter:
    """The module view of ``checkpoint``, from names, shapes, configuration and alphas: no factor is read.

    With ``derived``, modules whose update is a matrix product only after algebra (AdaLoRA, LoHa, LoKr, VeRA,
    VB-LoRA, ...) are modules as well; without, their tensors are carried. Stacked experts and grouped
    convolutions, ``native`` to PEFT's LoRA, can be left out of that: a plain pair of factors would not load
    in their place. ``shapes`` tells the shapes of the base's weights, which some kinds need.

    The dialect is the one that recognises most tensors. A checkpoint in which none recognises any is returned
    with dialect ``"none"`` and every tensor carried. Raises BadFileError for a damaged adapter_config.json.
    """

    def recognised(dialect: Dialect) -> int:
        return sum(dialect.recognises(name, derived) for name in checkpoint.tensors)

    best = max(dialects(), key=recognised)
    found = best if recognised(best) else None
    return build(checkpoint, found, derived=derived, native=native, shapes=shapes)
