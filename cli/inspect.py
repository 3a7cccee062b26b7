"""``paring inspect``: what is in a file."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import click

from paring.cli import _common as common

if TYPE_CHECKING:
    from paring.report import Inspection

_ROWS = 12


@click.command("inspect", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("file")
@click.option(
    "--plot", metavar="PICTURE", help="Draw which adapters of a pool share what (.png, .svg, .pdf)."
)
@common.overwrite
@common.offline
@common.shown
def command(
    file: str, plot: str | None, overwrite: bool, as_json: bool, quiet: bool, verbose: bool, debug: bool
) -> None:
    """Say what is in a checkpoint, an adapter, a packed file, or a pool of adapters and who shares what."""
    from paring import api

    found = api.inspect(file, plot=plot, overwrite=overwrite)
    if as_json:
        common.print_json(found)
    elif not quiet:
        _show(found, verbose)


def _show(found: Inspection, verbose: bool) -> None:
    from paring.cli import _pool as pools
    from paring.pooling.report import PoolInspection

    out = common.console()
    dtypes = ", ".join(f"{count} {dtype}" for dtype, count in found.dtypes.items())
    count = f"{found.elements:,} elements in {sum(found.dtypes.values())} tensors ({dtypes})"
    kind = ("packed " if found.packed else "") + found.kind
    rows = [
        ("file", f"[bold]{common.short(found.inputs[0])}[/]"),
        ("kind", kind if found.dialect == "none" else f"{kind}, dialect {found.dialect}"),
        ("base", common.short(found.base or "not stated")),
        ("size", f"{common.size(found.bytes_in)}, {count}"),
    ]
    if found.modules:
        ranks = Counter(module.rank for module in found.modules if module.rank)
        some = ", ".join(f"rank {rank} in {count}" for rank, count in sorted(ranks.items()))
        rows.append(("modules", f"{len(found.modules)}" + (f" ({some})" if some else "")))
    scales = Counter(f"{m.scale:g} = {m.scale_source}" for m in found.modules if m.scale is not None)
    for scale, times in scales.items():
        rows.append(("scale", common.short(f"{scale}, in {times}")))
    out.print(common.facts(*rows, *_packed(found.packed or {})))
    if isinstance(found, PoolInspection):
        pools.inspected(out, found, verbose)
    if found.modules:
        _show_modules(out, found, verbose)
    if found.carried:
        _show_carried(out, found, verbose)
    for problem in found.problems:
        common.warn(problem)


def _packed(packed: dict[str, Any]) -> list[tuple[str, str]]:
    """What the manifest of a packed file tells."""
    if not packed:
        return []
    smaller = f"{packed['ratio']:.1f} times smaller than its source, " if packed.get("ratio") else ""
    figures = f"{packed['ratio_fp16']:.1f} than fp16, {packed['bits_per_param'] or 0:.2f} bits a parameter"
    rows = [
        ("written by", common.short(f"{packed.get('tool', '?')}, format version {packed['version']}")),
        ("method", common.short(f"{packed.get('method')} ") + common.recipe_text(packed.get("recipe", {}))),
        ("ratio", smaller + figures),
        ("error", f"{packed.get('error', 0):.4f} of the update, as recorded"),
    ]
    most = 8
    for held in packed["payloads"][:most]:
        text = f"{held['entry']}: {held['tensors']} tensors, {common.size(held['bytes'])}, {held['codec']}"
        rows.append(("payload", common.short(text)))
    if len(packed["payloads"]) > most:
        rows.append(("", f"… and {len(packed['payloads']) - most} more payloads"))
    return [*rows, ("digest", packed["digest"])]


def _show_modules(out: Any, found: Inspection, verbose: bool) -> None:
    some = found.modules if verbose else found.modules[:_ROWS]
    dense = any(m.density is not None for m in found.modules)  # ternary codings tell it
    columns = (["density", "error"] if dense else ["error"]) if found.packed else ["scale"]
    rows = common.table("module", "shape", "rank", *columns)
    for m in some:
        shape = f"{m.shape[0]} × {m.shape[1]}"
        figures = {
            "density": "-" if m.density is None else f"{m.density:.3f}",
            "error": "-" if m.error is None else f"{m.error:.3f}",
            "scale": "-" if m.scale is None else f"{m.scale:g}",
        }
        rows.add_row(common.short(m.name), shape, str(m.rank or "-"), *(figures[name] for name in columns))
    out.print(rows)
    if len(some) < len(found.modules):
        out.print(f"… and {len(found.modules) - len(some)} more modules; -v shows all\n")


def _show_carried(out: Any, found: Inspection, verbose: bool) -> None:
    some = found.carried if verbose else found.carried[:_ROWS]
    plain = found.kind == "checkpoint"  # nothing is expected of its tensors, so none is another
    rows = common.table(*(("tensor", "bytes") if plain else ("other tensor", "bytes", "why")))
    for tensor in some:
        rows.add_row(common.short(tensor.name), f"{tensor.bytes:,}", *(() if plain else (tensor.why,)))
    out.print(rows)
    if len(some) < len(found.carried):
        out.print(f"… and {len(found.carried) - len(some)} more tensors; -v shows all\n")
