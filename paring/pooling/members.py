"""One adapter of a pool, as the packed file that it would be alone: ``FILE#NAME``, or ``FILE#2`` by number.

A pool is a packed file whose tensors are called ``ADAPTER/TENSOR``; what several of them are made of is
called ``/NUMBER``. Reading one adapter reads its payloads and those that they refer to, no others.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from paring import codecs
from paring.codecs.ternary import Ternary
from paring.contents import Held
from paring.dtypes import Stored
from paring.errors import BadFileError, UnsupportedError
from paring.packed import Packed


@dataclass(eq=False)
class Member(Packed):
    """An adapter of the pool ``whole``: tensors under their own names, facts its own. ``nbytes`` are those of
    the payloads that it needs.
    """

    whole: Packed = field(kw_only=True)
    prefix: str = field(kw_only=True)

    def __post_init__(self) -> None:
        pass  # tensors are found and decoded by the pool

    def read(self, name: str) -> Stored:
        return self.whole.read(self._own(name))

    def read_all(self, names: list[str] | None = None) -> Iterator[tuple[str, Stored]]:
        chosen = [self._own(name) for name in (self.tensors if names is None else names)]
        for name, tensor in self.whole.read_all(chosen):
            yield name.removeprefix(self.prefix), tensor

    def planes(self, name: str) -> Ternary:
        return self.whole.planes(self._own(name))

    def payload(self, held: Held) -> memoryview:
        return self.whole.payload(held)

    def close(self) -> None:
        self.whole.close()

    def _own(self, name: str) -> str:
        if name not in self.tensors:
            raise KeyError(name)
        return self.prefix + name


def holds_adapters(packed: Packed) -> bool:
    """Whether this is a pool."""
    return "adapters" in packed.facts


def names_of(packed: Packed) -> list[str]:
    """The adapters of a pool, in order."""
    return [each["name"] for each in packed.facts["adapters"]]


def member(packed: Packed, wanted: str | None = None) -> Member:
    """The adapter ``wanted`` of a pool, a name or a number from 1 on; the only one where None is given.

    Raises UnsupportedError when there is none such, or more than one to choose from.
    """
    names = names_of(packed)
    told = ", ".join(f"{i} {name}" for i, name in enumerate(names, 1))
    if wanted is None and len(names) > 1:
        raise UnsupportedError(
            f"{packed.path} holds several adapters: name one, as in {packed.path}#{names[0]}; "
            f"there are {told}"
        )
    if wanted is None or wanted in names:
        place = names.index(wanted or names[0])
    elif wanted.isdecimal() and 1 <= int(wanted) <= len(names):
        place = int(wanted) - 1
    else:
        raise UnsupportedError(f"{packed.path}: there is no adapter {wanted!r}; there are {told}")
    facts = packed.facts["adapters"][place]
    prefix = names[place] + "/"
    tensors = {
        name.removeprefix(prefix): replace(info, name=name.removeprefix(prefix))
        for name, info in packed.tensors.items()
        if name.startswith(prefix)
    }
    held = [p for p in packed.payloads if any(spec.name.startswith(prefix) for spec in p.specs)]
    nbytes = sum(p.nbytes for p in _needed(packed, held))
    shared = {key: packed.facts[key] for key in ("tool", "method", "recipe") if key in packed.facts}
    return Member(
        Path(f"{packed.path}#{names[place]}"), packed.files, tensors, facts.get("metadata", {}),
        nbytes, container=packed.container, facts={**shared, **facts}, payloads=tuple(held),
        digest_recorded=facts["digest"], threads=packed.threads, whole=packed, prefix=prefix,
    )  # fmt: skip


def _needed(packed: Packed, held: Sequence[Held]) -> list[Held]:
    """The payloads ``held`` and those that they refer to. Raises BadFileError for damage."""
    firsts = [payload.first for payload in packed.payloads]
    found: dict[int, Held] = {}
    todo = list(held)
    while todo:
        payload = todo.pop()
        if payload.first in found:
            continue
        found[payload.first] = payload
        codec = codecs.find(payload.codec, payload.version)
        if not codecs.refers(codec):
            continue
        each = codecs.references(codec, packed.payload(payload), [spec.shape for spec in payload.specs])
        for number in {number for numbers in each for number in numbers}:
            if number >= payload.first:
                raise BadFileError(
                    f"{packed.path}: payload {payload.entry!r} is damaged: it refers to tensors behind it"
                )
            todo.append(packed.payloads[bisect_right(firsts, number) - 1])
    return list(found.values())
