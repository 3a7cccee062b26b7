"""``compress``: make adapters small."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from paring import registry
from paring.cli import _common as common
from paring.cli import _hub as hub
from paring.cli import _methods as methods
from paring.errors import OptionError, OutputError, ParingError

if TYPE_CHECKING:
    from paring.hub.pushing import Push
    from paring.report import ModuleReport, Report

_DEFAULT = "spectral"
_ROWS = 8
_BUDGETS = ("ratio", "error", "bits_per_param")


@click.command(
    "compress",
    cls=methods.command("compress", _DEFAULT),
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.argument("adapters", nargs=-1, required=True, metavar="ADAPTER...")
@click.option("--ratio", type=float, metavar="R", help="Source bytes on disk over packed bytes, at least.")
@click.option("--error", type=float, metavar="E", help="Relative error of the update, at most.")
@click.option(
    "--bits-per-param", type=float, metavar="B", help="Bits of the whole file a parameter, at most."
)
@click.option("--method", default=_DEFAULT, show_default=True, help="`paring methods` lists them.")
@click.option(
    "--carry",
    default="lossless",
    show_default=True,
    metavar="lossless|fp16|drop",
    help="What becomes of tensors that are not factors; or of norms and biases (priced codes those).",
)
@click.option("--base", metavar="BASE", help="Of a full fine-tune: the model that it was tuned from.")
@click.option(
    "-o",
    "--output",
    metavar="OUT",
    help="A file; a folder for several.  [default: NAME.paring.safetensors beside the source]",
)
@common.threads
@common.device
@common.dry_run
@common.overwrite
@hub.pushes
@common.offline
@common.shown
def command(
    adapters: tuple[str, ...],
    output: str | None,
    push: Push | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    debug: bool,
    **given: Any,
) -> int:
    """Compress adapters.

    State the budget in one of three ways: --ratio, --error or --bits-per-param; without one the result is 16
    times smaller than the adapter in fp16. It is met, or refused with the best that can be had.

    \b
    compress adapter_model.safetensors --ratio 20
    compress adapters/* --ratio 20 -o small/
    compress a b c --method mos -o pool.paring.safetensors
    """
    arguments = methods.arguments("compress", given)
    if registry.load("compress", arguments["method"]).sees == "adapters":
        return _pool(adapters, output, arguments, push, as_json, quiet, verbose)
    if len(adapters) > 1 or (output is not None and Path(output).is_dir()) or (output or "").endswith("/"):
        return _many(adapters, output, arguments, push, as_json, quiet, verbose)
    with common.progress(f"compressing {Path(adapters[0])}", quiet=quiet, verbose=verbose):
        report = _one(adapters[0], output, arguments)
    report = hub.published(report, push, quiet=quiet, verbose=verbose)
    if as_json:
        common.print_json(report)
    elif not quiet:
        _show(report, verbose)
        hub.show(report.pushed)
    return 0


def _pool(
    adapters: tuple[str, ...],
    output: str | None,
    arguments: dict[str, Any],
    push: Push | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> int:
    """All of them in one file."""
    from paring import api
    from paring.cli import _pool as pools
    from paring.pooling.report import PoolReport

    with common.progress(f"pooling {len(adapters)} adapters", quiet=quiet, verbose=verbose):
        report = api.compress(adapters, output, **arguments)
    assert isinstance(report, PoolReport)
    report = hub.published(report, push, quiet=quiet, verbose=verbose)
    if as_json:
        common.print_json(report)
    elif not quiet:
        pools.show(report, verbose)
        hub.show(report.pushed)
    return 0


def _one(adapter: str, output: str | Path | None, arguments: dict[str, Any]) -> Report:
    from paring import api

    return api.compress(adapter, output or None, **arguments)


def _many(
    adapters: tuple[str, ...],
    output: str | None,
    arguments: dict[str, Any],
    push: Push | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> int:
    """One file each, on past a bad one; the failures at the end and exit code 1."""
    from paring import plan

    if output is None:
        raise click.UsageError("several adapters need a folder to go to: add -o DIR")
    if Path(output).exists() and not Path(output).is_dir():
        raise click.UsageError(f"-o {output} is a file; several adapters need a folder")
    sources = [Path(adapter) for adapter in adapters]
    for source in sources:
        if source.is_dir() and Path(output).is_dir() and source.samefile(output):
            raise OutputError(f"{output} is an input, and inputs are never changed: choose another -o")
    targets = plan.outputs(sources, Path(output))
    reports: list[Report] = []
    failures: list[tuple[Path, str]] = []
    for i, (adapter, source, target) in enumerate(zip(adapters, sources, targets, strict=True), 1):
        told = f"compressing {source} ({i} of {len(adapters)})"
        try:
            with common.progress(told, quiet=quiet, verbose=verbose):
                reports.append(_one(adapter, target, arguments))
        except OptionError:
            raise
        except ParingError as error:
            failures.append((source, str(error)))
    made = [Path(report.output) for report in reports if report.output and not report.dry_run]
    there = hub.pushed(made, push, quiet=quiet, verbose=verbose) if push and made else None
    if as_json:
        failed = [{"input": str(source), "error": text} for source, text in failures]
        common.print_json(
            {
                "command": "compress",
                "reports": [r.to_json() for r in reports],
                "failures": failed,
                **({"pushed": there.to_json()} if there else {}),
            }
        )
    elif not quiet:
        _show_many(reports)
        hub.show(there)
    for source, text in failures:
        click.secho(f"failed: {source}: {text}", fg="red", err=True)
    return 1 if failures else 0


def _show_many(reports: list[Report]) -> None:
    if not reports:
        return
    rows = common.table("adapter", "bytes in", "bytes out", "ratio", "vs fp16", "bits/param", "error")
    for report in reports:
        sizes = (f"{report.bytes_in:,}", f"{report.bytes_out:,}")
        figures = (f"{report.ratio:.1f}", f"{report.ratio_fp16:.1f}", f"{report.bits_per_param:.2f}")
        rows.add_row(common.short(report.inputs[0]), *sizes, *figures, f"{report.error:.3f}")
    common.console().print(rows)
    for report in reports:
        for text in report.warnings:
            common.warn(f"{report.inputs[0]}: {text}")


def _show(report: Report, verbose: bool) -> None:
    out = common.console()
    verb = "would be written to" if report.dry_run else "written to"
    source, target = common.short(report.inputs[0]), common.short(report.output or "")
    out.print(f"[bold]{source}[/] {verb} [bold]{target}[/]\n")
    sizes = f"{common.size(report.bytes_in or 0)} → {common.size(report.bytes_out or 0)}"
    recipe = report.recipe or {}
    tensorwise = registry.load("compress", report.method or _DEFAULT).sees == "tensors"
    lost = f"[bold]{report.error:.3f}[/] of the update (0: nothing, 1: back at the base model)"
    rows = [
        ("size", f"{sizes}, [bold green]{report.ratio:.1f} times smaller[/] on disk"),
        (
            "",
            f"{report.ratio_fp16:.1f} times smaller than fp16, {report.bits_per_param:.2f} bits a parameter",
        ),
        ("lost", "nothing: every bit comes back" if tensorwise else lost),
        ("method", f"{report.method} " + common.recipe_text(recipe, without=(*_BUDGETS, "carry"))),
    ]
    for tried in report.tried or ():
        came_to = tried.why or f"{tried.error:.4f} of the update lost in {tried.bytes_out:,} bytes"
        rows.append(("tried", f"{tried.method}: {came_to}"))
    if report.carried:
        weight = common.size(sum(tensor.bytes for tensor in report.carried))
        what = "as their bytes, not being sparse" if tensorwise else "that are not factors"
        count = f"{len(report.carried)} tensors {what}"
        rows.append(("carried", f"{count}, {weight}: {recipe['carry']}"))
    peak = common.size(report.peak_rss_bytes or 0)
    rows.append(("took", f"{report.seconds:.1f} s and at most {peak} of memory, on {report.device}"))
    out.print(common.facts(*rows))
    _show_modules(out, report.modules, verbose)
    if report.carried and verbose:
        listed = common.table("carried tensor", "bytes", "error", "why")
        for tensor in report.carried:
            error = "0" if tensor.error is None else f"{tensor.error:.2g}"
            listed.add_row(common.short(tensor.name), f"{tensor.bytes:,}", error, tensor.why)
        out.print(listed)
    sys.stdout.flush()
    for text in report.warnings:
        common.warn(text)


def _show_modules(out: Any, modules: list[ModuleReport], verbose: bool) -> None:
    """All modules with ``-v``, else those that lost most."""
    if not modules:
        return
    some = modules
    if not verbose and len(modules) > _ROWS:
        some = sorted(modules, key=lambda module: -(module.error or 0))[:_ROWS]
    rows = common.table("module", "shape", "rank", "density", "bits/param", "error")
    for m in some:
        figures = (f"{m.density:.3f}", "-" if m.bits is None else f"{m.bits:.2f}", f"{m.error:.3f}")
        rows.add_row(common.short(m.name), f"{m.shape[0]} × {m.shape[1]}", str(m.rank or "-"), *figures)
    out.print(rows)
    if len(some) < len(modules):
        which = "that lost most" if any(m.error for m in modules) else "there are"
        out.print(f"the {len(some)} modules of {len(modules)} {which}; -v shows all", style="dim")
