"""What is in a packed delta, for ``inspect``."""

from __future__ import annotations

from collections import Counter
from typing import Any

from paring.dtypes import numel
from paring.errors import BadFileError
from paring.finetuned.parts import BITS, DELTA, LEVELS, SIGNS, A, B
from paring.finetuned.table import FILE, Table, read_table
from paring.packed import Packed
from paring.report import CarriedReport, Inspection, ModuleReport


def inspect_delta(opened: Packed, told: dict[str, Any]) -> Inspection:
    """Every delta with rank and error, and what goes along; ``told`` is what manifests tell of any file."""
    table = read_table(opened)
    return Inspection(
        inputs=[str(opened.path)],
        kind="delta of a fine-tune",
        dialect="none",
        base=table.base_name,
        bytes_in=opened.nbytes,
        elements=opened.facts.get("elements", 0),
        dtypes=dict(Counter(row.dtype for row in table.rows)),
        modules=_modules(opened, table),
        carried=_carried(opened, table),
        problems=[],
        metadata=dict(opened.metadata),
        packed=told,
    )


def _modules(opened: Packed, table: Table) -> list[ModuleReport]:
    """All matrices that changed, with what the manifest tells of them."""
    told = opened.facts.get("modules", {})
    columns = [told.get(key, []) for key in ("tensor", "error", "rank")]
    out = []
    for number, error, rank in zip(*columns, strict=False):
        if number >= len(table.rows):
            raise BadFileError(f"{opened.path}: the manifest makes no sense: there is no tensor {number}")
        name = table.rows[number].name
        shape = _shape(opened, name)
        out.append(ModuleReport(name, shape, rank or None, error=error / 10_000))
    return out


def _shape(opened: Packed, name: str) -> tuple[int, int]:
    """(rows, columns) of a delta; (0, 0) of one that came to nothing."""
    for part in (LEVELS, SIGNS):
        if (info := opened.tensors.get(name + part)) is not None:
            return info.shape[0], numel(info.shape[1:])
    if name + A not in opened or name + B not in opened:
        return 0, 0
    return opened.tensors[name + B].shape[0], opened.tensors[name + A].shape[-1]


def _carried(opened: Packed, table: Table) -> list[CarriedReport]:
    why = {BITS: "no matrix: its delta, lossless", DELTA: "no matrix: its delta"}
    rows = {row.name: row for row in table.rows}
    out = []
    for name, info in opened.tensors.items():
        if name in rows:
            out.append(CarriedReport(name, info.nbytes, "as in the fine-tune"))
        elif name.startswith(FILE):
            out.append(CarriedReport(name.removeprefix(FILE), info.nbytes, "a file"))
        else:
            own, mark, suffix = name.rpartition(":")
            if (text := why.get(mark + suffix)) is not None:
                out.append(CarriedReport(own, info.nbytes, text))
    return out
