"""What stays of each piece: by cuts of stored bits, by cuts of scores, by scores, or as a method says."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from paring.kernels import pruning as kernels
from paring.kernels.pruning import Bits, Sums
from paring.pruning import allocating, owl, sparsity
from paring.pruning.cutting import Cut, Pool, cuts, cuts_of
from paring.pruning.masks import MaskFile
from paring.pruning.matrix import Budget, Mask
from paring.pruning.plan import PrunePlan
from paring.pruning.reading import F32, Piece, Reader, keyed, slabs, spans, wholes
from paring.pruning.scoring import Scorer, above, by_slabs
from paring.pruning.statistics import Statistics

#: fills ``out`` from a piece's ``bits``; the mask, where one is asked for, and what was done
Work = Callable[[Piece, Bits, Bits], tuple[Mask | None, Sums]]


@dataclass(frozen=True, slots=True)
class Decider:
    """How targets are cut into pieces, and what is done to each."""

    pieces: Callable[[int], Sequence[Piece]]
    work: Work


def decider(
    plan: PrunePlan, reader: Reader, stats: Statistics | None, todo: Sequence[int], *, masked: bool
) -> Decider:
    """For the targets ``todo``. Passes over the model are made here."""
    budgets = plan.budgets
    if plan.request.allocate == "lamp":
        budgets = {**budgets, **_lamp(plan, reader)}
    if plan.request.allocate == "owl":
        budgets = {**budgets, **owl.budgets(plan, reader, stats)}
    if plan.given is not None:
        return _by_mask(plan, reader, plan.given)
    if plan.by_bits:
        return _by_bits(plan, reader, budgets, todo, masked)
    scorer = Scorer(plan, stats, budgets)
    if plan.request.scope == "global":
        return _by_scores(plan, reader, scorer)
    changes = plan.method.unit == "tensor" or plan.request.refit

    def work(piece: Piece, bits: Bits, out: Bits) -> tuple[Mask, Sums]:
        values = reader.values(piece, bits)
        if changes:
            return scorer.changed(piece, bits, values, out)
        keep = scorer.keep(piece, values)
        return keep, kernels.masked(bits, values, keep, out)

    return Decider(lambda index: pieces_of(plan, index), work)


def pieces_of(plan: PrunePlan, index: int) -> list[Piece]:
    """Whole matrices, or rows where those do not depend on each other."""
    return list(slabs(index, plan.targets[index], whole=not by_slabs(plan, index)))


def _by_bits(
    plan: PrunePlan, reader: Reader, budgets: Mapping[str, Budget], todo: Sequence[int], masked: bool
) -> Decider:
    """Magnitudes, as they are stored."""
    if plan.request.scope == "global":
        pieces = [piece for index, target in enumerate(plan.targets) for piece in spans(index, target)]
        n = sum(target.numel for target in plan.targets)
        assert plan.share is not None, "planning has refused others"
        pools = [Pool(pieces, n, sparsity.pruned(plan.share, n))]
    else:
        pools = []
        for index in todo:
            target = plan.targets[index]
            each: dict[int, list[Piece]] = {}
            for piece in spans(index, target):
                each.setdefault(piece.number, []).append(piece)
            for number, some in each.items():
                budget = budgets.get(target.matrix(number))
                pools.append(Pool(some, target.size, target.size - budget.keep if budget else 0))
    places: dict[tuple[int, int], tuple[Cut, int]] = {}
    for pool, cut in zip(pools, cuts(reader, pools, plan.device), strict=True):
        for number, piece in enumerate(pool.pieces):
            places[piece.index, piece.start] = cut, number

    def work(piece: Piece, bits: Bits, out: Bits) -> tuple[Mask | None, Sums]:
        cut, number = places[piece.index, piece.start]
        if not cut.short:
            values = reader.values(piece, bits)
            keep = above(keyed(values), cut, number)
            return keep, kernels.masked(bits, values, keep, out)
        dtype, short = plan.targets[piece.index].dtype, bits.view(np.uint16)
        sums, start = Sums(), 0
        for stop, first in cut.split(number, lambda: short & np.uint16(0x7FFF)):
            stop = len(short) if stop < 0 else stop
            sums += kernels.cut(short[start:stop], dtype, first, out.view(np.uint16)[start:stop], plan.device)
            start = stop
        return above(short & np.uint16(0x7FFF), cut, number) if masked else None, sums

    return Decider(lambda index: list(spans(index, plan.targets[index])), work)


def _by_mask(plan: PrunePlan, reader: Reader, mask: MaskFile) -> Decider:
    """What a mask says."""

    def work(piece: Piece, bits: Bits, out: Bits) -> tuple[Mask, Sums]:
        keep = mask.read(plan.targets[piece.index].name, piece.start, piece.stop)
        return keep, kernels.masked(bits, reader.values(piece, bits), keep, out)

    return Decider(lambda index: list(spans(index, plan.targets[index])), work)


def _by_scores(plan: PrunePlan, reader: Reader, scorer: Scorer) -> Decider:
    """One threshold for the scores of all matrices, which are made anew on each pass."""
    assert plan.share is not None, "planning has refused others"
    pieces, n = wholes(plan.targets), sum(target.numel for target in plan.targets)

    def scores(piece: Piece) -> F32:
        return scorer.flat(piece, reader.values(piece))

    (cut,) = cuts_of(reader, [Pool(pieces, n, sparsity.pruned(plan.share, n))], scores)
    numbers = {(piece.index, piece.start): number for number, piece in enumerate(pieces)}

    def work(piece: Piece, bits: Bits, out: Bits) -> tuple[Mask, Sums]:
        values = reader.values(piece, bits)
        keep = above(keyed(scorer.flat(piece, values)), cut, numbers[piece.index, piece.start])
        return keep, kernels.masked(bits, values, keep, out)

    return Decider(lambda index: list(slabs(index, plan.targets[index], True)), work)


def _lamp(plan: PrunePlan, reader: Reader) -> dict[str, Budget]:
    """What LAMP keeps of every matrix that has no budget of its own."""
    assert plan.share is not None, "planning has refused others"
    pieces = [piece for piece in wholes(plan.targets) if plan.targets[piece.index].name not in plan.fixed]
    numbers = {(piece.index, piece.start): number for number, piece in enumerate(pieces)}

    def values(piece: Piece) -> F32:
        return allocating.lamp(reader.values(piece))

    n = sum(piece.stop - piece.start for piece in pieces)
    (cut,) = cuts_of(reader, [Pool(pieces, n, sparsity.pruned(plan.share, n))], values)

    def count(piece: Piece) -> int:
        number = numbers[piece.index, piece.start]
        return int(np.count_nonzero(above(keyed(values(piece)), cut, number)))

    found = zip(pieces, reader.visit(count, pieces), strict=True)
    return {plan.targets[piece.index].matrix(piece.number): Budget(keep) for piece, keep in found}
