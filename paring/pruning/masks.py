"""Masks as files: which entries of which tensors stay, a bit each, packed.

A mask is a ``.safetensors`` file. For each pruned tensor ``NAME`` it holds ``NAME``, U8 ``(matrices,
ceil(entries / 8))``: of each matrix the entries in the order of the model's file, the lowest bit first, 1
where an entry stays. A tensor is one matrix, a stack of experts one for each. The metadata are ``format``
(``paring-mask``), ``version`` (``1``) and ``shapes``, JSON of the tensors' shapes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from paring.checkpoint import Checkpoint, open_checkpoint
from paring.dtypes import FLOATS, numel
from paring.errors import BadFileError, ParingError, UnsupportedError
from paring.merging.sources import Weights
from paring.pruning.tensors import Left, Target
from paring.resumable import Shard, shards
from paring.untrusted import parse_json

FORMAT = "paring-mask"
VERSION = "1"
Bools = npt.NDArray[np.bool_]


class Masked(Protocol):
    """A tensor that has a mask: its name, its shape and how many matrices it is."""

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def stack(self) -> int: ...


def layout(path: Path, tensors: Sequence[Masked], facts: Mapping[str, str]) -> Shard:
    """The file of a mask, before its bits."""
    found, metadata = specs(tensors)
    (shard,) = shards(found, path.stem, 1 << 62, {**metadata, **facts})
    return shard


def specs(tensors: Sequence[Masked]) -> tuple[list[tuple[str, str, tuple[int, int]]], dict[str, str]]:
    """Name, dtype and shape of everything in a mask's file, and its metadata."""
    found = [(t.name, "U8", (t.stack, -(-numel(t.shape) // max(1, t.stack) // 8))) for t in tensors]
    told = json.dumps({tensor.name: list(tensor.shape) for tensor in tensors}, ensure_ascii=False)
    return found, {"format": FORMAT, "version": VERSION, "shapes": told}


def place(size: int, number: int, start: int) -> int:
    """The byte of a tensor's mask at which flat entry ``start`` of its matrix ``number`` stands."""
    return number * -(-size // 8) + (start - number * size) // 8


def made_by(path: Path, run: str) -> bool:
    """Whether there is a mask that this very run has made."""
    try:
        return path.exists() and open_mask(path).facts.get("run") == run
    except ParingError:
        return False


class MaskFile:
    """An open mask. ``shapes`` are those of the tensors it is for; bits are read by spans."""

    def __init__(self, checkpoint: Checkpoint, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.checkpoint, self.path, self.shapes = checkpoint, checkpoint.path, shapes
        self.facts = checkpoint.metadata
        self._source = Weights(checkpoint)

    def stack(self, name: str) -> int:
        """How many matrices a tensor is."""
        return self.checkpoint.tensors[name].shape[0]

    def read(self, name: str, start: int, stop: int) -> Bools:
        """Which entries ``start:stop`` of the flat tensor stay, ``(stop - start,)``. Safe from several
        threads.
        """
        size = numel(self.shapes[name]) // max(1, self.stack(name))
        out = np.empty(stop - start, np.bool_)
        done = start
        while done < stop:
            number = done // size
            end = min(stop, (number + 1) * size)
            first = done - number * size
            begin, last = place(size, number, done), place(size, number, end - 1) + 1
            packed = np.empty(last - begin, np.uint8)
            packed = self._source.read(name, begin, last, packed)
            bits = np.unpackbits(packed, bitorder="little", count=first % 8 + end - done)
            out[done - start : end - start] = bits[first % 8 :]
            done = end
        return out

    def arrays(self) -> dict[str, Bools]:
        """Which entries stay, in the tensors' shapes, by name."""
        return {name: self.read(name, 0, numel(shape)).reshape(shape) for name, shape in self.shapes.items()}

    def apply(self, name: str, start: int, bits: npt.NDArray[Any]) -> None:
        """Set to zero what is masked of stored ``bits (n,)``, which begin at entry ``start`` of a tensor."""
        if name in self.shapes:
            bits[~self.read(name, start, start + len(bits))] = 0

    def digest(self) -> str:
        """What tells masks apart: of names, shapes and bits."""
        return self.checkpoint.digest()

    def close(self) -> None:
        self._source.close()

    def refuse_other(self, tensors: Mapping[str, tuple[int, ...]], path: Path) -> None:
        """Raise BadFileError where the mask has tensors that a model (names to shapes) has not so."""
        for name, shape in self.shapes.items():
            if name not in tensors:
                raise BadFileError(f"{self.path} masks {name}, which {path} has not: it is another model's")
            if tensors[name] != shape:
                raise BadFileError(
                    f"{self.path}: {name} is {list(shape)}, in {path} {list(tensors[name])}: it is another "
                    "model's"
                )


def open_mask(path: str | Path) -> MaskFile:
    """Open a mask; its sizes are checked, its bits are not read. Raises BadFileError."""
    checkpoint = open_checkpoint(path)
    facts = checkpoint.metadata
    if facts.get("format") != FORMAT:
        raise BadFileError(f"{path} is no mask: `prune --save-mask` and `paring mask` write such files")
    if facts.get("version") != VERSION:
        raise BadFileError(f"{path} is a mask of version {facts.get('version')}, this reads {VERSION}")
    told = parse_json(facts.get("shapes", "").encode() or b"{}", f"{path}: its shapes")
    if told.keys() != checkpoint.tensors.keys():
        raise BadFileError(f"{path}: its shapes are not those of its tensors")
    shapes = {}
    for name, shape in told.items():
        info = checkpoint.tensors[name]
        sound = isinstance(shape, list) and all(type(axis) is int and axis > 0 for axis in shape)
        n = numel(shape) if sound else 0
        stack = info.shape[0] if len(info.shape) == 2 else 0
        if not n or not stack or n % stack or info.dtype != "U8" or info.shape[1] != -(-n // stack // 8):
            raise BadFileError(f"{path}: {name} is no mask of a tensor {shape}")
        shapes[name] = tuple(shape)
    return MaskFile(checkpoint, shapes)


def of_mask(mask: MaskFile, checkpoint: Checkpoint) -> tuple[list[Target], list[Left]]:
    """The tensors of a model that a mask is for, and the others. Which axis is the input does not matter.

    Raises BadFileError for another model's mask, UnsupportedError for tensors that hold no numbers to prune.
    """
    infos = checkpoint.tensors
    mask.refuse_other({name: info.shape for name, info in infos.items()}, checkpoint.path)
    targets = []
    for name, shape in sorted(mask.shapes.items()):
        if infos[name].dtype not in FLOATS:
            raise UnsupportedError(f"{checkpoint.path}: {name} is {infos[name].dtype}, no numbers to prune")
        stack = mask.stack(name)
        rows = shape[1] if stack > 1 and len(shape) > 1 else shape[0]
        targets.append(
            Target(name, shape, infos[name].dtype, stack, rows, numel(shape) // stack // rows, False)
        )
    left = [Left(name, info.nbytes, "not masked") for name, info in infos.items() if name not in mask.shapes]
    return targets, left
