"""How pools of adapters are printed."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from paring.cli import _common as common

if TYPE_CHECKING:
    from paring.pooling.report import MemberReport, PoolInspection, PoolReport, SharingReport

_ROWS = 16
_LEVELS = {
    "alone": "by themselves",
    "tensor": "whole tensors that repeat",
    "vector": "rank vectors of a pool",
    "shard": "shards of a pool",
    "related": "difference from others",
    "pool": "the pools themselves",
}


def show(report: PoolReport, verbose: bool) -> None:
    """What ``compress`` made."""
    out = common.console()
    verb = "would be written to" if report.dry_run else "written to"
    count = f"{len(report.sharing.adapters)} adapters" if len(report.sharing.adapters) > 1 else "one adapter"
    out.print(f"[bold]{count}[/] {verb} [bold]{common.short(report.output or '')}[/]\n")
    sizes = f"{common.size(report.bytes_in or 0)} → {common.size(report.bytes_out or 0)}"
    lost = "nothing: every tensor comes back bit for bit"
    if report.error:
        worst = max((member.error or 0.0 for member in report.sharing.adapters), default=0.0)
        lost = f"[bold]{report.error:.3f}[/] of the updates, of no adapter more than {worst:.3f}"
    gain = f"{common.size(report.gain)} by what they share"
    rows = [
        ("size", f"{sizes}, [bold green]{report.ratio:.1f} times smaller[/] on disk"),
        ("lost", lost),
        ("gain", "[bold yellow]no gain[/]: they share nothing that pays" if report.answer else gain),
        ("method", f"{report.method} " + common.recipe_text(report.recipe or {}, without=("error",))),
        ("took", f"{report.seconds:.1f} s and at most {common.size(report.peak_rss_bytes or 0)} of memory"),
    ]
    out.print(common.facts(*rows))
    sharing(out, report.sharing, verbose)
    _relations(out, report, verbose)
    _tried(out, report, verbose)
    sys.stdout.flush()
    for text in report.warnings:
        common.warn(text)


def sharing(out: Any, found: SharingReport, verbose: bool) -> None:
    """Who shares what."""
    rows = common.table("adapter", "file", "needs here", "of its own", "repeats within", "shares with")
    some = found.adapters if verbose else found.adapters[:_ROWS]
    for member in some:
        source = "-" if member.bytes_source is None else f"{member.bytes_source:,}"
        figures = (f"{member.bytes_alone:,}", f"{member.bytes_own:,}", f"{member.repeated_within:,}")
        rows.add_row(common.short(member.name), source, *figures, common.short(_partners(member)))
    out.print(rows)
    if len(some) < len(found.adapters):
        out.print(f"… and {len(found.adapters) - len(some)} more adapters; -v shows all\n")
    levels = common.table("stored as", "tensors", "bytes decoded", "bytes here")
    for level in found.levels:
        told = f"{level.bytes_told:,}", f"{level.bytes:,}"
        levels.add_row(_LEVELS.get(level.level, level.level), str(level.tensors), *told)
    out.print(levels)
    if found.public or found.private:
        out.print(
            f"{found.public} shards of pools serve several tensors, {found.private} one alone\n", style="dim"
        )


def inspected(out: Any, found: PoolInspection, verbose: bool) -> None:
    """What ``inspect`` found of a pool, below the facts."""
    sharing(out, found.sharing, verbose)
    if found.plot:
        out.print(f"drawn to {common.short(found.plot)}", style="dim")


def _partners(member: MemberReport) -> str:
    """Those it has most in common with."""
    most = sorted(member.shared_with.items(), key=lambda pair: (-pair[1], pair[0]))
    told = ", ".join(f"{name} {nbytes / max(1, member.bytes_decoded):.0%}" for name, nbytes in most[:2])
    return (told + (f" +{len(most) - 2}" if len(most) > 2 else "")) or "-"


def _relations(out: Any, report: PoolReport, verbose: bool) -> None:
    near = sorted(report.relations, key=lambda r: -max(r.overlap_a, r.overlap_b))
    some = near if verbose else near[:4]
    if not some:
        return
    rows = common.table("spaces in common", "of A", "of B", "by chance")
    for r in some:
        rows.add_row(
            common.short(f"{r.first}, {r.second}"),
            f"{r.overlap_a:.2f}",
            f"{r.overlap_b:.2f}",
            f"{r.chance:.2f}",
        )
    out.print(rows)


def _tried(out: Any, report: PoolReport, verbose: bool) -> None:
    some = [t for t in report.candidates if verbose or t.taken] or report.candidates[:4]
    rows = common.table("tried", "bytes", "without", "")
    for tried in some:
        what = tried.what + (f": {tried.why}" if tried.why else "")
        rows.add_row(
            common.short(what),
            f"{tried.bytes:,}",
            f"{tried.bytes_without:,}",
            "taken" if tried.taken else "no gain",
        )
    if some:
        out.print(rows)
