"""Whether a checkpoint is as sparse as it should be."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np

from paring.plan import thread_count
from paring.pruning import budgets
from paring.pruning import sparsity as counting
from paring.pruning.matrix import Mask
from paring.pruning.plan import open_dense
from paring.pruning.reading import Piece, Reader, keyed, slabs
from paring.pruning.stored import recipe_of, targets_of
from paring.pruning.tensors import Target
from paring.report import Verification

Wanted = tuple[Fraction | None, int | None, int | None]


def wanted(sparsity: float | str | None, keep: int | None, of: int | None) -> Wanted | None:
    """What is to be checked, None for nothing. Raises OptionError."""
    if keep is not None or of is not None:
        counting.group(keep, of)
    share = None if sparsity is None else counting.fraction(sparsity)
    return None if share is None and keep is None else (share, keep, of)


def verify(found: Verification, path: Path, share: Fraction | None, keep: int | None, of: int | None) -> None:
    """Note in ``found`` whether of all entries that prune would prune at least ``share`` are zero, as prune
    counts (:func:`~paring.pruning.budgets.fewest`), and whether of every ``of`` neighbours along the inputs
    at most ``keep`` are not.

    What a pruned model was told to include and exclude counts, and its scope. Raises UnsupportedError.
    """
    with open_dense(path) as checkpoint:
        told, targets = recipe_of(checkpoint), targets_of(checkpoint)
        reader = Reader(checkpoint, targets, thread_count(None))

        def count(piece: Piece) -> tuple[int, int]:
            target = targets[piece.index]
            zero = keyed(reader.values(piece)) == 0
            return int(np.count_nonzero(zero)), _crowded(target, zero, keep, of)

        zeros, crowded = 0, dict.fromkeys((target.name for target in targets), 0)
        pieces = [p for i, t in enumerate(targets) for p in slabs(i, t, whole=t.turned is not False)]
        for piece, (some, bad) in zip(pieces, reader.visit(count, pieces), strict=True):
            zeros += some
            crowded[targets[piece.index].name] += bad
        reader.close()
    if share is not None:
        elements = sum(target.numel for target in targets)
        what = f"sparsity {counting.decimal(share)}"
        bar = budgets.fewest(targets, share, told)
        if zeros >= bar:
            found.passed.append(f"{what}: {zeros:,} of {elements:,} entries are zero")
        else:
            found.failed.append(f"{what}: only {zeros:,} of {elements:,} entries are zero, not {bar:,}")
    if of is not None:
        full = [name for name, times in crowded.items() if times]
        what = f"keeps {keep} of {of}"
        if full:
            found.failed.append(f"{what}: {crowded[full[0]]:,} groups of {full[0]} hold more" + _more(full))
        else:
            found.passed.append(f"{what}: all groups of {len(targets)} tensors")


def _crowded(target: Target, zero: Mask, keep: int | None, of: int | None) -> int:
    """How many groups hold more than they keep; a tail that ``of`` does not divide may."""
    if keep is None or of is None:
        return 0
    matrix = zero.reshape(target.inn, -1).T if target.turned else zero.reshape(-1, target.inn)
    whole = target.inn // of * of
    groups = ~matrix[:, :whole].reshape(-1, of)
    return int(np.count_nonzero(groups.sum(axis=1) > keep))


def _more(names: list[str]) -> str:
    return f", and of {len(names) - 1} more tensors" if len(names) > 1 else ""
