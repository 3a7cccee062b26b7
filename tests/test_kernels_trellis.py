"""The trellis kernels: numba against the reference, the search against all paths, the format's tables."""

import hashlib
import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from paring.compress._trellis import PLAN
from paring.errors import BadFileError
from paring.kernels.trellis import coder, cpu, reference, tables, tensor

few = settings(deadline=None, max_examples=30)
CLASSES = range(1, tables.CLASSES + 1)
BITS = sorted(tables.CHECKS)


def cost_of(k, x, price, cls, bits):
    """sum (x - level)^2 + price * bits of the symbols ``k``."""
    rate, following, state, total = tables.rates(cls), tables.next_states(bits), 0, 0.0
    span = rate.shape[1] // 2
    for value, symbol in zip(x, k, strict=True):
        q = state & 1
        total += (value - reference.level(q, symbol)) ** 2
        total += price * rate[q, span + min(max(symbol, -span), span)]
        state = int(following[state, symbol & 1])
    return total


def symbols_of(n, cls, seed, share_huge=0.02):
    """Symbols about as wide as those of the class, and some that need the escape."""
    rng = np.random.default_rng([n, cls, seed])
    deviation = 0.3 * 2 ** (max(0, cls - 8) / 6)
    k = np.rint(rng.standard_normal(n) * deviation)
    huge = rng.random(n) < share_huge
    k[huge] = rng.integers(-32_768, 32_768, int(huge.sum()))
    return k.astype(np.int16)


def encoded(k, lengths, classes, bits, block=1 << 20):
    """The blocks of segments, each with the state that it begins in and its first and last symbol."""
    begins = np.append(0, np.cumsum(np.array(lengths, np.int64)))
    assert begins[-1] == len(k)
    quantiser, states = np.empty(len(k), np.uint8), np.zeros(-(-len(k) // block), np.uint8)
    coder.walk(k, begins, tables.next_states(bits), block, quantiser, states)
    out = []
    for first in range(0, len(k), block):
        last = min(first + block, len(k))
        words = np.zeros(3 * (last - first) + 8, np.uint16)
        args = begins, np.array(classes, np.uint8), *tables.coding_tables()
        at = coder.encode_block(k, quantiser, first, last, *args, words)
        out.append((words[at:], int(states[first // block]), first, last))
    return out


def decoded(words, state, first, last, lengths, classes, bits):
    """The levels of a block, or None where it does not decode."""
    begins = np.append(0, np.cumsum(np.array(lengths, np.int64)))
    freq, start, shifts = tables.coding_tables()
    out = np.full(last - first + 2, 77, np.int32)
    good = coder.decode_block(
        words, first, last, state, begins, np.array(classes, np.uint8), tables.slots(), freq, start, shifts,
        tables.next_states(bits), out[1:-1],
    )  # fmt: skip
    assert (out[0], out[-1]) == (77, 77)
    return out[1:-1].copy() if good else None


def decoded_plainly(words, state, first, last, lengths, classes, bits):
    ends = np.cumsum(lengths)
    counts = np.diff(np.clip(np.append(0, ends), first, last))
    start = int(np.searchsorted(ends, first, "right"))
    data = words.astype("<u2").tobytes()
    return reference.decode_block(data, classes[start:], counts[start:].tolist(), bits, state)


def test_the_tables_are_those_of_the_format():
    ratios = [round(2**24 * math.exp(-3 * 2 ** (-(j - 1) / 3))) for j in CLASSES]
    assert list(tables.RHO) == ratios
    freq, start, shifts = tables.coding_tables()
    assert (freq[1:].sum(axis=2) == 4096).all()
    assert (freq[1:, :, tables.ESCAPE] > 0).all()
    digest = hashlib.sha256(freq[1:].astype("<u2").tobytes()).hexdigest()
    assert digest == "3112a7fcbe10d280e55288632688782d2e04e1c88e2c44ca7c2b382246d667e7"
    assert shifts.tolist() == [0] * 28 + [1] * 6 + [2] * 6 + [3] * 6 + [4] * 3
    slots = tables.slots()
    for cls in CLASSES:
        for q in (0, 1):
            assert (np.bincount(slots[cls, q], minlength=33) == freq[cls, q]).all()
            assert (start[cls, q][slots[cls, q]] <= np.arange(4096)).all()


@pytest.mark.parametrize("bits", BITS)
def test_the_trellis(bits):
    following = tables.next_states(bits)
    states = 1 << bits
    assert sorted(following.reshape(-1)) == sorted([*range(states), *range(states)])  # two ways to each
    for s in range(states):
        # both ways into a state come from one quantiser: of the same lowest bit
        assert len({int(p) & 1 for p in np.flatnonzero((following == s).any(axis=1))}) == 1
    # some path of even and odd k leads from everywhere to everywhere in as many steps as there are bits
    reached = {0}
    for _ in range(bits):
        reached = {int(t) for s in reached for t in following[s]}
    assert len(reached) == states


@pytest.mark.parametrize("cls", CLASSES)
def test_rates_are_the_bits_that_the_coder_takes(cls):
    rate, low, freq = tables.rates(cls), tables.shift(cls), tables.frequencies(cls)
    span = rate.shape[1] // 2
    assert rate.shape == (2, 2 * (16 << low) + 1)
    for q in (0, 1):
        escape = 12 - math.log2(freq[q, 32]) + 16
        for k in (-span, -span + 1, -9 << low, *range(-20, 21), 11 << low, span - 1, span):
            if not -span <= k <= span:
                continue
            count = freq[q, (k >> low) + 16] if abs(k) < span else 0
            bits = min(12 - math.log2(count) + low, escape) if count else escape
            assert rate[q, k + span] == pytest.approx(bits, abs=1e-12)


searches = st.tuples(
    st.integers(1, 7), st.sampled_from([2, 3, 4]), st.sampled_from([1, 3, 6, 8, 12, 16, 20, 26, 30, 48]),
    st.sampled_from([0.0, 0.02, 0.2, 0.34, 0.41, 1.0]), st.sampled_from([0.1, 0.8, 2.0, 6.0]),
    st.integers(0, 999),
)  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(searches)
@example((6, 2, 20, 0.3, 6.0, 5))
def test_the_search_finds_the_cheapest_path(search):
    n, bits, cls, price, deviation, seed = search
    most = 8
    x = np.clip(np.random.default_rng(seed).normal(0, deviation, n), 2 - 2 * most, 2 * most - 2)
    k = np.empty(n, np.int16)
    cpu.quantise(x, price, tables.rates(cls), *tables.CHECKS[bits], 1 << bits, most, k)
    path, least = reference.quantise(x, price, cls, bits, most)
    assert cost_of(path, x, price, cls, bits) == pytest.approx(least, rel=1e-9)
    assert cost_of(k.tolist(), x, price, cls, bits) == pytest.approx(least, rel=1e-9, abs=1e-12)


def test_every_quantiser_and_parity_gets_its_best_symbol():
    cost, chosen, symbols = np.empty(4), np.empty(4, np.int64), np.arange(-400, 401)
    rng = np.random.default_rng(0)
    for cls in CLASSES[::2]:
        rate = tables.rates(cls)
        span = rate.shape[1] // 2
        bits = rate[:, span + np.clip(symbols, -span, span)]
        for price in (0.0, 0.1, 0.34, 1.0):
            for y in [
                0.0,
                1.0,
                -1.0,
                2.0,
                2.97,
                4.99,
                *rng.normal(0, 5, 8),
                *rng.normal(0, 100, 4),
                *range(-20, 21, 3),
            ]:
                cpu._candidates(y, rate, price, cost, chosen)
                for q in (0, 1):
                    total = (y - (2 * symbols - q * np.sign(symbols))) ** 2 + price * bits[q]
                    for parity in (0, 1):
                        k, least = chosen[2 * q + parity], total[symbols % 2 == parity].min()
                        assert k % 2 == parity
                        assert cost[2 * q + parity] == pytest.approx(least, rel=1e-12, abs=1e-12)
                        assert total[k + 400] == pytest.approx(least, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("bits", BITS)
def test_more_states_find_it_too(bits):
    x = np.random.default_rng(bits).normal(0, 1.5, 5)
    k, levels, _ = tensor.quantise(x, 0.34, 14, bits)
    _, least = reference.quantise(x, 0.34, 14, bits, 7)
    assert cost_of(k.tolist(), x, 0.34, 14, bits) == pytest.approx(least, rel=1e-9)
    np.testing.assert_array_equal(levels, reference.levels(k.tolist(), bits))


@pytest.mark.parametrize("bits", BITS)
def test_values_beyond_all_levels_take_the_largest(bits):
    x = np.array([65_534.0, -65_534.0, 65_535.5, 1e9, -1e9, 1e300, -np.inf, 0.0, 3.0])
    for price in (0.0, 0.3):
        k, levels, cls = tensor.quantise(np.tile(x, 7), price, 48, bits)
        assert (np.abs(k.astype(int)) <= tables.MOST_K).all()
        assert 45 <= cls <= 48
        assert (np.abs(np.clip(np.tile(x, 7), -65_532, 65_532) - levels) <= 3).all()


@few
@given(st.lists(st.integers(-32_768, 32_767), max_size=60), st.sampled_from(BITS))
def test_levels_agree_with_the_reference(k, bits):
    levels = tensor.levels(np.array(k, np.int16), bits)
    assert levels.dtype == np.int32
    np.testing.assert_array_equal(levels, reference.levels(k, bits))


def test_segments_of_nothing_and_of_zeros():
    assert tensor.quantise(np.zeros(0), 0.3, 9, 4)[2] == 0
    k, levels, cls = tensor.quantise(np.full(50, 1e-6), 0.3, 9, 4)
    assert cls == 0 and not levels.any() and not k.any()


def test_the_class_is_the_best_of_those_near():
    for k in (symbols_of(3000, 14, 0, 0), -abs(symbols_of(3000, 15, 1, 0))):
        size = {c: sum(2 * len(w) for w, *_ in encoded(k, [len(k)], [c], 5)) for c in range(8, 16)}
        best = tensor.fitting_class(k, 5, 11)
        assert size[best] <= min(size[c] for c in range(8, 15)) + 4
    assert tensor.fitting_class(k, 5, 1) == 4
    assert tensor.fitting_class(symbols_of(3000, 48, 0), 5, 48) >= 45


@pytest.mark.parametrize("bits", [2, 5, 8])
def test_all_classes_come_back(bits):
    for cls in CLASSES:
        k = symbols_of(700, cls, bits)
        k[:4] = 0, -32_768, 32_767, -1
        for words, state, first, last in encoded(k, [len(k)], [cls], bits):
            found = decoded(words, state, first, last, [len(k)], [cls], bits)
            np.testing.assert_array_equal(found, tensor.levels(k, bits))
            if cls % 8 == 3:
                assert decoded_plainly(words, state, first, last, [len(k)], [cls], bits) == found.tolist()


layouts = st.lists(st.tuples(st.integers(0, 40), st.integers(1, tables.CLASSES)), min_size=1, max_size=8)


@few
@given(layouts, st.sampled_from(BITS), st.integers(1, 50), st.integers(0, 99))
@example([(0, 5), (3, 9), (0, 1), (0, 2), (7, 30), (0, 48)], 3, 5, 0)
def test_segments_and_blocks_may_end_anywhere(segments, bits, block, seed):
    lengths, classes = [n for n, _ in segments], [cls for _, cls in segments]
    parts = [symbols_of(n, cls, seed, 0.1) for n, cls in segments]
    expected = np.concatenate([tensor.levels(k, bits) for k in parts])
    blocks = encoded(np.concatenate(parts), lengths, classes, bits, block)
    assert len(blocks) == -(-sum(lengths) // block)
    for words, state, first, last in blocks:
        found = decoded(words, state, first, last, lengths, classes, bits)
        np.testing.assert_array_equal(found, expected[first:last])
        assert decoded_plainly(words, state, first, last, lengths, classes, bits) == found.tolist()


@few
@given(layouts, st.integers(0, 99), st.data())
def test_damaged_blocks_are_refused_or_decode_as_the_reference_does(segments, seed, draw):
    lengths, classes = [n + 1 for n, _ in segments], [cls for _, cls in segments]
    k = np.concatenate([symbols_of(n + 1, cls, seed) for n, cls in segments])
    [(words, state, first, last)] = encoded(k, lengths, classes, 4)
    broken = words.copy()
    for _ in range(draw.draw(st.integers(0, 3))):
        broken[draw.draw(st.integers(0, len(broken) - 1))] ^= draw.draw(st.integers(1, 65_535))
    cut = broken[: draw.draw(st.integers(0, len(broken)))] if draw.draw(st.booleans()) else broken
    state = draw.draw(st.sampled_from([state, *range(16)]))
    found = decoded(cut, state, first, last, lengths, classes, 4)
    try:
        expected = decoded_plainly(cut, state, first, last, lengths, classes, 4)
    except BadFileError:
        expected = None
    assert (None if found is None else found.tolist()) == expected


def test_any_words_decode_to_something_finite_or_nothing():
    rng = np.random.default_rng(0)
    for cls in CLASSES:
        words = rng.integers(0, 65_536, 900, np.uint16)
        words[:2] = 65_535 if cls % 2 else words[:2]
        for n in (1, 50, 5000):
            decoded(words, cls, 0, n, [n], [cls], 8)  # asserts that nothing beside its place is written
    assert decoded(np.zeros(0, np.uint16), 0, 0, 1, [1], [1], 2) is None
    assert decoded(np.array([65_535, 0], np.uint16), 0, 0, 1, [1], [1], 2) is None
    # of these the first decodes to a zero; one has a word too many, one begins in a state that is too small
    for words, good in [([16, 1], True), ([16, 1, 7], False), ([1, 0, 0], False)]:
        found = decoded(np.array(words, np.uint16), 0, 0, 1, [1], [1], 2)
        assert (found is not None) == good
    for data in (b"", b"\0\0", b"\0\0\1\0\0", b"\xff\xff\0\0"):
        with pytest.raises(BadFileError):
            reference.decode_block(data, [1], [1], 2)


def test_a_block_by_hand():
    # Class 1, state 0, so quantiser 0: k = 0 has frequency 4095 from 0 on, the escape 1 at 4095. The symbols
    # are 0 and 5; the trellis stays in state 0 after an even k. Last first: the low byte of 5, 16 slots from
    # 16 * 5 on: (65536 // 16 << 12) + 80 = 0x1000050; the high byte, 0: 0x1000050 is 16 << 20 or more, 0x50
    # goes out and 0x100 stays: (0x10 << 12) + 0 = 0x10000; the escape: 1 << 20 is more than that, so
    # (0x10000 << 12) + 4095 = 0x10000FFF; then 0, below 4095 << 20: 0x10000FFF = 4095 * 65553 + 16, so
    # (65553 << 12) + 16 = 0x10011010.
    words = np.array([0x1010, 0x1001, 0x0050], np.uint16)
    [(found, *_)] = encoded(np.array([0, 5], np.int16), [2], [1], 2)
    np.testing.assert_array_equal(found, words)
    assert decoded(words, 0, 0, 2, [2], [1], 2).tolist() == [0, 10]
    assert decoded_plainly(words, 0, 0, 2, [2], [1], 2) == [0, 10]


@pytest.mark.parametrize("row", range(2, len(PLAN), 4))
def test_gaussian_values_are_coded_near_the_bound(row):
    n = 12_000
    x = np.random.default_rng(row).standard_normal(n)
    price, step, cls = PLAN[row, :3]
    k, levels, cls = tensor.quantise(x / step, price / step**2, int(cls), 8)
    bits = sum(16 * len(words) for words, *_ in encoded(k, [n], [cls], 8)) / n
    kept = (levels @ x) ** 2 / (levels @ levels) / (x @ x)
    bound = -0.5 * math.log2(1 - kept)
    assert bits >= 0.9 * PLAN[2, 3]
    assert bound < bits < 1.12 * bound
    # what the search was told that it would take
    told = cost_of(k.tolist(), levels - levels, 1.0, cls, 8) - float((levels.astype(float) ** 2).sum())
    assert told / n == pytest.approx(bits, rel=0.02)
