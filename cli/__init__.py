"""The command line: one file a command, holding nothing but options, calls and printing.

A command is found by its file name and imported when it is called, so that ``--help`` stays instant. Exit
codes: 0 done, 1 refused or failed with one clear line, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import gc
import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path

import click

# matrices are small here and modules run in parallel: BLAS threads of their own would only get in the way
for _library in ("OPENBLAS", "MKL", "VECLIB"):
    os.environ.setdefault(f"{_library}_NUM_THREADS", "1")


# the Hub's client says nothing beside us: see paring.hub.client
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("HF_HUB_VERBOSITY", "error")


class Commands(click.Group):
    """Sub-commands by file name; a file whose name begins with an underscore is none."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(
            path.stem for path in Path(__file__).parent.glob("*.py") if not path.stem.startswith("_")
        )

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        command: click.Command = importlib.import_module(f"paring.cli.{cmd_name}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        from paring.registry import nearest

        if args and not args[0].startswith("-") and args[0] not in self.list_commands(ctx):
            ctx.fail(f"there is no command {args[0]!r}{nearest(args[0], self.list_commands(ctx))}")
        return super().resolve_command(ctx, args)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="paring")
def paring() -> None:
    """Compress, merge and prune model checkpoints and adapters, file to file."""


def main() -> None:
    """``paring``"""
    _run("paring", lambda: paring)


def compress_main() -> None:
    """``compress``: the same as ``paring compress``."""
    _run("compress")


def merge_main() -> None:
    """``merge``: the same as ``paring merge``."""
    _run("merge")


def prune_main() -> None:
    """``prune``: the same as ``paring prune``."""
    _run("prune")


def _run(name: str, find: Callable[[], click.Command] | None = None) -> None:
    """Run a command, by default that of the file ``name``, which is imported where Ctrl-C is heard."""
    from paring.errors import OptionError, ParingError

    color = False if os.environ.get("NO_COLOR") else None  # rich sees to this itself, click does not
    gc.set_threshold(50_000, 20, 100)  # what a command makes lives to its end: look for garbage rarely
    try:
        command = find() if find else importlib.import_module(f"paring.cli.{name}").command
        code = command.main(prog_name=name, standalone_mode=False, color=color) or 0
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.secho("interrupted; nothing was left half written", fg="red", err=True, color=color)
        code = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader left; say nothing at exit
        code = 1
    except Exception as error:
        if "--debug" in sys.argv:
            raise
        if isinstance(error, ParingError):
            text = str(error)
        elif isinstance(error, OSError) and error.filename is not None:  # the machine's doing, not ours
            text = f"{error.filename}: {error.strerror}"
        else:
            text = f"{type(error).__name__}: {error} (this should not happen: --debug shows where)"
        click.secho(f"error: {text}", fg="red", err=True, color=color)
        code = 2 if isinstance(error, OptionError) else 1
    gc.freeze()  # nor at the very end, where looking through all of numba takes .25 s
    sys.exit(code if isinstance(code, int) else 0)
