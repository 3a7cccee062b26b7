"""What OWL keeps of every matrix: :mod:`paring.pruning.outliers` in two passes, for means and outliers."""

from __future__ import annotations

from fractions import Fraction

from paring.pruning import inputs, outliers, sparsity
from paring.pruning.matrix import Budget
from paring.pruning.plan import PrunePlan
from paring.pruning.reading import Piece, Reader, wholes
from paring.pruning.scoring import Scorer
from paring.pruning.statistics import Statistics


def budgets(plan: PrunePlan, reader: Reader, stats: Statistics | None) -> dict[str, Budget]:
    """Of every matrix that has no budget of its own. All matrices of a block have its density; their sum is
    exact, but where each row is to have the whole part of it.
    """
    assert plan.share is not None, "planning has refused others"
    pieces = [piece for piece in wholes(plan.targets) if plan.targets[piece.index].name not in plan.fixed]
    blocks = [outliers.block_of(plan.targets[piece.index].name) for piece in pieces]
    sizes = [piece.stop - piece.start for piece in pieces]
    keeps = _of_blocks(plan, reader, Scorer(plan, stats, {}), pieces, blocks, sizes)
    wanted = [keeps[block][0] / keeps[block][1] * n for block, n in zip(blocks, sizes, strict=True)]
    rounded = sparsity.rounded(wanted, sum(keep for keep, _ in keeps.values()), sizes)
    found = {}
    for piece, keep in zip(pieces, rounded, strict=True):
        target = plan.targets[piece.index]
        row = target.inn - sparsity.pruned(1 - Fraction(keep, target.size), target.inn)
        budget = Budget(row, row=True) if plan.request.scope == "row" else Budget(keep)
        found[target.matrix(piece.number)] = budget
    return found


def _of_blocks(
    plan: PrunePlan, reader: Reader, scorer: Scorer, pieces: list[Piece], blocks: list[str], sizes: list[int]
) -> dict[str, tuple[int, int]]:
    """How many entries each block keeps, and how many it has."""
    request, block_of = plan.request, dict(zip(pieces, blocks, strict=True))
    entries = dict.fromkeys(blocks, 0)
    for block, n in zip(blocks, sizes, strict=True):
        entries[block] += n

    def total(piece: Piece) -> float:
        matrix = scorer.matrix(piece, reader.values(piece))
        return outliers.total(matrix.weights, inputs.norms(matrix))

    sums = dict.fromkeys(blocks, 0.0)
    for block, found in zip(blocks, reader.visit(total, pieces), strict=True):
        sums[block] += found

    def count(piece: Piece) -> int:
        matrix, block = scorer.matrix(piece, reader.values(piece)), block_of[piece]
        above = request.outliers * sums[block] / entries[block]
        return outliers.outliers(matrix.weights, inputs.norms(matrix), above)

    counts = dict.fromkeys(blocks, 0)
    for block, number in zip(blocks, reader.visit(count, pieces), strict=True):
        counts[block] += number
    shares = [counts[block] / n for block, n in entries.items()]
    assert plan.share is not None, "planning has refused others"
    keeps = outliers.share_out(shares, list(entries.values()), plan.share, request.spread)
    return {block: (keep, n) for keep, (block, n) in zip(keeps, entries.items(), strict=True)}
