"""``extract``: a plain LoRA, in PEFT's form, from a full fine-tune and its base.

For each weight matrix that changed, ``delta = tuned - base`` in fp32 (one tensor of a thread at a time, read
in spans), its leading components, and factors that share the singular values evenly: ``A = sqrt(s) V``,
``B = U sqrt(s)``, alpha equal to the rank. Factors are held until they are written; errors are those of the
factors as written.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import paring
from paring import atomic, lowrank
from paring.devices import pick
from paring.dtypes import Stored, from_f32, itemsize, parse_dtype
from paring.errors import OptionError, UnsupportedError
from paring.extracting.output import Extracted, Output, carriage
from paring.extracting.plan import Sorted, sort
from paring.hub.names import ref_of, told
from paring.merging.inputs import Model, open_model
from paring.merging.models import F32, F64, Models, Place
from paring.merging.sources import Weights
from paring.plan import thread_count
from paring.report import CarriedReport, Extraction, LeftOut, peak_rss_bytes
from paring.spectrum import dense
from paring.stream import in_order

_log = logging.getLogger("paring")
_ROWS = 1 << 20  # entries whose error is measured at once


@dataclass(frozen=True, slots=True)
class Request:
    """What a user asked to extract: the arguments of :func:`paring.api.extract`, stored in the result."""

    tuned: str
    base: str
    rank: int | None = None
    energy: float | None = None
    max_rank: int | None = None
    modules: Sequence[str] = ()
    embeddings: bool = False
    others: str = "report"
    missing: str = "refuse"
    dtype: str | None = None

    def recipe(self) -> dict[str, Any]:
        """As JSON; what was left out is left out."""
        found = {name: getattr(self, name) for name in self.__dataclass_fields__}
        found |= {"modules": list(self.modules), "tuned": told(self.tuned), "base": told(self.base)}
        given = {key: value for key, value in found.items() if value not in (None, [], False)}
        return {"paring": paring.__version__, "command": "extract", **given}

    def check(self) -> str:
        """What options alone can tell; returns the dtype of factors. Raises OptionError."""
        if (self.rank is None) == (self.energy is None):
            raise OptionError("give one of --rank, the same for all, and --energy, the share to keep of each")
        if self.rank is not None and (type(self.rank) is not int or self.rank < 1):
            raise OptionError(f"--rank {self.rank}: a whole number, at least 1")
        if self.energy is not None and not 0 < self.energy <= 1:
            raise OptionError(f"--energy {self.energy:g}: a share above 0 and at most 1")
        if self.max_rank is not None and (self.energy is None or self.max_rank < 1):
            raise OptionError(f"--max-rank {self.max_rank}: at least 1, and only with --energy")
        if self.others not in ("report", "carry"):
            raise OptionError(f"--others {self.others}: expected report or carry")
        if self.missing not in ("refuse", "skip"):
            raise OptionError(f"--missing {self.missing}: expected refuse or skip")
        return parse_dtype(self.dtype) or "F32"


def extract(
    request: Request,
    output: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    dry_run: bool = False,
    threads: int | None = None,
    device: str = "auto",
) -> Extraction:
    """Carry out ``request``. Raises every ParingError; nothing is half written then."""
    started = time.perf_counter()
    dtype, workers = request.check(), thread_count(threads)
    pick(device)
    tuned = _whole(request.tuned)
    with tuned.checkpoint:
        base = _whole(request.base)
        with base.checkpoint:
            found = _sort(request, tuned, base)
            out = Output(Path(output), overwrite, request.recipe(), _name(request.base), tuned, base, found)
            out.refuse()
            if most := request.rank or request.max_rank:
                sides = (min(most, *p.shape) * sum(p.shape) for p in found.pieces)
                atomic.check_room(out.path, sum(sides) * itemsize(dtype))
            sources = Weights(base.checkpoint), Weights(tuned.checkpoint)
            pieces = Models([p.target for p in found.pieces], sources, True, frozenset(), threads=workers)
            others = [rest.target for rest in found.rest if rest.target is not None]
            try:
                modules = _modules(request, dtype, pieces, found)
                left, other = _others(
                    Models(others, sources, True, frozenset(), threads=workers), found, tuned, base
                )
                if not modules and not left:
                    raise UnsupportedError(f"{tuned.path} and {base.path} are equal: nothing to extract")
                if not modules:
                    raise UnsupportedError(f"no weight matrix differs; what does: {left[0].name}")
                carried, left = carriage(found, modules, left, request.others == "carry")
                if not dry_run:
                    out.write(modules, carried)
            finally:
                for source in sources:
                    source.close()
    energy, lost = sum(m.energy for m in modules), sum(m.lost for m in modules)
    gone = sum(rest.share or 0.0 for rest in left)
    left = [
        replace(rest, share=None if rest.share is None else rest.share / (energy + other)) for rest in left
    ]
    return Extraction(
        command="extract",
        inputs=[request.tuned, request.base],
        output=str(output),
        recipe=request.recipe(),
        bytes_in=tuned.checkpoint.nbytes + base.checkpoint.nbytes,
        bytes_out=None if dry_run else out.nbytes(),
        error=(lost / energy) ** 0.5,
        error_all=((lost + gone) / (energy + other)) ** 0.5,
        modules=[module.report() for module in modules],
        carried=[CarriedReport(name, nbytes, why) for name, nbytes, why in carried.listed(tuned)],
        left_out=left,
        warnings=_warnings(left) + out.warnings(modules),
        seconds=time.perf_counter() - started,
        peak_rss_bytes=peak_rss_bytes(),
        device="cpu",
        dry_run=dry_run or None,
    )


def _name(base: str) -> str:
    """What PEFT is told of the base: a repository where it is one, as it stands on the Hub."""
    found = ref_of(base)
    return base if found is None else found.repo


def _whole(path: str) -> Model:
    model = open_model(path)
    if model.adapter is not None:
        raise UnsupportedError(f"{path} is an adapter already: extract takes two full checkpoints")
    return model


def _sort(request: Request, tuned: Model, base: Model) -> Sorted:
    config = (base.checkpoint.config("config.json") or {}) | (tuned.checkpoint.config("config.json") or {})
    return sort(
        tuned, base, patterns=request.modules, embeddings=request.embeddings, missing=request.missing,
        config=config,
    )  # fmt: skip


def _modules(request: Request, dtype: str, models: Models, found: Sorted) -> list[Extracted]:
    """Factors of every piece that changed."""

    def one(index: int) -> Extracted | None:
        piece = found.pieces[index]
        delta = dense(models, index).reshape(piece.shape)
        energy = _squares(delta)
        if not energy:
            return None
        # embeddings are stored as (num, dim), and PEFT's product is their transpose
        if piece.turned or piece.kind == "embedding":
            delta = delta.T
        U, s, V = lowrank.leading(delta, rank=request.rank or request.max_rank, energy=request.energy or 1.0)
        root = np.sqrt(s)
        pair = zip(piece.names, (root[:, None] * V, U * root), strict=True)
        A, B = (from_f32(values, dtype, name) for name, values in pair)
        lost = _lost(delta, A, B)
        if piece.kind == "conv":
            A = Stored(dtype, A.data.reshape(len(s), *piece.target.shape[1:]))
            B = Stored(dtype, B.data.reshape(*B.shape, 1, 1))
        _log.info("%s: rank %d", piece.module, len(s))
        return Extracted(piece, dict(zip(piece.names, (A, B), strict=True)), len(s), lost, energy)

    made = in_order(one, range(len(found.pieces)), models.threads)
    return [module for module in made if module is not None]


def _squares(values: F32) -> float:
    rows = values.reshape(len(values), -1)
    return float(sum(float(np.square(row, dtype=np.float64).sum()) for row in rows))


def _lost(delta: F32, A: Stored, B: Stored) -> float:
    """``||delta - B @ A||^2``, by blocks of rows, in fp64."""
    a, b = (x.f64() for x in (A, B))
    step = max(1, _ROWS // max(1, delta.shape[1]))
    parts = (delta[i : i + step] - b[i : i + step] @ a for i in range(0, len(delta), step))
    return sum(float((part * part).sum()) for part in parts)


def _others(models: Models, found: Sorted, tuned: Model, base: Model) -> tuple[list[LeftOut], float]:
    """What changed beside the pieces, ``share`` still being its squared norm, and all of that."""

    def square(chunk: F32, place: Place) -> F64:
        return np.asarray(np.square(chunk[0], dtype=np.float64).sum())

    squares = models.totals(square, scope="tensor") if models.targets else np.zeros(0)
    rest = iter(squares.tolist())
    out = []
    for item in found.rest:
        energy = next(rest) if item.target is not None else 0.0
        if item.target is None and item.name in found.tuned and item.name in found.base:
            mine, other = found.tuned[item.name], found.base[item.name]
            differs = tuned.checkpoint.read(mine).tobytes() != base.checkpoint.read(other).tobytes()
        else:
            differs = energy > 0 or item.target is None
        if differs and item.name not in found.tied:
            out.append(LeftOut(item.name, item.shape, item.why, energy if item.target else None))
    return out, float(squares.sum())


def _warnings(left: Sequence[LeftOut]) -> list[str]:
    """One sentence about all that is left out."""
    if not left:
        return []
    share = sum(rest.share or 0.0 for rest in left)
    names = ", ".join(rest.name for rest in sorted(left, key=lambda rest: -(rest.share or 0.0))[:3])
    more = f" and {len(left) - 3} more" if len(left) > 3 else ""
    return [f"not extracted: {names}{more}, {share:.2%} of the squared change (-v lists them)"]
