"""Compress one adapter: read factors, solve the budget, pack, re-read, measure.

:mod:`paring.plan` has checked what headers tell; this is the work.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from paring import adapters
from paring.adapters.ranks import needed as needed_ranks
from paring.adapters.view import Adapter
from paring.checkpoint import digest, digest_sorted, open_checkpoint
from paring.coding import Coded, Factors, Loss, strayed, total_error
from paring.dtypes import Stored, from_f32, refuse_nonfinite
from paring.errors import BadFileError, BadValueError
from paring.factors import factor_names, read_factors
from paring.imaging import bits, rank_of
from paring.packed import open_packed
from paring.packing import Spec
from paring.plan import CompressPlan, is_scalar
from paring.report import CarriedReport, ModuleReport, Report, peak_rss_bytes
from paring.solving import chosen

_log = logging.getLogger("paring")


def run(plan: CompressPlan, *, dry_run: bool = False) -> Report:
    """Do what ``plan`` says, or with ``dry_run`` all of it but the writing.

    Raises BadValueError for NaN or infinity, BudgetError for a budget that cannot be met, OutputError,
    BadFileError where what was coded does not decode to the source.
    """
    if plan.method.sees == "tensors":
        from paring import tensorwise

        return tensorwise.run(plan, dry_run=dry_run)
    started = time.perf_counter()
    _log.info("reading %s tensors", f"{len(plan.source.tensors):,}")
    modules, whole, source_digest = _read(plan)
    carried, rounded = _carried(plan)
    solved, tried = chosen(plan, modules, whole, carried, lambda own: _facts(own, source_digest, rounded))
    plan, found, coded, image = solved.plan, solved.losses, solved.coded, solved.image
    if not dry_run:
        decoded = digest(image.decoded())
        if plan.whole and decoded != source_digest:
            raise BadFileError(f"{plan.output} would not decode to {plan.source.path}: please report this")
        image.write(
            plan.output,
            decoded,
            lambda path: _recheck(path, decoded, modules, coded),
            overwrite=plan.overwrite,
        )
    return Report(
        command="compress",
        inputs=[str(plan.source.path)],
        output=str(plan.output),
        method=plan.method.name,
        recipe=plan.recipe,
        bytes_in=plan.source.nbytes,
        bytes_out=image.nbytes,
        ratio=plan.source.nbytes / image.nbytes,
        ratio_fp16=2 * plan.elements / image.nbytes,
        bits_per_param=8 * image.nbytes / plan.elements,
        error=total_error(found),
        modules=_module_reports(modules, found, coded),
        carried=[
            CarriedReport(tensor.name, tensor.nbytes, tensor.why, rounded.get(tensor.name))
            for tensor in (() if plan.whole else plan.adapter.carried)
        ],
        tried=tried,
        warnings=_warnings(plan, modules, found, coded),
        seconds=time.perf_counter() - started,
        peak_rss_bytes=peak_rss_bytes(),
        device=plan.device,
        dry_run=dry_run or None,
    )


def _read(plan: CompressPlan) -> tuple[list[Factors], dict[str, Stored], str]:
    """All factors in fp32, or for a method that takes them so all tensors as stored; and the canonical digest
    of the source. NaN and infinity are refused by name.
    """
    parts: dict[str, Stored] = {}
    wanted = factor_names(plan.adapter)

    def visit() -> Iterator[tuple[str, Stored]]:
        for name in sorted(plan.source.tensors):
            stored = plan.source.read(name)
            refuse_nonfinite(stored, name, plan.source.path)
            if plan.whole:
                parts[name] = stored
            elif name in wanted:
                if stored.dtype == "F64" and not np.isfinite(stored.f32()).all():
                    raise BadValueError(f"{plan.source.path}: {name} holds a value too large for fp32")
                parts[name] = stored
            yield name, stored

    found = digest_sorted(visit())
    if plan.whole:
        return [], parts, found
    modules, scale = read_factors(plan.adapter, parts), plan.options.get("adapter_scale")
    needed = needed_ranks(plan.adapter)
    return [
        replace(f, needed=f.name in needed, scale=f.scale if scale is None or f.b is None else scale)
        for f in modules
    ], {}, found  # fmt: skip


def _carried(plan: CompressPlan) -> tuple[list[tuple[Spec, Stored]], dict[str, float]]:
    """The tensors that are not factors, as kept, and the relative error of those that were rounded."""
    items = []
    errors = {}
    for tensor in plan.carried:
        stored = plan.source.read(tensor.name)
        narrow = (
            plan.carry == "fp16" and stored.dtype in ("F32", "F64") and not is_scalar(plan.source, tensor)
        )
        kept = from_f32(stored.data, "F16", tensor.name) if narrow else stored
        if narrow:
            wide = stored.data.astype(np.float64)
            energy = float((wide**2).sum())
            errors[tensor.name] = (float(((wide - kept.data) ** 2).sum()) / energy) ** 0.5 if energy else 0.0
        items.append((Spec(tensor.name, stored.dtype, stored.shape, "F16" if narrow else None), kept))
    return items, errors


def _facts(plan: CompressPlan, source_digest: str, rounded: Mapping[str, float]) -> dict[str, Any]:
    """What the manifest tells beside the tensors and losses; what is empty is left out."""
    facts = plan.facts(source_digest)
    errors = {name: float(f"{error:.3g}") for name, error in rounded.items()}
    return {**facts, "rounded": errors} if errors else facts


def _recheck(path: Path, expected: str, modules: Sequence[Factors], coded: Coded) -> None:
    """Read the complete file again: the same tensors, and of factors the values whose loss was measured."""
    with open_checkpoint(path) as container:
        packed = open_packed(container)
        tensors = dict(packed.read_all())
        if digest(tensors.items()) != expected:
            raise BadFileError(f"{path}: what was written does not read back the same; is the disk sound?")
        for factors in modules:
            if strays := strayed(factors, coded, tensors):
                raise BadFileError(
                    f"{path}: {strays} decodes to other values than were measured: please report this"
                )
        if modules:
            _recheck_scales(adapters.read(packed), modules)


def _recheck_scales(view: Adapter, modules: Sequence[Factors]) -> None:
    """What the file says beside its factors makes the modules mean what was measured."""
    view.refuse_problems()
    scales = {module.a: module.scale for module in view.modules}
    for factors in modules:
        if factors.b and factors.a in view.checkpoint:
            told = scales.get(factors.a, float("nan"))
            if not abs(told - factors.scale) <= 1e-6 * abs(factors.scale):
                raise BadFileError(
                    f"{view.checkpoint.path}: says a scale of {told:g} for module {factors.name}, not "
                    f"{factors.scale:g}: please report this"
                )


def _module_reports(modules: Sequence[Factors], found: Sequence[Loss], coded: Coded) -> list[ModuleReport]:
    out = []
    for factors, loss in zip(modules, found, strict=True):
        shape = (factors.B.shape[0], factors.A.shape[1])
        rank = rank_of(factors, coded) if factors.b else None
        share = loss.nonzero / factors.numel
        out.append(ModuleReport(factors.name, shape, rank, share, bits(factors, coded), loss.error))
    return out


def _warnings(
    plan: CompressPlan, modules: Sequence[Factors], found: Sequence[Loss], coded: Coded
) -> list[str]:
    out = []
    if modules and not sum(loss.energy for loss in found):
        out.append("this adapter changes nothing: every update is zero")
    emptied = [
        factors.name
        for factors, loss in zip(modules, found, strict=True)
        if factors.a in coded.tensors and loss.energy and loss.lost >= loss.energy * (1 - 1e-9)
    ]
    if left_out := [factors.name for factors in modules if factors.a not in coded.tensors]:
        out.append(f"{len(left_out)} of {len(modules)} modules are left out, {left_out[0]} among them")
    if emptied:
        out.append(
            f"{len(emptied)} of {len(modules)} modules decode to the base model's weights, "
            f"{emptied[0]} among them: one of their factors kept nothing"
        )
    if plan.dropped:
        out.append(f"{len(plan.dropped)} tensors dropped, {plan.dropped[0].name} among them")
    return out
