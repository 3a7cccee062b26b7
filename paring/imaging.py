"""The packed file of a coding: payloads and facts, with configuration and alphas true of the ranks it has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from paring.adapters import ranks
from paring.codecs.ternary import Ternary
from paring.coding import Coded, Factors, Loss, total_error
from paring.dtypes import Stored, numel
from paring.packing import Image, Payload, Spec, payloads
from paring.plan import CompressPlan


@dataclass(frozen=True, eq=False)
class Builder:
    """Makes images of codings of ``modules``: ``carried`` goes into each as it is, and ``facts`` are told.

    Where a coding has other ranks than the source, or the plan another scale, alphas among the carried
    tensors, the configuration and the metadata are rewritten, and modules without ranks are dropped.
    """

    plan: CompressPlan
    modules: Sequence[Factors]
    carried: Sequence[tuple[Spec, Stored]]
    facts: Mapping[str, Any]

    @cached_property
    def _moving(self) -> frozenset[str]:
        """The carried tensors that are not the same at any rank."""
        return ranks.scalars(self.plan.adapter)

    @cached_property
    def fixed(self) -> list[Payload]:
        """The payloads of all carried tensors."""
        return payloads(self.carried)

    @cached_property
    def _still(self) -> list[Payload]:
        """The payloads of the others."""
        return payloads([pair for pair in self.carried if pair[0].name not in self._moving])

    def image(self, coded: Coded, found: Sequence[Loss]) -> Image:
        """The file of ``coded``, which lost ``found`` of the modules."""
        items = _items(self.modules, coded)
        facts = {**self.facts, **_told(self.modules, found, coded)}
        new = self._rewritten(coded)
        if new is None:
            return self._whole([*payloads(items), *self.fixed], facts)
        for spec, stored in self.carried:
            if spec.name in self._moving and spec.name not in new.dropped:
                told = new.scalars.get(spec.name)
                items.append(
                    (spec, stored) if told is None else (Spec(spec.name, told.dtype, told.shape), told)
                )
        dropped = [*self.facts.get("dropped", ()), *new.dropped, *gone(self.modules, coded)]
        beside = {"config": new.config, "metadata": new.metadata, "dropped": dropped}
        facts |= {key: value for key, value in beside.items() if value}
        return self._whole([*payloads(items), *self._still], facts)

    def _whole(self, parts: Sequence[Payload], facts: dict[str, Any]) -> Image:
        """The image, with the source's number of elements where it has others."""
        elements = sum(numel(spec.shape) for payload in parts for spec in payload.specs)
        return Image(
            parts, facts if elements == self.plan.elements else {**facts, "elements": self.plan.elements}
        )

    def _rewritten(self, coded: Coded) -> ranks.Rewritten | None:
        """What must be told of the ranks of ``coded``; None where nothing changes."""
        found = {f.name: rank_of(f, coded) for f in self.modules if f.b is not None}
        scale = self.plan.options.get("adapter_scale")
        if scale is None and all(found[f.name] == len(f.A) for f in self.modules if f.b is not None):
            return None
        return ranks.rewritten(self.plan.adapter, found, scale)


def rank_of(factors: Factors, coded: Coded) -> int:
    """The rank of a module as coded, 0 where it is left out."""
    return coded.tensors[factors.a].shape[0] if factors.a in coded.tensors else 0


def gone(modules: Sequence[Factors], coded: Coded) -> list[str]:
    """The factors that ``coded`` leaves out."""
    return [name for f in modules for name in (f.a, f.b) if name and name not in coded.tensors]


def bits(factors: Factors, coded: Coded) -> float:
    """Bits that a module takes by itself, for each of its parameters."""
    items = _items(
        [factors], Coded({name: coded.tensors[name] for name in names_of(factors) if name in coded.tensors})
    )
    return 8 * sum(payload.nbytes for payload in payloads(items)) / factors.numel


def names_of(factors: Factors) -> tuple[str, ...]:
    """The tensors of a module."""
    return (factors.a,) if factors.b is None else (factors.a, factors.b)


def _items(modules: Sequence[Factors], coded: Coded) -> list[tuple[Spec, Any]]:
    """What goes into payloads: the tensors of modules in order, then the others."""
    items: list[tuple[Spec, Any]] = []
    rest = dict(coded.tensors)
    for factors in modules:
        for name, dtype in zip(names_of(factors), factors.dtypes, strict=True):
            item = rest.pop(name, None)
            if isinstance(item, Stored):
                items.append((Spec(name, item.dtype, item.shape), item))
            elif item is not None:
                items.append((Spec(name, dtype, item.shape, ones=factors.b is None), item))
    for name, item in rest.items():
        assert isinstance(item, Stored), "tensors of no module are kept as they are"
        items.append((Spec(name, item.dtype, item.shape), item))
    return items


def _told(modules: Sequence[Factors], found: Sequence[Loss], coded: Coded) -> dict[str, Any]:
    """Losses as the manifest tells them: relative errors to four places, modules by name; of ternary codings
    the exact counts too, which are their densities."""
    pairs = sorted(zip(modules, found, strict=True), key=lambda pair: pair[0].name)
    kept = [loss for factors, loss in pairs if factors.a in coded.tensors]
    errors = [round(loss.error * 10_000) for loss in kept]
    told = {"error": errors}
    if any(isinstance(item, Ternary) for item in coded.tensors.values()):
        told["nonzero"] = [loss.nonzero for loss in kept]
    return {"error": round(total_error(found), 6), "modules": told}
