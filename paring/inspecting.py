"""What is in a file, and whether it is sound."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from paring import adapters, coding
from paring.adapters.view import Adapter
from paring.checkpoint import Checkpoint, digest_sorted
from paring.dtypes import Stored, first_nonfinite
from paring.errors import BadFileError, OptionError, ParingError
from paring.factors import read_factors
from paring.packed import Packed, open_source
from paring.packing import MANIFEST
from paring.report import CarriedReport, Inspection, ModuleReport, Verification


def inspect(path: str | Path) -> Inspection:
    """Kind, dialect, base, modules with rank and scale, and every other tensor; no factor is read or decoded.

    Raises BadFileError or UnsupportedError for a file that cannot be opened; incomplete pairs and the like are
    listed in ``problems`` instead.
    """
    opened = open_source(path)
    adapter = adapters.read(opened)
    infos = opened.tensors.values()
    return Inspection(
        inputs=[str(path)],
        kind=adapter.kind,
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
    told = adapter.checkpoint.facts.get("modules", {}) if isinstance(adapter.checkpoint, Packed) else {}
    names = {**{m.name: (m.a, m.b) for m in adapter.modules}, **{v.name: (v.tensor,) for v in adapter.vectors}}
    place = {name: i for i, name in enumerate(names)}
    out = []

    def recorded(kind: str, name: str) -> int | None:
        values = told.get(kind, [])
        return values[place[name]] if len(values) == len(names) else None

    for module in adapter.modules:
        kept, error = recorded("nonzero", module.name), recorded("error", module.name)
        numel = module.rank * (module.n_in + module.n_out)
        out.append(
            ModuleReport(
                module.name, (module.n_out, module.n_in), module.rank,
                density=None if kept is None else kept / numel,
                error=None if error is None else error / 10_000,
                scale=module.scale, scale_source=module.scale_source,
            )
        )  # fmt: skip
    for vector in adapter.vectors:
        kept, error = recorded("nonzero", vector.name), recorded("error", vector.name)
        out.append(
            ModuleReport(
                vector.name, (1, vector.numel),
                density=None if kept is None else kept / vector.numel,
                error=None if error is None else error / 10_000,
            )
        )  # fmt: skip
    return out


def _packed(opened: Packed) -> dict[str, Any]:
    keys = ("tool", "method", "recipe", "error", "source", "dropped")
    elements = sum(info.numel for info in opened.tensors.values())
    source = opened.facts.get("source", {}).get("bytes")
    return {
        "version": opened.container.metadata["version"],
        **{key: opened.facts[key] for key in keys if key in opened.facts},
        "ratio": source / opened.nbytes if source else None,
        "ratio_fp16": 2 * elements / opened.nbytes,
        "bits_per_param": 8 * opened.nbytes / elements if elements else None,
        "digest": opened.digest_recorded,
        "manifest_bytes": opened.container.tensors[MANIFEST].nbytes,
        "payloads": [
            {"entry": held.entry, "codec": f"{held.codec}/{held.version}", "bytes": held.nbytes, "tensors": len(held.specs)}
            for held in opened.payloads
        ],
    }


def verify(path: str | Path, source: str | Path | None = None) -> Verification:
    """Check a file: payload checksums, the digest of what decodes, finite values, complete pairs; and with
    ``source`` that it was made of that very source and loses as much as it says.

    Raises BadFileError only for a file that cannot be opened at all; what fails is listed in the report.
    """
    opened = open_source(path)
    passed: list[str] = []
    failed: list[str] = []

    def run(what: str, check: Callable[[], str | None]) -> None:
        try:
            trouble = check()
        except ParingError as error:
            trouble = str(error)
        failed.append(f"{what}: {trouble}") if trouble else passed.append(what)

    if isinstance(opened, Packed):
        for held in opened.payloads:
            run(f"checksum of payload {held.entry!r}", lambda held=held: _nothing(opened.payload(held)))  # type: ignore[misc]
    run("complete pairs", lambda: _first(adapters.read(opened).problems))
    run("finite values" + (" and digest of decoded tensors" if isinstance(opened, Packed) else ""), lambda: _values(opened))
    error = recorded = None
    if source is not None:
        if not isinstance(opened, Packed):
            raise OptionError(f"--source: {path} is not a packed file; there is no recorded error to check")
        recorded = float(opened.facts.get("error", 0.0))
        original = open_source(source)
        run("digest of the source", lambda: _same_source(opened, original))
        if not failed:
            error = _error(opened, original)
            run("recorded error", lambda: None if abs(error - recorded) <= 1e-5 else f"{error:.6f}, recorded {recorded:.6f}")
    return Verification(
        inputs=[str(path)], ok=not failed, passed=passed, failed=failed, error=error, error_recorded=recorded
    )


def _nothing(_: object) -> None:
    """A check that fails only by raising."""


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


def _error(opened: Packed, original: Checkpoint) -> float:
    modules = read_factors(adapters.read(original))
    return coding.total_error(coding.measured(modules, dict(opened.read_all())))
