"""Codings of a fine-tune on the dial of its coder: payloads, what is lost, the image of the file."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from paring import codecs
from paring.checkpoint import digest_sorted
from paring.codecs.ternary import Ternary
from paring.codecs.trellis import Levels
from paring.dtypes import Stored, from_f32
from paring.finetuned.pairs import BLOCK, Pairs, rounded, squares
from paring.finetuned.parts import BITS, DELTA, Parts
from paring.finetuned.plan import Plan
from paring.finetuned.restoring import beside, difference
from paring.finetuned.table import FILE, Row
from paring.packing import OWN_PAYLOAD, Image, Payload, Spec, payloads

_FILE = "a file, not as beside the base"


class Fixed:
    """What is the same at every price: vectors, tensors that are not in the base, files.

    ``listed`` tells name, bytes as stored, why, and the relative error of what was rounded.
    """

    def __init__(self, plan: Plan, pairs: Pairs, done: Collection[str]) -> None:
        self.items: list[tuple[Spec, Any]] = []
        self.listed: list[tuple[str, int, str, float | None]] = []
        self.lost = self.energy = 0.0
        for row in plan.vectors:
            if row.name not in done and plan.carry != "priced":
                self._vector(row, *pairs.whole(row), pairs.base.read(str(row.base)), plan.carry)
        for row in (*plan.others, *plan.whole):
            if row.name not in done:
                why = "only in the fine-tune" if row.base is None else f"{row.dtype}, not as in the base"
                stored = plan.tuned.read(row.name)
                self._put(row.name, stored, stored.nbytes, why)
        self.same = self._files(plan)
        self.payloads = payloads(sorted(self.items, key=lambda pair: pair[0].name))

    def _put(self, name: str, item: Stored, nbytes: int, why: str, error: float | None = None) -> None:
        self.items.append((Spec(name, item.dtype, item.shape), item))
        shown = name.removeprefix(FILE) if why == _FILE else name.removesuffix(BITS).removesuffix(DELTA)
        self.listed.append((shown, nbytes, why, error))

    def _vector(self, row: Row, mine: Stored, cast: Stored, below: Stored, carry: str) -> None:
        energy, made, why = squares(mine, below), mine, "no matrix: its delta, lossless"
        if carry == "lossless":
            self._put(row.name + BITS, difference(mine, cast), mine.nbytes, why)
        elif carry == "fp16":
            delta = from_f32(mine.f64() - below.f64(), "F16", row.name)
            made, why = (
                from_f32(below.f64() + delta.f64(), row.dtype, row.name),
                "no matrix: its delta in fp16",
            )
            error = (squares(mine, made) / energy) ** 0.5 if energy else 0.0
            self._put(row.name + DELTA, delta, mine.nbytes, why, error)
        else:
            made = cast
        self.lost, self.energy = self.lost + squares(mine, made), self.energy + energy

    def _files(self, plan: Plan) -> tuple[str, ...]:
        """Put the files that are not the same beside the base; the names of those that are."""
        if plan.carry == "drop":
            return ()
        theirs, same = beside(plan.base), []
        for name, path in beside(plan.tuned).items():
            data = path.read_bytes()
            if name in theirs and theirs[name].read_bytes() == data:
                same.append(name)
            else:
                self._put(FILE + name, Stored("U8", np.frombuffer(data, np.uint8)), len(data), _FILE)
        return tuple(same)


@dataclass(frozen=True, slots=True, eq=False)
class Built:
    """One delta, coded: payloads of its own, items for those that are shared, and what it lost."""

    row: Row
    shape: tuple[int, int]
    own: list[Payload]
    shared: list[tuple[Spec, Any]]
    nbytes: int
    rank: int
    density: float
    lost: float
    energy: float
    moved: int
    unmoved: int

    @property
    def bits(self) -> float:
        return 8 * self.nbytes / (self.shape[0] * self.shape[1])

    @property
    def error(self) -> float:
        return (self.lost / self.energy) ** 0.5 if self.energy else 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """All deltas of one dial; vectors are counted, too."""

    built: Sequence[Built]
    lost: float
    energy: float

    @property
    def error(self) -> float:
        return (self.lost / self.energy) ** 0.5 if self.energy else 0.0

    @property
    def moved(self) -> int:
        return sum(built.moved for built in self.built)

    @property
    def unmoved(self) -> int:
        return sum(built.unmoved for built in self.built)


class Coding:
    """Images of a fine-tune by dial. Codings of the last settings of each matrix are kept, as bytes."""

    def __init__(
        self, plan: Plan, coder: Any, pairs: Pairs, rows: Sequence[Row], fixed: Fixed, facts: dict[str, Any]
    ) -> None:
        self.coder, self.fixed = coder, fixed
        self._plan, self._pairs, self._rows, self._facts = plan, pairs, rows, facts
        self._kept: dict[int, list[tuple[Any, Built]]] = {}
        self._energy = fixed.energy + float(coder.energy)

    def sketch(self, dial: int) -> tuple[float, float]:
        """Nearly the bytes of matrices and the error of all, without coding."""
        nbytes, lost = self.coder.expected(dial)
        return nbytes, ((lost + self.fixed.lost) / self._energy) ** 0.5 if self._energy else 0.0

    def image(self, dial: int) -> tuple[Image, Found]:
        """The file at ``dial``, and what it loses."""
        jobs = list(enumerate(self.coder.settings(dial)))
        with ThreadPoolExecutor(self._plan.workers) as pool:
            built = list(pool.map(lambda job: self._coded(*job), jobs))
        found = Found(
            built,
            self.fixed.lost + sum(each.lost for each in built),
            self.fixed.energy + sum(each.energy for each in built),
        )
        shared = sorted((pair for each in built for pair in each.shared), key=lambda pair: pair[0].name)
        parts = [*payloads(shared), *(own for each in built for own in each.own), *self.fixed.payloads]
        numbers = {row.name: number for number, row in enumerate(self._plan.rows)}
        facts = self._facts | {
            "error": round(found.error, 6),
            "modules": {
                "tensor": [numbers[each.row.name] for each in built],
                "error": [round(each.error * 10_000) for each in built],
                "rank": [each.rank for each in built],
            },
        }
        return Image(parts, facts), found

    def digest(self, image: Image) -> str:
        """The canonical digest of what ``image`` decodes to; one tensor is held at a time."""
        places = {
            spec.name: (payload, number)
            for payload in image.payloads
            for number, spec in enumerate(payload.specs)
        }

        def decoded() -> Iterator[tuple[str, Stored]]:
            for name in sorted(places):
                payload, number = places[name]
                codec = codecs.find(payload.codec, payload.version)
                assert codec is not None
                shapes, dtypes = [s.shape for s in payload.specs], [s.payload_dtype for s in payload.specs]
                (part,) = codec.decode(payload.data, shapes, dtypes, [number])
                yield name, payload.specs[number].finish(part)

        return digest_sorted(decoded())

    def _coded(self, index: int, setting: Any) -> Built:
        """A delta at a setting; those of its last three are kept."""
        kept = self._kept.setdefault(index, [])
        for own, built in kept:
            if own == setting:
                return built
        built = self._build(index, setting)
        self._kept[index] = [*kept[-2:], (setting, built)]
        return built

    def _build(self, index: int, setting: Any) -> Built:
        row = self._rows[index]
        parts: Parts = self.coder.code(index, setting)
        own: list[Payload] = []
        shared: list[tuple[Spec, Any]] = []
        nbytes = kept = 0
        for suffix, item in parts.items:
            codec, spec = codecs.of(item), Spec(row.name + suffix, "F32", item.shape)
            data = codec.encode([item])
            nbytes, kept = nbytes + len(data), kept + _nonzero(item)
            if len(data) < OWN_PAYLOAD:
                shared.append((spec, item))
            else:
                own.append(Payload(spec.name, codec.ID, codec.VERSION, data, (spec,)))
        lost, energy, moved, unmoved = self._measure(row, parts)
        shape = (parts.matrix.rows, parts.matrix.columns)
        return Built(
            row, shape, own, shared, nbytes, parts.rank, kept / max(1, shape[0] * shape[1]), lost, energy,
            moved, unmoved,
        )  # fmt: skip

    def _measure(self, row: Row, parts: Parts) -> tuple[float, float, int, int]:
        """What is lost of a delta when the fine-tune has been made of it again, rounding and all."""
        lost = energy = 0.0
        moved = unmoved = 0
        columns = parts.matrix.columns
        for start, stop in parts.matrix.blocks(BLOCK):
            mine, below = self._pairs.read(row, start * columns, stop * columns)
            made, moving, still = rounded(below, parts.block(start, stop), row.dtype, row.name)
            lost, energy = lost + squares(mine, made), energy + squares(mine, below)
            moved, unmoved = moved + moving, unmoved + still
        return lost, energy, moved, unmoved


def _nonzero(item: Levels | Ternary) -> int:
    if isinstance(item, Ternary):
        return int(np.bitwise_count(item.mask).sum())
    return int(np.count_nonzero(item.k[item.classes > 0]))
