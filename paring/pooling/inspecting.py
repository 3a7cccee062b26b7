"""What is in a pool: its adapters, what each needs, and who shares what."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from paring.contents import told
from paring.dtypes import numel
from paring.packed import Packed
from paring.pooling import sharing
from paring.pooling.members import member, names_of
from paring.pooling.report import PoolInspection, SharingReport


def inspect_pool(opened: Packed, plot: Path | None = None, overwrite: bool = False) -> PoolInspection:
    """Inspect a pool, and draw who shares what to ``plot``. Tensors are not decoded. Raises BadFileError for
    damage, UnsupportedError for a codec that is not known, OptionError and OutputError for ``plot``.
    """
    from paring.pooling import plotting

    if plot is not None:
        plotting.refuse(plot, overwrite, opened.inputs)
    members = opened.facts["adapters"]
    specs = [spec for held in opened.payloads for spec in held.specs if not spec.name.startswith("/")]
    dtypes = Counter(spec.dtype for spec in specs)
    elements = sum(numel(spec.shape) for spec in specs)
    found = sharing_of(opened)
    if plot is not None:
        plotting.draw(found, plot, overwrite)
    bases = {str((each.get("config") or {}).get("base_model_name_or_path") or "") for each in members}
    return PoolInspection(
        inputs=[str(opened.path)],
        kind=f"pool of {len(members)} adapters" if len(members) > 1 else "pool of one adapter",
        dialect=_one({str(each.get("dialect", "none")) for each in members}) or "several",
        base=_one(bases) or None,
        bytes_in=opened.nbytes,
        elements=elements,
        dtypes=dict(dtypes),
        modules=[],
        carried=[],
        problems=[],
        metadata={},
        packed=_packed(opened, elements),
        sharing=found,
        plot=None if plot is None else str(plot),
    )


def sharing_of(opened: Packed) -> SharingReport:
    """Who shares what in a pool."""
    data = {i: opened.payload(held) for i, held in enumerate(opened.payloads) if sharing.referring(held)}
    return sharing.measure(opened.payloads, data, opened.facts["adapters"])


def problems(opened: Packed) -> list[str]:
    """What is wrong with the adapters of a pool."""
    from paring import adapters

    return [text for name in names_of(opened) for text in adapters.read(member(opened, name)).problems]


def _one(values: set[str]) -> str | None:
    return values.pop() if len(values) == 1 else None


def _packed(opened: Packed, elements: int) -> dict[str, Any]:
    members = opened.facts["adapters"]
    facts = {key: opened.facts[key] for key in ("tool", "method", "recipe") if key in opened.facts}
    sources = [each.get("source", {}).get("bytes", 0) for each in members]
    error = max(each.get("error", 0.0) for each in members)
    return told(opened, {**facts, "error": error}, sum(sources) if all(sources) else 0, elements)
