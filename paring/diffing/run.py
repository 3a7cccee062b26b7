"""``diff``: how models differ from their base, and from each other, by tensor and in all.

All numbers but ranks come from one streamed pass: sums in fp64 of fp32 entries, in fixed chunks, so that they
do not depend on threads. Where a vocabulary was resized, the rows that all have are compared.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from paring.checkpoint import TensorInfo
from paring.diffing import adapters, plotting
from paring.diffing.alikeness import Sums, signs, square
from paring.diffing.report import Difference, NotCompared, TensorDiff
from paring.dtypes import FLOATS
from paring.errors import OptionError, UnsupportedError
from paring.hub.names import PathLike
from paring.kernels import merging
from paring.matching import prefixes
from paring.merging.inputs import Model, open_model
from paring.merging.models import F32, F64, Models, Place, Target
from paring.merging.sources import Source, Weights
from paring.plan import thread_count
from paring.report import peak_rss_bytes
from paring.spectrum import dense, spectrum
from paring.stream import in_order

#: the smaller side of a matrix whose rank is found without being asked for
QUICK = 1024


def diff(
    models: Sequence[PathLike],
    *,
    base: PathLike | None = None,
    rank: bool | None = None,
    plot: PathLike | None = None,
    overwrite: bool = False,
    threads: int | None = None,
) -> Difference:
    """Compare; see :func:`paring.api.diff`. Raises every ParingError."""
    started, workers = time.perf_counter(), thread_count(threads)
    if not models or (base is None and len(models) < 2):
        raise OptionError("name two models to compare, or one and its --base")
    if plot is not None:
        plotting.refuse(Path(plot), overwrite, [*models, *([base] if base is not None else [])])
    opened = [open_model(Path(path)) for path in ([base] if base is not None else []) + list(models)]
    try:
        kinds = {model.adapter is not None for model in opened}
        if len(kinds) > 1:
            odd = next(model.path for model in opened if model.adapter is not None)
            raise UnsupportedError(
                f"{odd} is an adapter, others are not: fold it with `paring merge --into` first, or compare "
                "adapters with each other"
            )
        if kinds == {True}:
            if base is not None:
                raise OptionError("--base is for checkpoints: adapters are updates already, leave it out")
            found = adapters.compare(opened, workers)
        else:
            found = _compare(opened, rank, workers)
    finally:
        for model in opened:
            model.checkpoint.close()
    if plot is not None:
        plotting.draw(found, Path(plot), overwrite)
    return _finished(found, started, plot)


def _finished(found: Difference, started: float, plot: PathLike | None) -> Difference:
    seconds = time.perf_counter() - started
    drawn = None if plot is None else os.fspath(plot)
    return replace(found, seconds=seconds, peak_rss_bytes=peak_rss_bytes(), plot=drawn)


def _compare(opened: Sequence[Model], rank: bool | None, threads: int) -> Difference:
    """Checkpoints; the first is the base."""
    targets, notes, not_compared = _align(opened)
    if not targets:
        raise UnsupportedError(
            f"{opened[0].path} and {opened[1].path} have no float tensor in common: not of one architecture"
        )
    n = len(opened) - 1
    sources: list[Source | None] = [None, *(Weights(model.checkpoint) for model in opened)]
    view = Models(targets, sources, False, frozenset(), threads=threads)
    try:
        sums = view.totals(_sums, scope="tensor")
        spectra = _spectra(view, rank)
    finally:
        for source in sources:
            if source is not None:
                source.close()
    rows = [Sums(row, n, _present(target)) for row, target in zip(sums, targets, strict=True)]
    whole = Sums(sums.sum(axis=0), n, [True] * n)
    tensors = [
        _tensor(target, row, spectrum, notes.get(target.name, ""))
        for target, row, spectrum in zip(targets, rows, spectra, strict=True)
    ]
    return Difference(
        kind="checkpoints",
        base=str(opened[0].path),
        inputs=[str(model.path) for model in opened[1:]],
        tensors=tensors,
        not_compared=not_compared,
        change=whole.change(),
        cosine=whole.cosine(),
        delta_norm=whole.norm(),
        changed=whole.changed(),
        delta_cosine=square(whole.delta_cosine(), n) if n > 1 else None,
        agreement=square(whole.agreement(), n) if n > 1 else None,
        warnings=_warnings(opened),
    )


def _warnings(opened: Sequence[Model]) -> list[str]:
    seen: dict[Path, int] = {}
    for model in opened:
        seen[model.path.resolve()] = seen.get(model.path.resolve(), 0) + 1
    return [f"{path} is given {times} times" for path, times in seen.items() if times > 1]


def _align(opened: Sequence[Model]) -> tuple[list[Target], dict[str, str], list[NotCompared]]:
    """Targets by the base's names, ``names`` being (None, base, ...); notes on some; what is not compared."""
    found: list[dict[str, TensorInfo]] = []
    for model in opened:
        infos = model.checkpoint.tensors
        p, q = prefixes(infos.keys(), opened[0].checkpoint.tensors.keys())
        found.append({(p + name).removeprefix(q): info for name, info in infos.items()})
    targets: list[Target] = []
    notes: dict[str, str] = {}
    rest: list[NotCompared] = []
    for name in dict.fromkeys(name for infos in found for name in infos):
        here = {i: infos[name] for i, infos in enumerate(found) if name in infos}
        lacking = [opened[i].path for i in range(len(opened)) if i not in here]
        if 0 not in here or len(here) == 1:
            where = ", ".join(str(opened[i].path) for i in here)
            rest.append(NotCompared(name, f"only in {where}"))
            continue
        if lacking:
            rest.append(NotCompared(name, f"not in {', '.join(map(str, lacking))}"))
        if any(info.dtype not in FLOATS for info in here.values()):
            rest.append(NotCompared(name, _integers(opened, here)))
            continue
        target, note = _target(name, here, len(opened))
        if target is None:
            rest.append(NotCompared(name, note))
        else:
            targets.append(target)
            notes[name] = note
    return targets, notes, rest


def _target(name: str, here: Mapping[int, TensorInfo], count: int) -> tuple[Target | None, str]:
    """The part of a tensor that can be compared, and what is to be said of it."""
    shapes = [info.shape for info in here.values()]
    note = []
    dtypes = list(dict.fromkeys(info.dtype for info in here.values()))
    if len(dtypes) > 1:
        note.append(" and ".join(dtypes))
    shape = shapes[0]
    if len(set(shapes)) > 1:
        told = ", ".join(str(list(one)) for one in dict.fromkeys(shapes))
        if not shape or len({one[1:] for one in shapes}) > 1:
            return None, f"shapes differ: {told}"
        # rows are contiguous, so those that all have come first in each file
        shape = (min(one[0] for one in shapes), *shape[1:])
        note.append(f"the first {shape[0]} rows of {told}")
    names = (None, *(here[i].name if i in here else None for i in range(count)))
    return Target(name, shape, "F32", names, (1.0,) * count), "; ".join(note)


def _integers(opened: Sequence[Model], here: Mapping[int, TensorInfo]) -> str:
    """Whether integers, or floats against integers, have the same bits."""
    first = here[0]
    dtypes = " and ".join(dict.fromkeys(info.dtype for info in here.values()))
    if len({(info.dtype, info.shape) for info in here.values()}) > 1:
        return f"{dtypes}: of different kinds or shapes"
    bits = opened[0].checkpoint.read(first.name).tobytes()
    odd = [str(opened[i].path) for i in here if opened[i].checkpoint.read(here[i].name).tobytes() != bits]
    return f"{dtypes}, differs in {', '.join(odd)}" if odd else f"{dtypes}, equal"


def _present(target: Target) -> list[bool]:
    return [name is not None for name in target.names[2:]]


def _sums(chunk: F32, place: Place) -> F64:
    """What :class:`Sums` is made of, of one chunk ``(base and models, k)``."""
    base, present = chunk[0], np.array(_present(place.target))
    deltas = np.where(present[:, None], chunk[1:] - base, np.float32(0))
    weights = np.where(present[:, None], chunk[1:], np.float32(0))
    squares = merging.gram(chunk[:1])[0]
    dots = np.array([merging.gram(np.stack([base, row]))[0, 1] for row in weights])
    own = np.array([merging.gram(row[None])[0, 0] for row in weights])
    per_base = np.where(present, squares[0], 0.0)
    counts = np.where(present, float(len(base)), 0.0)
    changed = np.count_nonzero(deltas, axis=1).astype(np.float64)
    parts = [per_base, own, dots, changed, counts, merging.gram(deltas), *signs(deltas)]
    return np.concatenate([np.ravel(part) for part in parts])


def _tensor(
    target: Target, sums: Sums, ranks: list[tuple[float, int] | None] | None, note: str
) -> TensorDiff:
    several = len(sums.present) > 1
    return TensorDiff(
        target.name, target.shape, sums.change(), sums.cosine(), sums.norm(), sums.changed(),
        None if ranks is None else [None if r is None else r[0] for r in ranks],
        None if ranks is None else [None if r is None else r[1] for r in ranks],
        sums.delta_cosine() if several else None, sums.agreement() if several else None, note,
    )  # fmt: skip


def _spectra(view: Models, rank: bool | None) -> list[list[tuple[float, int] | None] | None]:
    """Effective ranks of every delta of a matrix: whole, one model of one tensor at a time in each thread."""

    def one(index: int) -> list[tuple[float, int] | None] | None:
        target = view.targets[index]
        side = min(target.shape[0], target.numel // max(1, target.shape[0])) if target.shape else 0
        if len(target.shape) not in (2, 4) or not side or rank is False or (rank is None and side > QUICK):
            return None
        return [_spectrum(view, target, i) if here else None for i, here in enumerate(_present(target))]

    return list(in_order(one, range(len(view.targets)), view.threads))


def _spectrum(view: Models, target: Target, model: int) -> tuple[float, int] | None:
    """Of one model's delta; trailing axes are flattened."""
    pair = Target(target.name, target.shape, target.dtype, (target.names[1], target.names[model + 2]), (1.0,))
    delta = dense(Models([pair], [view.sources[1], view.sources[model + 2]], True, frozenset()), 0)
    return spectrum(delta.reshape(target.shape[0], -1))
