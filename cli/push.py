"""``paring push``: what is there already, to the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from paring.cli import _common as common
from paring.cli import _hub as hub

if TYPE_CHECKING:
    from paring.hub.pushing import Push


@click.command("push", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("path", metavar="PATH")
@click.argument("push_to_hub", metavar="ID")
@hub.target
@common.shown
def command(path: str, push: Push, as_json: bool, quiet: bool, verbose: bool, debug: bool) -> None:
    """Push the folder or file PATH to the repository ID on the Hub.

    A card is made where there is none. What the repository has already is not sent again, so that a push
    that was cut off goes on when it is repeated. The token is that of `hf auth login`, or HF_TOKEN.

    \b
    paring push merged/ me/my-merge --private
    paring push lora.paring.safetensors me/lora-small --create-pr
    """
    found = hub.pushed([Path(path)], push, quiet=quiet, verbose=verbose)
    if as_json:
        common.print_json(found)
    elif not quiet:
        hub.show(found)
