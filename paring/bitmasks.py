"""Checkpoints in the sparse formats of compressed-tensors, ``sparse-bitmask`` and ``sparse-24-bitmask``.

Its releases from 0.15 on open them no more. A weight ``NAME.weight`` is stored as

    NAME.shape        I64, the axes, in any shape of its own
    NAME.compressed   the values in row-major order, flat, or (rows, columns / 2)
    NAME.bitmask      U8 (rows, ceil(columns / 8)), a bit for every entry, the lowest first
    NAME.row_offsets  I64, how many values come before each row; sparse-bitmask alone

(in older files under ``NAME.weight.shape`` and so on); other tensors as they are. :class:`Bitmasks` shows the
dense tensors, so that whatever reads checkpoints reads these. A value may be zero, and where the mask has no
bit the entry is +0; row offsets of tensors of more than two axes mean nothing and are not looked at.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from paring.checkpoint import Checkpoint, TensorInfo
from paring.dtypes import STORAGE, Stored, itemsize, numel
from paring.errors import BadFileError, UnsupportedError
from paring.safetensors_io import MAX_AXES

_PARTS = ("shape", "compressed", "bitmask")
_OFFSETS = "row_offsets"
#: keys of a configuration that say nothing by themselves
_BARE = ("quant_method", "version", "format", "quantization_status", "global_compression_ratio", "ignore")
_SECTIONS = ("quantization_config", "compression_config")


@dataclass(eq=False)
class Bitmasks(Checkpoint):
    """An open checkpoint with masked weights: ``tensors`` are dense, ``nbytes`` is the size of the files.

    ``formats`` counts the weights of each format.
    """

    container: Checkpoint = field(kw_only=True)
    formats: Mapping[str, int] = field(kw_only=True)
    prefixes: Mapping[str, str] = field(kw_only=True)

    def read(self, name: str) -> Stored:
        """One tensor, dense. Raises KeyError for an unknown name, BadFileError for masks, offsets and values
        that do not agree.
        """
        prefix = self.prefixes.get(name)
        return self.container.read(name) if prefix is None else self._dense(name, prefix)

    def close(self) -> None:
        super().close()
        self.container.close()

    @property
    def inputs(self) -> tuple[Path, ...]:
        return self.container.inputs

    def _dense(self, name: str, prefix: str) -> Stored:
        info = self.tensors[name]
        values = self.container.read(f"{prefix}.compressed")
        mask = self.container.read(f"{prefix}.bitmask").data
        rows, columns = numel(info.shape[:-1]), info.shape[-1]
        bits = np.unpackbits(mask.reshape(rows, -(-columns // 8)), axis=1, bitorder="little")
        spare, chosen = bits[:, columns:], bits[:, :columns]
        counts = chosen.sum(axis=1, dtype=np.int64)
        if spare.any() or int(counts.sum()) != values.numel:
            raise BadFileError(
                f"{info.file}: {prefix}.bitmask marks {int(counts.sum())} entries, {prefix}.compressed holds "
                f"{values.numel} values: get the file again"
            )
        offsets = f"{prefix}.{_OFFSETS}"
        if offsets in self.container and len(info.shape) <= 2:
            expected = np.cumsum(counts) - counts
            if not np.array_equal(self.container.read(offsets).data.reshape(-1), expected):
                raise BadFileError(
                    f"{info.file}: {offsets} does not fit {prefix}.bitmask: get the file again"
                )
        word = f"<u{itemsize(info.dtype)}"
        flat = np.zeros(info.numel, word)
        flat[chosen.reshape(-1).view(np.bool_)] = values.data.reshape(-1).view(word)
        flat.flags.writeable = False
        return Stored(info.dtype, flat.view(STORAGE[info.dtype]).reshape(info.shape))


def has_bitmasks(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint holds weights in these formats."""
    return any(
        name.endswith(".bitmask") and f"{name.removesuffix('.bitmask')}.compressed" in checkpoint
        for name in checkpoint
    )


def open_bitmasks(container: Checkpoint) -> Bitmasks:
    """The dense tensors of ``container``, checked as far as shapes and axes tell.

    Raises BadFileError for parts that are missing or do not fit each other, UnsupportedError for weights
    that are packed otherwise, too (marlin-24).
    """
    tensors: dict[str, TensorInfo] = {}
    prefixes: dict[str, str] = {}
    formats: dict[str, int] = {}
    for name, info in container.tensors.items():
        prefix, _, part = name.rpartition(".")
        if part == "meta" and f"{prefix}.weight_packed" in container:
            raise UnsupportedError(f"{container.path}: {prefix} is packed as marlin-24, which is not read")
        masked = f"{prefix}.bitmask" in container and f"{prefix}.compressed" in container
        if not masked or part not in (*_PARTS, _OFFSETS):
            tensors[name] = info
        elif part == "bitmask":
            weight = prefix if prefix.endswith(".weight") else f"{prefix}.weight"
            if weight in container or weight in prefixes:
                raise BadFileError(f"{container.path}: {weight} is there twice, once as {name}")
            tensors[weight] = _info(container, weight, prefix)
            prefixes[weight] = prefix
            form = "sparse-bitmask" if f"{prefix}.{_OFFSETS}" in container else "sparse-24-bitmask"
            formats[form] = formats.get(form, 0) + 1
    return Bitmasks(
        container.path, container.files, tensors, container.metadata, container.nbytes,
        index=container.index, container=container, formats=formats, prefixes=prefixes,
    )  # fmt: skip


def _info(container: Checkpoint, weight: str, prefix: str) -> TensorInfo:
    """What headers tell of a weight; only its axes are read."""

    def bad(why: str) -> BadFileError:
        return BadFileError(f"{container.path}: {prefix} {why}: get the file again")

    axes = container.tensors.get(f"{prefix}.shape")
    values, mask = container.tensors[f"{prefix}.compressed"], container.tensors[f"{prefix}.bitmask"]
    offsets = container.tensors.get(f"{prefix}.{_OFFSETS}")
    if axes is None or axes.dtype not in ("I64", "I32") or not 1 <= axes.numel <= MAX_AXES:
        raise bad("has no shape that makes sense")
    shape = tuple(int(axis) for axis in container.read(axes.name).data.reshape(-1).tolist())
    if min(shape) < 0:
        raise bad("has no shape that makes sense")
    rows, width = shape[:-1], -(-shape[-1] // 8)
    if mask.dtype != "U8" or mask.shape[-1:] != (width,) or mask.numel != numel(rows) * width:
        raise bad(f"is said to be {list(shape)}, which its mask {list(mask.shape)} does not fit")
    if values.numel > numel(shape):
        raise bad(f"is said to be {list(shape)}, and holds {values.numel} values")
    if offsets is None and 2 * values.numel != numel(shape):
        raise bad("holds other than two values in four, and no offsets of rows")
    if offsets is not None and (offsets.dtype != "I64" or offsets.numel != numel(rows)):
        raise bad("has offsets of other rows than it has")
    size = numel(shape) * itemsize(values.dtype)
    return TensorInfo(weight, values.dtype, shape, values.file, 0, size)


def cleaned(config: Mapping[str, Any]) -> dict[str, Any]:
    """A ``config.json`` as it is true of dense tensors: nothing of sparse formats, and what says how weights
    are quantised only where some are.
    """
    told = {key: value for key, value in config.items() if key != "sparsity_config"}
    for section in _SECTIONS:
        own = told.get(section)
        if isinstance(own, Mapping) and "sparsity_config" in own:
            rest = {key: value for key, value in own.items() if key != "sparsity_config"}
            if any(value for key, value in rest.items() if key not in _BARE):
                told[section] = rest
            else:
                del told[section]
    return told


def refuse_formats(config: Mapping[str, Any], where: str) -> None:
    """Raise UnsupportedError for a configuration of a format whose weights are packed in another way."""
    for section in _SECTIONS:
        own = config.get(section)
        if isinstance(own, Mapping) and "marlin-24" in json.dumps(own.get("format")):
            raise UnsupportedError(f"{where} is packed as marlin-24, which is not read")
