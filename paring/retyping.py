"""The command that makes a result again, from the recipe in it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from paring.outputs import SHARD_BYTES

#: keys of a recipe that stand elsewhere on a command line, or nowhere
_PLACED = (
    "paring", "command", "model", "models", "method", "options", "source", "sources", "stages", "tuned",
)  # fmt: skip
#: keys of a merge that no command line can say: the recipe must
_ONLY_RECIPE = ("stages", "patterns", "layers", "tail")
#: what retraining takes beside the options of its recipe
_RETRAINING = ("data", "field", "length", "seed")
#: what goes without saying
_DEFAULTS = {
    "scale": 1.0, "carried": "refuse", "carry": "lossless", "others": "report", "missing": "refuse",
    "shard_size": SHARD_BYTES, "tail": "error", "allocate": "uniform", "layers_by": "even",
}  # fmt: skip


def command_of(recipe: Mapping[str, Any], output: str) -> str | None:
    """What to type to make a result again; None where only its recipe can say it, or only Python."""
    words = _words(recipe)
    return None if words is None else shlex.join([*words, "-o", output])


def _words(recipe: Mapping[str, Any]) -> list[str] | None:
    """They but for the output."""
    spread = any(isinstance(weight, list | tuple) for weight in recipe.get("weights") or ())
    told = str(recipe.get("command"))
    if spread or (told == "merge" and any(recipe.get(key) for key in _ONLY_RECIPE)):
        return None
    if told == "prune" and recipe.get("mask"):  # which another command has made
        size = recipe.get("shard_size", SHARD_BYTES)
        more = [] if size == SHARD_BYTES else _option("--shard-size", size)
        return ["paring", "mask", "apply", str(recipe["mask"]), str(recipe["model"]), *more]
    if told == "retrain":
        pruning = recipe.get("pruning")
        before = _words(pruning) if isinstance(pruning, dict) else None
        mine = {"retrain": recipe.get("method"), **{key: recipe.get(key) for key in _RETRAINING}}
        return None if before is None else [*before, *_options({**mine, **(recipe.get("options") or {})})]
    words = [told] if told in ("compress", "merge", "prune") else ["paring", told]
    inputs = [recipe.get(key) for key in ("source", "tuned", "model")]
    words += recipe.get("models") or recipe.get("sources") or [name for name in inputs if name] or ["SOURCE"]
    if recipe.get("method"):
        words += ["--method", str(recipe["method"])]
    words += _options({**recipe, **(recipe.get("options") or {})})
    return [str(word) for word in words]


def _options(given: Mapping[str, Any]) -> list[str]:
    """Those that have to be said."""
    said = {k: v for k, v in given.items() if k not in _PLACED and v is not None and v != _DEFAULTS.get(k)}
    return [word for key, value in said.items() for word in _option("--" + key.replace("_", "-"), value)]


def _option(flag: str, value: Any) -> list[str]:
    if isinstance(value, dict):
        each = flag.removesuffix("s")
        return [word for name, share in value.items() for word in (each, f"{name}={share}")]
    if isinstance(value, bool):
        return [flag if value else flag.replace("--", "--no-", 1)]
    if isinstance(value, list | tuple) and any(isinstance(item, str) for item in value):
        return [word for item in value for word in (flag, str(item))]  # one that is repeated
    return [flag, ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)]
