"""Recipes as files hold them, and back: JSON of :meth:`~paring.merging.request.Request.recipe`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from paring.errors import BadFileError
from paring.merging.request import Request
from paring.untrusted import is_number, is_text, is_whole


def request_of(recipe: Mapping[str, Any], where: str) -> Request:
    """The request that a recipe is of. Raises BadFileError, beginning with ``where``, for what is none."""
    told = {key: value for key, value in recipe.items() if key not in ("paring", "command")}
    for key, value in told.items():
        if key not in _SOUND:
            raise BadFileError(f"{where}: its recipe has {key!r}, which this version does not know")
        if not _SOUND[key](value):
            raise BadFileError(f"{where}: its recipe makes no sense: {key} is {str(value)[:80]}")
    if "models" not in told:
        raise BadFileError(f"{where}: its recipe names no models")
    return Request(**told)


def inputs_of(request: Request) -> list[str]:
    """Every input by the name that the request has for it, once."""
    named = (request.base, request.into, request.mask, *request.models)
    return list(dict.fromkeys(name for name in named if name is not None))


def _weight(value: object) -> bool:
    return is_number(value) or (
        isinstance(value, list | tuple) and bool(value) and all(map(is_number, value))
    )


def _list_of(sound: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list | tuple) and all(map(sound, value))


def _pattern(value: Any) -> bool:
    return (
        isinstance(value, list | tuple)
        and len(value) == 3
        and is_text(value[0])
        and is_whole(value[1])
        and value[1] >= 0
        and _weight(value[2])
    )


def _stages(value: Any) -> bool:
    """Names as they are used for folders, to recipes."""
    if not isinstance(value, dict):
        return False
    return all(
        name.replace("-", "").replace("_", "").isalnum() and isinstance(told, dict) and "stages" not in told
        for name, told in value.items()
    )


#: field -> whether a value can be its
_SOUND: dict[str, Callable[[Any], bool]] = {
    "models": lambda value: _list_of(is_text)(value) and bool(value),
    **dict.fromkeys(
        ("base", "into", "mask", "method", "dtype", "missing", "carried", "tokenizer", "tail", "keep_mask"),
        is_text,
    ),
    "weights": _list_of(_weight),
    "patterns": _list_of(_pattern),
    "scale": is_number,
    "rank": lambda value: is_whole(value) or is_text(value),
    "shard_size": is_whole,
    "options": lambda value: isinstance(value, dict),
    "layers": _list_of(lambda some: some is None or _list_of(is_whole)(some)),
    "stages": _stages,
}
