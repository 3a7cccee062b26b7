"""Calibration statistics as a file: what a model's matrices were given, measured once, used by many methods.

A standard ``.safetensors`` file, specified in ``docs/format.md`` (*Statistics*), so that any framework can
write it. Of each input, which several matrices may share (query, key and value; gate and up),

    NAME.norms    (in,)               F32   root mean squares over tokens
    NAME.tokens   (1,)                I64   how many tokens were seen
    NAME.gram     (in (in + 1) / 2,)  F32   X X^T / tokens, its lower triangle row by row; where asked for

and metadata ``format`` "paring-statistics", ``version`` "1" and ``statistics``, a JSON object.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from paring.checkpoint import Checkpoint, open_checkpoint
from paring.dtypes import Stored
from paring.errors import BadFileError, BadValueError, UnsupportedError
from paring.pruning.matrix import F32, Inputs
from paring.safetensors_io import write_safetensors
from paring.untrusted import parse_json

FORMAT, VERSION = "paring-statistics", "1"
#: relative difference of a diagonal of products and squared norms that rounding explains
_NEAR = 1e-3


@dataclass(frozen=True, slots=True)
class Measured:
    """One input: its name in the file, its size ``n``, and the shapes of the matrices that share it, by name,
    as the checkpoint stores them. A matrix of a stack of experts is ``TENSOR[3]``, its shape the stack's."""

    name: str
    n: int
    tensors: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Statistics:
    """An open file of statistics; ``facts`` is what it tells of model, data and windows. Reading is safe from
    several threads."""

    path: Path
    file: Checkpoint
    measured: Mapping[str, Measured]
    facts: Mapping[str, Any]
    gram: bool

    def inputs(self, name: str, *, gram: bool = True) -> Inputs:
        """What the matrix ``name`` was given: a tensor's name, of a stack of experts ``NAME[3]``. Products
        are read where the file has them and ``gram`` asks for them.

        Raises BadFileError for a matrix that was not measured, for numbers that are no norms and products
        that contradict them."""
        found = self.measured.get(name)
        if found is None:
            raise BadFileError(
                f"{self.path} has no statistics of {name}: calibrate the model that holds it, or --exclude it"
            )
        norms = self.file.read(f"{found.name}.norms").data
        (tokens,) = self.file.read(f"{found.name}.tokens").data.tolist()
        if tokens < 0 or not np.isfinite(norms).all() or (norms < 0).any():
            raise BadFileError(
                f"{self.path}: {found.name}: its norms or tokens are negative, NaN or infinite"
            )
        if not (self.gram and gram):
            return Inputs(norms, tokens)
        products = unpack(self.file.read(f"{found.name}.gram").data, found.n)
        self._check_gram(found.name, norms, products)
        return Inputs(norms, tokens, products)

    def _check_gram(self, name: str, norms: F32, gram: F32) -> None:
        squares = norms.astype(np.float64) ** 2
        off = np.abs(np.diag(gram) - squares) > _NEAR * squares + 1e-30
        # of products of any inputs none is larger than those of the two norms
        sound = np.isfinite(gram).all() and not off.any()
        for i in range(len(gram) if sound else 0):
            sound &= bool((np.abs(gram[i]) <= (1 + _NEAR) * norms[i] * norms + 1e-30).all())
        if not sound:
            raise BadFileError(f"{self.path}: {name}: products of inputs that contradict their norms")

    def covers(self, names: Iterable[str]) -> None:
        """Raise BadFileError for the first of ``names`` that was not measured."""
        wanted = list(names)
        missing = [name for name in wanted if name not in self.measured]
        if missing and len(missing) == len(wanted):
            raise BadFileError(
                f"{self.path} is for another model: it has no statistics of {missing[0]}, or of any other"
            )
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise BadFileError(
                f"{self.path} has no statistics of {missing[0]}{more}: --exclude what was not measured, or "
                "calibrate this model"
            )

    def check(self, model: Checkpoint, *, digest: bool = True) -> None:
        """Refuse a model that these are not of: each matrix measured must be there in its shape, and, where
        the file tells it, all tensors must have the digest of the model calibrated (which reads all of them).

        Raises BadFileError.
        """
        for each in self.measured.values():
            for name, shape in each.tensors.items():
                info = model.tensors.get(name) or model.tensors.get(_stack(name))
                if info is None:
                    raise BadFileError(f"{self.path} is for another model: {model.path} has no tensor {name}")
                if info.shape != shape:
                    raise BadFileError(
                        f"{self.path} is for another model: {name} is {list(info.shape)} in {model.path}, "
                        f"{list(shape)} in what was calibrated"
                    )
        told = self.facts["model"].get("sha256")
        if digest and told is not None and told != model.digest():
            raise BadFileError(
                f"{self.path} is for another model: the tensors of {model.path} are not those calibrated"
            )


def open_stats(path: str | Path) -> Statistics:
    """Open a file of statistics: all that its header tells is checked, no statistics are read.

    Raises BadFileError for what is missing or contradicts itself, UnsupportedError for a newer version.
    """
    file = open_checkpoint(path)
    where = str(file.path)
    if file.metadata.get("format") != FORMAT:
        raise BadFileError(
            f"{where} holds no calibration statistics: make them with `paring calibrate MODEL --data TEXT`"
        )
    if (version := file.metadata.get("version")) != VERSION:
        raise UnsupportedError(f"{where} has version {version}; this paring reads {VERSION}: upgrade it")
    facts = parse_json(file.metadata.get("statistics", "").encode(), f"{where}: the metadata 'statistics'")
    try:
        measured = [_measured(each) for each in facts["inputs"]]
        gram = facts["gram"]
        if not isinstance(gram, bool) or not isinstance(facts.get("model"), dict):
            raise TypeError("gram must be true or false, model an object")
        if not isinstance(facts["model"].get("sha256", ""), str):
            raise TypeError("the model's sha256 must be text")
        _check_tensors(file, measured, gram)
        by_name = {name: each for each in measured for name in each.tensors}
        if len(by_name) < sum(len(each.tensors) for each in measured):
            raise ValueError("a matrix has two inputs")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadFileError(
            f"{where}: the metadata makes no sense ({type(error).__name__}: {error})"
        ) from None
    return Statistics(Path(path), file, by_name, facts, gram)


def write_stats(
    path: str | Path,
    measured: Sequence[Measured],
    found: Iterable[tuple[str, Inputs]],
    facts: Mapping[str, Any],
    *,
    gram: bool,
    overwrite: bool = False,
) -> None:
    """Write the file ``path``, whole or not at all. ``found`` gives the statistics of each of ``measured`` by
    its name, one in memory at a time; ``facts`` are what the metadata tells beside them, ``model`` with its
    ``name`` and, best, its ``sha256``.

    Raises BadValueError for statistics of another size, NaN and infinity, OutputError.
    """
    sizes = {each.name: each.n for each in measured}
    told = {
        **facts,
        "gram": gram,
        "inputs": [
            {"name": each.name, "n": each.n, "tensors": {k: list(v) for k, v in each.tensors.items()}}
            for each in measured
        ],
    }

    def tensors() -> Iterator[tuple[str, Stored]]:
        for name, inputs in found:
            n = sizes[name]
            norms = np.ascontiguousarray(inputs.norms, np.float32)
            if norms.shape != (n,) or (gram and (inputs.gram is None or inputs.gram.shape != (n, n))):
                raise BadValueError(f"{name}: its statistics are not those of {n} inputs")
            sound = np.isfinite(norms).all() and (inputs.gram is None or np.isfinite(inputs.gram).all())
            if not sound:
                raise BadValueError(f"{name}: its inputs hold NaN or infinity, or are too large for fp32")
            yield f"{name}.norms", Stored("F32", norms)
            yield f"{name}.tokens", Stored("I64", np.array([inputs.tokens], np.int64))
            if gram and inputs.gram is not None:
                yield f"{name}.gram", Stored("F32", pack(inputs.gram))

    layout = [(name, dtype, shape) for each in measured for name, dtype, shape in _layout(each, gram)]
    metadata = {"format": FORMAT, "version": VERSION, "statistics": json.dumps(told, ensure_ascii=False)}
    write_safetensors(path, tensors(), metadata, layout=layout, overwrite=overwrite, check=_opens)


def pack(gram: F32) -> F32:
    """The lower triangle of ``gram (n, n)``, row by row: fp32 ``(n (n + 1) / 2,)``."""
    out = np.empty(len(gram) * (len(gram) + 1) // 2, np.float32)
    for i, row in enumerate(gram):
        out[i * (i + 1) // 2 : (i + 1) * (i + 2) // 2] = row[: i + 1]
    return out


def unpack(packed: F32, n: int) -> F32:
    """The symmetric matrix ``(n, n)`` of which :func:`pack` keeps the lower triangle."""
    out = np.empty((n, n), np.float32)
    for i in range(n):
        out[i, : i + 1] = out[: i + 1, i] = packed[i * (i + 1) // 2 : (i + 1) * (i + 2) // 2]
    return out


def _opens(path: Path) -> None:
    """A check of the complete file: its header can be read, and what it says of its tensors holds."""
    open_stats(path)


def _stack(name: str) -> str:
    """The tensor that holds a matrix of a stack: ``NAME`` of ``NAME[3]``."""
    return re.sub(r"\[\d+\]$", "", name)


def _layout(each: Measured, gram: bool) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    yield f"{each.name}.norms", "F32", (each.n,)
    yield f"{each.name}.tokens", "I64", (1,)
    if gram:
        yield f"{each.name}.gram", "F32", (each.n * (each.n + 1) // 2,)


def _measured(facts: Any) -> Measured:
    name, n, tensors = facts["name"], facts["n"], facts["tensors"]
    if not isinstance(name, str) or not isinstance(tensors, dict) or not tensors:
        raise TypeError("an input needs a name, and tensors that it is of")
    if type(n) is not int or not 0 < n < 1 << 31:
        raise ValueError(f"{name}: n is {n!r}")
    for tensor, shape in tensors.items():
        if not isinstance(shape, list) or len(shape) < 2 or not all(type(axis) is int for axis in shape):
            raise TypeError(f"{tensor}: its shape is {shape!r}")
        if n not in shape and n * shape[0] != np.prod(shape):  # of a convolution, channels times kernel
            raise ValueError(f"{tensor} has no axis of {n} inputs")
    return Measured(name, n, {tensor: tuple(shape) for tensor, shape in tensors.items()})


def _check_tensors(file: Checkpoint, measured: Sequence[Measured], gram: bool) -> None:
    """The file holds the tensors that its metadata asks for, in their dtypes and shapes, and no others."""
    expected = {name: (dtype, shape) for each in measured for name, dtype, shape in _layout(each, gram)}
    if len({each.name for each in measured}) < len(measured):
        raise ValueError("two inputs have one name")
    if extra := sorted(file.tensors.keys() - expected.keys()):
        raise ValueError(f"tensor {extra[0]!r} belongs to none of its inputs")
    for name, wanted in expected.items():
        info = file.tensors.get(name)
        if info is None or (info.dtype, info.shape) != wanted:
            there = "missing" if info is None else f"{info.dtype} {list(info.shape)}"
            raise ValueError(f"tensor {name!r} is {there}, expected {wanted[0]} {list(wanted[1])}")
