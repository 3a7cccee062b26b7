"""From a plan and what was read to the file that meets the budget: codings are tried whole, and measured."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import Any

from paring import registry
from paring.budget import Dials, Trial, refuse
from paring.coding import Coded, Factors, Loss, loss_of, total_error
from paring.dtypes import Stored
from paring.errors import BudgetError
from paring.imaging import Builder
from paring.packing import Image, Payload, Spec
from paring.plan import CompressPlan
from paring.report import TriedReport
from paring.stream import in_order

_log = logging.getLogger("paring")


@dataclass(frozen=True, eq=False)
class Solved:
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


def chosen(
    plan: CompressPlan,
    modules: Sequence[Factors],
    whole: Mapping[str, Stored],
    carried: Sequence[tuple[Spec, Stored]],
    facts: Callable[[CompressPlan], dict[str, Any]],
) -> tuple[Solved, list[TriedReport] | None]:
    """What the plan's method makes; of a method that names others, what the best of them makes, and what was
    tried.
    """

    def solve(own: CompressPlan) -> Solved:
        builder = Builder(own, modules, carried, facts(own))
        return Solved(own, *_solve(own, whole if own.whole else modules, builder))

    if plan.method.sees != "methods":
        return solve(plan), None
    done: list[Solved] = []
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
        found = list(in_order(lambda f: loss(f, *coded.of(f)), modules, plan.threads))
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
