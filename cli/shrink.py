"""``paring shrink``: whole layers, neurons, heads, experts and width taken out of a model."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from paring.cli import _common as common
from paring.cli import _hub as hub

if TYPE_CHECKING:
    from paring.hub.pushing import Push
    from paring.report import Shrinking

_KEEP = "Keep so many, or such a share below 1."


class Numbers(click.ParamType[tuple[int, ...]]):
    """Numbers from 0 on, and ranges of them: ``3,7,10-12``."""

    name = "numbers"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        found: list[int] = []
        for piece in str(value).split(","):
            first, dash, last = piece.strip().partition("-")
            if not first.isdecimal() or (dash and not last.isdecimal()) or len(piece) > 15:
                self.fail(f"{value!r} is no list of numbers such as 3,7 or 10-12", param, ctx)
            found += range(int(first), min(int(last or first), int(first) + 100_000) + 1)
        return tuple(dict.fromkeys(found))


@click.command("shrink", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("model")
@click.option(
    "--drop-layers", type=Numbers(), default=(), metavar="N,N,...", help="Layers to drop, from 0 on."
)
@click.option("--layers", type=float, metavar="N", help="Layers. " + _KEEP)
@click.option(
    "--layers-by", default="even", show_default=True, metavar="even|score",
    help="Which: spread from the first to the last, or those that score best.",
)  # fmt: skip
@click.option(
    "--neurons", type=float, metavar="N", help="Neurons of each feed-forward part or expert. " + _KEEP
)
@click.option("--heads", type=float, metavar="N", help="Attention heads of each layer. " + _KEEP)
@click.option("--kv-heads", type=float, metavar="N", help="Key-value heads (groups) of each layer. " + _KEEP)
@click.option("--experts", type=float, metavar="N", help="Experts of each layer. " + _KEEP)
@click.option("--width", type=float, metavar="N", help="Entries of the residual stream. " + _KEEP)
@click.option(
    "--fisher",
    metavar="FILE",
    help="Scores of every weight, such as summed squared gradients.  [default: |weights|]",
)
@click.option(
    "--shard-size", type=common.Bytes(), default="5GB", show_default=True, metavar="SIZE",
    help="Of an output file, at most.",
)  # fmt: skip
@click.option("-o", "--output", required=True, metavar="OUT", help="A folder.")
@common.threads
@common.dry_run
@common.overwrite
@hub.pushes
@common.offline
@common.shown
def command(
    model: str,
    output: str,
    push: Push | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    debug: bool,
    **given: Any,
) -> None:
    """Take whole parts out of MODEL: layers, neurons, heads, experts, width.

    config.json is rewritten and layers are numbered anew; that the result loads is checked before anything is
    written. What stays is chosen by the weights, or by --fisher scores.

    \b
    paring shrink model/ --drop-layers 21-28 -o smaller/
    paring shrink model/ --neurons .75 --heads 24 --fisher grads.safetensors -o smaller/
    """
    from paring import api

    click.get_current_context().call_on_close(lambda: common.tell_of_rest(output, ("resume",)))
    with common.progress(f"shrinking {model}", quiet=quiet, verbose=verbose):
        report = api.shrink(model, output, **given)
    report = hub.published(report, push, quiet=quiet, verbose=verbose)
    if as_json:
        common.print_json(report)
    elif not quiet:
        _show(report)
        hub.show(report.pushed)


def _show(report: Shrinking) -> None:
    out = common.console()
    verb = "would be shrunk to" if report.dry_run else "shrunk to"
    out.print(
        f"[bold]{common.short(report.inputs[0])}[/] {verb} [bold]{common.short(report.output or '')}[/]\n"
    )
    rows = [
        (
            name.replace("_", " "),
            f"{was:,} → [bold]{report.after[name]:,}[/]" if was != report.after[name] else f"{was:,}",
        )
        for name, was in report.before.items()
    ]
    share = report.elements_left / max(1, report.elements)
    rows.append(("parameters", f"{report.elements:,} → {report.elements_left:,}, [bold green]{share:.1%}[/]"))
    rows.append(("size", f"{common.size(report.bytes_in or 0)} → {common.size(report.bytes_out or 0)}"))
    rows.append(("loads", "yes, says transformers" if report.checked else "by its shapes"))
    peak = common.size(report.peak_rss_bytes or 0)
    rows.append(("took", f"{report.seconds:.1f} s and at most {peak} of memory"))
    out.print(common.facts(*rows))
    sys.stdout.flush()
    for text in report.warnings:
        common.warn(text)
