"""What stands beside trellis symbols: read as it was written, by kernels and reference; lies are refused."""

import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paring.codecs import deflated_levels, trellis
from paring.codecs.trellis import Levels
from paring.errors import BadFileError
from paring.kernels.trellis import header
from paring.kernels.trellis.header_reference import Header
from paring.kernels.trellis.tape import INVERSE
from tests.test_codec_trellis import by_the_book, same, tensor_of

few = settings(deadline=None, max_examples=60)
#: of tensors: a layout; segments and their entries; classes and the upper 16 bits of scales, in turn
tensors = st.tuples(
    st.integers(0, 2),
    st.tuples(st.integers(0, 9), st.sampled_from([0, 1, 2, 384, 1536, (1 << 60) - 1])),
    st.lists(st.sampled_from([0, 1, 9, 10, 11, 12, 30, 48]), min_size=1, max_size=5),
    st.lists(st.integers(0, 0xFFFF), min_size=1, max_size=5),
)
blocks = st.lists(
    st.tuples(st.integers(0, 1 << 20) | st.integers(0, 1 << 35), st.integers(0, 255)), max_size=5
)


def given_to(specs, bits, mantissas, index):
    """What a header is written of: scales have as many bits as ``mantissas`` says of their layout."""
    numbers = np.array([bits, *mantissas])
    layouts = np.array([layout for layout, *_ in specs], np.uint8)
    parts = [part for _, part, *_ in specs]
    classes, scales = [np.zeros(0, np.uint8)], [np.zeros(0, np.uint32)]
    for layout, (count, _), some, words in specs:
        classes.append(np.resize(np.array(some, np.uint8), count))
        word = np.resize(np.array(words, np.uint32) << 16 | 0x5555, count)
        drop = 23 - mantissas[layout]
        scales.append(np.where(classes[-1] > 0, word >> drop << drop, 0).astype(np.uint32))
    lengths = np.array([length for length, _ in index], np.int64)
    states = np.array([state % (1 << bits) if i else 0 for i, (_, state) in enumerate(index)], np.uint8)
    return numbers, layouts, parts, np.concatenate(classes), np.concatenate(scales), lengths, states


def read(words, numbers, layouts, parts, classes, scales, lengths, states):
    """The same of a header's words."""
    tape = header.Tape.reading(words)
    found = [np.zeros_like(part) for part in (numbers, layouts, classes, scales, lengths, states)]
    tape.begun(found[0], found[1])
    tape.segments(found[0], found[1], parts, found[2], found[3])
    tape.index(int(found[0][0]), found[4], found[5])
    return tape, found


@few
@given(st.lists(tensors, max_size=6), st.integers(2, 8), st.tuples(*[st.integers(0, 23)] * 3), blocks)
def test_kernels_read_what_they_write_as_the_reference_does(specs, bits, mantissas, index):
    told = given_to(specs, bits, mantissas, index)
    numbers, layouts, parts, classes, scales, lengths, states = told
    words = header.written(*told)
    tape, found = read(np.append(words, np.uint16(7)), *told)
    assert tape.ended and tape.at == len(words)
    for got, want in zip(found, (numbers, layouts, classes, scales, lengths, states), strict=True):
        np.testing.assert_array_equal(got, want)
    plain = Header(words.tobytes() + b"more")
    assert plain.begun(len(specs)) == (bits, list(mantissas), layouts.tolist())
    some, all_scales = plain.segments(layouts.tolist(), parts, mantissas)
    assert (some, all_scales.view(np.uint32).tolist()) == (classes.tolist(), scales.tolist())
    assert plain.index(bits, len(index)) == (lengths.tolist(), states.tolist())
    assert plain.end() == 2 * len(words)


@few
@given(st.lists(tensors, min_size=1, max_size=4), st.data())
def test_damaged_headers_are_read_as_the_reference_reads_them(specs, draw):
    told = given_to(specs, 4, (5, 9, 23), [(3000, 0), (2900, 7)])
    words = header.written(*told)
    at = draw.draw(st.integers(0, len(words) - 1))
    words[at] ^= draw.draw(st.integers(1, 0xFFFF))
    words = words[: draw.draw(st.sampled_from([len(words), at, at + 1]))]
    tape, found = read(words, *told)
    try:
        plain = Header(words.tobytes())
        bits, mantissas, layouts = plain.begun(len(specs))
        if max(mantissas) > 23 or bits > 8:
            return  # the codec refuses them before it goes on
        classes, scales = plain.segments(layouts, told[2], mantissas)
        index = plain.index(bits, 2)
        whole = plain.end() == 2 * tape.at
    except BadFileError:
        whole = False
    assert tape.ended == whole
    if whole:
        assert [part.tolist() for part in found] == [
            [bits, *mantissas], layouts, classes, scales.view(np.uint32).tolist(), *index
        ]  # fmt: skip


def test_models_forget_and_room_is_found():
    rng = np.random.default_rng(0)
    classes = np.where(np.arange(6000) < 3000, 0, rng.integers(1, 49, 6000)).astype(np.uint8)
    scales = np.where(classes > 0, rng.integers(0, 1 << 32, 6000), 0).astype(np.uint32)
    told = (np.array([8, 0, 23, 0]), np.array([1], np.uint8), [(6000, 40)], classes, scales,
            np.zeros(0, np.int64), np.zeros(0, np.uint8))  # fmt: skip
    words = header.written(*told)
    assert read(words, *told)[0].ended
    plain = Header(words.tobytes())
    _, mantissas, layouts = plain.begun(1)
    assert plain.segments(layouts, [(6000, 40)], mantissas)[0] == classes.tolist()
    index = np.full(3000, (1 << 35) - 2)  # more operations than room is made for at first
    few_segments = np.array([2, 0, 0, 0]), np.zeros(0, np.uint8), [], classes[:0], scales[:0]
    long = (*few_segments, index, np.zeros(3000, np.uint8))
    tape, found = read(header.written(*long), *long)
    assert tape.ended
    np.testing.assert_array_equal(found[4], index)


def test_divisions_are_exact():
    for n in range(1, len(INVERSE)):
        x = np.arange(n + 1, dtype=np.int64) << 12
        np.testing.assert_array_equal(x * INVERSE[n] >> 36, x // n)


def test_what_is_told_by_neighbours_takes_little_room():
    rng = np.random.default_rng(0)
    scale = {cls: np.float32(np.ldexp(np.rint(32 * 2 ** (-cls / 7)), -18)) for cls in range(49)}
    items = []
    for _ in range(40):  # the two sides of modules of rank 6: classes fall, and hardly differ
        classes = np.sort(rng.integers(5, 25, 6).astype(np.uint8))[::-1].copy()
        for layout, shape, by in (("rows", (6, 0), 0), ("columns", (0, 6), 3)):
            each = classes - np.uint8(by)
            scales = np.full(6, 0.25, np.float32) if by else np.array([scale[int(c)] for c in each])
            items.append(Levels(shape, layout, 4, each, scales, np.zeros((6, 0), np.int16)))
    sizes = [len(codec.encode(items)) for codec in (deflated_levels, trellis)]
    assert sizes[1] < 0.7 * sizes[0]


def test_a_byte_stands_for_few_segments():
    none = Levels((64_000, 0), "rows", 8, np.zeros(64_000, np.uint8), np.zeros(64_000, np.float32),
                  np.zeros((64_000, 0), np.int16))  # fmt: skip
    payload = trellis.encode([none])
    assert len(payload) == 1000
    same(trellis.decode(payload, [none.shape], ["F32"])[0], by_the_book(none, "F32"))
    with pytest.raises(BadFileError, match="too short"):
        trellis.decode(payload[:-1], [none.shape], ["F32"])


def deflated_header(codes, size):
    """A payload of version 1 with a header of these bytes and ``size`` bytes behind it."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    header = deflate.compress(bytes(codes)) + deflate.flush()
    return len(header).to_bytes(4, "little") + header + bytes(size)


def coded_header(bits, mantissa, layouts, classes, words, lengths=(), size=0):
    """A payload of version 2 with this header, of tensors of one entry, and ``size`` bytes behind."""
    count = len(classes) // max(1, len(layouts))
    made = header.written(
        np.array([bits, mantissa, mantissa, mantissa]),
        np.array(layouts, np.uint8),
        [(count, 1)] * len(layouts),
        np.array(classes, np.uint8),
        np.array(words, np.uint32),
        np.array(lengths, np.int64),
        np.zeros(len(lengths), np.uint8),
    )
    return made.astype("<u2").tobytes() + bytes(size)


BIG = (1 << 60) - 1
ONE = 0x3F800000


@pytest.mark.parametrize(
    ("layouts", "classes", "shapes"),
    [
        ([0], [0], [(BIG,)]),  # a zero tensor
        ([0], [9], [(BIG,)]),
        ([0] * 32, [0] * 32, [(1 << 59,)] * 32),  # 2^64 entries
        ([0] * 17, [9] * 17, [(BIG,)] * 16 + [(16,)]),
        ([1] * 32, [], [(1 << 59, 0)] * 32),  # 2^64 segments without entries
        ([2], [], [(0, BIG)]),
        ([1], [0] * 1000, [(1 << 20, 1 << 19)]),
        ([0], [9], [(10**9,)]),  # 15,259 blocks
    ],
)
def test_sizes_that_lie_take_no_memory(layouts, classes, shapes):
    scales = np.full(np.count_nonzero(classes), ONE, "<u4").view(np.uint8).reshape(-1, 4).T.reshape(-1)
    one = deflated_header([2, *layouts, *classes, *scales], 60_000)
    two = coded_header(2, 0, layouts, classes, np.where(np.array(classes) > 0, ONE, 0), size=60_000)
    trellis.decode(trellis.encode([]), [], [])  # compiled
    for codec, payload in ((deflated_levels, one), (trellis, two)):
        tracemalloc.start()
        with pytest.raises(BadFileError):
            codec.decode(payload, shapes, ["F16"] * len(shapes))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 4 << 20


def test_deflated_headers_that_make_no_sense_are_refused():
    item = tensor_of(((3, 9), "rows", [9]), 0)
    payload = deflated_levels.encode([item])
    side = [3, 1, 9, 9, 9, *item.scale.view(np.uint8).reshape(-1, 4).T.reshape(-1).tolist()]
    rest = payload[4 + int.from_bytes(payload[:4], "little") :]
    assert deflated_levels.decode(deflated_header(side, 0) + rest, [(3, 9)], ["F32"])
    for at, wrong, told in [(0, 1, "trellis"), (0, 9, "trellis"), (1, 3, "layout"), (2, 49, "class"),
                            (2, 255, "class"), (-1, 127, "damaged")]:  # fmt: skip
        bad = side.copy()
        bad[at] = wrong
        bad[-4] = 128 if at == -1 else bad[-4]
        with pytest.raises(BadFileError, match=told):
            deflated_levels.decode(deflated_header(bad, 0) + rest, [(3, 9)], ["F32"])


@pytest.mark.parametrize(
    ("bits", "mantissa", "classes", "word", "lengths", "told"),
    [
        (9, 0, [9], ONE, [3], "trellis"),
        (2, 24, [0], 0, [], "trellis"),
        (2, 31, [0], 0, [], "trellis"),
        (2, 0, [49], ONE, [3], "header"),
        (2, 0, [255], ONE, [3], "header"),
        (2, 0, [9], 0x7F800000, [3], "not finite"),
        (2, 23, [9], 0xFFC00001, [3], "not finite"),
        (2, 0, [9], ONE, [1 << 33], "damaged"),
        (2, 0, [9], ONE, [4], "damaged"),
        (2, 0, [9], ONE, [], "damaged"),
    ],
)
def test_headers_that_make_no_sense_are_refused(bits, mantissa, classes, word, lengths, told):
    words = [word if cls else 0 for cls in classes]
    payload = coded_header(bits, mantissa, [0], classes, words, lengths, 6)
    with pytest.raises(BadFileError, match=told):
        trellis.decode(payload, [(1,)], ["F64"])
