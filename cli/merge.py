"""``merge``: many models in, one out."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from paring.cli import _common as common
from paring.cli import _methods as methods

if TYPE_CHECKING:
    from paring.report import Report

_DEFAULT = "linear"


@click.command(
    "merge",
    cls=methods.command("merge", _DEFAULT),
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@click.option("--method", default=_DEFAULT, show_default=True, help="`paring methods` lists them.")
@click.option("--base", metavar="BASE", help="What all models were tuned from; adapters need none.")
@click.option("--into", metavar="BASE", help="Fold merged adapters into this checkpoint.")
@click.option("--weights", metavar="W,W,...", help="One number for each model.  [default: 1 each]")
@click.option("--scale", type=float, default=1.0, show_default=True, help="Multiplies the merged delta.")
@click.option("--dtype", metavar="fp64|fp32|fp16|bf16", help="Of the result.  [default: as the first input]")
@click.option(
    "--missing", default="refuse", show_default=True, metavar="refuse|copy",
    help="Tensors that some checkpoints lack.",
)  # fmt: skip
@click.option("--rank", metavar="R|exact", help="Of a merged adapter, at most.  [default: what it needs]")
@click.option(
    "--carried", default="refuse", show_default=True, metavar="refuse|first|drop",
    help="Tensors of adapters that are not factors and differ.",
)  # fmt: skip
@click.option(
    "--shard-size", type=common.Bytes(), default="5GB", show_default=True, metavar="SIZE",
    help="Of an output file, at most.",
)  # fmt: skip
@click.option(
    "-o", "--output", required=True, metavar="OUT", help="A folder, or one file that ends in .safetensors."
)
@common.threads
@common.device
@common.dry_run
@common.overwrite
@common.shown
def command(
    models: tuple[str, ...],
    output: str,
    weights: str | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    debug: bool,
    **given: Any,
) -> int:
    """Merge checkpoints or adapters.

    Adapters alone give an adapter, whose rank suffices for their weighted sum; with --into they are folded
    into a checkpoint. Killed or interrupted, the same command goes on where it was.

    \b
    merge a/ b/ c/ --method ties --base base/ -o merged/
    merge lora-a/ lora-b/ --weights .7,.3 -o lora/
    """
    from paring import api
    from paring.merging import weights as parsing

    arguments = methods.arguments("merge", given)
    parsed = None if weights is None else parsing.parse(weights, len(models), 1.0)
    with common.progress(f"merging {len(models)} models", quiet=quiet, verbose=verbose):
        report = api.merge(models, output, weights=parsed, **arguments)
    if as_json:
        common.print_json(report)
    elif not quiet:
        _show(report, verbose)
    return 0


def _show(report: Report, verbose: bool) -> None:
    out = common.console()
    verb = "would be merged to" if report.dry_run else "merged to"
    count = f"{len(report.inputs)} inputs"
    out.print(f"[bold]{count}[/] {verb} [bold]{common.short(report.output or '')}[/]\n")
    recipe = report.recipe or {}
    size = "" if report.bytes_out is None else f" → {common.size(report.bytes_out)}"
    options = common.recipe_text(recipe.get("options") or {})
    rows = [("" if i else "inputs", common.short(path)) for i, path in enumerate(report.inputs)]
    rows += [("size", f"{common.size(report.bytes_in or 0)}{size}"), ("method", f"{report.method} {options}")]
    if report.modules and report.error is not None:
        rows.append(("error", f"[bold]{report.error:.2g}[/] against the exact result (truncation, rounding)"))
    peak = common.size(report.peak_rss_bytes or 0)
    if not report.dry_run:
        rows.append(("took", f"{report.seconds:.1f} s and at most {peak} of memory, on {report.device}"))
    out.print(common.facts(*rows))
    if report.modules and verbose:
        table = common.table("module", "shape", "rank", "error")
        for m in report.modules:
            shape = f"{m.shape[0]} × {m.shape[1]}"
            table.add_row(common.short(m.name), shape, str(m.rank or "-"), f"{m.error or 0:.2g}")
        out.print(table)
    sys.stdout.flush()
    for text in report.warnings:
        common.warn(text)
