"""``paring methods``: what there is to choose from."""

from __future__ import annotations

from typing import Any, get_args

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
        common.print_json({"command": "methods", "methods": [_plain(method) for method in found]})
        return
    if quiet:
        return
    from rich.padding import Padding

    out = common.console()
    for m in found:
        out.print(f"[bold]{m.kind} --method {m.name}[/]  {common.short(m.summary)}", soft_wrap=True)
        about = [f"[dim]{common.short(m.reference)}[/]"]
        for option in m.options.values():
            default = "" if option.default is None else f" (default {option.default})"
            about.append(f"--{option.name.replace('_', '-')}: {common.short(option.help)}{default}")
        for name, preset in m.presets.items():
            about.append(f"--{name}: the same as {common.recipe_text(dict(preset))}")
        for text in about:
            out.print(Padding(text, (0, 0, 0, 4), expand=False))


def _plain(method: registry.Method) -> dict[str, Any]:
    """A method as JSON."""
    options = [
        {"name": option.name, "default": option.default, "choices": option.choices, "help": option.help}
        for option in method.options.values()
    ]
    about = {"kind": method.kind, "name": method.name, "summary": method.summary, "sees": method.sees}
    return {**about, "reference": method.reference, "options": options, "presets": dict(method.presets)}
