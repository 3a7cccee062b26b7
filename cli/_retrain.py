"""``--retrain``: the options of what follows pruning, and how it is told."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from paring import registry
from paring.cli import _methods as methods
from paring.errors import OptionError

if TYPE_CHECKING:
    from paring.report import Retraining

F = TypeVar("F", bound=Callable[..., Any])
_MINE = "retrain_"


def command(default: str) -> type[click.Command]:
    """Commands that prune: with the options of their method and, after ``--retrain``, of the recipe."""
    return methods.command("prune", default, _named)


def options(function: F) -> F:
    """The options that all recipes have."""
    for option in (
        click.option("--seed", type=int, default=0, show_default=True, help="Of retraining."),
        click.option("--field", default="text", show_default=True, help="What is read of lines of JSON."),
        click.option(
            "--length", type=int, default=512, show_default=True, metavar="N", help="Tokens of a window."
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


def rows(report: Retraining) -> list[tuple[str, str]]:
    """What a table tells of it."""
    found = [("retraining", f"{report.method} on {report.tokens or 0:,} tokens, on {report.device}")]
    if report.trained is not None:
        share = report.trained / (report.parameters or 1)
        found.append(("trained", f"{report.trained:,} of {report.parameters or 0:,} parameters, {share:.2%}"))
    if report.reconstructed is not None:
        share = report.reconstructed / (report.parameters or 1)
        found.append(("reconstructed", f"{report.reconstructed:,} parameters block by block, {share:.2%}"))
    if report.losses:
        found.append(("loss", f"{report.losses[0]:.4f} at first, [bold]{report.losses[-1]:.4f}[/] at last"))
    if errors := report.block_errors:
        before, after = (sum(each) / len(errors) for each in zip(*errors, strict=True))
        text = f"relative error {before:.4f} before, [bold]{after:.4f}[/] after, on average"
        found.append(("blocks", text))
    found.append(("as written", f"{report.sparsity or 0:.2%} zeros in the pruned tensors, read back"))
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
