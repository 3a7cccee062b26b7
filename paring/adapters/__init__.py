"""Adapters in any naming dialect, made canonical: the module view.

One file a dialect (:mod:`.peft`, :mod:`.kohya`, :mod:`.diffusers`, :mod:`.cloneofsimo`); each holds a
:class:`~paring.adapters.view.Dialect`, which is data: how factor names look and where the scale comes from.
:func:`read` tries them and returns an :class:`~paring.adapters.view.Adapter`.
"""

from __future__ import annotations

import importlib
from pathlib import Path

from paring.adapters.view import Adapter, Dialect, build
from paring.checkpoint import Checkpoint

__all__ = ["read"]


def _dialects() -> list[Dialect]:
    """All dialects, by file name; a file is one when it holds a ``DIALECT``."""
    files = sorted(path.stem for path in Path(__file__).parent.glob("*.py"))
    modules = [
        importlib.import_module(f"{__name__}.{stem}") for stem in files if stem not in ("__init__", "view")
    ]
    return [module.DIALECT for module in modules]


def read(checkpoint: Checkpoint) -> Adapter:
    """The module view of ``checkpoint``, from names, shapes, configuration and alphas: no factor is read.

    The dialect is the one that recognises most tensors. A checkpoint in which none recognises any is returned
    with dialect ``"none"`` and every tensor carried. Raises BadFileError for a damaged adapter_config.json.
    """

    def recognised(dialect: Dialect) -> int:
        return sum(dialect.recognises(name) for name in checkpoint.tensors)

    best = max(_dialects(), key=recognised)
    return build(checkpoint, best if recognised(best) else None)
