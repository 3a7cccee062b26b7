"""``merge``: many models in, one out."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from paring.cli import _common as common
from paring.cli import _hub as hub
from paring.cli import _methods as methods

if TYPE_CHECKING:
    from paring.hub.pushing import Push
    from paring.report import Report, SparseMerge

_DEFAULT = "linear"
_RECIPES = (".yaml", ".yml")
#: what may stand beside a recipe: nothing that changes a bit of the result
_BESIDE = (
    "models", "output", "threads", "memory", "device", "dry_run", "overwrite", "as_json", "quiet", "verbose",
    "debug", *hub.NAMES,
)  # fmt: skip
#: the options of a search
_SPACE = ("trials", "low", "high", "anchors", "search_seed", "minimise")


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
    "--tokenizer", metavar="base|union|MODEL",
    help="Vocabulary of the result: embeddings are matched by token.  [default: all have the same]",
)  # fmt: skip
@click.option("--mask", metavar="FILE", help="Set to zero what this mask does not keep (`paring mask`).")
@click.option(
    "--keep-mask", metavar="mask|scale",
    help="Keep the zeros of a sparse base: add updates elsewhere only, or multiply (a ScaleLoRA adapter).",
)  # fmt: skip
@click.option(
    "--shard-size", type=common.Bytes(), default="5GB", show_default=True, metavar="SIZE",
    help="Of an output file, at most.",
)  # fmt: skip
@click.option(
    "--search", "score", metavar="COMMAND",
    help="Search the weights that this command scores best: {} in it is a merged model, the last number it "
    "prints the score.",
)  # fmt: skip
@click.option("--trials", type=int, default=30, show_default=True, help="How many weights a search tries.")
@click.option("--low", type=float, default=0.0, show_default=True, help="The least weight of a search.")
@click.option("--high", type=float, default=1.5, show_default=True, help="The largest weight of a search.")
@click.option(
    "--anchors", type=int, default=1, show_default=True,
    help="Weights a model in a search, spread over its layers.",
)  # fmt: skip
@click.option("--search-seed", type=int, default=0, show_default=True, help="Of a search.")
@click.option("--minimise", is_flag=True, help="The best score of a search is the least.")
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
    models: tuple[str, ...],
    output: str,
    weights: str | None,
    score: str | None,
    push: Push | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    debug: bool,
    **given: Any,
) -> int:
    """Merge checkpoints or adapters, or as a recipe says (docs/recipes.md).

    Adapters alone give an adapter, whose rank suffices for their weighted sum; with --into they are folded
    into a checkpoint. Killed or interrupted, the same command goes on where it was.

    \b
    merge a/ b/ c/ --method ties --base base/ -o merged/
    merge lora-a/ lora-b/ --weights .7,.3 -o lora/
    merge recipe.yaml -o merged/
    """
    from paring import api
    from paring.merging import weights as parsing

    click.get_current_context().call_on_close(
        lambda: common.tell_of_rest(output, ("resume", "stages", "search"))
    )
    space = {name: given.pop(name) for name in _SPACE}
    if score is not None:
        return _search(models, output, score, space, weights, push, as_json, quiet, verbose, given)
    if any(model.endswith(_RECIPES) for model in models):
        _refuse_beside(models)
        how = {name: given[name] for name in ("threads", "memory", "device", "dry_run", "overwrite")}
        with common.progress(f"merging as {models[0]} says", quiet=quiet, verbose=verbose):
            report = api.merge_recipe(models[0], output, **how)
    else:
        arguments = methods.arguments("merge", given)
        parsed = None if weights is None else parsing.parse(weights, len(models), 1.0)
        with common.progress(f"merging {len(models)} models", quiet=quiet, verbose=verbose):
            report = api.merge(models, output, weights=parsed, **arguments)
    report = hub.published(report, push, quiet=quiet, verbose=verbose)
    if as_json:
        common.print_json(report)
    elif not quiet:
        _show(report, verbose)
        hub.show(report.pushed)
    return 0


def _search(
    models: tuple[str, ...],
    output: str,
    score: str,
    space: dict[str, Any],
    weights: str | None,
    push: Push | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    given: dict[str, Any],
) -> int:
    from paring import api
    from paring.merging.search import Space

    if weights is not None or given.pop("dry_run"):
        raise click.UsageError("--search finds the weights: leave out --weights and --dry-run")
    given.pop("device")
    seed, minimise = space.pop("search_seed"), space.pop("minimise")
    wanted = Space(**space, seed=seed, maximise=not minimise)
    with common.progress(f"searching {wanted.trials} trials", quiet=quiet, verbose=verbose):
        found = api.search(models, output, score, space=wanted, **methods.arguments("merge", given))
    merged = hub.published(found.merge, push, quiet=quiet, verbose=verbose)
    found = replace(found, merge=merged)
    if as_json:
        common.print_json(found)
    elif not quiet:
        rows = common.table("trial", "score", "weights", "state")
        sign = 1 if minimise else -1
        for trial in sorted(found.trials, key=lambda t: (t.score is None, sign * (t.score or 0))):
            told = "-" if trial.score is None else f"{trial.score:.5g}"
            rows.add_row(str(trial.number), told, _numbers(trial.weights), trial.state)
        common.console().print(rows)
        _show(found.merge, verbose)
        hub.show(found.merge.pushed)
    return 0


def _numbers(weights: list[Any]) -> str:
    parts = (w if isinstance(w, list) else [w] for w in weights)
    return ", ".join("→".join(f"{x:.3g}" for x in part) for part in parts)


def _refuse_beside(models: tuple[str, ...]) -> None:
    """Refuse models and options beside a recipe: all that makes the result stands in it."""
    if len(models) > 1:
        raise click.UsageError("a recipe stands alone: name the models in it")
    ctx = click.get_current_context()
    for parameter in ctx.command.params:
        name = parameter.name or ""
        source = ctx.get_parameter_source(name)
        if name not in _BESIDE and source is click.core.ParameterSource.COMMANDLINE:
            raise click.UsageError(f"{parameter.opts[0]} beside a recipe: write it in {models[0]}")


def _kept_rows(report: SparseMerge) -> list[tuple[str, str]]:
    lost = f"{report.updates_lost:,} of {report.updates:,} updates lost in rounding"
    return [
        ("sparsity", f"{report.sparsity:.1%} of the entries that adapters touch are zero, and stay so"),
        ("discarded", f"[bold]{report.discarded:.3f}[/] of the update's norm, on zeros; {lost}"),
    ]


def _show(report: Report, verbose: bool) -> None:
    from paring.report import SparseMerge

    out = common.console()
    verb = "would be merged to" if report.dry_run else "merged to"
    count = f"{len(report.inputs)} inputs"
    out.print(f"[bold]{count}[/] {verb} [bold]{common.short(report.output or '')}[/]\n")
    recipe = report.recipe or {}
    size = "" if report.bytes_out is None else f" → {common.size(report.bytes_out)}"
    options = common.recipe_text(recipe.get("options") or {})
    rows = [("" if i else "inputs", common.short(path)) for i, path in enumerate(report.inputs)]
    rows += [("size", f"{common.size(report.bytes_in or 0)}{size}"), ("method", f"{report.method} {options}")]
    if recipe.get("mask"):
        rows.append(("mask", common.short(str(recipe["mask"]))))
    if report.merged is not None:
        along = f", {len(report.carried)} carried unchanged" if report.carried else ""
        files = f", in {len(report.files)} files" if report.files else ""
        rows.append(("tensors", f"{report.merged:,} merged{along}{files}"))
    if report.modules and report.error is not None:
        rows.append(("error", f"[bold]{report.error:.2g}[/] against the exact result (truncation, rounding)"))
    if isinstance(report, SparseMerge):
        rows += _kept_rows(report)
    peak = common.size(report.peak_rss_bytes or 0)
    if not report.dry_run:
        rows.append(("took", f"{report.seconds:.1f} s and at most {peak} of memory, on {report.device}"))
    out.print(common.facts(*rows))
    if report.carried and verbose:
        listed = common.table("carried tensor", "bytes", "why")
        for tensor in report.carried:
            listed.add_row(common.short(tensor.name), f"{tensor.bytes:,}", common.short(tensor.why))
        out.print(listed)
    if report.modules and verbose:
        table = common.table("module", "shape", "rank", "error")
        for m in report.modules:
            shape = f"{m.shape[0]} × {m.shape[1]}"
            table.add_row(common.short(m.name), shape, str(m.rank or "-"), f"{m.error or 0:.2g}")
        out.print(table)
    if isinstance(report, SparseMerge) and verbose:
        table = common.table("tensor", "sparsity", "discarded", "updates", "lost")
        for k in report.kept:
            counts = (f"{k.updates:,}", f"{k.updates_lost:,}")
            table.add_row(common.short(k.name), f"{k.sparsity:.1%}", f"{k.discarded:.3f}", *counts)
        out.print(table)
    sys.stdout.flush()
    for text in report.warnings:
        common.warn(text)
