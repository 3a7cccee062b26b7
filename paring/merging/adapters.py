"""Adapters merged to an adapter: the updates ``scale * B @ A`` are merged, never A and B apart.

A rule that is a weighted sum keeps to the factors: those of all models side by side hold the sum exactly, and
QR of both sides with an SVD of the small core brings them to the rank they need, or to the best of a lower
rank. Any other rule works on the dense update of one module at a time, whose SVD gives the factors. Either
way the error is that of the factors as written, against the exact result.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from paring import lowrank
from paring.adapters.view import LowRank, Vector
from paring.coding import Factors
from paring.dtypes import Stored, from_f32, refuse_nonfinite
from paring.errors import OptionError, UnsupportedError
from paring.merging.chunks import on_cpu
from paring.merging.inputs import Model, assumed_scales, different_bases, full_tensors, refuse_kinds
from paring.merging.models import F32, F64, Mix, Models, Result, Target
from paring.merging.modules import Joint, key, workers
from paring.merging.outcome import Outcome, write
from paring.merging.planning import alike
from paring.merging.request import Request, check, rehearsed
from paring.merging.sources import Source, Updates
from paring.merging.weights import Weighting, layers_in, parse
from paring.plan import thread_count
from paring.report import CarriedReport, ModuleReport, Report, peak_rss_bytes
from paring.stream import in_order

#: singular values below this share of the largest are rounding, of fp32 factors
_NOTHING = 1e-6


def merge(
    request: Request,
    models: Sequence[Model],
    output: Path,
    *,
    overwrite: bool,
    dry_run: bool,
    threads: int | None,
    known: dict[Any, Any] | None = None,
    device: str = "cpu",
    memory: int | None = None,
) -> Report:
    """Merge ``models``, all adapters, to the adapter ``output``, in about ``memory`` bytes.

    Raises UnsupportedError for what is no plain product (DoRA and the like), adapters of different shapes and
    carried tensors that differ, OptionError, BadValueError, OutputError.
    """
    started = time.perf_counter()
    method, options = check(request)
    if request.tokenizer is not None:
        raise OptionError("--tokenizer is for checkpoints: merged adapters keep the vocabulary of their base")
    _rank(request.rank)
    joints = _join(models)
    weights = parse(request.weights, len(models), 1.0)
    weighting = Weighting(weights, tuple(request.patterns), layers_in({j.name: None for j in joints}))
    weighting.refuse_unused([joint.name for joint in joints])
    carried = _carried(models, request.carried)
    outcome = Outcome(models[0], output, overwrite, request)
    outcome.refuse()
    warnings = alike([None, *models])
    warnings += [*different_bases(models), *assumed_scales(models)]
    merged: list[Merged] = []
    working = thread_count(threads)
    if memory is not None:
        sums = isinstance(rehearsed(method, options, weighting), Mix)
        working = workers(joints, sums, memory, working)
    if not dry_run:
        view = _view(joints, models, weighting, method.unit, working, "seed" in options)
        view.known, view.device = view.known if known is None else known, device
        rule: Result = method.function(view, **options)
        merged = _merge_all(view, rule, joints, outcome)
        tensors = {name: tensor for part in merged for name, tensor in part.tensors.items()}
        ranks = {part.joint.name: part.rank or 1 for part in merged}
        reports, folders = [part.report() for part in merged], [model.folder for model in models]
        write(outcome, joints, tensors, ranks, carried, reports, _error(merged), folders)
    return Report(
        command="merge",
        inputs=[str(model.path) for model in models],
        output=str(output),
        method=method.name,
        recipe={**request.recipe(), "options": options},
        bytes_in=sum(model.checkpoint.nbytes for model in models),
        bytes_out=None if dry_run else outcome.nbytes(),
        error=None if dry_run else _error(merged),
        carried=[CarriedReport(name, tensor.nbytes, "carried unchanged") for name, tensor in carried.items()],
        modules=[part.report() for part in merged],
        warnings=warnings,
        seconds=time.perf_counter() - started,
        peak_rss_bytes=peak_rss_bytes(),
        device=device,
        dry_run=dry_run or None,
    )


def _join(models: Sequence[Model]) -> list[Joint]:
    """The modules of all models side by side, in the order of the first that has them."""
    found: dict[str, list[LowRank | Vector | None]] = {}
    for number, model in enumerate(models):
        adapter = model.adapter
        assert adapter is not None
        refuse_kinds(model)
        if not adapter.modules and not adapter.vectors:
            raise UnsupportedError(f"{model.path} holds no factors to merge")
        parts: list[LowRank | Vector] = [*adapter.modules, *adapter.vectors]
        for part in parts:
            row = found.setdefault(key(part.name), [None] * len(models))
            if row[number] is not None:
                raise UnsupportedError(f"{model.path}: two modules are called {part.name}")
            if isinstance(part, LowRank) and part.derived and part.derived.native:
                why = f"{part.derived.kind}, which a merged adapter cannot hold"
                raise UnsupportedError(f"{model.path}: {part.name} cannot be merged: {why}")
            row[number] = part
    return [_joint(own, row, models) for own, row in found.items()]


def _joint(own: str, row: Sequence[LowRank | Vector | None], models: Sequence[Model]) -> Joint:
    first = next(i for i, part in enumerate(row) if part is not None)
    part, model = row[first], models[first]
    assert part is not None
    leader = models[0].adapter
    if model.adapter is not None and leader is not None and model.adapter.dialect != leader.dialect:
        raise UnsupportedError(
            f"{model.path}: module {part.name} is not in {models[0].path}, and its name in the "
            f"{leader.dialect} dialect is not known: give first the adapter that has all modules"
        )
    shapes = {i: _shape(other) for i, other in enumerate(row) if other is not None}
    for i, shape in shapes.items():
        if shape != shapes[first]:
            raise UnsupportedError(
                f"module {part.name} is {shapes[first][0]} x {shapes[first][1]} in {model.path}, but "
                f"{shape[0]} x {shape[1]} in {models[i].path}: adapters of different bases"
            )
    tensors = (part.tensor,) if isinstance(part, Vector) else (part.a, part.b)
    return Joint(own, part.name, tensors, shapes[first], tuple(row))


def _shape(part: LowRank | Vector) -> tuple[int, int]:
    return (1, part.numel) if isinstance(part, Vector) else (part.n_out, part.n_in)


def _carried(models: Sequence[Model], policy: str) -> dict[str, Stored]:
    """The tensors that are not factors and go along; those that differ are settled by ``policy``."""
    if policy not in ("refuse", "first", "drop"):
        raise OptionError(f"--carried {policy}: expected refuse, first or drop")
    holders: dict[str, list[Model]] = {}
    for model in models:
        for name in full_tensors(model):
            holders.setdefault(name, []).append(model)
    if policy == "drop":
        return {}
    out = {}
    for name, some in holders.items():
        if some[0] is not models[0]:
            raise UnsupportedError(
                f"{name}, a full tensor and no factor, is not in {models[0].path}, whose configuration the "
                f"result gets: name {some[0].path} first, or add --carried drop"
            )
        first = some[0].checkpoint.read(name)
        refuse_nonfinite(first, name, some[0].path)
        for other in some[1:] if policy == "refuse" else ():
            info = other.checkpoint.tensors[name]
            if (info.dtype, info.shape) != (first.dtype, first.shape) or (
                other.checkpoint.read(name).tobytes() != first.tobytes()
            ):
                raise UnsupportedError(
                    f"{name}, a full tensor and no factor, differs between {some[0].path} and {other.path}: "
                    "--carried first keeps the first model's, --carried drop none"
                )
        out[name] = first
    return out


def _view(
    joints: Sequence[Joint],
    models: Sequence[Model],
    weighting: Weighting,
    unit: Any,
    threads: int,
    seeded: bool,
) -> Models:
    """The updates as a rule sees them, one tensor a module."""
    n = len(models)
    targets = []
    for joint in joints:
        names = (None, *(joint.key if part is not None else None for part in joint.parts))
        targets.append(Target(joint.key, joint.shape, "F32", names, weighting.of(joint.name)))
    sources: list[Source | None] = [None]
    for i, model in enumerate(models):
        assert model.adapter is not None
        parts = ((joint.key, joint.parts[i]) for joint in joints)
        sources.append(Updates(model.adapter, {part.name: own for own, part in parts if part is not None}))
    seeds = [model.checkpoint.digest() for model in models] if seeded else ()
    return Models(targets, sources, True, frozenset(range(1, n + 1)), unit, threads, seeds)


@dataclass(frozen=True, slots=True, eq=False)
class Merged:
    """One merged module as it will be written, and what that lost: squared norms, of the exact update too."""

    joint: Joint
    tensors: dict[str, Stored]
    rank: int | None
    lost: float
    energy: float

    def report(self) -> ModuleReport:
        error = (self.lost / self.energy) ** 0.5 if self.energy else 0.0
        return ModuleReport(self.joint.name, self.joint.shape, self.rank, error=error)


def _error(merged: Sequence[Merged]) -> float:
    """The relative error of all updates together."""
    energy = sum(part.energy for part in merged)
    return (sum(part.lost for part in merged) / energy) ** 0.5 if energy else 0.0


def _merge_all(view: Models, rule: Result, joints: Sequence[Joint], outcome: Outcome) -> list[Merged]:
    rank, scale = _rank(outcome.request.rank), outcome.request.scale

    def one(index: int) -> Merged:
        joint, target = joints[index], view.targets[index]
        if isinstance(rule, Mix) and not joint.is_vector:
            A, B = _side_by_side(view, target, rule.coefficients(target) * scale)
            tensors, a, b = _rounded(joint, *_cut(*lowrank.svd(A, B), rank), outcome.dtype(joint))
            return Merged(joint, tensors, len(a), lowrank.distance(A, B, a, b), lowrank.energy(A, B))
        dense = _dense(view, rule, index).astype(np.float64) * scale
        energy = float((dense**2).sum())
        if joint.is_vector:
            (name,), (dtype,) = joint.tensors, outcome.dtype(joint)
            vector = from_f32(1 + dense.reshape(-1), dtype, name)
            lost = float(((vector.f32() - 1 - dense.reshape(-1)) ** 2).sum())
            return Merged(joint, {name: vector}, None, lost, energy)
        limit = rank or joint.rank
        tensors, a, b = _rounded(joint, *_cut(*lowrank.truncated(dense, limit), limit), outcome.dtype(joint))
        return Merged(joint, tensors, len(a), float(((dense - b @ a) ** 2).sum()), energy)

    return list(in_order(one, range(len(joints)), view.threads))


def _rounded(joint: Joint, A: F64, B: F64, dtypes: Sequence[str]) -> tuple[dict[str, Stored], F64, F64]:
    """Factors as they are written, and their values."""
    a, b = (from_f32(x, dtype, name) for x, dtype, name in zip((A, B), dtypes, joint.tensors, strict=True))
    name_a, name_b = joint.tensors
    wide = [x.f64() for x in (a, b)]
    return {name_a: a, name_b: b}, wide[0], wide[1]


def _rank(rank: int | str | None) -> int | None:
    """``None`` or ``"exact"``: as many as needed. Raises OptionError."""
    if rank in (None, "exact"):
        return None
    try:
        number = int(rank or 0) if isinstance(rank, str) else rank if type(rank) is int else 0
    except ValueError:
        number = 0
    if number < 1:
        raise OptionError(f"--rank {rank}: expected exact, or a number from 1 on")
    return number


def _side_by_side(view: Models, target: Target, coefficients: F64) -> tuple[F64, F64]:
    """A ``(sum of ranks, in)`` and B ``(out, sum of ranks)`` of a weighted sum of updates."""
    left, right = [], []
    for source, name, c in zip(view.sources[1:], target.names[1:], coefficients, strict=True):
        if name is not None:
            assert isinstance(source, Updates)
            f: Factors = source.modules[name]
            right.append(f.A.astype(np.float64))
            left.append(f.B.astype(np.float64) * (c * f.scale))
    return np.concatenate(right, axis=0), np.concatenate(left, axis=1)


def _cut(U: F64, s: F64, V: F64, rank: int | None) -> tuple[F64, F64]:
    """Balanced factors of the leading ``rank`` components, or of all that are more than rounding."""
    kept = max(1, int((s > _NOTHING * s[0]).sum())) if s.size and s[0] > 0 else 1
    kept = min(kept, rank or kept)
    root = np.sqrt(s[:kept])
    return root[:, None] * V[:kept], U[:, :kept] * root


def _dense(view: Models, rule: Result, index: int) -> F32:
    """The merged update (out, in) of one module."""
    target = view.targets[index]
    out = np.empty(target.numel, np.float32)

    def work(chunks: Any) -> None:
        for chunk in chunks:
            out[chunk.place.start : chunk.stop] = on_cpu(rule.chunk(chunk.vectors, chunk.place))

    for _ in view.visit(work, view.spans([index]), 1):
        pass
    return out.reshape(target.shape)
