"""Recipes of pruning as files hold them, and back: JSON of :meth:`~paring.pruning.request.Request.recipe`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from paring.checkpoint import Checkpoint
from paring.errors import BadFileError
from paring.merging.record import RECIPE
from paring.pruning.request import Request
from paring.pruning.tensors import Target, sort
from paring.untrusted import is_number, is_text, is_whole, parse_json


def request_of(recipe: Mapping[str, Any], where: str) -> Request:
    """The request that a recipe is of. Raises BadFileError, beginning with ``where``, for what is none."""
    told = {key: value for key, value in recipe.items() if key not in ("paring", "command")}
    for key, value in told.items():
        if key not in _SOUND:
            raise BadFileError(f"{where}: its recipe has {key!r}, which this version does not know")
        if not _SOUND[key](value):
            raise BadFileError(f"{where}: its recipe makes no sense: {key} is {str(value)[:80]}")
    if "model" not in told:
        raise BadFileError(f"{where}: its recipe names no model")
    sound: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in told.items()}
    return Request(**sound)


def recipe_of(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """The recipe by which a checkpoint was pruned, also where it was retrained then; empty where none tells.

    Raises BadFileError for a recipe that makes no sense.
    """
    text = checkpoint.metadata.get(RECIPE, "{}")
    recipe = parse_json(text.encode(), f"{checkpoint.path}: its recipe")
    told = recipe.get("pruning") if recipe.get("command") == "retrain" else recipe
    if not isinstance(told, dict) or told.get("command") != "prune":
        return {}
    if not all(_texts(told.get(key, [])) for key in ("include", "exclude")):
        raise BadFileError(f"{checkpoint.path}: its recipe makes no sense: include and exclude are patterns")
    return told


def targets_of(checkpoint: Checkpoint) -> list[Target]:
    """The tensors that prune would prune, or of a model that it has pruned, did prune."""
    told = recipe_of(checkpoint)
    config = checkpoint.config("config.json") or {}
    return sort(checkpoint, config, told.get("include", ()), told.get("exclude", ()))[0]


def _texts(value: object) -> bool:
    return isinstance(value, list) and all(map(is_text, value))


def _options(value: object) -> bool:
    return isinstance(value, dict)


#: field -> whether a value can be its
_SOUND: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(
        ("model", "method", "sparsity", "scope", "allocate", "lines", "tail", "stats", "mask"), is_text
    ),
    **dict.fromkeys(("include", "exclude"), _texts),
    **dict.fromkeys(("keep", "of", "shard_size"), is_whole),
    **dict.fromkeys(("budgets", "options"), _options),
    **dict.fromkeys(("outliers", "spread"), is_number),
    "refit": lambda value: isinstance(value, bool),
}
