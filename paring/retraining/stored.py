"""Recipes of retraining as files hold them, and back: what pruning and retraining in one go was asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paring.devices import to_run
from paring.errors import BadFileError, UnsupportedError
from paring.pruning import stored
from paring.pruning.request import Request
from paring.retraining.run import made_with
from paring.retraining.whole import Job
from paring.untrusted import is_text, is_whole


@dataclass(frozen=True, slots=True)
class Made:
    """What a result was asked to be, the digests of its inputs, and what its bits depend on beside that."""

    request: Request
    job: Job
    sha256: Mapping[str, str]
    made_with: Mapping[str, Any]

    def device(self, asked: str) -> str:
        """The device to make it again on: where ``auto`` is asked for, the CPU if it was that."""
        return "cpu" if asked == "auto" and self.made_with["device"] == "cpu" else asked

    def threads(self, asked: int | None) -> int | None:
        """As many threads as then, where none are asked for: sums depend on them."""
        return self.made_with["threads"] if asked is None else asked

    def warnings(self, made: Path, device: str, threads: int | None) -> list[str]:
        """Why the bits may be others this time."""
        now = made_with(to_run(device), threads)
        found = [
            f"{made} was retrained with {key} {then}, this is {now[key]}: sums may be rounded otherwise"
            for key, then in self.made_with.items() if now[key] != then
        ]  # fmt: skip
        if "cpu" not in (now["device"], self.made_with["device"]):
            found.append(f"{made} was retrained on a GPU, where the same run may give other bits each time")
        return found


def made_of(recipe: Mapping[str, Any], where: str) -> Made:
    """What a recipe says. Raises BadFileError, beginning with ``where``, for one that makes no sense, and
    UnsupportedError for one of a folder that was pruned before, which only Python retrains.
    """
    if "pruning" not in recipe:
        raise UnsupportedError(
            f"{where} was retrained from {recipe.get('pruned')}, which was pruned before: call "
            "paring.retraining.run.retrain again, only `prune --retrain` is repeated from a recipe"
        )
    for key, sound in _SOUND.items():
        if key not in recipe or not sound(recipe[key]):
            raise BadFileError(f"{where}: its recipe makes no sense: {key} is {str(recipe.get(key))[:80]}")
    request = stored.request_of(recipe["pruning"], f"{where}, pruning")
    job = Job(
        recipe["method"], recipe["data"], recipe["length"], recipe["field"], recipe["seed"], recipe["options"]
    )
    return Made(request, job, recipe["sha256"], recipe["made_with"])


def _texts(value: object) -> bool:
    return isinstance(value, dict) and all(map(is_text, value.values()))


def _made_with(value: object) -> bool:
    if not isinstance(value, dict) or value.keys() != {"device", "threads", "torch", "transformers"}:
        return False
    threads = value["threads"]
    return is_whole(threads) and threads > 0 and all(is_text(value[key]) for key in value if key != "threads")


#: what a recipe holds, and whether a value can be that
_SOUND: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("method", "data", "field"), is_text),
    **dict.fromkeys(("length", "seed"), is_whole),
    **dict.fromkeys(("options", "pruning"), lambda value: isinstance(value, dict)),
    "sha256": _texts,
    "made_with": _made_with,
}
