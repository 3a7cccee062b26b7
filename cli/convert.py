"""``paring convert``: an adapter in another naming dialect."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from paring.cli import _common as common

if TYPE_CHECKING:
    from paring.report import Conversion

_ROWS = 6


@click.command("convert", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("adapter")
@click.option(
    "--dialect", required=True, metavar="NAME",
    help="peft, kohya, lycoris, diffusers, diffusers-old or cloneofsimo.",
)  # fmt: skip
@click.option("-o", "--output", required=True, metavar="OUT", help="A folder (PEFT), or a .safetensors file.")
@click.option(
    "--base",
    "bases",
    multiple=True,
    metavar="MODEL",
    help="What it adapts: tells names and shapes; repeatable.",
)
@click.option("--names", metavar="FILE", help="JSON of module: name; or sd1, for cloneofsimo's numbers.")
@click.option("--dtype", metavar="fp64|fp32|fp16|bf16", help="Of the factors.  [default: as in the source]")
@click.option("--adapter-scale", type=float, default=1.0, metavar="S", help="Multiply every update by this.")
@common.dry_run
@common.overwrite
@common.offline
@common.shown
def command(
    adapter: str, output: str, as_json: bool, quiet: bool, verbose: bool, debug: bool, **given: Any
) -> None:
    """Write ADAPTER in another naming dialect.

    Every update is kept and every scale resolved; tensors that are no factors go along under their own names.
    Kinds such as LoHa, LoKr, AdaLoRA, VeRA and VB-LoRA become plain LoRAs of the same update.

    \b
    paring convert style.safetensors --dialect peft -o style/
    paring convert lora/ --dialect kohya --dtype fp16 -o lora.safetensors
    paring convert old.safetensors --dialect diffusers --names sd1 -o new.safetensors
    """
    from paring import api

    with common.progress(f"converting {adapter}", quiet=quiet, verbose=verbose):
        report = api.convert(adapter, output, **given)
    if as_json:
        common.print_json(report)
    elif not quiet:
        _show(report, verbose)


def _show(report: Conversion, verbose: bool) -> None:
    out = common.console()
    verb = "would be converted to" if report.dry_run else "converted to"
    source, target = common.short(report.inputs[0]), common.short(report.output or "")
    out.print(f"[bold]{source}[/] {verb} [bold]{target}[/]\n")
    rows = [("dialect", f"{report.source_dialect} → {report.dialect}"), ("modules", f"{len(report.modules)}")]
    rows += [("", f"{count} of {kind}, as plain factors") for kind, count in report.derived.items()]
    rows += [("", f"{count} of {kind}, as they are") for kind, count in report.held.items()]
    rows += [
        ("scale", common.short(f"{s.scale:g} = {s.source}; {s.kept}; {s.modules} modules"))
        for s in report.scales[: None if verbose else _ROWS]
    ]
    if len(report.scales) > _ROWS and not verbose:
        rows.append(("", f"… and {len(report.scales) - _ROWS} more scales; -v shows all"))
    rows.append(("error", f"{report.error:.2g}" if report.error else "none"))
    if report.carried:
        size = common.size(sum(tensor.bytes for tensor in report.carried))
        rows.append(("carried", f"{len(report.carried)} tensors under their own names, {size}"))
    if not report.dry_run:
        rows.append(("size", f"{common.size(report.bytes_in or 0)} → {common.size(report.bytes_out or 0)}"))
    out.print(common.facts(*rows))
    if report.carried:
        table = common.table("carried", "bytes", "why")
        for tensor in report.carried if verbose else report.carried[:_ROWS]:
            table.add_row(common.short(tensor.name), f"{tensor.bytes:,}", common.short(tensor.why))
        out.print(table)
    if verbose and report.renamed:
        table = common.table("was", "is now")
        for old, new in report.renamed.items():
            table.add_row(common.short(old), common.short(new))
        out.print(table)
    sys.stdout.flush()
    for text in report.warnings:
        common.warn(text)
