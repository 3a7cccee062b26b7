"""Pack a full fine-tune as what it adds to its base: read, solve the budget, write, read again and measure.

Tensors are worked on one by one. What stays in memory are the components that may pay of every matrix (fp32,
at most half of its smaller side), the coded bytes of three settings of the dial, and of each matrix that a
thread works on some 24 bytes an entry; deltas are read again whenever they are coded.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import paring
from paring.budget import Dials, Trial, refuse
from paring.checkpoint import Checkpoint, digest_sorted, open_checkpoint
from paring.dtypes import FLOATS, Stored, refuse_nonfinite
from paring.errors import BadFileError, BudgetError, UnsupportedError
from paring.finetuned.coded import Coding, Fixed
from paring.finetuned.pairs import Pairs, squares
from paring.finetuned.plan import Plan, plan_finetuned
from paring.finetuned.restoring import Restored
from paring.finetuned.table import KEY, Row, Table, base_digest, read_table
from paring.hub import names
from paring.packed import open_packed
from paring.packing import Image
from paring.report import CarriedReport, ModuleReport, Report, peak_rss_bytes

_log = logging.getLogger("paring")


def compress(
    source: str | os.PathLike[str],
    base: str | os.PathLike[str],
    output: str | os.PathLike[str] | None,
    *,
    dry_run: bool = False,
    **asked: Any,
) -> Report:
    """Plan and do: see :func:`~.plan.plan_finetuned` and :func:`run`."""
    plan = plan_finetuned(source, base, output, **asked)
    with plan.tuned, plan.base:
        return run(plan, dry_run=dry_run)


def run(plan: Plan, *, dry_run: bool = False) -> Report:
    """Do what ``plan`` says, or with ``dry_run`` all of it but the writing.

    Raises BadValueError for NaN, UnsupportedError where nothing differs, BudgetError, OutputError.
    """
    started = time.perf_counter()
    pairs = Pairs(plan.tuned, plan.base)
    try:
        _log.info("reading %s tensors", f"{len(plan.tuned.tensors):,}")
        source_digest, equal = _read(plan)
        rows = _twins(plan)
        told = {row.name: row for row in rows}
        changed = [row for row in plan.matrices if row.name not in equal and not told[row.name].twin]
        fixed = Fixed(plan, pairs, {*equal, *(row.name for row in rows if row.twin)})
        priced = [row for row in plan.vectors if row.name not in equal] if plan.carry == "priced" else []
        if not changed and not priced and not fixed.items:
            raise UnsupportedError(
                f"{plan.tuned.path} and {plan.base.path} are equal: there is nothing to compress"
            )
        _log.info("decomposing %d deltas", len(changed))
        matrices = [pairs.matrix(row) for row in changed] + [pairs.matrix(row) for row in priced]
        coder = plan.coder(matrices, plan.workers)
        table = Table(rows, _name(plan), base_digest(plan.base, rows), fixed.same)
        facts = _facts(plan, source_digest, table)
        coding = Coding(plan, coder, pairs, [*changed, *priced], fixed, facts)
        image, found = _solve(plan, coding)
        if not dry_run:
            image.write(
                plan.output, coding.digest(image), lambda path: _recheck(path, plan, found.error),
                overwrite=plan.overwrite,
            )  # fmt: skip
    finally:
        pairs.close()
    return Report(
        command="compress",
        inputs=[str(plan.tuned.path), str(plan.base.path)],
        output=str(plan.output),
        method=plan.method.name,
        recipe=plan.recipe,
        bytes_in=plan.tuned.nbytes,
        bytes_out=image.nbytes,
        ratio=plan.tuned.nbytes / image.nbytes,
        ratio_fp16=2 * plan.elements / image.nbytes,
        bits_per_param=8 * image.nbytes / plan.elements,
        error=found.error,
        modules=[ModuleReport(b.row.name, b.shape, b.rank, b.density, b.bits, b.error) for b in found.built],
        carried=[CarriedReport(name, nbytes, why, error) for name, nbytes, why, error in fixed.listed],
        warnings=_warnings(plan, found, rows),
        seconds=time.perf_counter() - started,
        peak_rss_bytes=peak_rss_bytes(),
        device=plan.device,
        dry_run=dry_run or None,
    )


def _name(plan: Plan) -> str:
    return (
        plan.base.files[0].name
        if len(plan.base.files) == 1 and plan.base.path.is_file()
        else names.title(plan.base.path) or plan.base.path.name
    )


def _read(plan: Plan) -> tuple[str, frozenset[str]]:
    """The digest of the fine-tune, and the tensors that are those of the base. NaN is refused by name."""
    bases = {row.name: row.base for row in plan.rows}
    equal = set()

    def sound(checkpoint: Checkpoint, name: str) -> Stored:
        stored = checkpoint.read(name)
        refuse_nonfinite(stored, name, checkpoint.path)
        return stored

    def visit() -> Iterator[tuple[str, Stored]]:
        for name in sorted(plan.tuned.tensors):
            stored = sound(plan.tuned, name)
            own = bases[name]
            if own is not None:
                below = sound(plan.base, own)
                if below.dtype == stored.dtype and below.tobytes() == stored.tobytes():
                    equal.add(name)
            yield name, stored

    return digest_sorted(visit()), frozenset(equal)


def _twins(plan: Plan) -> tuple[Row, ...]:
    """All rows, those of heads that are another tensor bit for bit marked so; layers are not looked at."""
    some = [row for row in (*plan.matrices, *plan.whole) if not any(p.isdigit() for p in row.name.split("."))]
    firsts: list[Row] = []
    twins: dict[str, str] = {}
    infos = plan.tuned.tensors
    for row in some:
        mine = infos[row.name]
        rivals = [
            each for each in firsts
            if (infos[each.name].shape, infos[each.name].dtype) == (mine.shape, mine.dtype) and mine.numel > 1
        ]  # fmt: skip
        data = plan.tuned.read(row.name).tobytes() if rivals else b""
        twin = next((each.name for each in rivals if plan.tuned.read(each.name).tobytes() == data), None)
        if twin is None:
            firsts.append(row)
        else:
            twins[row.name] = twin
    return tuple(replace(row, twin=twins.get(row.name)) for row in plan.rows)


def _facts(plan: Plan, source_digest: str, table: Table) -> dict[str, Any]:
    source = {"name": plan.tuned.files[0].name, "bytes": plan.tuned.nbytes, "sha256": source_digest}
    facts = {
        "tool": f"paring {paring.__version__}", "kind": "delta", "method": plan.method.name,
        "recipe": plan.recipe, "source": source, "metadata": plan.tuned.metadata,
        "elements": plan.elements, KEY: table.told(),
    }  # fmt: skip
    return {key: value for key, value in facts.items() if value}


def _solve(plan: Plan, coding: Coding) -> tuple[Image, Any]:
    """The file that meets the budget, and what it loses."""
    trials: dict[int, Trial] = {}

    def trial(dial: int) -> Trial:
        if dial not in trials:
            image, found = coding.image(dial)
            trials[dial] = Trial(dial, image.nbytes, found.error)
            _log.info("solving the budget: %s bytes lose %.4f", f"{image.nbytes:,}", found.error)
        return trials[dial]

    dials = Dials(trial, max(1, coding.coder.dials), sketch=coding.sketch)
    most = plan.most_bytes
    best = dials.for_error(plan.budget.error or 0.0) if most is None else dials.for_size(most)
    if best is None:
        raise _refusal(plan, coding, dials.least_error() if most is None else dials.trial(0))
    return coding.image(best.dial)


def _refusal(plan: Plan, coding: Coding, best: Trial) -> BudgetError:
    if plan.most_bytes is None:
        return refuse(plan.budget, best, plan.tuned.nbytes, plan.elements, " by this method")
    weight = sum(payload.nbytes for payload in coding.fixed.payloads)
    blocked = f": the smallest file takes {best.nbytes} bytes, {weight} of them beside matrices (see --carry)"
    padded = Trial(best.dial, best.nbytes + 16, best.error)
    return refuse(plan.budget, padded, plan.tuned.nbytes, plan.elements, blocked)


def _recheck(path: Path, plan: Plan, expected: float) -> None:
    """Read the complete file again, restore the fine-tune, and measure what was lost."""
    with open_checkpoint(path) as container:
        packed = open_packed(container)
        if packed.digest() != packed.digest_recorded:
            raise BadFileError(f"{path}: what was written does not read back the same; is the disk sound?")
        again = error_of(Restored(packed, plan.base, read_table(packed)), plan.tuned)
        if abs(again - expected) > 1e-6:
            raise BadFileError(
                f"{path}: decodes to an error of {again:g}, not {expected:g}: please report this"
            )


def error_of(restored: Restored, tuned: Any) -> float:
    """The relative error of all deltas, of the fine-tune that comes of it. Raises BadFileError where a tensor
    without numbers is another.
    """
    lost = energy = 0.0
    for row in (row for row in restored.table.rows if row.twin is None):
        mine, made = tuned.read(row.name), restored.read(row.name)
        if row.base is None or mine.dtype not in FLOATS:
            if made.tobytes() != mine.tobytes():
                raise BadFileError(f"{row.name} is not as it was in {tuned.path}")
            continue
        lost += squares(mine, made)
        energy += squares(mine, restored.base.read(row.base))
    return (lost / energy) ** 0.5 if energy else 0.0


def _warnings(plan: Plan, found: Any, rows: tuple[Row, ...]) -> list[str]:
    out = []
    if plan.missing:
        out.append(
            f"{len(plan.missing)} tensors of {plan.base.path} are not in the fine-tune, nor in what is made "
            f"of it again, {plan.missing[0]} among them"
        )
    if found.unmoved:
        out.append(
            f"{found.unmoved:,} of {found.moved:,} decoded changes are lost to rounding to the fine-tune's "
            "dtypes; the error counts that"
        )
    if not found.energy:
        out.append("this fine-tune changes no numbers: every delta is zero")
    if whole := [row.name for row in plan.whole if not next(r for r in rows if r.name == row.name).twin]:
        out.append(f"{len(whole)} tensors are not in the base and carried whole, {whole[0]} among them")
    return out
