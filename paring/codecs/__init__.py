"""Codecs of packed files: one file each, with an ``ID`` and a ``VERSION``.

A codec module has ``encode(items) -> bytes`` and ``decode(payload, shapes, dtypes, select, threads)``. Two
versions of one codec decode each other's bytes only if they share the version number.
"""

from __future__ import annotations

import pkgutil
from functools import cache
from importlib import import_module
from types import ModuleType


def find(codec: str, version: int) -> ModuleType | None:
    """The codec module for ``codec`` at ``version``, None when this paring has none.

    Ids come from files that strangers wrote: they are looked up among the modules in this folder, never
    imported by.
    """
    return _known().get((codec, version))


@cache
def _known() -> dict[tuple[str, int], ModuleType]:
    modules = [import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__)]
    return {(module.ID, module.VERSION): module for module in modules if hasattr(module, "ID")}
