"""``--retrain`` and ``--eval-data``: the options of what follows pruning."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from paring import registry
from paring.cli import _methods as methods
from paring.errors import OptionError

F = TypeVar("F", bound=Callable[..., Any])
_MINE = "retrain_"


def command(default: str) -> type[click.Command]:
    """Commands that prune: with the options of their method and, after ``--retrain``, of the recipe."""
    return methods.command("prune", default, _named)


def options(function: F) -> F:
    """The options that all recipes have, and those of what is measured before and after."""
    for option in (
        click.option(
            "--eval-samples", type=int, metavar="N", help="Windows, evenly spaced.  [default: all]"
        ),
        click.option(
            "--eval-stride", type=int, metavar="S", help="Tokens between its windows.  [default: a window]"
        ),
        click.option(
            "--eval-window", type=int, metavar="L",
            help="Tokens of its windows.  [default: 2048, or the model's most]",
        ),
        click.option(
            "--eval-data", metavar="TEXT",
            help="Held-out text: tell the perplexity on it before and after, as `paring eval` does.",
        ),
        click.option("--seed", type=int, default=0, show_default=True, help="Of retraining."),
        click.option("--field", default="text", show_default=True, help="What is read of lines of JSON."),
        click.option(
            "--length", type=int, metavar="N",
            help="Tokens of a window.  [default: 512, or the model's most]",
        ),
        click.option(
            "--data", metavar="TEXT", help="What to retrain on: a file, a folder, a data set on the Hub."
        ),
        click.option(
            "--retrain", metavar="perp|reconstruct|pst|pdp",
            help="Retrain inside the mask; `prune --retrain perp --help` adds the options.",
        ),
    ):  # fmt: skip
        function = option(function)
    return function


def arguments(given: dict[str, Any]) -> dict[str, Any]:
    """What :func:`paring.api.prune` takes, from what click found."""
    found = {key: value for key, value in given.items() if not key.startswith(_MINE)}
    mine = {key.removeprefix(_MINE): value for key, value in given.items() if key.startswith(_MINE)}
    found["retrain_options"] = {key: value for key, value in mine.items() if value is not None}
    return found


def _named(args: list[str]) -> list[click.Option]:
    """The options of the recipe that the arguments ask for."""
    name = methods.value("--retrain", args)
    if name is None:
        return []
    try:
        found = methods.options(registry.load("prune", name))
    except OptionError as error:
        raise click.UsageError(str(error)) from None
    for option in found:
        option.name = (option.name or "").replace("method_", _MINE, 1)
    return found
