"""Payloads in the making: tensors get their numbers in the file stage by stage, so that later ones can refer
to earlier ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from paring import codecs
from paring.packed import Packed
from paring.packing import Payload, Spec, payloads

#: deeper chains than this are not made; readers follow twice as many
MOST_DEPTH = 4


@dataclass(eq=False)
class Stages:
    """The payloads of a file so far. ``numbers`` are those of its tensors, ``depth`` how far each is from one
    that refers to no other.
    """

    payloads: list[Payload] = field(default_factory=list)
    numbers: dict[str, int] = field(default_factory=dict)
    depth: dict[int, int] = field(default_factory=dict)

    @classmethod
    def of(cls, kept: Packed | None) -> Stages:
        """Those of a file to be added to, byte for byte."""
        made = cls()
        for held in kept.payloads if kept else ():
            assert kept is not None
            data = bytes(kept.payload(held))
            made._put(Payload(held.entry, held.codec, held.version, data, held.specs))
        return made

    def add(self, owner: str, items: Sequence[tuple[Spec, Any]]) -> None:
        """Code ``items`` of one adapter (``""``: of all); those of a codec that are small share a payload."""
        for payload in payloads(items):
            alone = payload.entry == payload.specs[0].name
            self._put(payload if alone else replace(payload, entry=f"{owner}/{payload.entry}"))

    def _put(self, payload: Payload) -> None:
        codec = codecs.find(payload.codec, payload.version)
        first = len(self.numbers)
        each = codecs.references(codec, payload.data, [spec.shape for spec in payload.specs])
        deep = max((1 + self.depth[n] for numbers in each for n in numbers), default=0)
        for at, spec in enumerate(payload.specs):
            self.numbers[spec.name] = first + at
            self.depth[first + at] = deep
        self.payloads.append(payload)

    @property
    def nbytes(self) -> int:
        """The bytes of all payloads."""
        return sum(payload.nbytes for payload in self.payloads)


def sizes(items: Sequence[tuple[Spec, Any]]) -> int:
    """The bytes that ``items`` take, coded together."""
    return sum(payload.nbytes for payload in payloads(items))
