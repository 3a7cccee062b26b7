"""``paring eval``: perplexity of a causal language model on a text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from paring.cli import _common as common

if TYPE_CHECKING:
    from paring.evaluating import Evaluation


@click.command("eval", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("model")
@click.option("--data", required=True, metavar="TEXT", help="UTF-8 text.")
@click.option(
    "--window", type=int, metavar="L", help="Tokens a window.  [default: 2048, or the model's most]"
)
@click.option("--stride", type=int, metavar="S", help="Tokens between windows.  [default: a window]")
@click.option("--samples", type=int, metavar="N", help="Windows, evenly spaced.  [default: all]")
@click.option("--dtype", default="fp32", show_default=True, metavar="fp32|bf16|fp16", help="To compute in.")
@common.threads
@common.device
@common.offline
@common.shown
def command(
    model: str, as_json: bool, quiet: bool, verbose: bool, debug: bool, data: str, **given: Any
) -> None:
    """Perplexity of the causal language model in the folder MODEL.

    The text is read by windows, each of which predicts its last --stride tokens; figures can be compared only
    at the same window and stride. Needs the extra paring[retrain].

    \b
    paring eval model/ --data text.txt
    paring eval model/ --data text.txt --window 1024 --stride 512 --samples 50
    """
    from paring import api

    with common.progress(f"evaluating {model}", quiet=quiet, verbose=verbose):
        report = api.evaluate(model, data, **given)
    if as_json:
        common.print_json(report)
    elif quiet:
        click.echo(f"{report.perplexity:.4f}")
    else:
        _show(report)


def _show(report: Evaluation) -> None:
    from paring.evaluating import spoken

    out = common.console()
    out.print(f"perplexity [bold]{report.perplexity:.4f}[/]\n")
    error = "" if report.nll_error is None else f" ± {report.nll_error:.4f}"
    rows = [
        ("nats a token", f"{report.nll:.4f}{error}"),
        ("text", f"{common.short(report.data)}: {spoken(report)}"),
        ("took", f"{report.seconds:.1f} s, on {report.device} in {report.dtype}"),
    ]
    out.print(common.facts(*rows))
