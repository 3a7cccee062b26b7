"""``paring mask``: masks as files, applied, checked, compared and joined."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from paring.cli import _common as common

if TYPE_CHECKING:
    from paring.pruning.report import MaskMade

_HELP = {"help_option_names": ["-h", "--help"]}
_output = click.option(
    "-o", "--output", required=True, metavar="OUT", help="A file that ends in .safetensors."
)


@click.group("mask", context_settings=_HELP)
def command() -> None:
    """Work with masks: files that `prune --save-mask` writes, a bit for each entry that stays."""


@command.command("apply", context_settings=_HELP)
@click.argument("mask")
@click.argument("model")
@click.option(
    "-o", "--output", required=True, metavar="OUT", help="A folder, or one file that ends in .safetensors."
)
@click.option(
    "--shard-size", type=common.Bytes(), default="5GB", show_default=True, metavar="SIZE",
    help="Of an output file, at most.",
)  # fmt: skip
@common.threads
@click.option("--memory", type=common.Bytes(), metavar="SIZE", help=common.memory_help)
@common.dry_run
@common.overwrite
@common.offline
@common.shown
def apply(
    mask: str, model: str, output: str, shard_size: int, threads: int | None, memory: int | None,
    dry_run: bool, overwrite: bool, as_json: bool, quiet: bool, verbose: bool, debug: bool,
) -> None:  # fmt: skip
    """Set what MASK does not keep to zero in MODEL: the one it was made of, a fine-tune or a merge of it."""
    from paring import api
    from paring.cli.prune import show

    click.get_current_context().call_on_close(lambda: common.tell_of_rest(output, ("resume",)))
    with common.progress(f"masking {Path(model).name}", quiet=quiet, verbose=verbose):
        report = api.apply_mask(
            mask, model, output, shard_size=shard_size, overwrite=overwrite, dry_run=dry_run,
            threads=threads, memory=memory,
        )  # fmt: skip
    if as_json:
        common.print_json(report)
    elif not quiet:
        show(report, verbose)


@command.command("verify", context_settings=_HELP)
@click.argument("mask")
@click.argument("model", required=False)
@click.option("--keep", type=int, metavar="N", help="Groups must keep N at most.")
@click.option("--of", type=int, metavar="M", help="The size of those groups, along the last axis.")
@common.offline
@common.shown
def verify(
    mask: str, model: str | None, keep: int | None, of: int | None,
    as_json: bool, quiet: bool, verbose: bool, debug: bool,
) -> int:  # fmt: skip
    """Check that MODEL is zero where MASK says so; with --keep and --of, that MASK is of such groups."""
    from paring.pruning import masking, verifying

    verifying.wanted(None, keep, of)
    found = masking.verify(mask, model, keep=keep, of=of)
    return common.show_checks(found, as_json=as_json, quiet=quiet, brief=not verbose)


@command.command("stats", context_settings=_HELP)
@click.argument("mask")
@common.offline
@common.shown
def stats(mask: str, as_json: bool, quiet: bool, verbose: bool, debug: bool) -> None:
    """Say what MASK keeps, by tensor and in all, and its digest."""
    from paring.pruning import masking

    found = masking.stats(mask)
    if as_json:
        common.print_json(found)
    elif not quiet:
        out = common.console()
        table = common.table("tensor", "shape", "kept", "density", "groups", "empty rows")
        for t in found.tensors:
            shape = " × ".join(map(str, t.shape))
            numbers = (f"{t.kept:,}", f"{t.density:.2%}", t.pattern or "-", f"{t.empty_rows:,}")
            table.add_row(common.short(t.name), shape, *numbers)
        out.print(table)
        kept = f"[bold]{found.kept:,}[/] of {found.elements:,}, {found.density:.2%}"
        out.print(common.facts(("kept", kept), ("digest", found.digest)))


@command.command("diff", context_settings=_HELP)
@click.argument("first")
@click.argument("second")
@common.offline
@common.shown
def diff(first: str, second: str, as_json: bool, quiet: bool, verbose: bool, debug: bool) -> None:
    """Compare two masks: what both keep, what only one keeps, both over either (IoU)."""
    from paring.pruning import masking
    from paring.pruning.report import OverlapReport

    found = masking.diff(first, second)
    if as_json:
        common.print_json(found)
    elif not quiet:
        out = common.console()
        table = common.table("tensor", "both", "only first", "only second", "IoU")
        total = OverlapReport("in all", found.both, found.only_first, found.only_second, found.iou)
        for t in (*found.tensors, total):
            numbers = (f"{t.both:,}", f"{t.only_first:,}", f"{t.only_second:,}", f"{t.iou:.4f}")
            table.add_row(common.short(t.name), *numbers)
        out.print(table)
        for name in found.missing:
            common.warn(f"only one of the two masks {name}")


def _joins(how: Literal["union", "intersect"], what: str) -> None:
    """Add the command that joins masks so."""

    @command.command(how, help=what, context_settings=_HELP)
    @click.argument("masks", nargs=-1, required=True)
    @_output
    @common.overwrite
    @common.offline
    @common.shown
    def join(
        masks: tuple[str, ...], output: str, overwrite: bool,
        as_json: bool, quiet: bool, verbose: bool, debug: bool,
    ) -> None:  # fmt: skip
        from paring.pruning import masking

        found = masking.join(masks, Path(output), how, overwrite=overwrite)
        _tell(found, as_json, quiet)


_joins("union", "Write what any of MASKS keeps.")
_joins("intersect", "Write what all of MASKS keep.")


@command.command("extract", context_settings=_HELP)
@click.argument("model")
@_output
@common.overwrite
@common.offline
@common.shown
def extract(
    model: str, output: str, overwrite: bool, as_json: bool, quiet: bool, verbose: bool, debug: bool
) -> None:
    """Write the mask of what is not zero in MODEL, which somebody else has pruned."""
    from paring.pruning import masking

    with common.progress(f"reading {Path(model).name}", quiet=quiet, verbose=verbose):
        found = masking.extract(model, Path(output), overwrite=overwrite)
    _tell(found, as_json, quiet)


def _tell(found: MaskMade, as_json: bool, quiet: bool) -> None:
    if as_json:
        common.print_json(found)
    elif not quiet:
        out = common.console()
        out.print(
            f"[bold]{common.short(found.output)}[/] keeps {found.kept:,} of {found.elements:,} entries, "
        )
        out.print(f"{found.density:.2%}; digest {found.digest}")
