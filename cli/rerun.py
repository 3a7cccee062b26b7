"""``paring rerun``: make a result again from the recipe in it."""

from __future__ import annotations

from pathlib import Path

import click

from paring.cli import _common as common


@click.command("rerun", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("made", metavar="OUT")
@click.option("-o", "--output", required=True, metavar="NEW", help="Where to write it again.")
@click.option("--source", metavar="PATH", help="Of a packed file: what it was made of, if it has moved.")
@common.threads
@click.option("--memory", type=common.Bytes(), metavar="SIZE", help=common.memory_help)
@common.device
@common.dry_run
@common.overwrite
@common.offline
@common.shown
def command(
    made: str,
    output: str,
    source: str | None,
    threads: int | None,
    memory: int | None,
    device: str,
    dry_run: bool,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    debug: bool,
) -> int:
    """Make OUT again as NEW, from the recipe that OUT holds, and compare.

    Inputs are looked for under the names they had, from the current folder and then from the one OUT is in.
    The exit code is 1 when NEW differs.

    paring rerun merged/ -o again/
    """
    from paring import api

    with common.progress(f"repeating {Path(made).name}", quiet=quiet, verbose=verbose):
        report = api.rerun(
            made, output, source=source, overwrite=overwrite, dry_run=dry_run, threads=threads, memory=memory,
            device=device,
        )  # fmt: skip
    if as_json:
        common.print_json(report)
    elif not quiet:
        out = common.console()
        verb = "would be made again as" if dry_run else "made again as"
        same = ", bit for bit" if report.same else ""
        out.print(f"[bold]{common.short(made)}[/] {verb} [bold]{common.short(output)}[/]{same}")
        for text in report.warnings:
            common.warn(text)
    return 1 if report.same is False else 0
