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
#: what goes without saying
_DEFAULTS = {
    "scale": 1.0, "carried": "refuse", "carry": "lossless", "others": "report", "missing": "refuse",
    "shard_size": SHARD_BYTES, "tail": "error", "allocate": "uniform", "layers_by": "even",
}  # fmt: skip


def command_of(recipe: Mapping[str, Any], output: str) -> str | None:
    """What to type to make a result again; None where only its recipe can say it."""
    spread = any(isinstance(weight, list | tuple) for weight in recipe.get("weights") or ())
    told = str(recipe.get("command"))
    if spread or (told == "merge" and any(recipe.get(key) for key in _ONLY_RECIPE)):
        return None
    if told == "prune" and recipe.get("mask"):  # which another command has made
        size = recipe.get("shard_size", SHARD_BYTES)
        more = [] if size == SHARD_BYTES else _option("--shard-size", size)
        words = ["paring", "mask", "apply", str(recipe["mask"]), str(recipe["model"])]
        return shlex.join([*words, *more, "-o", output])
    words = [told] if told in ("compress", "merge", "prune") else ["paring", told]
    inputs = [recipe.get(key) for key in ("source", "tuned", "model")]
    words += recipe.get("models") or recipe.get("sources") or [name for name in inputs if name] or ["SOURCE"]
    if recipe.get("method"):
        words += ["--method", str(recipe["method"])]
    for key, value in {**recipe, **(recipe.get("options") or {})}.items():
        if key not in _PLACED and value is not None and value != _DEFAULTS.get(key):
            words += _option("--" + key.replace("_", "-"), value)
    return shlex.join([*map(str, words), "-o", output])


def _option(flag: str, value: Any) -> list[str]:
    if isinstance(value, dict):
        each = flag.removesuffix("s")
        return [word for name, share in value.items() for word in (each, f"{name}={share}")]
    if isinstance(value, bool):
        return [flag if value else flag.replace("--", "--no-", 1)]
    if isinstance(value, list | tuple) and any(isinstance(item, str) for item in value):
        return [word for item in value for word in (flag, str(item))]  # one that is repeated
    return [flag, ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)]
