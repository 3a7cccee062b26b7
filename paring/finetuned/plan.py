"""What is to be packed of a fine-tune, by headers and options: every tensor is sorted, or refused by name."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from paring import adapters, atomic, registry
from paring.budget import Budget
from paring.checkpoint import Checkpoint, TensorInfo
from paring.devices import free_memory, pick
from paring.dtypes import FLOATS
from paring.errors import OptionError, UnsupportedError
from paring.finetuned.parts import SUFFIXES, Matrix
from paring.finetuned.table import FILE, Row
from paring.hub import names
from paring.matching import prefixes, unwrapped
from paring.packed import Packed, open_source
from paring.plan import default_output, refuse_sealed, thread_count
from paring.registry import Method

#: what becomes of what is no matrix: norms, biases
Carry = Literal["lossless", "fp16", "priced", "drop"]
#: dtypes that stand for other numbers than they hold
_QUANTISED = ("F8_E4M3", "F8_E5M2", "F8_E8M0")
_PACKED_NAMES = ("weight", "qweight", "weight_packed")
#: bytes that work on a tensor takes for each of its entries
_WORKING = 24


@dataclass(frozen=True, slots=True)
class Plan:
    """One fine-tune to be packed as what it adds to ``base``. ``rows`` are all its tensors, in order.

    ``matrices`` and ``vectors`` hold those with numbers to subtract, ``whole`` those that are only in the
    fine-tune, ``others`` those without numbers, which must be the base's or go along.
    """

    tuned: Checkpoint
    base: Checkpoint
    method: Method
    options: dict[str, Any]
    coder: Callable[[Sequence[Matrix], int], Any]  #: what the method codes deltas with
    budget: Budget
    carry: str
    output: Path
    overwrite: bool
    threads: int
    device: str
    rows: tuple[Row, ...]
    matrices: tuple[Row, ...]
    vectors: tuple[Row, ...]
    others: tuple[Row, ...]
    whole: tuple[Row, ...]
    missing: tuple[str, ...]

    @property
    def elements(self) -> int:
        return sum(info.numel for info in self.tuned.tensors.values())

    @property
    def most_bytes(self) -> int | None:
        """The largest file that the budget allows, None for an error budget."""
        return self.budget.most_bytes(self.tuned.nbytes, self.elements)

    @property
    def recipe(self) -> dict[str, Any]:
        base, origin = names.told(self.base.path), names.ref_of(self.tuned.path)
        source = {} if origin is None else {"source": str(origin)}
        return {**self.budget.recipe(), "carry": self.carry, "base": base, **self.options, **source}

    @property
    def workers(self) -> int:
        """Threads that work at once, within half of the memory that is free: some 24 bytes an entry of the
        largest matrix are taken by each.
        """
        largest = max((self.tuned.tensors[row.name].numel for row in self.matrices), default=1)
        return max(1, min(self.threads, free_memory() // 2 // (_WORKING * max(1, largest))))


def is_full(source: str | os.PathLike[str]) -> bool:
    """Whether this is a full checkpoint rather than an adapter or a packed file."""
    with open_source(source, whole=True) as opened:
        return not isinstance(opened, Packed) and adapters.read(opened, derived=True).dialect == "none"


def plan_finetuned(
    source: str | os.PathLike[str],
    base: str | os.PathLike[str],
    output: str | os.PathLike[str] | None,
    *,
    budget: Budget,
    method: str,
    options: Mapping[str, Any],
    carry: str = "lossless",
    overwrite: bool = False,
    threads: int | None = None,
    device: str = "auto",
) -> Plan:
    """Check everything that headers and options can tell.

    Raises BadFileError, UnsupportedError, OptionError or OutputError; nothing has been written then.
    """
    if carry not in get_args(Carry):
        raise OptionError(f"--carry {carry}: expected {', '.join(get_args(Carry))}")
    chosen = registry.load("compress", "spectral" if method == "auto" else method)
    if chosen.deltas is None:
        raise OptionError(
            f"--method {method} takes adapters: what a full fine-tune adds to --base is coded by spectral"
        )
    if "norm" in options:
        raise OptionError("--norm is for adapters: a full fine-tune is coded to its least error")
    parsed = {key: value for key, value in chosen.parse(options).items() if key == "states"}
    coder = chosen.deltas(**parsed)
    workers, device = thread_count(threads), pick(device)
    tuned, below = _open(Path(source), "is"), _open(Path(base), "is, as --base,")
    target = Path(output) if output is not None else default_output(Path(source))
    atomic.refuse_same_file(target, [Path(source), Path(base), *tuned.inputs, *below.inputs])
    atomic.refuse_existing(target, overwrite)
    refuse_sealed(target)
    rows, missing = _rows(tuned, below)
    plan = Plan(
        tuned, below, chosen, parsed, coder, budget, carry, target, overwrite, workers, device, rows,
        *_sorted(rows, tuned, below), missing,
    )  # fmt: skip
    atomic.check_room(target, plan.most_bytes or tuned.nbytes // 4)
    return plan


def _open(path: Path, what: str) -> Checkpoint:
    opened = open_source(path)
    if isinstance(opened, Packed):
        raise UnsupportedError(f"{path} {what} packed already: `paring decompress` it first")
    if adapters.read(opened, derived=True).dialect != "none":
        raise UnsupportedError(f"{path} {what} an adapter: the base of a full fine-tune is a full checkpoint")
    for info in opened.tensors.values():
        last = info.name.rpartition(".")[2]
        coded = info.dtype in ("I8", "U8", "I32") and len(info.shape) > 1 and last in _PACKED_NAMES
        if info.dtype in _QUANTISED or coded:
            raise UnsupportedError(
                f"{path}: {info.name} is quantised ({info.dtype}): give the weights it was made of"
            )
    return opened


def _rows(tuned: Checkpoint, base: Checkpoint) -> tuple[tuple[Row, ...], tuple[str, ...]]:
    """All tensors of the fine-tune with those of the base that they go with; and what only the base has."""
    p, q = prefixes(tuned.tensors.keys(), base.tensors.keys())
    theirs = {unwrapped(q + name): name for name in base.tensors}
    rows = tuple(
        Row(info.name, info.dtype, theirs.get(unwrapped(p + info.name))) for info in tuned.tensors.values()
    )
    used = {row.base for row in rows}
    if used <= {None}:
        raise UnsupportedError(f"{tuned.path} and {base.path} have no tensor in common: is that its base?")
    for row in rows:
        if row.name.startswith(FILE) or any(row.name + suffix in tuned for suffix in SUFFIXES):
            raise UnsupportedError(f"{tuned.path}: {row.name} bears a name that packed files need themselves")
    return rows, tuple(name for name in base.tensors if name not in used)


def _sorted(
    rows: tuple[Row, ...], tuned: Checkpoint, base: Checkpoint
) -> tuple[tuple[Row, ...], tuple[Row, ...], tuple[Row, ...], tuple[Row, ...]]:
    found: tuple[list[Row], ...] = ([], [], [], [])
    for row in rows:
        found[_kind(row, tuned.tensors[row.name], base)].append(row)
    matrices, vectors, others, whole = map(tuple, found)
    return matrices, vectors, others, whole


def _kind(row: Row, mine: TensorInfo, base: Checkpoint) -> int:
    """0 for a matrix, 1 for a vector, 2 for what holds no numbers, 3 for what only the fine-tune has."""
    if row.base is None:
        return 3
    theirs = base.tensors[row.base]
    if mine.shape != theirs.shape:
        shapes = f"{list(mine.shape)} in {mine.file}, {list(theirs.shape)} in {theirs.file}"
        more = ": vocabularies differ; resize the base's first" if mine.shape[1:] == theirs.shape[1:] else ""
        raise UnsupportedError(f"{row.name} is {shapes}{more or ': not of one model'}")
    floats = mine.dtype in FLOATS, theirs.dtype in FLOATS
    if floats == (True, True):
        return 0 if len(mine.shape) > 1 and min(mine.shape) > 0 else 1
    if any(floats) or mine.dtype != theirs.dtype:
        raise UnsupportedError(f"{row.name} is {mine.dtype} in {mine.file}, {theirs.dtype} in {theirs.file}")
    return 2
