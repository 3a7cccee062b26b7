"""Options that push a result to the Hub, for every command that makes one: two lines each.

@hub.pushes                                   # beside the other options; the function takes ``push``
report = hub.published(report, push, quiet=quiet, verbose=verbose)
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from paring.cli import _common as common
from paring.cli._common import F

if TYPE_CHECKING:
    from paring.hub.pushing import Push
    from paring.report import Pushed, Report

R = TypeVar("R", bound="Report")
_OPTIONS = (
    click.option(
        "--evaluations", metavar="FILE",
        help="For the card: JSON list of measured {task, dataset, metric, value}.",
    ),
    click.option("--commit-message", metavar="TEXT", help="Of the push."),
    click.option("--create-pr", is_flag=True, help="Push to a new pull request."),
    click.option("--revision", metavar="BRANCH", help="Push to this branch, or refs/pr/N."),
    click.option("--private", is_flag=True, help="If the repository is new.  [default: as the account says]"),
)  # fmt: skip
_NAMES = ("evaluations", "commit_message", "create_pr", "revision", "private")
#: the names of all options that say where a result is pushed, and nothing of what it is
NAMES = ("push_to_hub", *_NAMES, "offline")


def pushes(function: F) -> F:
    """``--push-to-hub ID`` and what goes with it, as the one argument ``push``: None when it is not given,
    checked before the command begins.
    """
    return _with_options(
        function, click.option("--push-to-hub", metavar="ID", help="Publish it as ORG/NAME.")
    )


def target(function: F) -> F:
    """What goes with the ID of a repository that is an argument, ``push_to_hub``."""
    return _with_options(function)


def _with_options(function: F, *more: Any) -> F:
    @functools.wraps(function)
    def wrapped(*args: Any, push_to_hub: str | None, **given: Any) -> Any:
        options = {name: given.pop(name) for name in _NAMES}
        return function(*args, push=_push(push_to_hub, **options), **given)

    found: Any = wrapped
    for option in (*_OPTIONS, *more):
        found = option(found)
    return cast(F, found)


def _push(
    repo: str | None, evaluations: str | None, commit_message: str | None, create_pr: bool,
    revision: str | None, private: bool,
) -> Push | None:  # fmt: skip
    given = (evaluations, commit_message, create_pr, revision, private)
    if repo is None:
        if any(given):
            name = next(name for name, value in zip(_NAMES, given, strict=True) if value)
            raise click.UsageError(f"--{name.replace('_', '-')} needs --push-to-hub ID")
        return None
    from paring import card
    from paring.hub import pushing

    rows = card.evaluations(Path(evaluations)) if evaluations else ()
    return pushing.ready(
        pushing.Push(repo, private or None, revision, create_pr, commit_message, tuple(rows))
    )


def published(report: R, push: Push | None, *, quiet: bool, verbose: bool) -> R:
    """``report``, with its output pushed."""
    if push is None or report.dry_run or report.output is None:
        return report
    from dataclasses import replace

    return replace(report, pushed=pushed([Path(report.output)], push, quiet=quiet, verbose=verbose))


def pushed(paths: Sequence[Path], push: Push, *, quiet: bool, verbose: bool) -> Pushed:
    """Push files or a folder; says how to go on when that is interrupted."""
    from paring.hub import pushing

    try:
        with common.progress(f"pushing to {push.repo}", quiet=quiet, verbose=verbose):
            return pushing.publish(paths, push)
    except KeyboardInterrupt:
        click.echo(f"`paring push {paths[0]} {push.repo}` goes on with the push", err=True)
        raise


def show(found: Pushed | None) -> None:
    """Where it is."""
    if found is not None:
        common.console().print(f"pushed to [bold]{common.short(found.url)}[/]", soft_wrap=True)
        sys.stdout.flush()
