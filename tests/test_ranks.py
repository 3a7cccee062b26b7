"""Order statistics of streamed values are exact, whatever the sample says."""

from functools import reduce

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paring import ranks
from paring.kernels import order
from paring.kernels.order import cpu, reference
from paring.ranks import Wanted, find

few = settings(deadline=None, max_examples=60)
CUTS = 7


def passes(rows):
    """A ``run`` over ``rows (r, n)`` in chunks, and how often it was called."""
    calls = []

    def run(tally):
        calls.append(1)
        chunks = np.array_split(rows, CUTS, axis=1)
        return reduce(ranks.merge, (tally(np.ascontiguousarray(chunk)) for chunk in chunks if chunk.size))

    return run, calls


def expected(rows, wanted, signed):
    return [np.sort(rows[w.row] if signed else np.abs(rows[w.row]))[w.position] for w in wanted]


KINDS = {
    "normal": lambda rng, n: rng.standard_normal((2, n)),
    "atoms": lambda rng, n: rng.choice([0.0, -1.0, 1.0, 2.0], (2, n)),
    "mostly zero": lambda rng, n: rng.standard_normal((2, n)) * (rng.random((2, n)) < 0.1),
    "constant": lambda rng, n: np.full((2, n), -0.5),
    "heavy": lambda rng, n: rng.standard_normal((2, n)) ** 9,
    "subnormal": lambda rng, n: rng.standard_normal((2, n)) * 1e-42,
}


@few
@given(st.sampled_from(sorted(KINDS)), st.integers(1, 3000), st.booleans(), st.integers(0, 2**32), st.data())
def test_any_rank_of_any_values(kind, n, signed, seed, data):
    rng = np.random.default_rng(seed)
    rows = KINDS[kind](rng, n).astype(np.float32)
    wanted = [Wanted(row, data.draw(st.integers(0, n - 1))) for row in (0, 1, 1)]
    samples = [None, rows[:, rng.integers(0, n, 200)], np.zeros((2, 5), np.float32)]
    for sample in samples:
        run, calls = passes(rows)
        found = find(wanted, n, sample, run, signed=signed)
        assert found.dtype == np.float32
        assert (found == np.array(expected(rows, wanted, signed), np.float32)).all()
        assert len(calls) <= 3


def test_a_good_sample_needs_one_pass_and_a_bad_one_three(monkeypatch):
    rows = np.random.default_rng(0).standard_normal((1, 200_000)).astype(np.float32)
    wanted = [Wanted(0, position) for position in (*range(2_000, 200_000, 6_000), 199_999)]
    for sample, most in ((rows[:, ::20].copy(), 1), (rows[:, ::20] * 0, 3), (None, 2)):
        run, calls = passes(rows)
        found = find(wanted, rows.shape[1], sample, run, signed=False)
        assert (found == expected(rows, wanted, False)).all()
        assert len(calls) == most


def test_positions_outside_are_refused():
    run, _ = passes(np.zeros((1, 3), np.float32))
    for position in (-1, 3):
        with pytest.raises(ValueError, match="outside"):
            find([Wanted(0, position)], 3, None, run, signed=True)


@few
@given(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=300),
    st.booleans(),
    st.data(),
)
def test_kernels_against_the_reference(values, signed, data):
    x = np.array(values, np.float32)
    keys = np.sort(order.keys(x, signed))
    low = int(data.draw(st.sampled_from(keys.tolist()))) if len(keys) else 0
    high = min(low + data.draw(st.integers(0, 1 << 31)), (1 << 32) - 1)
    wanted = [(1, low, high), (0, low, low), (1, 0, high)]
    both = np.stack([x[::-1], x])
    for ours, theirs in zip(
        cpu.brackets(both, signed, wanted), reference.brackets(both, signed, wanted), strict=True
    ):
        assert ours[0] == theirs[0] and ours[1].tolist() == theirs[1].tolist()
    for shift in (0, 16):
        ours, theirs = cpu.count(x, signed, low, shift), reference.count(x, signed, low, shift)
        assert ours[0] == theirs[0] and (ours[1] == theirs[1]).all()
    assert [order.value(int(key), signed) for key in keys] == sorted(x if signed else np.abs(x))


@pytest.mark.parametrize("kind", ["atoms", "normal", "mostly zero"])
def test_many_equal_keys_take_little_memory(monkeypatch, kind):
    monkeypatch.setattr(ranks, "_PLAIN", 1 << 30)
    rng = np.random.default_rng(3)
    rows = KINDS[kind](rng, 60_000).astype(np.float32)
    tallies = []

    def run(tally):
        def limited(chunk):
            found = tally(chunk)
            for part in found:
                part._limit = 1000
            return found

        parts = (limited(np.ascontiguousarray(c)) for c in np.array_split(rows, 50, axis=1))
        tallies.append(reduce(ranks.merge, parts))
        return tallies[-1]

    wanted = [Wanted(0, place) for place in (0, 999, 30_000, 59_999)]
    found = find(wanted, 60_000, None, run, signed=False) if kind == "normal" else None
    if found is None:  # one pass that keeps all keys, as for few values
        monkeypatch.setattr(ranks, "_FEWEST", 1 << 20)
        found = find(wanted, 60_000, None, run, signed=False)
        kept = sum(map(len, tallies[0][0].keys)) + sum(len(keys) for keys, _ in tallies[0][0].many)
        assert kept < 20_000
    assert (found == np.array(expected(rows, wanted, False), np.float32)).all()
