"""An adapter from one naming dialect to another: every update kept, every scale resolved and told.

What is no plain factor is computed (:mod:`paring.adapters.derived`), held as it is where the target has
that kind too, or carried under its own name: nothing is dropped. Scales go to alphas, to
``adapter_config.json``, or into B, exactly for powers of two. The error told is that of what is written.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from paring import adapters, atomic
from paring.adapters import cloneofsimo, diffusers, embedded, kohya, lycoris, peft, peft_config
from paring.adapters.bases import Base
from paring.adapters.view import Adapter, Dialect, LowRank
from paring.checkpoint import write_checked
from paring.dtypes import Stored, parse_dtype, refuse_nonfinite
from paring.errors import OptionError, UnsupportedError
from paring.folders import CONFIG
from paring.hub.names import told
from paring.merging import record
from paring.packed import open_source
from paring.plan import refuse_sealed
from paring.renaming import NOTE, Names, names_of, noted
from paring.report import CarriedReport, Conversion, peak_rss_bytes
from paring.scaling import How, Placed, place, place_held, scales_of

#: what ``--dialect`` may say -> what is written
TARGETS = {
    "peft": peft.DIALECT, "kohya": kohya.DIALECT, "lycoris": lycoris.DIALECT, "diffusers": diffusers.NEWER,
    "diffusers-old": diffusers.DIALECT, "cloneofsimo": cloneofsimo.DIALECT,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked for. ``bases`` are paths of models whose names and shapes resolve what the adapter's do
    not tell; ``names`` is a JSON file of module -> canonical name, or ``sd1``.
    """

    source: str
    dialect: str
    bases: tuple[str, ...] = ()
    names: str | None = None
    dtype: str | None = None
    adapter_scale: float = 1.0

    def recipe(self) -> dict[str, Any]:
        """The options, to be stored in the output."""
        told_of = {"command": "convert", "source": told(self.source), "dialect": self.dialect}
        more = {"base": [told(base) for base in self.bases] or None, "names": self.names}
        scale = None if self.adapter_scale == 1 else self.adapter_scale
        found = {**told_of, "dtype": self.dtype, **more, "adapter_scale": scale}
        return {k: v for k, v in found.items() if v is not None}


def convert(request: Request, output: str | Path, *, overwrite: bool, dry_run: bool) -> Conversion:
    """Write the adapter ``request.source`` in another dialect to ``output``: for PEFT a folder with its
    configuration, else a file (or a folder) of tensors.

    Raises OptionError, BadFileError, UnsupportedError, BadValueError (NaN, infinity, overflow), OutputError.
    """
    started = time.perf_counter()
    wanted, dialect = parse_dtype(request.dtype), _dialect(request)
    target = Path(output)
    if dialect.scale_in == "config" and target.suffix == ".safetensors":
        raise OptionError(f"-o {output}: PEFT keeps scales in {CONFIG}: give the name of a folder")
    base = _base(request.bases)
    with open_source(request.source) as opened:
        adapter = adapters.read(opened, derived=True, shapes=base.shape)
        adapter.refuse_problems()
        if not adapter.modules:
            raise UnsupportedError(_nothing(adapter))
        atomic.refuse_same_file(target, [request.source, *opened.inputs, *request.bases])
        _refuse_target(target, overwrite, dialect)
        kept, left = _left(adapter, dialect)
        read = lru_cache(maxsize=8)(opened.read)  # some tensors are shared by many modules
        names = names_of(adapter, kept, dialect, base, request.names)
        how = How(dialect, wanted, request.adapter_scale)
        placed = [
            _place(adapter, module, name, how, i in names.embeddings, read)
            for i, (module, name) in enumerate(zip(kept, names.files, strict=True))
        ]
        carried = _carried(adapter, left, {tensor for one in placed for tensor in one.tensors})
        tensors = {name: tensor for one in placed for name, tensor in one.tensors.items()} | carried
        config = _config(adapter, dialect, placed, left)
        atomic.check_room(target, sum(tensor.nbytes for tensor in tensors.values()))
        if not dry_run:
            told = _metadata(adapter, dialect, placed, names, request)
            _write(target, dialect, tensors, told, config, overwrite)
    energy = sum(one.energy for one in placed)
    return Conversion(
        command="convert",
        inputs=[request.source],
        output=str(output),
        recipe=request.recipe(),
        bytes_in=opened.nbytes,
        bytes_out=None if dry_run else _nbytes(target, dialect),
        error=(sum(one.lost for one in placed) / energy) ** 0.5 if energy else 0.0,
        source_dialect=adapter.dialect,
        dialect=request.dialect,
        modules=[one.report() for one in placed],
        carried=_carried_reports(adapter, carried),
        scales=scales_of(placed),
        derived=dict(Counter(m.module.derived.kind for m in placed if m.module.derived and not m.held)),
        held=dict(Counter(m.module.derived.kind for m in placed if m.module.derived and m.held)),
        renamed=names.renamed(kept),
        warnings=[*names.warnings, *_warnings(adapter, dialect, placed, carried)],
        seconds=time.perf_counter() - started,
        peak_rss_bytes=peak_rss_bytes(),
        device="cpu",
        dry_run=dry_run or None,
    )


def _dialect(request: Request) -> Dialect:
    if request.dialect not in TARGETS:
        raise OptionError(f"--dialect {request.dialect}: expected {', '.join(TARGETS)}")
    if not np.isfinite(request.adapter_scale):
        raise OptionError(f"--adapter-scale {request.adapter_scale}: expected a finite number")
    return TARGETS[request.dialect]


def _base(paths: Sequence[str]) -> Base:
    found = []
    for path in paths:
        with open_source(path) as opened:
            found.append({info.name: info.shape for info in opened.tensors.values()})
    return Base(found)


def _nothing(adapter: Adapter) -> str:
    """Why there is nothing to convert."""
    path = adapter.checkpoint.path
    if adapter.vectors:
        return f"{path} is {adapter.kind}: it multiplies activations, and no other dialect has such vectors"
    if adapter.refused:
        module, why = adapter.refused[0]
        return f"{path}: no module can be converted; {module} is {why}"
    return f"{path}: no adapter factors among its {len(adapter.checkpoint)} tensors; convert takes adapters"


def _refuse_target(target: Path, overwrite: bool, dialect: Dialect) -> None:
    if target.suffix == ".safetensors":
        atomic.refuse_existing(target, overwrite)
    else:
        atomic.refuse_folder(atomic.target_of(target), overwrite, (dialect.file, CONFIG))
    refuse_sealed(target)


def _left(adapter: Adapter, dialect: Dialect) -> tuple[list[LowRank], set[str]]:
    """The modules to be written, and the tensors of those that PEFT holds as they are."""
    native = [m for m in adapter.modules if m.derived and m.derived.native and dialect.name == "peft"]
    kept = [module for module in adapter.modules if module not in native]
    return kept, {name for module in native for name in module.tensors}


def _place(
    adapter: Adapter,
    module: LowRank,
    name: str,
    how: How,
    embedding: bool,
    read: Callable[[str], Stored],
) -> Placed:
    """One module as it will be written; what it is made of is checked to be finite."""
    parts = {tensor: read(tensor) for tensor in module.tensors}
    for tensor, stored in parts.items():
        refuse_nonfinite(stored, tensor, adapter.checkpoint.path)
    return place_held(module, parts, name, how) or place(module, parts, name, how, embedding)


def _carried(adapter: Adapter, left: set[str], taken: set[str]) -> dict[str, Stored]:
    """The tensors that go along unchanged, under their own names: all but the alphas of converted modules."""
    used = _scalars(adapter)
    out = {}
    rest = [tensor.name for tensor in adapter.carried if tensor.name not in used]
    rest += [vector.tensor for vector in adapter.vectors]
    for name in [*rest, *sorted(left)]:
        if name in taken:
            raise UnsupportedError(
                f"{adapter.checkpoint.path}: {name} is no factor, but a factor would get its name: rename it"
            )
        stored = adapter.checkpoint.read(name)
        refuse_nonfinite(stored, name, adapter.checkpoint.path)
        out[name] = stored
    return out


def _scalars(adapter: Adapter) -> set[str]:
    """The alphas and scalars that are in the scales of modules."""
    source = next((one for one in adapters.dialects() if one.name == adapter.dialect), None)
    if source is None or source.alpha is None:
        return set()
    own = {found["module"] for m in adapter.modules if (found := source.factor.match(m.a))}
    return {f"{module}.{leaf}" for module in own for leaf in ("alpha", "scalar")}


def _config(
    adapter: Adapter, dialect: Dialect, placed: Sequence[Placed], left: set[str]
) -> dict[str, Any] | None:
    """PEFT's configuration. That of a plain PEFT adapter stays, but for a scale that was asked for."""
    if dialect.scale_in != "config":
        return None
    changed = any(m.module.derived or m.factor != 1 or m.source.startswith("alpha tensor") for m in placed)
    if adapter.dialect == dialect.name and adapter.config and not changed:
        return dict(adapter.config)
    if left:
        raise UnsupportedError(
            f"{adapter.checkpoint.path}: stacked experts and grouped convolutions keep their configuration: "
            "leave --adapter-scale out"
        )
    donor = adapter.config or noted(adapter.checkpoint.metadata).get("config") or {}
    modules = [peft_config.Plain(dialect.module_name(m.name), m.rank, m.alpha) for m in placed]
    return peft_config.lora_config(modules, donor, adapter.base or donor.get("base_model_name_or_path"))


def _metadata(
    adapter: Adapter, dialect: Dialect, placed: Sequence[Placed], names: Names, request: Request
) -> dict[str, str]:
    """The source's, the recipe, what the names do not tell, and the ranks that cloneofsimo's format notes."""
    stored = adapter.checkpoint.metadata
    kept = {key: text for key, text in stored.items() if key not in (NOTE, embedded.KEY)}
    told = record.metadata(kept, request.recipe())
    if dialect.name == "cloneofsimo":
        told |= {f"{one.name}:rank": str(one.rank) for one in placed}
    config = adapter.config or noted(stored).get("config")
    return told | names.note(config if dialect.scale_in != "config" else None)


def _write(
    target: Path,
    dialect: Dialect,
    tensors: Mapping[str, Stored],
    told: dict[str, str],
    config: dict[str, Any] | None,
    overwrite: bool,
) -> None:
    """Write everything, whole or not at all, and read it again."""
    if target.suffix == ".safetensors":
        write_checked(target, tensors, told, overwrite=overwrite)
        return
    with atomic.atomic_folder(target, overwrite, (dialect.file, CONFIG)) as folder:
        write_checked(folder / dialect.file, tensors, told)
        if config is not None:
            text = json.dumps(config, indent=2, sort_keys=True) + "\n"
            (folder / CONFIG).write_text(text, encoding="utf-8")


def _nbytes(target: Path, dialect: Dialect) -> int:
    return (target if target.suffix == ".safetensors" else target / dialect.file).stat().st_size


def _warnings(
    adapter: Adapter, dialect: Dialect, placed: Sequence[Placed], carried: Mapping[str, Stored]
) -> list[str]:
    out = []
    if assumed := [one for one in placed if one.module.scale_source.startswith("assumed")]:
        out.append(f"scale {assumed[0].module.scale_source}; --adapter-scale sets another")
    if carried and adapter.dialect != dialect.name:
        out.append(
            f"{len(carried)} tensors have no form in this dialect and are carried under their own names, "
            f"{next(iter(carried))} among them"
        )
    flat = [one.module.name for one in placed if one.module.derived and not one.held and one.flat]
    if flat:
        out.append(
            f"{len(flat)} modules are written as matrices, {flat[0]} among them: if they are convolutions, "
            "name the model with --base"
        )
    if dialect.embedding is None and (some := [one for one in placed if one.module.embedding]):
        out.append(f"{some[0].module.name} is an embedding: only PEFT's loader takes such factors")
    return out


def _carried_reports(adapter: Adapter, carried: Mapping[str, Stored]) -> list[CarriedReport]:
    why = {tensor.name: tensor.why for tensor in adapter.carried}
    kind = "PEFT's own form, unchanged"
    vectors = {vector.tensor: "(IA)^3 vector" for vector in adapter.vectors}
    return [
        CarriedReport(name, stored.nbytes, why.get(name) or vectors.get(name) or kind)
        for name, stored in carried.items()
    ]
