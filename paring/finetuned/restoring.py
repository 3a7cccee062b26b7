"""Base and packed delta in, the fine-tune out: ``decompress`` of what :mod:`.run` has packed."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from paring import atomic
from paring.checkpoint import Checkpoint, write_checked
from paring.codecs.zigzag import steps, zigzag
from paring.dtypes import FLOATS, STORAGE, TORCH, Stored, cast, from_f32, itemsize, parse_dtype
from paring.errors import BadFileError, OptionError, UnsupportedError
from paring.finetuned.parts import BITS, DELTA, LEVELS, SIGNS, A, B, spans, summed
from paring.finetuned.table import FILE, Row, Table, base_digest, needed, read_table
from paring.merging import record
from paring.outputs import SHARD_BYTES
from paring.packed import Packed, open_source
from paring.report import Report, peak_rss_bytes
from paring.resumable import index_of, shards

_BLOCK = 1 << 20  # entries that are added up at once
_STEM = "model"


@dataclass(frozen=True, eq=False)
class Restored:
    """The tensors of a fine-tune, each made of its base's and its delta when it is asked for."""

    packed: Packed
    base: Checkpoint
    table: Table

    def __post_init__(self) -> None:
        object.__setattr__(self, "_rows", {row.name: row for row in self.table.rows})

    def read(self, name: str) -> Stored:
        """One tensor, in the dtype of the fine-tune; ``base + delta`` in fp64, rounded once."""
        row: Row = self._rows[name]  # type: ignore[attr-defined]
        if row.twin is not None:
            return self.read(row.twin)
        if row.base is None or name in self.packed:
            return self.packed.read(name)
        below = self.base.read(row.base)
        if name + BITS in self.packed:
            return added(cast(below, row.dtype, name), self.packed.read(name + BITS))
        if name + DELTA in self.packed:
            return from_f32(below.f64() + self.packed.read(name + DELTA).f64(), row.dtype, name)
        if not any(name + suffix in self.packed for suffix in (A, LEVELS, SIGNS)):
            return cast(below, row.dtype, name)
        return self._summed(name, below, row.dtype)

    def _summed(self, name: str, below: Stored, dtype: str) -> Stored:
        held = {
            suffix: self.packed.read(name + suffix)
            for suffix in (A, B, LEVELS, SIGNS)
            if name + suffix in self.packed
        }
        count = below.shape[0] if len(below.shape) > 1 else 1
        flat = below.data.reshape(count, -1)
        factors = (held[A].f64(), held[B].f64()) if A in held else None
        rest = [held[suffix].data.reshape(count, -1) for suffix in (LEVELS, SIGNS) if suffix in held]
        out = np.empty(flat.shape, STORAGE[dtype])
        for start, stop in spans(count, flat.shape[1], _BLOCK):
            here = slice(start, stop)
            delta = summed(flat[here].shape, factors, here, [part[here] for part in rest])
            out[here] = from_f32(Stored(below.dtype, flat[here]).f64() + delta, dtype, name).data
        return Stored(dtype, out.reshape(below.shape))

    def refuse_base(self, where: str | Path) -> None:
        """Raise BadFileError when the base is not the one that the delta was taken from."""
        lacking = [name for name in needed(self.table.rows) if name not in self.base]
        if lacking:
            raise BadFileError(f"{where} is not the base of {self.packed.path}: it has no {lacking[0]}")
        for row in self.table.rows:
            self._refuse_shape(row, where)
        if base_digest(self.base, self.table.rows) != self.table.base_digest:
            raise BadFileError(
                f"{where} is not the base that {self.packed.path} was taken from, {self.table.base_name}: "
                "its weights are others"
            )

    def _refuse_shape(self, row: Row, where: str | Path) -> None:
        if row.base is None or row.twin is not None:
            return
        below = self.base.tensors[row.base]
        count = below.shape[0] if len(below.shape) > 1 else 1
        for suffix in (A, B, LEVELS, SIGNS, DELTA, BITS):
            info = self.packed.tensors.get(row.name + suffix)
            if info is None:
                continue
            flat = (count, below.numel // max(1, count))
            fits = {A: info.shape[-1:] == flat[1:], B: info.shape[:1] == flat[:1]}
            if not fits.get(suffix, info.numel == below.numel):
                raise BadFileError(f"{where}: {row.base} does not fit its delta in {self.packed.path}")
        if (row.name + A in self.packed) != (row.name + B in self.packed):
            raise BadFileError(f"{self.packed.path}: {row.name} has half of its factors")


def added(below: Stored, difference: Stored) -> Stored:
    """The tensor whose bits differ from those of ``below`` by that: zigzag, modulo the word."""
    bits = below.data.reshape(-1).view(f"<u{itemsize(below.dtype)}") + steps(difference.data.reshape(-1))
    return Stored(below.dtype, bits.view(STORAGE[below.dtype]).reshape(below.shape))


def difference(tuned: Stored, below: Stored) -> Stored:
    """What :func:`added` takes to come from ``below`` to ``tuned``, of one dtype."""
    kind = f"<u{itemsize(tuned.dtype)}"
    mine, theirs = (np.ascontiguousarray(each.data).view(kind) for each in (tuned, below))
    return Stored(f"U{8 * mine.itemsize}", zigzag(mine - theirs))


def restore(
    opened: Packed, output: Path, base: str | Path | None, *, dtype: str | None, overwrite: bool
) -> Report:
    """Write the fine-tune to ``output``: a file when that ends in .safetensors, else a folder with what lay
    beside it, in shards where it is large.

    Raises OptionError without ``base``, UnsupportedError for a packed one, BadFileError for another base and
    for damage, OutputError.
    """
    started, wanted = time.perf_counter(), parse_dtype(dtype)
    table = read_table(opened)
    if base is None:
        raise OptionError(f"{opened.path} is what a fine-tune adds to {table.base_name}: add --base BASE")
    with open_source(base) as below:
        if isinstance(below, Packed):
            raise UnsupportedError(f"{base} is packed: `paring decompress` the base first")
        atomic.refuse_same_file(output, [opened.path, base, *opened.inputs, *below.inputs])
        single = output.suffix == ".safetensors"
        if single:
            atomic.refuse_existing(output, overwrite)
        source = Restored(opened, below, table)
        source.refuse_base(base)
        if opened.digest() != opened.digest_recorded:
            raise BadFileError(f"{opened.path} is damaged: it decodes to something else: get it again")
        infos = {row.name: _info(source, row, wanted) for row in table.rows}
        layout = [(name, dtype_, shape) for name, (dtype_, shape) in infos.items()]

        def write(path: Path, part: list[tuple[str, str, tuple[int, ...]]], over: bool) -> None:
            stream = ((name, cast(source.read(name), to, name)) for name, to, _ in part)
            write_checked(path, stream, opened.metadata, layout=part, overwrite=over)

        warnings: list[str] = []
        if single:
            write(output, layout, overwrite)
            written = output.stat().st_size
        else:
            with atomic.atomic_folder(output, overwrite, _names(opened, table)) as folder:
                files = shards(layout, _STEM, SHARD_BYTES, opened.metadata)
                for shard in files:
                    write(folder / shard.name, [each for each in layout if each[0] in shard.places], False)
                if len(files) > 1:
                    text = json.dumps(index_of(files), indent=2, sort_keys=True)
                    (folder / f"{_STEM}.safetensors.index.json").write_text(text + "\n", encoding="utf-8")
                written = sum((folder / shard.name).stat().st_size for shard in files)
                warnings = _beside(opened, table, below, folder, wanted)
    return Report(
        command="decompress", inputs=[str(opened.path), str(base)], output=str(output),
        method=opened.facts.get("method"), bytes_in=opened.nbytes, bytes_out=written,
        error=opened.facts.get("error"), warnings=warnings, seconds=time.perf_counter() - started,
        peak_rss_bytes=peak_rss_bytes(), device="cpu",
    )  # fmt: skip


def _info(source: Restored, row: Row, wanted: str | None) -> tuple[str, tuple[int, ...]]:
    own = row if row.twin is None else next(each for each in source.table.rows if each.name == row.twin)
    held = source.packed.tensors.get(own.name)
    shape = held.shape if held is not None else source.base.tensors[str(own.base)].shape
    return (wanted if wanted and row.dtype in FLOATS else row.dtype), shape


def _names(opened: Packed, table: Table) -> tuple[str, ...]:
    """What a folder that is replaced may hold."""
    files = [*table.files, *(name.removeprefix(FILE) for name in opened if name.startswith(FILE))]
    folders = {file.split("/")[0] + "/" for file in files if "/" in file}
    return (f"{_STEM}.safetensors", *files, *folders)


def _beside(opened: Packed, table: Table, base: Checkpoint, folder: Path, dtype: str | None) -> list[str]:
    """Write the files beside the fine-tune: those in the packed file, the others from the base's folder."""
    home = base.path if base.path.is_dir() else base.path.parent
    lacking = []
    for name in table.files:
        (folder / name).parent.mkdir(exist_ok=True)
        if (home / name).is_file():
            shutil.copyfile(home / name, folder / name)
        else:
            lacking.append(name)
    for name in opened:
        if name.startswith(FILE):
            target = folder / name.removeprefix(FILE)
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(opened.read(name).tobytes())
    config = folder / "config.json"
    if dtype and config.exists():
        told: dict[str, Any] = json.loads(config.read_text(encoding="utf-8"))
        told.pop("torch_dtype", None)
        config.write_text(json.dumps(told | {"dtype": TORCH[dtype]}, indent=2) + "\n", encoding="utf-8")
    return [f"{name} is not beside the base any more: it was not written" for name in lacking]


def beside(checkpoint: Checkpoint) -> dict[str, Path]:
    """The configuration and tokenizer files beside a checkpoint, by their names."""
    home = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
    out: dict[str, Path] = {}
    for found in record.beside(home):
        if ":" not in found.name:
            inside = sorted(found.iterdir()) if found.is_dir() else [found]
            out |= {str(file.relative_to(home).as_posix()): file for file in inside if file.is_file()}
    return out
