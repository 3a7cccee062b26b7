"""Coding within an error: every adapter alone, as difference from a related one, or without loss where that
is smaller; then a basis in common and a pool of alike shards are tried against it. What is fewest bytes is
taken.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from paring.budget import Dials, Trial
from paring.codecs.shards import Gather, Pool
from paring.coding import Factors
from paring.dtypes import Stored
from paring.pooling import exact
from paring.pooling.closed import Base, turn
from paring.pooling.exact import Held
from paring.pooling.pile import Pile, Source
from paring.pooling.pricing import F64, Trellis, meet, states_for
from paring.pooling.relations import matched, related
from paring.pooling.report import CandidateReport, RelationReport
from paring.pooling.stages import MOST_DEPTH
from paring.pooling.storing import Made, store_exactly
from paring.pooling.work import Coders, Items, State, Work, works_of

_log = logging.getLogger("paring")


def store(
    made: Made,
    pile: Pile,
    held: Held,
    shortest: int,
    overlap: float,
    threads: int,
    device: str,
    coders: Coders,
) -> None:
    """Store all sources of ``pile`` within its error, adding to ``made`` what was tried."""
    from paring.pooling import codebook, joint

    assert pile.error is not None
    works = works_of(pile.sources)
    firsts = [work for work in works if work.copy_of is None]
    for work in firsts:
        _log.info("coding %s alone", work.source.name)
        work.alone = _alone(work, pile.error, coders, threads, device)
    whole = _exact_ones(made, firsts, held, shortest)
    whole |= {work.source.name for work in works if work.copy_of and work.copy_of.source.name in whole}
    lossy = {part.name for work in works if work.source.name not in whole for part in work.parts}
    rest = [part for s in pile.sources for part in s.parts.values() if part.name not in lossy]
    store_exactly(made, pile, held, rest, shortest, overlap)
    for work in works:
        alone = (work.copy_of or work).alone
        coded = work.plain if alone is None else alone[1]
        made.alone += min(work.plain, coded) - (work.plain if work.source.name in whole else 0)
    coding = [work for work in firsts if work.source.name not in whole]
    state = State(made.stages, dict(held.tensors))
    if coding:
        attempts = (joint.attempt, partial(codebook.attempt, shortest=shortest))
        state = _best(made, state, pile, coding, coders, overlap, attempts)
    for work in works:
        if work.source.name not in whole:
            _repeat(state, work)
    made.stages = state.stages


def _best(
    made: Made, state: State, pile: Pile, coding: list[Work], coders: Coders, overlap: float,
    attempts: Sequence[Any],
) -> State:  # fmt: skip
    """The smallest of all ways to code adapters."""
    assert pile.error is not None
    before = state.stages.nbytes
    best = state.copied()
    _sequential(made, best, pile, coding, coders, overlap)
    for attempt in attempts:
        other = state.copied()
        least = best.stages.nbytes - before
        trellis = Trellis(coders.plan, states_for(sum(f.numel for work in coding for f in work.new)))
        for tried in attempt(other, coding, pile.error, trellis, least):
            made.candidates.append(tried)
            if tried.taken:
                best = other
    return best


def _alone(work: Work, error: float, coders: Coders, threads: int, device: str) -> tuple[Items, int] | None:
    """The smallest coding of one adapter by itself within ``error``, and its bytes; None where none is so
    good.
    """
    if not work.new or not work.energy():
        return None
    family = coders.spectral(work.new, threads, device)
    seen: dict[int, Items] = {}

    def trial(dial: int) -> Trial:
        items = dict(family.encode(dial).tensors)
        seen.clear()
        seen[dial] = items
        return Trial(dial, work.bytes_of(items), work.error(items))

    # neighbouring dials are not all tried: many adapters are coded, and less than a percent is to be had
    best = Dials(trial, family.dials, 2, family.turns, getattr(family, "sketch", None)).for_error(error)
    if best is None:
        return None
    return seen.get(best.dial) or dict(family.encode(best.dial).tensors), best.nbytes


def _exact_ones(made: Made, works: Sequence[Work], held: Held, shortest: int) -> set[str]:
    """The adapters that take fewer bytes without any loss: their shards repeat, or no coding is near
    enough.
    """
    parts = [part for work in works for part in work.parts]
    new, repeats = exact.split(parts, held)
    bytes_of = dict.fromkeys((part.name for part in repeats), 8.0)
    for pool in exact.pools(new, held, shortest):
        raw = sum(part.tensor.nbytes for part in pool.parts)
        bytes_of |= {part.name: pool.pooled * part.tensor.nbytes / raw for part in pool.parts}
    out = set()
    for work in works:
        if not work.parts:
            out.add(work.source.name)
            continue
        raw = sum(part.tensor.nbytes for part in work.parts) or 1
        whole = sum(bytes_of.get(p.name, work.plain * p.tensor.nbytes / raw) for p in work.parts)
        coded = None if work.alone is None else work.alone[1]
        if coded is None or whole < coded:
            out.add(work.source.name)
        if coded is None:
            why = "no coding with loss is near enough"
            made.candidates.append(
                CandidateReport(f"{work.source.name} without loss", round(whole), work.plain, True, why)
            )
        elif whole < coded:
            made.candidates.append(
                CandidateReport(f"{work.source.name} without loss", round(whole), coded, True)
            )
    return out


def _sequential(
    made: Made, state: State, pile: Pile, coding: Sequence[Work], coders: Coders, overlap: float
) -> None:
    """Code adapters in order, each alone or as difference from the nearest one that is told already."""
    told = state.stages.numbers
    done = [
        s for s in (*pile.kept, *pile.sources) if any(f.b and s.parts[f.b].name in told for f in s.modules)
    ]
    for work in coding:
        assert work.alone is not None and pile.error is not None
        earlier = [other for other in done if other is not work.source]
        found = related(work.source, earlier)
        known = {(r.first, r.second) for r in made.relations}
        made.relations += [r for r in found if (r.first, r.second) not in known]
        items, least = work.alone
        for near in found[:2]:
            if near.most < overlap:
                break
            other = next(one for one in earlier if one.name == near.first)
            tried = difference(work, other, near, state, pile.error, coders.plan)
            what = f"{work.source.name} as difference from {other.name}"
            why = f"overlap {near.overlap_a:.2f} of A, {near.overlap_b:.2f} of B"
            if tried is None:
                continue
            nbytes = work.bytes_of(tried)
            made.candidates.append(CandidateReport(what, nbytes, least, nbytes < least, why))
            if nbytes < least:
                items, least = tried, nbytes
        state.put_work(work, items)
        done.append(work.source)


def difference(
    work: Work, other: Source, near: RelationReport, state: State, error: float, plan: F64
) -> Items | None:
    """The new modules of ``work`` as difference from ``other`` as decoded, within ``error``, by the trellis'
    ``plan`` (rows, 5); None where that cannot be."""
    theirs = {ours.name: their for their, ours in matched(other, work.source)}
    trellis = Trellis(plan, states_for(sum(f.numel for f in work.new)))
    turned = []
    for f in work.new:
        base = _base(theirs.get(f.name), other, state)
        made = turn(f, base, near.overlap_b > near.overlap_a) or turn(f, None, False)
        if made is None:
            return None
        turned.append(made)
    top = max(each.top() for each in turned)

    def attempt(price: float) -> tuple[Items, bool]:
        items: Items = {}
        for each in turned:
            a, b = each.code(trellis, price)
            items |= {each.factors.a: a, each.factors.b or "": b}
        return items, work.error(items) <= error

    return meet(top, attempt)


def _base(theirs: Factors | None, other: Source, state: State) -> Base | None:
    """What a module of ``other`` decodes to, None where it is not in the file or told by too many others."""
    if theirs is None or theirs.b is None:
        return None
    names = [other.parts[name].name for name in (theirs.a, theirs.b)]
    if any(name not in state.stages.numbers for name in names):
        return None
    a, b = (state.stages.numbers[name] for name in names)
    if max(state.stages.depth[a], state.stages.depth[b]) >= MOST_DEPTH:
        return None
    return Base(a, state.tensors[a], b, state.tensors[b])


def _repeat(state: State, work: Work) -> None:
    """The modules of an adapter that repeat others, told as these."""
    first = work.copy_of or work
    items: Items = {}
    for ours, theirs in zip(work.pairs, first.pairs, strict=True):
        kind = first.same[theirs.name]
        for mine, name in ((ours.a, kind.a), (ours.b, kind.b)):
            assert mine is not None and name is not None
            if work.spec(mine).name in state.stages.numbers:
                continue
            number = state.stages.numbers[first.source.parts[name].name]
            tensor = Stored(
                state.tensors[number].dtype, state.tensors[number].data.reshape(work.spec(mine).shape)
            )
            items[mine] = Gather(
                tensor, "whole", Pool(tensor.numel, ((number, "whole"),)), np.zeros(1, np.int64)
            )
    state.put_work(work, items)
