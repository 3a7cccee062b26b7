"""``paring calibrate``: what a model's matrices are given on a text, as a file for pruning methods."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from paring.cli import _common as common
from paring.cli import _methods

if TYPE_CHECKING:
    from paring.pruning.calibration import Calibration


@click.command(
    "calibrate",
    cls=_methods.command("prune", "wanda"),
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.argument("model")
@click.option("--data", required=True, metavar="TEXT", help="UTF-8 text, of the kind the model will see.")
@click.option("-o", "--output", required=True, metavar="OUT", help="A .safetensors file.")
@click.option("--gram", is_flag=True, help="Also products of inputs, which methods that update weights need.")
@click.option("--samples", type=int, default=128, show_default=True, metavar="N", help="Windows to run.")
@click.option("--window", type=int, metavar="L", help="Tokens of each.  [default: 2048, or the model's most]")
@click.option("--sequential", is_flag=True, help="Measure each block behind blocks that are pruned already.")
@click.option("--sparsity", metavar="S", help="With --sequential: share of entries that go.")
@click.option("--keep", type=int, metavar="N", help="With --sequential and --of: entries that stay.")
@click.option("--of", type=int, metavar="M", help="With --keep: out of so many.")
@click.option("--method", default="wanda", show_default=True, metavar="NAME", help="With --sequential.")
@click.option("--dtype", default="fp32", show_default=True, metavar="fp32|bf16|fp16", help="To compute in.")
@common.threads
@common.device
@common.dry_run
@common.overwrite
@common.offline
@common.shown
def command(
    model: str, as_json: bool, quiet: bool, verbose: bool, debug: bool, output: str, data: str, **given: Any
) -> None:
    """Measure what the matrices of MODEL, a folder, are given on a text.

    The file serves every method that asks for it, at any sparsity. The model is run by transformers, block
    after block, so that little is held at a time. Needs the extra paring[retrain].

    \b
    paring calibrate model/ --data text.txt -o stats.safetensors
    paring calibrate model/ --data text.txt --gram --samples 64 -o stats.safetensors
    paring calibrate model/ --data text.txt --sequential --sparsity .5 -o stats.safetensors
    """
    from paring import api

    with common.progress(f"calibrating {model}", quiet=quiet, verbose=verbose):
        report = api.calibrate(model, data, output, **_methods.arguments("prune", given))
    if as_json:
        common.print_json(report)
    elif not quiet:
        _show(report)


def _show(report: Calibration) -> None:
    out = common.console()
    verb = "would be measured" if report.dry_run else f"measured, in [bold]{common.short(report.output)}[/]"
    out.print(f"[bold]{report.measured} inputs[/] of {report.matrices} matrices {verb}\n")
    rows = [
        ("model", common.short(report.inputs[0])),
        ("text", f"{common.short(report.data)}, {report.windows} windows of {report.window} tokens"),
        ("statistics", "norms and products" if report.gram else "norms"),
    ]
    if report.sequential is not None:
        rows.append(("behind blocks pruned", common.recipe_text(report.sequential, without=("options",))))
    if report.bytes_out is not None:
        rows.append(("size", common.size(report.bytes_out)))
        rows.append(("took", f"{report.seconds:.1f} s, on {report.device} in {report.dtype}"))
    out.print(common.facts(*rows))
    sys.stdout.flush()
    for text in report.warnings:
        common.warn(text)
