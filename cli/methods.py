"""``paring methods``: what there is to choose from."""

from __future__ import annotations

from typing import get_args

import click

from paring import registry
from paring.cli import _common as common


@click.command("methods", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("kind", required=False, type=click.Choice(get_args(registry.Kind)))
@common.shown
def command(kind: registry.Kind | None, as_json: bool, quiet: bool, verbose: bool, debug: bool) -> None:
    """List the methods, with where they come from and their options."""
    kinds: tuple[registry.Kind, ...] = (kind,) if kind else get_args(registry.Kind)
    found = [registry.load(each, name) for each in kinds for name in registry.names(each)]
    if as_json:
        common.print_json({
            "command": "methods",
            "methods": [
                {
                    "kind": m.kind, "name": m.name, "summary": m.summary, "reference": m.reference, "sees": m.sees,
                    "options": [{"name": o.name, "default": o.default, "help": o.help} for o in m.options.values()],
                }
                for m in found
            ],
        })  # fmt: skip
        return
    if quiet:
        return
    out = common.console()
    for m in found:
        out.print(f"[bold]{m.kind} --method {m.name}[/]  {common.short(m.summary)}")
        out.print(f"    {common.short(m.reference)}", style="dim")
        for option in m.options.values():
            default = "" if option.default is None else f" (default {option.default})"
            out.print(f"    --{option.name.replace('_', '-')}: {common.short(option.help)}{default}")
        for name, preset in m.presets.items():
            out.print(f"    --{name}: " + " ".join(f"--{key} {value}" for key, value in preset.items()))
