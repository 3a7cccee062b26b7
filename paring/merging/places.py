"""Where the inputs of a merge are: those on the Hub are found, and called by their commit from then on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from paring.hub.names import told
from paring.hub.reading import located
from paring.merging.request import Request

_NAMED = ("base", "into", "tokenizer")


def placed(request: Request, places: Mapping[str, str]) -> tuple[Request, dict[str, str]]:
    """``request`` with sources on the Hub by their commits, and the paths of these, joined to ``places``.

    Raises HubError for what is not there.
    """
    stages = request.stages or {}
    names = {name for recipe in (_fields(request), *stages.values()) for name in _inputs(recipe)}
    found = {name: located(name) for name in sorted(names - stages.keys() - places.keys())}
    moved = {name: told(path) for name, path in found.items() if path != name}
    if not moved:
        return request, dict(places)
    changed = _renamed(_fields(request), moved)
    changed["stages"] = {key: {**recipe, **_renamed(recipe, moved)} for key, recipe in stages.items()} or None
    return replace(request, **changed), {**places, **{moved[name]: found[name] for name in moved}}


def _fields(request: Request) -> dict[str, Any]:
    return {name: getattr(request, name) for name in (*_NAMED, "models")}


def _inputs(recipe: Mapping[str, Any]) -> list[str]:
    """Every input that a recipe names; its tokenizer is one of these, or a word."""
    named = (recipe.get("base"), recipe.get("into"), *recipe.get("models", ()))
    return [name for name in named if isinstance(name, str)]


def _renamed(recipe: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    out: dict[str, Any] = {key: names.get(recipe[key], recipe[key]) for key in _NAMED if recipe.get(key)}
    if "models" in recipe:
        out["models"] = [names.get(model, model) for model in recipe["models"]]
    return out
