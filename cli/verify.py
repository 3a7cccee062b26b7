"""``paring verify``: is a file sound, and does it lose what it says?"""

from __future__ import annotations

import click

from paring.cli import _common as common


@click.command("verify", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("file")
@click.option("--source", metavar="SRC", help="What it was made of: the recorded error is measured again.")
@click.option("--base", metavar="BASE", help="Of a packed fine-tune: the model that it was tuned from.")
@click.option("--sparsity", metavar="S", help="At least this share of what prune prunes must be zero.")
@click.option("--keep", type=int, metavar="N", help="Groups of inputs must hold N nonzeros at most.")
@click.option("--of", type=int, metavar="M", help="The size of those groups.")
@common.offline
@common.shown
def command(
    file: str, source: str | None, base: str | None, sparsity: str | None, keep: int | None, of: int | None,
    as_json: bool, quiet: bool, verbose: bool, debug: bool,
) -> int:  # fmt: skip
    """Check a file: checksums, digests, finite values, complete pairs; of a pruned model its zeros."""
    from paring import api

    with common.progress(f"verifying {file}", quiet=quiet, verbose=verbose):
        found = api.verify(file, source, base=base, sparsity=sparsity, keep=keep, of=of)
    return common.show_checks(found, as_json=as_json, quiet=quiet)
