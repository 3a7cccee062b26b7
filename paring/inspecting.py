"""What is in a file, and whether it is sound."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from paring import adapters, coding
from paring.adapters.view import Adapter
from paring.checkpoint import Checkpoint, digest_sorted
from paring.contents import Held, told
from paring.dtypes import Stored, first_nonfinite
from paring.errors import BadFileError, OptionError, ParingError
from paring.factors import read_factors
from paring.finetuned.table import holds_delta, read_table
from paring.mos.file import MosFile
from paring.packed import Packed, open_source
from paring.pooling.inspecting import inspect_pool, problems
from paring.pooling.members import holds_adapters
from paring.report import CarriedReport, Inspection, ModuleReport, Verification


def inspect(path: str | Path, plot: Path | None = None, overwrite: bool = False) -> Inspection:
    """Kind, dialect, base, modules with rank and scale, and every other tensor; no factor is read or decoded.

    Raises BadFileError or UnsupportedError for a file that cannot be opened; incomplete pairs and the like
    are listed in ``problems`` instead. Of a pool, a :class:`~paring.pooling.report.PoolInspection`
    and a picture ``plot`` of it; OptionError for a picture of anything else.
    """
    opened = open_source(path, whole=True)
    if isinstance(opened, Packed) and holds_adapters(opened):
        return inspect_pool(opened, plot, overwrite)
    if plot is not None:
        raise OptionError(f"--plot: {path} is no pool of adapters, there is no sharing to draw")
    if isinstance(opened, Packed) and holds_delta(opened):
        from paring.finetuned.looking import inspect_delta

        return inspect_delta(opened, _packed(opened))
    adapter = adapters.read(opened, derived=True)
    infos = opened.tensors.values()
    return Inspection(
        inputs=[str(path)],
        kind="MoS" if isinstance(opened, MosFile) else adapter.kind,
        dialect=adapter.dialect,
        base=adapter.base,
        bytes_in=opened.nbytes,
        elements=sum(info.numel for info in infos),
        dtypes=dict(Counter(info.dtype for info in infos)),
        modules=_modules(adapter),
        carried=[CarriedReport(tensor.name, tensor.nbytes, tensor.why) for tensor in adapter.carried],
        problems=list(adapter.problems),
        metadata=dict(opened.metadata),
        packed=_packed(opened) if isinstance(opened, Packed) else None,
    )


def _modules(adapter: Adapter) -> list[ModuleReport]:
    recorded = _recorded(adapter)
    pairs = [
        ModuleReport(
            module.name,
            (module.n_out, module.n_in),
            module.rank,
            scale=module.scale,
            scale_source=module.scale_source,
            **recorded(module.name, module.rank * (module.n_in + module.n_out)),
        )
        for module in adapter.modules
    ]
    vectors = [
        ModuleReport(vector.name, (1, vector.numel), **recorded(vector.name, vector.numel))
        for vector in adapter.vectors
    ]
    return pairs + vectors


def _recorded(adapter: Adapter) -> Callable[[str, int], dict[str, Any]]:
    """What a packed file tells of a module of so many parameters: density, error, or nothing."""
    opened = adapter.checkpoint
    stated = opened.facts.get("modules", {}) if isinstance(opened, Packed) else {}
    names = sorted([module.name for module in adapter.modules] + [vector.name for vector in adapter.vectors])
    columns = [stated.get(key, []) for key in ("nonzero", "error")]
    nonzero, error = (
        dict(zip(names, some, strict=True)) if len(some) == len(names) else {} for some in columns
    )

    def recorded(name: str, numel: int) -> dict[str, Any]:
        found = {}
        if name in nonzero:
            found["density"] = nonzero[name] / numel
        if name in error:
            found["error"] = error[name] / 10_000
        return found

    return recorded


def _packed(opened: Packed) -> dict[str, Any]:
    keys = ("tool", "method", "recipe", "error", "source", "dropped", "rounded")
    elements = opened.facts.get("elements", sum(info.numel for info in opened.tensors.values()))
    facts = {key: opened.facts[key] for key in keys if key in opened.facts}
    return told(opened, facts, opened.facts.get("source", {}).get("bytes") or 0, elements)


def verify(
    path: str | Path, source: str | Path | None = None, base: str | Path | None = None
) -> Verification:
    """Check a file: payload checksums, the digest of what decodes, finite values, complete pairs; and with
    ``source`` that it was made of that very source and loses as much as it says.

    Raises OptionError for a ``source`` or ``base`` that the file has no use for or lacks, and BadFileError
    only for a file that cannot be opened at all; what fails is listed in the report.
    """
    opened = open_source(path, whole=True)
    pool = isinstance(opened, Packed) and holds_adapters(opened)
    if source is not None and pool:
        raise OptionError(f"--source: {path} is a pool: name one of its adapters, as in {path}#1")
    if source is not None and not isinstance(opened, Packed):
        raise OptionError(f"--source: {path} is not a packed file; there is no recorded error to check")
    delta = isinstance(opened, Packed) and holds_delta(opened)
    if delta != (base is not None) and (base or source):
        raise OptionError(
            f"--source of a delta, {path}, needs its --base, too"
            if delta
            else f"--base: {path} is no delta of a full fine-tune"
        )
    found = Verification(inputs=[str(path)])
    if isinstance(opened, Packed):
        for held in opened.payloads:
            _check(found, f"checksum of payload {held.entry!r}", partial(_checksum, opened, held))
    _check(found, "complete pairs", lambda: _first(_problems(opened)))
    digest_too = " and digest of decoded tensors" if isinstance(opened, Packed) else ""
    _check(found, "finite values" + digest_too, lambda: _values(opened))
    if source is not None and isinstance(opened, Packed):
        original = open_source(source)
        _check(found, "digest of the source", lambda: _same_source(opened, original))
        if base is not None:
            return _delta(found, opened, original, base)
        if found.ok:
            recorded = float(opened.facts.get("error", 0.0))
            _check(found, "recorded error", lambda: _loss(found, opened, original, recorded))
    return found


def _delta(found: Verification, opened: Packed, tuned: Checkpoint, base: str | Path) -> Verification:
    """The base of a packed fine-tune, and how much is lost of that."""
    from paring.finetuned.restoring import Restored
    from paring.finetuned.run import error_of

    below = open_source(base)

    def restored() -> Restored:
        return Restored(opened, below, read_table(opened))

    _check(found, "digest of the base", lambda: restored().refuse_base(below.path))

    def same() -> str | None:
        recorded = float(opened.facts.get("error", 0.0))
        found.error, found.error_recorded = error_of(restored(), tuned), recorded
        close = abs(found.error - recorded) <= 1e-5
        return None if close else f"{found.error:.6f}, recorded {recorded:.6f}"

    if found.ok:
        _check(found, "recorded error", same)
    return found


def _problems(opened: Checkpoint) -> Iterable[str]:
    if isinstance(opened, Packed) and holds_adapters(opened):
        return problems(opened)
    if isinstance(opened, Packed) and holds_delta(opened):
        read_table(opened)
        return ()
    return adapters.read(opened).problems


def _check(found: Verification, what: str, check: Callable[[], str | None]) -> None:
    """Note in ``found`` whether ``check`` returns a trouble, or raises one."""
    try:
        trouble = check()
    except ParingError as error:
        trouble = str(error)
    if trouble:
        found.failed.append(f"{what}: {trouble}")
    else:
        found.passed.append(what)


def _checksum(opened: Packed, held: Held) -> None:
    opened.payload(held)


def _first(problems: Iterable[str]) -> str | None:
    return next(iter(problems), None)


def _values(opened: Checkpoint) -> str | None:
    """Whether all values are finite, and a packed file decodes to the tensors it was made to decode to."""

    def visit() -> Iterable[tuple[str, Stored]]:
        decoded = dict(opened.read_all()) if isinstance(opened, Packed) else None
        for name in sorted(opened.tensors):
            tensor = opened.read(name) if decoded is None else decoded[name]
            if (at := first_nonfinite(tensor)) is not None:
                raise BadFileError(f"{name} holds NaN or infinity (first at flat index {at})")
            yield name, tensor

    found = digest_sorted(visit())
    if isinstance(opened, Packed) and found != opened.digest_recorded:
        return "the decoded tensors are not those that were written"
    return None


def _same_source(opened: Packed, original: Checkpoint) -> str | None:
    recorded = opened.facts.get("source", {}).get("sha256")
    return None if original.digest() == recorded else f"{original.path} is not what this file was made of"


def _fits(shape: tuple[int, ...], own: tuple[int, ...], axis: int, pair: str | None) -> bool:
    """Whether a factor of shape ``own`` may have become one of ``shape``: fewer ranks, along ``axis``."""
    if pair is None or len(shape) != len(own):
        return shape == own
    return shape[axis] <= own[axis] and all(
        a == b for i, (a, b) in enumerate(zip(shape, own, strict=True)) if i != axis
    )


def _loss(found: Verification, opened: Packed, original: Checkpoint, recorded: float) -> str | None:
    """Whether ``opened`` loses as much of ``original`` as it says; notes both errors in ``found``."""
    adapter = adapters.read(original, derived=True, native=False)
    # what is derived may have been packed as plain factors, or carried as it was
    carried = {m.name for m in adapter.modules if m.derived and m.a not in opened}
    factors = [f for f in read_factors(adapter) if f.name not in carried]
    dropped = set(opened.facts.get("dropped", ()))
    for f in factors:
        for axis, (name, shape) in enumerate(zip((f.a, f.b), f.shapes, strict=False)):
            if name in dropped and name not in opened:
                continue
            if name is None or name not in opened or not _fits(opened.tensors[name].shape, shape, axis, f.b):
                return f"{name} is not in {opened.path} as it is in {original.path}"
    scale = (opened.facts.get("recipe") or {}).get("adapter_scale")
    if isinstance(scale, float):
        factors = [replace(f, scale=scale) if f.b else f for f in factors]
    loss = coding.total_error(coding.measured(factors, dict(opened.read_all())))
    found.error, found.error_recorded = loss, recorded
    return None if abs(loss - recorded) <= 1e-5 else f"{loss:.6f}, recorded {recorded:.6f}"
