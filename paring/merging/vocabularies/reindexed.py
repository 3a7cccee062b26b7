"""Sources whose rows are tokens, read in the order of another vocabulary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from paring.dtypes import STORAGE, itemsize
from paring.errors import BadValueError
from paring.kernels import elementwise
from paring.merging.sources import Bits, Entry, Source

I64 = npt.NDArray[np.int64]


class Elsewhere:
    """Rows that a model lacks: the base's, where it has them, else the mean over the models that do.

    The mean is taken in fp64, weighted by the models' weights for that tensor, or evenly where those of the
    models that have the row include a negative one or sum to zero, and rounded once to the tensor's dtype. So
    a base that lacks a token has that mean for it, as has every model that lacks it: their deltas are zero.
    ``sources[0]`` is the base or None, ``maps[i]`` has its rows by tensor, ``weights`` are by tensor
    ``(models,)``.
    """

    def __init__(
        self,
        sources: Sequence[Source | None],
        maps: Sequence[Mapping[str, I64]],
        weights: Mapping[str, Sequence[float]],
        dtypes: Mapping[str, str],
    ) -> None:
        self._sources, self._maps, self._weights, self._dtypes = sources, maps, weights, dtypes

    def rows(self, name: str, wanted: I64) -> Bits:
        """Rows ``wanted`` of the result's tensor ``name``, ``(k, width)``."""
        dtype, base = self._dtypes[name], self._sources[0]
        if base is None or name not in self._maps[0]:
            return self._mean(name, wanted)
        own = self._maps[0][name][wanted]
        if (own >= 0).all():
            return gather(base, name, own, dtype)
        if (own < 0).all():
            return self._mean(name, wanted)
        found = gather(base, name, own[own >= 0], dtype)
        out = np.empty((len(wanted), found.shape[1]), found.dtype)
        out[own >= 0], out[own < 0] = found, self._mean(name, wanted[own < 0])
        return out

    def _mean(self, name: str, wanted: I64) -> Bits:
        rows = {i: maps[name][wanted] for i, maps in enumerate(self._maps) if i and name in maps}
        has = np.array([rows[i] >= 0 for i in rows])  # (models, k)
        given = [self._weights[name][i - 1] if name in self._weights else 1.0 for i in rows]
        weights = np.array(given)[:, None] * has
        usable = (weights >= 0).all(axis=0) & (weights.sum(axis=0) > 0)
        weights = np.where(usable, weights, has)
        weights /= weights.sum(axis=0)
        entry = next(source.tensors[name] for i in rows if (source := self._sources[i]) is not None)
        total = np.zeros((len(wanted), entry.numel // entry.shape[0]))
        for number, i in enumerate(rows):
            source, there = self._sources[i], np.flatnonzero(has[number])
            if source is not None and len(there):
                total[there] += weights[number, there, None] * _f32(source, name, rows[i][there])
        out = np.empty(total.shape, STORAGE[self._dtypes[name]])
        elementwise.narrow(total.astype(np.float32).reshape(-1), self._dtypes[name], out.reshape(-1))
        return out


class Reindexed:
    """``source`` with the rows of some tensors chosen: row r of ``name`` is its row ``maps[name][r]``, and
    where that is -1, zeros, or what ``elsewhere`` has. They are read as the dtypes in ``dtypes``.

    Rows are gathered span by span, whole rows at a time: no tensor is held.
    """

    def __init__(
        self,
        source: Source,
        maps: Mapping[str, I64],
        dtypes: Mapping[str, str],
        elsewhere: Elsewhere | None = None,
    ) -> None:
        self.path: Path = source.path
        self._source, self._elsewhere = source, elsewhere
        self._maps = {name: rows for name, rows in maps.items() if name in source.tensors}
        made = {
            name: Entry((len(rows), *source.tensors[name].shape[1:]), dtypes[name])
            for name, rows in self._maps.items()
        }
        self.tensors: Mapping[str, Entry] = {**source.tensors, **made}

    def read(self, name: str, start: int, stop: int, buffer: npt.NDArray[np.uint8]) -> Bits:
        if name not in self._maps:
            return self._source.read(name, start, stop, buffer)
        entry, rows = self.tensors[name], self._maps[name]
        if stop <= start:
            return np.empty(0, STORAGE[entry.dtype])
        width = entry.numel // len(rows)
        first, last = start // width, -(-stop // width)
        chosen = rows[first:last]
        lacking = np.flatnonzero(chosen < 0)
        if len(lacking) == len(chosen):
            out = self._others(name, first + lacking, width)
        elif not len(lacking):
            out = gather(self._source, name, chosen, entry.dtype)
        else:
            out = np.empty((len(chosen), width), STORAGE[entry.dtype])
            out[chosen >= 0] = gather(self._source, name, chosen[chosen >= 0], entry.dtype)
            out[lacking] = self._others(name, first + lacking, width)
        return out.reshape(-1)[start - first * width : stop - first * width]

    def _others(self, name: str, rows: I64, width: int) -> Bits:
        if self._elsewhere is not None:
            return self._elsewhere.rows(name, rows)
        return np.zeros((len(rows), width), STORAGE[self.tensors[name].dtype])

    def close(self) -> None:
        self._source.close()


def gather(source: Source, name: str, rows: I64, dtype: str) -> Bits:
    """``rows`` of a tensor as ``dtype``, ``(k, width)``; rows that follow one another are read at once.
    Raises BadValueError where a value overflows ``dtype``.
    """
    entry = source.tensors[name]
    width = entry.numel // entry.shape[0]
    out = np.empty((len(rows), width), STORAGE[entry.dtype])
    raw = out.view(np.uint8).reshape(-1)
    size = width * itemsize(entry.dtype)
    ends = [*(np.flatnonzero(np.diff(rows) != 1) + 1).tolist(), len(rows)]
    begin = 0
    for end in ends:
        row = int(rows[begin])
        place = raw[begin * size : end * size]
        found = source.read(name, row * width, (row + end - begin) * width, place)
        if not np.may_share_memory(found, place):
            out[begin:end] = found.reshape(-1, width)
        begin = end
    if entry.dtype == dtype:
        return out
    # NaN and infinity stay, to be refused where they are used
    values, wanted = np.empty(out.shape, np.float32), np.empty(out.shape, STORAGE[dtype])
    sound = elementwise.widen(out.reshape(-1), entry.dtype, values.reshape(-1))
    if not elementwise.narrow(values.reshape(-1), dtype, wanted.reshape(-1)) and sound:
        raise BadValueError(f"{source.path}: {name} holds a value too large for {dtype}")
    return wanted


def _f32(source: Source, name: str, rows: I64) -> npt.NDArray[np.float32]:
    bits = gather(source, name, rows, source.tensors[name].dtype)
    values = np.empty(bits.shape, np.float32)
    if not elementwise.widen(bits.reshape(-1), source.tensors[name].dtype, values.reshape(-1)):
        raise BadValueError(
            f"{source.path}: {name} holds NaN, infinity or a value too large for fp32: "
            "this model is broken, get or train it again"
        )
    return values
