"""Codecs of packed files: one file each, with an ``ID`` and a ``VERSION``.

A codec module has ``encode(items) -> bytes`` and ``decode(payload, shapes, dtypes, select, threads)``. Two
versions of one codec decode each other's bytes only if they share the version number.
"""

from __future__ import annotations

from types import ModuleType


def find(codec: str, version: int) -> ModuleType | None:
    """The codec module for ``codec`` at ``version``, None when this paring has none."""
    from paring.codecs import stored, ternary

    known = {(module.ID, module.VERSION): module for module in (stored, ternary)}
    return known.get((codec, version))
