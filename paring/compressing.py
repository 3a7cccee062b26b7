"""Compress one adapter: read factors, solve the budget, pack, re-read, measure.

:mod:`paring.plan` has checked what headers tell; this is the work.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from paring import adapters, registry
from paring.adapters.ranks import needed as needed_ranks
from paring.adapters.view import Adapter
from paring.budget import Dials, Trial, refuse
from paring.checkpoint import digest, digest_sorted, open_checkpoint
from paring.coding import Coded, Factors, Loss, loss_of, measured, total_error
from paring.dtypes import Stored, first_nonfinite, from_f32
from paring.errors import BadFileError, BadValueError, BudgetError
from paring.factors import factor_names, read_factors
from paring.imaging import Builder, bits, rank_of
from paring.packed import open_packed
from paring.packing import Image, Payload, Spec
from paring.plan import CompressPlan, is_scalar
from paring.report import CarriedReport, ModuleReport, Report, TriedReport, peak_rss_bytes

_log = logging.getLogger("paring")


def run(plan: CompressPlan, *, dry_run: bool = False) -> Report:
    """Do what ``plan`` says, or with ``dry_run`` all of it but the writing.

    Raises BadValueError for NaN or infinity, BudgetError for a budget that cannot be met, OutputError.
    """
    started = time.perf_counter()
    _log.info("reading %s tensors", f"{len(plan.source.tensors):,}")
    modules, whole, source_digest = _read(plan)
    carried, rounded = _carried(plan)
    solved, tried = _chosen(plan, modules, whole, carried, lambda own: _facts(own, source_digest, rounded))
    plan, found, coded, image = solved.plan, solved.losses, solved.coded, solved.image
    if not dry_run:
        decoded = digest(image.decoded())
        if plan.whole and decoded != source_digest:
            raise BadFileError(f"{plan.output} would not decode to {plan.source.path}: please report this")
        image.write(
            plan.output,
            decoded,
            lambda path: _recheck(path, decoded, modules, found),
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
            if (at := first_nonfinite(stored)) is not None:
                raise BadValueError(
                    f"{plan.source.path}: {name} holds NaN or infinity (first at flat index {at}): "
                    "this adapter is broken, get or train it again"
                )
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


@dataclass(frozen=True, eq=False)
class _Solved:
    """A plan carried out: the coding that meets its budget, what it loses, and the file that it makes."""

    plan: CompressPlan
    losses: list[Loss]
    coded: Coded
    image: Image

    @property
    def rank(self) -> tuple[float, float]:
        """How good it is at its budget; less is better."""
        error, nbytes = total_error(self.losses), self.image.nbytes
        return (nbytes, error) if self.plan.budget.error is not None else (error, nbytes)


def _chosen(
    plan: CompressPlan,
    modules: Sequence[Factors],
    whole: Mapping[str, Stored],
    carried: Sequence[tuple[Spec, Stored]],
    facts: Callable[[CompressPlan], dict[str, Any]],
) -> tuple[_Solved, list[TriedReport] | None]:
    """What the plan's method makes; of a method that names others, what the best of them makes, and what was
    tried.
    """

    def solve(own: CompressPlan) -> _Solved:
        builder = Builder(own, modules, carried, facts(own))
        return _Solved(own, *_solve(own, whole if own.whole else modules, builder))

    if plan.method.sees != "methods":
        return solve(plan), None
    done: list[_Solved] = []
    tried: list[TriedReport] = []
    refused: list[BudgetError] = []
    for name in plan.method.function(modules, plan.threads, plan.device, **plan.options):
        method = registry.load("compress", name)
        _log.info("trying %s", name)
        try:
            done.append(solve(replace(plan, method=method, options=method.parse({}))))
            tried.append(TriedReport(name, done[-1].image.nbytes, total_error(done[-1].losses)))
        except BudgetError as error:
            refused.append(error)
            tried.append(TriedReport(name, why=str(error)))
    if not done:
        raise refused[0]
    return min(done, key=lambda solved: solved.rank), tried


def _solve(
    plan: CompressPlan, seen: Sequence[Factors] | Mapping[str, Stored], builder: Builder
) -> tuple[list[Loss], Coded, Image]:
    """The coding that meets the budget, what it loses, and the file that it makes."""
    _log.info("loading kernels (compiled once, on first use)")
    family = plan.method.function(seen, plan.threads, plan.device, **plan.options)
    modules = builder.modules
    loss = lru_cache(maxsize=2 * len(modules))(loss_of)

    def build(dial: int) -> tuple[list[Loss], Coded, Image]:
        coded = family.encode(dial)
        found = [loss(f, coded.tensors.get(f.a), coded.tensors.get(f.b) if f.b else None) for f in modules]
        return found, coded, builder.image(coded, found)

    @cache  # of the figures only: codings of large adapters are not kept
    def trial(dial: int) -> Trial:
        found, _, image = build(dial)
        tried = Trial(dial, image.nbytes, total_error(found))
        _log.info("solving the budget: %s bytes lose %.4f", f"{tried.nbytes:,}", tried.error)
        return tried

    if family.fixed is not None:
        if plan.asked and not _met(plan, trial(family.fixed)):
            raise _refusal(plan, trial(family.fixed), builder.fixed)
        return build(family.fixed)
    dials = Dials.of(trial, family)
    most = plan.most_bytes
    best = dials.for_error(plan.budget.error or 0.0) if most is None else dials.for_size(most)
    if best is None:
        raise _refusal(plan, dials.least_error() if most is None else dials.trial(0), builder.fixed)
    return build(best.dial)


def _met(plan: CompressPlan, tried: Trial) -> bool:
    """Whether ``tried`` meets the budget."""
    most = plan.most_bytes
    return tried.error <= (plan.budget.error or 0.0) if most is None else tried.nbytes <= most


def _refusal(plan: CompressPlan, best: Trial, carried: Sequence[Payload]) -> BudgetError:
    """Why the budget cannot be met: ``best`` is the smallest trial, or the one that loses least."""
    if plan.most_bytes is None:
        blocked = f" by method {plan.method.name} with these options"
        return refuse(plan.budget, best, plan.source.nbytes, plan.elements, blocked)
    smallest = best
    weight = sum(len(payload.data) for payload in carried)
    blocked = f": the smallest file takes {smallest.nbytes} bytes"
    if weight > smallest.nbytes // 4:
        largest = max(plan.carried, key=lambda tensor: tensor.nbytes)
        blocked += (
            f", {weight} of them for {len(plan.carried)} carried tensors such as {largest.name} "
            f"({largest.why}; see --carry)"
        )
    # the file tells its budget: the digits of the one that is met may take some bytes more
    best = replace(smallest, nbytes=smallest.nbytes + 16)
    return refuse(plan.budget, best, plan.source.nbytes, plan.elements, blocked)


def _facts(plan: CompressPlan, source_digest: str, rounded: Mapping[str, float]) -> dict[str, Any]:
    """What the manifest tells beside the tensors and losses; what is empty is left out."""
    facts = plan.facts(source_digest)
    errors = {name: float(f"{error:.3g}") for name, error in rounded.items()}
    return {**facts, "rounded": errors} if errors else facts


def _recheck(path: Path, expected: str, modules: Sequence[Factors], found: Sequence[Loss]) -> None:
    """Read the complete file again: the same tensors, and the loss that will be reported."""
    with open_checkpoint(path) as container:
        packed = open_packed(container)
        tensors = dict(packed.read_all())
        if digest(tensors.items()) != expected:
            raise BadFileError(f"{path}: what was written does not read back the same; is the disk sound?")
        again = total_error(measured(modules, tensors))
        if abs(again - total_error(found)) > 1e-6:
            raise BadFileError(
                f"{path}: decodes to an error of {again:g}, not {total_error(found):g}: please report this"
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
