"""The ternary codec: what goes in comes out, small, in any selection, in threads; damage does no harm."""

import math
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paring.codecs import ternary
from paring.codecs.ternary import Ternary, decode, encode, from_floats, from_trits, planes, segments, to_trits
from paring.dtypes import Stored, from_f32
from paring.errors import BadFileError, BadValueError, ParingError, UnsupportedError

few = settings(deadline=None, max_examples=30)
tensors = st.tuples(
    st.lists(st.integers(0, 40), max_size=3).map(tuple),
    st.sampled_from(ternary.LAYOUTS),
    st.sampled_from([0.0, 0.01, 0.1, 0.5, 1.0]),
)
DTYPES = ("F16", "BF16", "F32", "F64")


def trits_of(shape, density, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.choice([-1, 1], shape) * (rng.random(shape) < density)).astype(np.int8).reshape(shape)


def tensor_of(spec, seed):
    shape, layout, density = spec
    layout = layout if shape else "whole"
    count, _ = segments(shape, layout)
    return from_trits(trits_of(shape, density, seed), np.random.default_rng(seed).normal(size=count), layout)


def dense(item, dtype):
    """By the book: scale * trit, rounded once; zeros are +0."""
    count, n = segments(item.shape, item.layout)
    scale = item.scale.repeat(n)
    if item.layout == "columns":
        scale = scale.reshape(count, n).T
    trits = to_trits(item)
    values = np.where(trits == 0, 0, scale.reshape(item.shape) * trits).astype(np.float32)
    return Stored(dtype, from_f32(values, dtype).data.reshape(item.shape))


def same(stored, expected):
    assert (stored.dtype, stored.shape) == (expected.dtype, expected.shape)
    assert stored.tobytes() == expected.tobytes()


@few
@given(st.lists(tensors, max_size=6), st.data())
def test_round_trip(specs, draw):
    items = [tensor_of(spec, seed) for seed, spec in enumerate(specs)]
    shapes = [item.shape for item in items]
    dtypes = [draw.draw(st.sampled_from(DTYPES)) for _ in items]
    payload = encode(items)
    assert payload == encode(items)
    for item, stored, dtype in zip(items, decode(payload, shapes, dtypes), dtypes, strict=True):
        same(stored, dense(item, dtype))
    for i, item in enumerate(items):
        back = planes(payload, shapes, i)
        assert (back.shape, back.layout) == (item.shape, item.layout)
        for field in ("mask", "sign", "scale"):
            np.testing.assert_array_equal(getattr(back, field), getattr(item, field))
        np.testing.assert_array_equal(to_trits(back), trits_of(item.shape, specs[i][2], i))
    if items:
        chosen = draw.draw(st.lists(st.integers(0, len(items) - 1), max_size=4))
        for i, stored in zip(chosen, decode(payload, shapes, dtypes, chosen), strict=True):
            same(stored, dense(items[i], dtypes[i]))


@pytest.mark.parametrize("layout", ternary.LAYOUTS)
def test_many_blocks_in_threads_and_alone(layout):
    items = [from_trits(trits_of((700, 1003), k, 5), 0.1, layout) for k in (0.004, 0.1, 0.6)]
    shapes = [item.shape for item in items]
    payload = encode(items)
    for dtype in ("F16", "F32"):
        expected = [dense(item, dtype) for item in items]
        for threads in (1, 3):
            for stored, want in zip(
                decode(payload, shapes, [dtype] * 3, threads=threads), expected, strict=True
            ):
                same(stored, want)
        same(decode(payload, shapes, [dtype] * 3, [1])[0], expected[1])
        buffer = np.full(10_000_000, 255, np.uint8)
        for stored, want in zip(decode(payload, shapes, [dtype] * 3, buffer=buffer), expected, strict=True):
            same(stored, want)
            assert layout == "columns" or np.may_share_memory(stored.data, buffer)


def test_a_selection_needs_only_its_own_blocks():
    items = [from_trits(trits_of((300_000,), 0.1, i), 1.0) for i in range(3)]
    shapes, dtypes = [item.shape for item in items], ["F32"] * 3
    payload = bytearray(encode(items))
    payload[-10] ^= 1
    payload[-3000:-2000] = bytes(1000)
    same(decode(bytes(payload), shapes, dtypes, [0])[0], dense(items[0], "F32"))
    with pytest.raises(BadFileError, match="damaged"):
        decode(bytes(payload), shapes, dtypes, [2])


@pytest.mark.parametrize("shape", [(16, 24), (5, 7), (3, 2, 9), (11,)])
def test_from_floats_keeps_what_reaches_the_threshold(shape):
    x = np.random.default_rng(0).standard_normal(shape, np.float32)
    item = from_floats(x, 0.8, 0.5)
    np.testing.assert_array_equal(to_trits(item), np.where(np.abs(x) >= np.float32(0.8), np.sign(x), 0))


@pytest.mark.parametrize("density", [0.01, 0.05, 0.1, 0.2, 0.3, 0.5])
def test_size_is_within_a_percent_or_so_of_the_entropy(density):
    n = 2_000_000
    trits = trits_of((n,), density, 7)
    payload = encode([from_trits(trits, 0.01)])
    limit = 1.02 if density == 0.01 else 1.012
    density = np.count_nonzero(trits) / n
    bits = n * (-density * math.log2(density) - (1 - density) * math.log2(1 - density) + density)
    assert 8 * len(payload) <= limit * bits


def test_small_things_stay_small():
    assert len(encode([])) == 6
    assert len(encode([from_trits(np.ones((1,), np.int8), 1.0)])) <= 20
    assert len(encode([from_trits(np.zeros((1000, 1000), np.int8), 1.0)])) <= 60


def test_rows_of_their_own_density_are_coded_as_such():
    density = np.random.default_rng(0).uniform(0.01, 0.4, 400)
    rng = np.random.default_rng(1)
    trits = ((rng.random((400, 1024)) < density[:, None]) * rng.choice([-1, 1], (400, 1024))).astype(np.int8)
    by_rows, whole = (len(encode([from_trits(trits, 1.0, layout)])) for layout in ("rows", "whole"))
    assert by_rows < 0.97 * whole


def some_payload():
    items = [
        from_trits(trits_of((60, 50), 0.1, 1), 0.3, "rows"),
        from_trits(trits_of((90_000,), 0.05, 2), 0.7),
    ]
    return encode(items), [item.shape for item in items]


@few
@given(st.data())
def test_damage_is_refused_or_gives_wrong_values_but_no_harm(draw):
    payload, shapes = some_payload()
    broken = bytearray(payload)
    near = draw.draw(st.sampled_from([4, 60, 200, len(payload)]))
    for _ in range(draw.draw(st.integers(1, 4))):
        broken[draw.draw(st.integers(0, near - 1))] = draw.draw(st.integers(0, 255))
    cut = bytes(broken[: draw.draw(st.sampled_from([len(broken), draw.draw(st.integers(0, len(broken)))]))])
    try:
        first, second = decode(cut, shapes, ["F16", "F32"], threads=2)
        assert (first.shape, second.shape) == tuple(shapes)
        planes(cut, shapes, 0)
    except ParingError:
        pass


@pytest.mark.parametrize("cut", [0, 3, 4, 50, 400, -1])
def test_a_cut_payload_is_refused(cut):
    payload, shapes = some_payload()
    with pytest.raises(BadFileError):
        decode(payload[:cut], shapes, ["F16", "F32"])


def test_shapes_that_the_bytes_cannot_justify_are_refused_before_memory_is_taken():
    payload, shapes = some_payload()
    for shape in [(60, 10**15), (10**13, 50)]:
        with pytest.raises(BadFileError, match="too short"):
            decode(payload, [shape, shapes[1]], ["F16", "F32"])
    with pytest.raises(BadFileError):
        decode(struct.pack("<I", 2**32 - 1) + payload[4:], shapes, ["F16", "F32"])
    with pytest.raises(BadFileError):
        decode(payload, [(), shapes[1]], ["F16", "F32"])


def test_what_makes_no_sense_is_refused():
    good = from_trits(trits_of((3, 9), 0.5), 1.0, "rows")
    payload = encode([good])
    for bad in [
        Ternary((3, 9), "rows", good.mask[1:], good.sign, good.scale),
        Ternary((3, 9), "rows", good.mask | 128, good.sign, good.scale),
        Ternary((3, 9), "rows", good.mask, good.sign, good.scale[:1]),
        Ternary((3, 9), "rows", good.mask, good.sign, good.scale * np.float32(np.nan)),
    ]:
        with pytest.raises(BadValueError):
            encode([bad])
    with pytest.raises(BadValueError):
        from_trits(np.ones((), np.int8), 1.0, "rows")
    with pytest.raises(BadValueError):
        decode(encode([from_trits(np.ones(3, np.int8), 1e6)]), [(3,)], ["F16"])
    with pytest.raises(UnsupportedError):
        decode(payload, [(3, 9)], ["I8"])
