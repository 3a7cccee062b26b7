"""``paring diff``: how models differ."""

from __future__ import annotations

import sys
from itertools import combinations
from typing import TYPE_CHECKING, Any

import click

from paring.cli import _common as common

if TYPE_CHECKING:
    from paring.diffing.report import Difference, TensorDiff

_ROWS = 20


@click.command("diff", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("models", nargs=-1, required=True, metavar="A B...")
@click.option("--base", metavar="BASE", help="What all differ from.  [default: the first]")
@click.option(
    "--rank/--no-rank", default=None, help="Ranks of deltas.  [default: of matrices up to 1024 wide or high]"
)
@click.option("--plot", metavar="OUT.png", help="Draw it; .svg and .pdf too. Needs paring[plot].")
@common.threads
@common.overwrite
@common.offline
@common.shown
def command(
    models: tuple[str, ...], as_json: bool, quiet: bool, verbose: bool, debug: bool, **given: Any
) -> None:
    """Say how models differ from their base, tensor by tensor, and how alike they are.

    Adapters are compared by their updates, all with the first.

    \b
    paring diff base/ tuned/
    paring diff a/ b/ c/ --base base/ --plot diff.png
    """
    from paring import api

    with common.progress(f"comparing {len(models)} models", quiet=quiet, verbose=verbose):
        found = api.diff(models, **given)
    if as_json:
        common.print_json(found)
    elif not quiet:
        _show(found, verbose)


def _show(found: Difference, verbose: bool) -> None:
    out = common.console()
    adapters = found.kind == "adapters"
    rows = [] if found.base is None else [("base", common.short(found.base))]
    letters = [chr(ord("A") + i) if i < 26 else str(i + 1) for i in range(len(found.inputs))]
    rows += [(letter, common.short(path)) for letter, path in zip(letters, found.inputs, strict=True)]
    out.print(common.facts(*rows, ("took", f"{found.seconds or 0:.1f} s")))
    if found.plot:
        out.print(f"drawn to {common.short(found.plot)}\n")
    table = common.table(
        "in all", "norm" if adapters else "change", "cosine", *([] if adapters else ["changed"])
    )
    for i, letter in enumerate(letters):
        first = found.delta_norm[i] if adapters else found.change[i]
        more = [] if found.changed is None else [_share(found.changed[i])]
        table.add_row(letter, _number(first), _cosine(found.cosine[i]), *more)
    out.print(table)
    if found.delta_cosine is not None and found.agreement is not None:
        pairs = common.table("pairs", "cosine of deltas", "same signs")
        for i, j in combinations(range(len(letters)), 2):
            cosine, agreement = found.delta_cosine[i][j], found.agreement[i][j]
            pairs.add_row(f"{letters[i]} {letters[j]}", _cosine(cosine), _share(agreement))
        out.print(pairs)
    _tensors(out, found, verbose)
    if found.not_compared:
        some = found.not_compared if verbose else found.not_compared[:_ROWS]
        rest = common.table("not compared", "why")
        rest.columns[1].no_wrap = False
        for item in some:
            rest.add_row(common.short(item.name), common.short(item.why))
        out.print(rest)
        _more(out, len(found.not_compared) - len(some), "tensors")
    sys.stdout.flush()
    for text in found.warnings:
        common.warn(text)


def _tensors(out: Any, found: Difference, verbose: bool) -> None:
    """Most changed first."""
    ordered = sorted(found.tensors, key=lambda tensor: -_largest(found, tensor))
    some = ordered if verbose else ordered[:_ROWS]
    ranked = any(tensor.effective_rank for tensor in some)
    table = common.table(*_columns(found, ranked))
    for tensor in some:
        note = f"\n[dim]{common.short(tensor.note)}[/]" if tensor.note else ""
        table.add_row(
            common.short(tensor.name.removesuffix(".weight")) + note, *_cells(found, tensor, ranked)
        )
    out.print(table)
    _more(out, len(ordered) - len(some), "tensors")


def _columns(found: Difference, ranked: bool) -> list[str]:
    if found.delta_cosine is not None:
        size = "norm" if found.kind == "adapters" else "change"
        return ["most changed", size, *["rank"] * ranked, "cosines", "same signs"]
    return ["most changed", "shape", "change", "cosine", "changed", *["rank", "of 90 %"] * ranked]


def _cells(found: Difference, tensor: TensorDiff, ranked: bool) -> list[str]:
    """What is told of one tensor; of several models or pairs, the least and the most."""
    size = tensor.delta_norm if found.kind == "adapters" else tensor.change
    rank = [_span(tensor.effective_rank, lambda x: f"{x:.1f}")] * ranked
    if found.delta_cosine is not None:
        pairs = [_span(tensor.delta_cosine, lambda x: f"{x:.2f}"), _span(tensor.agreement, _share)]
        return [_span(size, _number), *rank, *pairs]
    shape = " × ".join(map(str, tensor.shape))
    ninety = [_span(tensor.rank_90, lambda x: f"{x:.0f}")] * ranked
    return [
        shape,
        _span(size, _number),
        _span(tensor.cosine, _cosine),
        _span(tensor.changed, _share),
        *rank,
        *ninety,
    ]


def _more(out: Any, count: int, what: str) -> None:
    if count > 0:
        out.print(f"… and {count} more {what}; -v shows all\n")


def _largest(found: Difference, tensor: TensorDiff) -> float:
    size = tensor.delta_norm if found.kind == "adapters" else tensor.change
    return max((x for x in size if x is not None), default=0.0)


def _span(values: Any, text: Any) -> str:
    """One value, or the smallest and the largest of several models."""
    found = [x for x in values or () if x is not None]
    if not found:
        return "-"
    low, high = text(min(found)), text(max(found))
    return low if low == high else f"{low}–{high}"


def _number(x: float | None) -> str:
    return "-" if x is None else f"{x:.3g}"


def _cosine(x: float | None) -> str:
    return "-" if x is None else f"{x:.4f}"


def _share(x: float | None) -> str:
    return "-" if x is None else f"{x:.1%}"
