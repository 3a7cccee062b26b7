"""``prune``: the same model with the least of its weights set to zero."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from paring.cli import _common as common
from paring.cli import _hub as hub
from paring.cli import _methods as methods
from paring.cli import _retrain as retraining

if TYPE_CHECKING:
    from paring.hub.pushing import Push
    from paring.pruning.report import Pruning

_DEFAULT = "magnitude"


@click.command(
    "prune",
    cls=retraining.command(_DEFAULT),
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.argument("model", metavar="MODEL")
@click.option("--method", default=_DEFAULT, show_default=True, help="`paring methods prune` lists them.")
@click.option(
    "--sparsity", metavar="S", help="The share of entries to set to zero, in [0, 1): exactly so many."
)
@click.option("--keep", type=int, metavar="N", help="Keep N of every M neighbours along the inputs.")
@click.option("--of", type=int, metavar="M", help="The M of --keep.")
@click.option("--pattern", metavar="N:M", help="The same as --keep N --of M.")
@click.option(
    "--scope", metavar="tensor|row|global",
    help="What shares a threshold: each matrix, each output's row, the whole model.  [default: the method's]",
)  # fmt: skip
@click.option(
    "--allocate", default="uniform", show_default=True, metavar="uniform|erk|lamp|owl",
    help="How a sparsity is shared out over matrices.",
)  # fmt: skip
@click.option(
    "--lines", metavar="outputs|inputs", help="Prune whole outputs or inputs of matrices, by their norms."
)
@click.option(
    "--budget", multiple=True, metavar="PATTERN=S",
    help="Of tensors whose names fit: a sparsity, N:M or dense. Of several the last that fits counts.",
)  # fmt: skip
@click.option("--budgets", metavar="FILE", help="The same, PATTERN: S, in YAML or JSON.")
@click.option("--include", multiple=True, metavar="PATTERN", help="Prune these only, whatever they are.")
@click.option(
    "--exclude", multiple=True, metavar="PATTERN",
    help="Leave these alone too.  [default: embeddings, heads, norms, biases, routers]",
)  # fmt: skip
@click.option(
    "--tail", default="error", show_default=True, metavar="error|dense",
    help="Inputs left over where M does not divide them.",
)  # fmt: skip
@click.option("--stats", metavar="FILE", help="Calibration statistics, which `paring calibrate` makes.")
@click.option("--refit", is_flag=True, help="Give what stays its best values, by --stats with products.")
@click.option(
    "--outliers", type=float, default=5.0, show_default=True, metavar="M", help="Of --allocate owl."
)
@click.option("--spread", type=float, default=0.08, show_default=True, metavar="L", help="Of --allocate owl.")
@click.option("--save-mask", metavar="FILE", help="Write what stays as a mask (`paring mask`).")
@click.option(
    "--shard-size", type=common.Bytes(), default="5GB", show_default=True, metavar="SIZE",
    help="Of an output file, at most.",
)  # fmt: skip
@retraining.options
@click.option(
    "-o", "--output", required=True, metavar="OUT", help="A folder, or one file that ends in .safetensors."
)
@common.threads
@click.option("--memory", type=common.Bytes(), metavar="SIZE", help=common.memory_help)
@common.device
@common.dry_run
@common.overwrite
@hub.pushes
@common.offline
@common.shown
def command(
    model: str,
    output: str,
    push: Push | None,
    pattern: str | None,
    budget: tuple[str, ...],
    budgets: str | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    debug: bool,
    **given: Any,
) -> int:
    """Set the least entries of MODEL's weights to zero, exactly as many as asked for.

    Killed or interrupted, the same command goes on where it was.

    \b
    prune model/ --sparsity .5 -o sparse/
    prune model/ --keep 2 --of 4 --method wanda --stats stats.safetensors -o sparse/
    prune model/ --sparsity .5 --refit --stats stats.safetensors -o sparse/
    prune model/ --sparsity .5 --retrain perp --data corpus.txt --eval-data held-out.txt -o sparse/
    """
    from paring import api
    from paring.pruning import budgets as allotted
    from paring.pruning import sparsity

    click.get_current_context().call_on_close(lambda: common.tell_of_rest(output, ("retraining", "resume")))
    if pattern is not None:
        if given["keep"] is not None or given["of"] is not None:
            raise click.UsageError("--pattern says what --keep and --of say: give one of them")
        given["keep"], given["of"] = sparsity.pattern(pattern)
    arguments = retraining.arguments(methods.arguments("prune", given))
    with common.progress(f"pruning {Path(model).name}", quiet=quiet, verbose=verbose):
        report = api.prune(model, output, budgets=allotted.read(budget, budgets) or None, **arguments)
    report = hub.published(report, push, quiet=quiet, verbose=verbose)
    if as_json:
        common.print_json(report)
    elif not quiet:
        show(report, verbose)
        hub.show(report.pushed)
    return 0


def show(report: Pruning, verbose: bool) -> None:
    from paring import describing, judging
    from paring.evaluating import spoken

    out = common.console()
    verb = "would be pruned to" if report.dry_run else "pruned to"
    out.print(
        f"[bold]{common.short(report.inputs[0])}[/] {verb} [bold]{common.short(report.output or '')}[/]\n"
    )
    recipe = report.recipe or {}
    options = common.recipe_text(recipe.get("options") or {})
    along = f", {len(report.carried)} left alone" if report.carried else ""
    files = f", in {len(report.files)} files" if report.files else ""
    rows = [
        ("size", f"{common.size(report.bytes_in or 0)} → {common.size(report.bytes_out or 0)}"),
        ("method", f"{report.method} {options}".rstrip()),
        ("tensors", f"{len(report.modules):,} pruned{along}{files}"),
    ]
    if report.pattern:
        rows.append(("pattern", report.pattern))
    if report.zeros is not None:
        before = f" ({report.zeros_before:,} were before)" if report.zeros_before else ""
        share = f"{report.sparsity or 0:.2%}"
        rows.append(("zeros", f"[bold]{report.zeros:,}[/] of {report.elements:,}, {share}{before}"))
        rows.append(("error", f"[bold]{report.error or 0:.4f}[/] relative, of the weights"))
        peak = common.size(report.peak_rss_bytes or 0)
        rows.append(("took", f"{report.seconds:.1f} s and at most {peak} of memory, on {report.device}"))
    else:
        rows.append(("entries", f"{report.elements:,}"))
    if report.retraining is not None:
        rows.extend((name, common.short(text)) for name, text in describing.retrained(report.retraining))
    if report.perplexity is not None:
        told = " → ".join(f"{value:.4f} {name}" for name, value in judging.stages(report.perplexity))
        text = f"on {report.perplexity.data}: {spoken(report.perplexity)}"
        rows += [("perplexity", f"[bold]{told}[/]"), ("", common.short(text))]
    if report.mask:
        rows.append(("mask", common.short(report.mask)))
    out.print(common.facts(*rows))
    if verbose:
        table = common.table("tensor", "shape", "zeros", "sparsity", "error")
        for m in report.modules:
            numbers = ("-", "-", "-")
            if m.zeros is not None:
                numbers = (f"{m.zeros:,}", f"{1 - (m.density or 0):.2%}", f"{m.error or 0:.4f}")
            table.add_row(common.short(m.name), f"{m.shape[0]} × {m.shape[1]}", *numbers)
        out.print(table)
        listed = common.table("left alone", "bytes", "why")
        for tensor in report.carried:
            listed.add_row(common.short(tensor.name), f"{tensor.bytes:,}", common.short(tensor.why))
        out.print(listed)
    sys.stdout.flush()
    for text in report.warnings:
        common.warn(text)
