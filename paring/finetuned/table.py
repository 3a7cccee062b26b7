"""What a packed delta tells of the fine-tune: its tensors, where each comes from, and the base it needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from paring.checkpoint import Checkpoint, digest_sorted
from paring.dtypes import STORAGE
from paring.errors import BadFileError
from paring.finetuned.parts import SUFFIXES
from paring.packed import Packed
from paring.untrusted import is_below

KEY = "delta"
#: tensors that are files beside the fine-tune, by their names
FILE = "file:"


@dataclass(frozen=True, slots=True)
class Row:
    """One tensor of the fine-tune: its dtype; the tensor of the base that it is a change of, or None; the
    tensor of the fine-tune that it is the very same as, or None.
    """

    name: str
    dtype: str
    base: str | None
    twin: str | None = None

    def told(self) -> list[Any]:
        """As JSON, without what goes without saying."""
        if self.twin is not None:
            return [self.name, self.dtype, self.base, self.twin]
        return [self.name, self.dtype] if self.base == self.name else [self.name, self.dtype, self.base]


@dataclass(frozen=True, slots=True)
class Table:
    """All tensors of a fine-tune, in order; the base's name and the digest of what is needed of it."""

    rows: tuple[Row, ...]
    base_name: str
    base_digest: str
    files: tuple[str, ...]  #: beside the fine-tune, and the same beside its base

    def told(self) -> dict[str, Any]:
        """As the manifest has it."""
        out: dict[str, Any] = {
            "base": {"name": self.base_name, "sha256": self.base_digest},
            "tensors": [row.told() for row in self.rows],
        }
        return {**out, "files": list(self.files)} if self.files else out


def needed(rows: tuple[Row, ...]) -> list[str]:
    """The tensors of the base that a fine-tune is made of, in order of their names."""
    return sorted({row.base for row in rows if row.base is not None and row.twin is None})


def base_digest(base: Checkpoint, rows: tuple[Row, ...]) -> str:
    """The canonical digest of those."""
    return digest_sorted((name, base.read(name)) for name in needed(rows))


def holds_delta(checkpoint: object) -> bool:
    """Whether this is a packed delta of a full fine-tune."""
    return isinstance(checkpoint, Packed) and KEY in checkpoint.facts


def read_table(opened: Packed) -> Table:
    """Its table, checked. Raises BadFileError when it makes no sense."""
    try:
        return _table(opened.facts[KEY], opened)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise BadFileError(
            f"{opened.path}: the manifest makes no sense: {KEY} ({type(error).__name__}: {error})"
        ) from None


def _table(told: Mapping[str, Any], opened: Packed) -> Table:
    rows = tuple(_row(*row) for row in told["tensors"])
    names = {row.name for row in rows}
    name, sha, files = told["base"]["name"], told["base"]["sha256"], tuple(told.get("files", ()))
    if len(names) < len(rows) or not isinstance(name, str) or not isinstance(sha, str):
        raise ValueError("tensors or base")
    for row in rows:
        parts = [suffix for suffix in SUFFIXES if row.name + suffix in opened]
        if row.twin is not None:
            twin = next(other for other in rows if other.name == row.twin)
            if twin.twin is not None or parts or row.name in opened:
                raise ValueError(f"{row.name!r} is {row.twin!r}")
        elif (row.base is None) != (row.name in opened) or (parts and row.base is None):
            raise ValueError(f"{row.name!r} comes from nowhere, or from two places")
    known = {name + suffix for name in names for suffix in ("", *SUFFIXES)}
    for held in opened:
        if held not in known and not (held.startswith(FILE) and is_below(held.removeprefix(FILE))):
            raise ValueError(f"{held!r} is a part of nothing")
    if not all(isinstance(file, str) and is_below(file) for file in files):
        raise ValueError("files")
    return Table(rows, name, sha, files)


def _row(name: Any, dtype: Any, *more: Any) -> Row:
    base = more[0] if more else name
    twin = more[1] if len(more) > 1 else None
    texts = isinstance(name, str) and (base is None or isinstance(base, str))
    if not texts or dtype not in STORAGE or len(more) > 2 or not (twin is None or isinstance(twin, str)):
        raise ValueError(f"{name!r} is no tensor")
    return Row(name, dtype, base, twin)
