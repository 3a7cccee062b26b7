"""The options of the method that ``--method`` names, read from its signature: in help, and as arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from paring import registry
from paring.cli import _common as common
from paring.errors import OptionError

#: how the names of options begin that a method or a recipe adds
_ADDED = ("method_", "preset_", "retrain_")


def command(
    kind: registry.Kind, default: str, more: Callable[[list[str]], list[click.Option]] | None = None
) -> type[click.Command]:
    """A class of commands that have the options of their method besides their own, and what ``more`` makes
    of the arguments.
    """

    class MethodCommand(click.Command):
        def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
            chosen = _named(kind, default, args)
            own = [p for p in self.params if not (p.name or "").startswith(_ADDED)]  # not of a call before
            known = {name for parameter in own for name in parameter.opts}
            added = [*options(chosen), *(more(args) if more is not None else [])]
            self.params = [*own, *(o for o in added if not known & set(o.opts))]
            return super().parse_args(ctx, args)

        def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
            shown = [p for p in self.params if isinstance(p, click.Option)]
            own = [p for p in shown if not p.name or not p.name.startswith(_ADDED)]
            extra = [p for p in shown if p not in own]
            for title, params in (("Options", own), ("Options of the method", extra)):
                records = [record for p in params if (record := p.get_help_record(ctx)) is not None]
                if records:
                    with formatter.section(title):
                        formatter.write_dl(records)

    return MethodCommand


def arguments(kind: registry.Kind, given: dict[str, Any]) -> dict[str, Any]:
    """What a verb of :mod:`paring.api` takes, from what click found; options given beside a preset win."""
    method = registry.load(kind, given["method"])
    found = {key: value for key, value in given.items() if not key.startswith(("method_", "preset_"))}
    for name, preset in method.presets.items():
        if given.get(f"preset_{name}"):
            found.update(preset)
    options = {
        key.removeprefix("method_"): value for key, value in given.items() if key.startswith("method_")
    }
    return {**found, **{key: value for key, value in options.items() if value is not None}}


def value(flag: str, args: list[str]) -> str | None:
    """What the arguments give an option, before they are parsed."""
    found = None
    for i, arg in enumerate(args):
        if arg == flag and i + 1 < len(args):
            found = args[i + 1]
        elif arg.startswith(f"{flag}="):
            found = arg.partition("=")[2]
    return found


def _named(kind: registry.Kind, default: str, args: list[str]) -> registry.Method:
    """The method that the arguments ask for."""
    try:
        return registry.load(kind, value("--method", args) or default)
    except OptionError as error:
        raise click.UsageError(str(error)) from None


def options(method: registry.Method) -> list[click.Option]:
    flags = [
        click.Option(
            [f"--{name}", f"preset_{name}"],
            is_flag=True,
            help=f"The same as {common.recipe_text(dict(preset))}.",
        )
        for name, preset in method.presets.items()
    ]
    return [*flags, *map(_option, method.options.values())]


def _option(option: registry.Option) -> click.Option:
    flag, text = option.name.replace("_", "-"), option.help[:1].upper() + option.help[1:]
    default = "" if option.default is None else f"  [default: {option.default}]"
    if bool in option.types:
        default = f"  [default: {'' if option.default else 'no-'}{flag}]"
        names = [f"--{flag}/--no-{flag}", f"method_{option.name}"]
        return click.Option(names, default=None, help=text + default)
    kinds = [kind.__name__.upper() for kind in option.types if kind is not type(None)]
    metavar = "|".join([*option.choices, *kinds])
    return click.Option([f"--{flag}", f"method_{option.name}"], metavar=metavar, help=text + default)
