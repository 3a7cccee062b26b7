"""Codecs of packed files: one file each, with an ``ID`` and a ``VERSION``.

A codec module has the type of its items (``ITEM``), ``encode(items) -> bytes``, ``decode(payload, shapes,
dtypes, select, threads)``, ``values(item, dtype)`` (what an item decodes to), ``most_bytes(item)`` and
``PACK``, the entry of what small tensors share. One that keeps equal tensors of a payload only once has
``key(item)``, the same for those. A codec whose tensors are told by others of the file has
``references(payload, shapes)`` as well, for each tensor the numbers of those, and its ``decode`` takes them
as ``known``, by number; they stand earlier in the file. Two versions of one codec decode each other's bytes
only if they share the version number.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

from paring.dtypes import Stored


def find(codec: str, version: int) -> ModuleType | None:
    """The codec module for ``codec`` at ``version``, None when this paring has none.

    Ids come from files that strangers wrote: they are looked up among the modules in this folder, never
    imported by.
    """
    return _known().get((codec, version))


def of(item: Any) -> ModuleType:
    """The codec module whose items are of the type of ``item``, in the version that is written today."""
    return max((m for m in _known().values() if type(item) is m.ITEM), key=lambda module: int(module.VERSION))


def refers(codec: ModuleType | None) -> bool:
    """Whether tensors of this codec are told by others of the file."""
    return hasattr(codec, "references")


def references(
    codec: ModuleType | None, payload: bytes | memoryview, shapes: Sequence[tuple[int, ...]]
) -> Sequence[tuple[int, ...]]:
    """Of each tensor of a payload the numbers of those that tell it, as far as ``codec`` is known."""
    if codec is None or not refers(codec):
        return [()] * len(shapes)
    found: list[tuple[int, ...]] = codec.references(payload, shapes)
    return found


def decode(
    codec: ModuleType,
    payload: bytes | memoryview,
    shapes: Sequence[tuple[int, ...]],
    dtypes: Sequence[str],
    select: Sequence[int],
    threads: int,
    look: Callable[[Sequence[int]], Mapping[int, Stored]],
) -> list[Stored]:
    """The tensors ``select`` of a payload; ``look`` finds the tensors of the file that they are told by."""
    if not refers(codec):
        found: list[Stored] = codec.decode(payload, shapes, dtypes, select, threads)
        return found
    each = references(codec, payload, shapes)
    known = look(sorted({number for i in select for number in each[i]}))
    told: list[Stored] = codec.decode(payload, shapes, dtypes, select, threads, known=known)
    return told


@cache
def _known() -> dict[tuple[str, int], ModuleType]:
    modules = [import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__)]
    return {(module.ID, module.VERSION): module for module in modules if hasattr(module, "ID")}
