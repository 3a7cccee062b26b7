"""``paring extract``: a LoRA from a fine-tune."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from paring.cli import _common as common

if TYPE_CHECKING:
    from paring.report import Extraction

_ROWS = 6


@click.command("extract", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("tuned")
@click.option("--base", required=True, metavar="BASE", help="What TUNED was tuned from.")
@click.option("--rank", type=int, metavar="R", help="Of every module.")
@click.option("--energy", type=float, metavar="E", help="Share of each squared change to keep, up to 1.")
@click.option("--max-rank", type=int, metavar="R", help="With --energy: of a module, at most.")
@click.option("--modules", multiple=True, metavar="PATTERN", help="Only these, as '*_proj'; repeatable.")
@click.option("--embeddings", is_flag=True, help="Extract embeddings as well.")
@click.option(
    "--others", default="report", show_default=True, metavar="report|carry",
    help="Norms, biases and new heads: say what is lost, or write them whole.",
)  # fmt: skip
@click.option(
    "--missing", default="refuse", show_default=True, metavar="refuse|skip", help="Tensors that one lacks."
)
@click.option("--dtype", metavar="fp64|fp32|fp16|bf16", help="Of the factors.  [default: fp32]")
@click.option("-o", "--output", required=True, metavar="OUT", help="A folder, or a .safetensors file.")
@common.threads
@common.device
@common.dry_run
@common.overwrite
@common.offline
@common.shown
def command(
    tuned: str, as_json: bool, quiet: bool, verbose: bool, debug: bool, output: str, **given: Any
) -> None:
    """Extract a LoRA from the fine-tune TUNED.

    Each weight matrix that changed becomes two factors, for PEFT; the error stated is theirs as written.
    --rank fixes how many components each has, --energy finds how many it takes.

    \b
    paring extract tuned/ --base base/ --rank 32 -o lora/
    paring extract tuned/ --base base/ --energy .9 --max-rank 128 --others carry -o lora/
    """
    from paring import api

    with common.progress(f"extracting from {tuned}", quiet=quiet, verbose=verbose):
        report = api.extract(tuned, output, **given)
    if as_json:
        common.print_json(report)
    elif not quiet:
        _show(report, verbose)


def _show(report: Extraction, verbose: bool) -> None:
    out = common.console()
    verb = "would be extracted to" if report.dry_run else "extracted to"
    out.print(f"[bold]{len(report.modules)} modules[/] {verb} [bold]{common.short(report.output or '')}[/]\n")
    ranks = [module.rank or 0 for module in report.modules]
    some = str(ranks[0]) if min(ranks) == max(ranks) else f"{min(ranks)} to {max(ranks)}"
    rows = [("tuned", common.short(report.inputs[0])), ("base", common.short(report.inputs[1]))]
    rows += [("rank", some), ("error", f"[bold]{report.error or 0:.4f}[/] of what these modules learnt")]
    if report.left_out or report.carried:
        rows.append(("", f"{report.error_all or 0:.4f} of all that changed"))
    if report.carried:
        size = common.size(sum(tensor.bytes for tensor in report.carried))
        rows.append(("carried", f"{len(report.carried)} tensors whole, {size}"))
    if not report.dry_run:
        rows.append(("size", common.size(report.bytes_out or 0)))
        peak = common.size(report.peak_rss_bytes or 0)
        rows.append(("took", f"{report.seconds:.1f} s and at most {peak} of memory, on {report.device}"))
    out.print(common.facts(*rows))
    if verbose:
        table = common.table("module", "shape", "rank", "error")
        for m in report.modules:
            table.add_row(common.short(m.name), f"{m.shape[0]} × {m.shape[1]}", str(m.rank), f"{m.error:.4f}")
        out.print(table)
    if report.left_out:
        left = sorted(report.left_out, key=lambda rest: -(rest.share or 0.0))
        table = common.table("left out", "of squared change", "why")
        for rest in left if verbose else left[:_ROWS]:
            share = "-" if rest.share is None else f"{rest.share:.2%}"
            table.add_row(common.short(rest.name), share, common.short(rest.why))
        out.print(table)
        if not verbose and len(left) > _ROWS:
            out.print(f"… and {len(left) - _ROWS} more; -v shows all\n")
    sys.stdout.flush()
    for text in report.warnings:
        common.warn(text)
