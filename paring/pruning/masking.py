"""What is done with masks: checked against models, compared, joined, counted, made of zeros.

Masks and models are paths, or names on the Hub.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Literal

import numpy as np

from paring import atomic
from paring.checkpoint import write_safetensors
from paring.dtypes import Stored, numel
from paring.errors import BadFileError, OptionError
from paring.hub.names import PathLike
from paring.hub.reading import located
from paring.hub.verbs import naming
from paring.merging.models import SPAN
from paring.plan import thread_count
from paring.pruning import masks
from paring.pruning.masks import Bools, MaskFile, open_mask
from paring.pruning.plan import open_dense
from paring.pruning.reading import Piece, Reader, keyed, spans
from paring.pruning.report import MaskDiff, MaskMade, MaskReport, MaskStats, OverlapReport
from paring.pruning.stored import targets_of
from paring.report import Verification

#: groups that :func:`stats` looks for, those that say most first
_PATTERNS = ((1, 4), (2, 4), (4, 8), (1, 2))


def _bits(mask: MaskFile, name: str) -> Iterator[tuple[int, Bools]]:
    """Which entries stay, span by span, and where each begins."""
    n = numel(mask.shapes[name])
    for start in range(0, n, SPAN):
        yield start, mask.read(name, start, min(start + SPAN, n))


@naming
def stats(path: PathLike) -> MaskStats:
    """Count what a mask keeps. Raises BadFileError."""
    path = located(path)
    mask = open_mask(path)
    tensors = [_counted(mask, name) for name in sorted(mask.shapes)]
    mask.close()
    elements, kept = sum(numel(t.shape) for t in tensors), sum(t.kept for t in tensors)
    share = kept / elements if elements else 1.0
    return MaskStats(
        inputs=[path], elements=elements, kept=kept, density=share, digest=mask.digest(), tensors=tensors
    )


def _counted(mask: MaskFile, name: str) -> MaskReport:
    shape = mask.shapes[name]
    width = shape[-1]
    rows = max(8, SPAN // width // 8 * 8) * width
    kept = empty = 0
    left = {(keep, of): width % of == 0 for keep, of in _PATTERNS}
    for start in range(0, numel(shape), rows):
        bits = mask.read(name, start, min(start + rows, numel(shape))).reshape(-1, width)
        kept += int(np.count_nonzero(bits))
        empty += int(np.count_nonzero(~bits.any(axis=1)))
        for (keep, of), still in left.items():
            if still:
                left[keep, of] = bool((bits.reshape(-1, of).sum(axis=1) <= keep).all())
    found = next((f"{keep}:{of}" for (keep, of), true in left.items() if true), None)
    return MaskReport(name, shape, kept, kept / numel(shape), found, empty)


@naming
def diff(first: PathLike, second: PathLike) -> MaskDiff:
    """Compare two masks. Raises BadFileError for those of different models."""
    first, second = located(first), located(second)
    a, b = open_mask(first), open_mask(second)
    common = sorted(a.shapes.keys() & b.shapes.keys())
    _refuse_unlike([a, b])
    tensors = []
    for name in common:
        both = one = other = 0
        for (_, x), (_, y) in zip(_bits(a, name), _bits(b, name), strict=True):
            both += int(np.count_nonzero(x & y))
            one += int(np.count_nonzero(x & ~y))
            other += int(np.count_nonzero(y & ~x))
        tensors.append(OverlapReport(name, both, one, other, _iou(both, one, other)))
    a.close()
    b.close()
    both, one, other = (
        sum(getattr(t, key) for t in tensors) for key in ("both", "only_first", "only_second")
    )
    return MaskDiff(
        inputs=[first, second], both=both, only_first=one, only_second=other,
        iou=_iou(both, one, other), tensors=tensors, missing=sorted(a.shapes.keys() ^ b.shapes.keys()),
    )  # fmt: skip


def _iou(both: int, one: int, other: int) -> float:
    either = both + one + other
    return both / either if either else 1.0


def _refuse_unlike(found: Sequence[MaskFile]) -> None:
    """Raise BadFileError where a tensor has another shape in another mask, or none is in all of them."""
    if not set.intersection(*(set(mask.shapes) for mask in found)):
        raise BadFileError(f"{found[0].path} and {found[1].path} mask no tensor in common: of two models?")
    seen: dict[str, MaskFile] = {}
    for mask in found:
        for name, shape in mask.shapes.items():
            twin = seen.setdefault(name, mask)
            if twin.shapes[name] != shape or twin.stack(name) != mask.stack(name):
                raise BadFileError(
                    f"{name} is {list(twin.shapes[name])} in {twin.path}, {list(shape)} in {mask.path}: "
                    "masks of different models"
                )


@naming
def join(
    sources: Sequence[PathLike], output: Path, how: Literal["union", "intersect"], *, overwrite: bool = False
) -> MaskMade:
    """Write what any (``union``) or all (``intersect``) of several masks keep. What a mask does not name it
    keeps. Raises OptionError, BadFileError, OutputError."""
    started = time.perf_counter()
    if len(sources) < 2:
        raise OptionError(f"mask {how}: name two masks or more")
    paths = [located(source) for source in sources]
    atomic.refuse_same_file(output, paths)
    atomic.refuse_existing(output, overwrite)
    found = [open_mask(path) for path in paths]
    _refuse_unlike(found)
    every = dict.fromkeys(name for mask in found for name in mask.shapes)
    names = [n for n in every if how == "intersect" or all(n in mask.shapes for mask in found)]
    fold = np.bitwise_or if how == "union" else np.bitwise_and
    owners = {name: next(mask for mask in found if name in mask.shapes) for name in names}
    tensors = [_Masked(name, owners[name].shapes[name], owners[name].stack(name)) for name in names]

    def made() -> Iterator[tuple[str, Stored]]:
        for name in names:
            parts = [mask.checkpoint.read(name).data for mask in found if name in mask.shapes]
            yield name, Stored("U8", reduce(fold, parts))

    _write(output, tensors, made(), overwrite)
    return _made(f"mask {how}", paths, output, started)


@naming
def extract(model: PathLike, output: Path, *, overwrite: bool = False) -> MaskMade:
    """Write the mask of what is not zero in the tensors that prune would prune, or of a model that it has
    pruned, did prune. Raises as prune does."""
    started = time.perf_counter()
    model = located(model)
    with open_dense(model) as checkpoint:
        atomic.refuse_same_file(output, [model, *checkpoint.inputs])
        atomic.refuse_existing(output, overwrite)
        targets = targets_of(checkpoint)
        reader = Reader(checkpoint, targets, 1)

        def made() -> Iterator[tuple[str, Stored]]:
            for index, target in enumerate(targets):
                # spans end with a byte, or with their matrix
                bits = (keyed(reader.values(piece)) != 0 for piece in spans(index, target))
                packed = np.concatenate([np.packbits(some, bitorder="little") for some in bits])
                yield target.name, Stored("U8", packed.reshape(target.stack, -1))

        try:
            _write(output, targets, made(), overwrite)
        finally:
            reader.close()
    return _made("mask extract", [model], output, started)


@dataclass(frozen=True, slots=True)
class _Masked:
    name: str
    shape: tuple[int, ...]
    stack: int


def _write(
    output: Path, tensors: Sequence[masks.Masked], made: Iterator[tuple[str, Stored]], overwrite: bool
) -> None:
    specs, metadata = masks.specs(tensors)
    write_safetensors(output, made, metadata, layout=specs, overwrite=overwrite)


def _made(command: str, inputs: list[str], output: Path, started: float) -> MaskMade:
    mask = open_mask(output)
    elements = sum(map(numel, mask.shapes.values()))
    kept = sum(int(np.count_nonzero(bits)) for name in mask.shapes for _, bits in _bits(mask, name))
    mask.close()
    return MaskMade(
        command=command, inputs=inputs, output=str(output), digest=mask.digest(), elements=elements,
        kept=kept, density=kept / elements if elements else 1.0, seconds=time.perf_counter() - started,
    )  # fmt: skip


@naming
def verify(
    path: PathLike, model: PathLike | None = None, *, keep: int | None = None, of: int | None = None,
    threads: int | None = None,
) -> Verification:  # fmt: skip
    """Whether ``model`` is zero wherever the mask says so; and whether the mask keeps at most ``keep`` of
    every ``of`` neighbours along the last axis. Raises BadFileError for a mask of another model."""
    path, model = located(path), None if model is None else located(model)
    mask = open_mask(path)
    found = Verification(inputs=[path, *([model] if model else [])])
    if keep is not None and of is not None:
        for name, shape in sorted(mask.shapes.items()):
            _groups(found, mask, name, shape, keep, of)
    if model is not None:
        with open_dense(model) as checkpoint:
            targets, _ = masks.of_mask(mask, checkpoint)
            reader = Reader(checkpoint, targets, thread_count(threads))

            def wrong(piece: Piece) -> int:
                kept = mask.read(targets[piece.index].name, piece.start, piece.stop)
                return int(np.count_nonzero((keyed(reader.values(piece)) != 0) & ~kept))

            pieces = [piece for i, target in enumerate(targets) for piece in spans(i, target)]
            counts = [0] * len(targets)
            for piece, count in zip(pieces, reader.visit(wrong, pieces), strict=True):
                counts[piece.index] += count
            reader.close()
        for target, count in zip(targets, counts, strict=True):
            what = f"{target.name} is zero where it is masked"
            if count:
                found.failed.append(f"{what}: {count:,} entries are not")
            else:
                found.passed.append(what)
    mask.close()
    return found


def _groups(
    found: Verification, mask: MaskFile, name: str, shape: tuple[int, ...], keep: int, of: int
) -> None:
    what = f"{name} keeps {keep} of {of}"
    if shape[-1] % of:
        found.failed.append(f"{what}: {shape[-1]} entries along the last axis do not divide by {of}")
        return
    step, bad = max(1, SPAN // of) * of, 0
    for start in range(0, numel(shape), step):
        bits = mask.read(name, start, min(start + step, numel(shape)))
        bad += int(np.count_nonzero(bits.reshape(-1, of).sum(axis=1) > keep))
    (found.failed if bad else found.passed).append(f"{what}: {bad:,} groups keep more" if bad else what)
