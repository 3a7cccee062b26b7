"""Options that commands share, and how results are printed."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from paring.sizes import parse_size

if TYPE_CHECKING:
    from rich.table import Table

    from paring.report import Jsonable, Verification

F = TypeVar("F", bound=Callable[..., Any])

threads = click.option("--threads", type=int, metavar="N", help="Threads to use.  [default: all processors]")
memory_help = "Memory to work in, such as 2GiB.  [default: half of what is free]"
overwrite = click.option("--overwrite", is_flag=True, help="Replace an output that exists.")
dry_run = click.option("--dry-run", is_flag=True, help="Do everything but write.")
device = click.option(
    "--device", default="auto", show_default=True, metavar="DEVICE",
    help="auto, cpu or cuda; auto is cpu, and for what runs a model cuda where there is one.",
)  # fmt: skip


def _go_offline(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    from paring.hub.client import go_offline

    if value:
        go_offline()


offline = click.option(
    "--offline", is_flag=True, expose_value=False, callback=_go_offline,
    help="Take from the Hub only what was downloaded before.",
)  # fmt: skip


class Bytes(click.ParamType[int]):
    """A size in bytes: ``5GB``, ``300MiB``, ``2e9``."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        size = value if isinstance(value, int) else parse_size(str(value))
        if size is None:
            self.fail(f"{value!r} is not a size such as 5GB or 300MiB", param, ctx)
        return size


def shown(function: F) -> F:
    """``--json -q -v --debug``: what is printed."""
    for option in (
        click.option("--debug", is_flag=True, help="Show the traceback of an error."),
        click.option("-v", "--verbose", is_flag=True, help="Say more."),
        click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors."),
        click.option("--json", "as_json", is_flag=True, help="Print exactly one JSON object."),
    ):
        function = option(function)
    return function


def print_json(report: Jsonable | dict[str, Any]) -> None:
    """One JSON object on stdout."""
    click.echo(json.dumps(report if isinstance(report, dict) else report.to_json(), ensure_ascii=False))


def console() -> Any:
    """A rich console on stdout; 100 columns wide where nobody looks."""
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else 100, soft_wrap=False)


def table(*columns: str) -> Table:
    """An unobtrusive table: the first column left, numbers right."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    made = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for i, column in enumerate(columns):
        made.add_column(column, justify="left" if i == 0 else "right", overflow="fold", no_wrap=i > 0)
    return made


def facts(*rows: tuple[str, str]) -> Table:
    """Names and what they are, two columns; text is rich markup."""
    from rich.table import Table

    made = Table.grid(padding=(0, 2))
    made.add_column(style="dim", no_wrap=True)
    made.add_column(overflow="fold")
    for row in rows:
        made.add_row(*row)
    return made


def recipe_text(recipe: dict[str, Any], *, without: tuple[str, ...] = ()) -> str:
    """A recipe as one would type it, without what was left open."""
    given = {key: value for key, value in recipe.items() if value is not None and key not in without}
    return short(" ".join(f"--{key.replace('_', '-')} {value}" for key, value in given.items()))


def size(nbytes: int | float) -> str:
    """Bytes for people: ``1,038,496 B``, and from 10 MB on ``12.3 MB``."""
    return f"{nbytes:,.0f} B" if nbytes < 10_000_000 else f"{nbytes / 1e6:,.1f} MB"


def short(text: str) -> str:
    """Text as rich prints it, brackets and all."""
    from rich.markup import escape

    return escape(text)


def warn(text: str) -> None:
    """One line on stderr."""
    click.secho(f"warning: {text}", fg="yellow", err=True)


def show_checks(found: Verification, *, as_json: bool, quiet: bool, brief: bool = False) -> int:
    """What was checked, a line each, what failed on stderr; ``brief`` makes many that hold one. Returns
    the exit code."""
    if as_json:
        print_json(found)
        return 0 if found.ok else 1
    many = brief and len(found.passed) >= 4
    if not quiet:
        for what in [f"{len(found.passed)} checks of tensors"] if many else found.passed:
            click.echo(click.style("ok      ", fg="green") + what)
        if found.error is not None:
            click.echo(f"relative error {found.error:.6f}, recorded {found.error_recorded:.6f}")
    for what in found.failed:
        click.echo(click.style("FAILED  ", fg="red") + what, err=True)
    return 0 if found.ok else 1


def tell_of_rest(output: str, kinds: tuple[str, ...]) -> None:
    """After Ctrl-C: what is there stays for the same command."""
    target = Path(output).absolute()
    kept = [target.parent / f".{target.name}.{kind}" for kind in kinds]
    if isinstance(sys.exc_info()[1], KeyboardInterrupt) and (there := [p for p in kept if p.exists()]):
        click.echo(f"what is done is kept in {there[0]}: the same command goes on from there", err=True)


@contextmanager
def progress(what: str, *, quiet: bool, verbose: bool) -> Iterator[None]:
    """While the block runs: a spinner on a terminal that says what is being done; lines with ``-v``."""
    logger = logging.getLogger("paring")
    if verbose:
        handler: logging.Handler = logging.StreamHandler(sys.stderr)
    elif not quiet and sys.stderr.isatty():
        from rich.console import Console

        status = Console(stderr=True).status(short(what))
        handler = _Spinner(status, what)
        status.start()
    else:
        yield
        return
    logger.addHandler(handler)
    before = logger.level
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
        if isinstance(handler, _Spinner):
            handler.status.stop()


class _Spinner(logging.Handler):
    """Shows the latest message beside a spinner."""

    def __init__(self, status: Any, what: str) -> None:
        super().__init__()
        self.status, self._what = status, what

    def emit(self, record: logging.LogRecord) -> None:
        self.status.update(short(f"{self._what}: {record.getMessage()}"))
