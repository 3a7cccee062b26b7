"""The trellis codec in both versions: what goes in comes out, in any selection; damage does no harm."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from paring.codecs import deflated_levels, levels, trellis
from paring.codecs.trellis import Levels, values
from paring.dtypes import from_f32, numel
from paring.errors import BadFileError, BadValueError, ParingError, UnsupportedError
from paring.kernels.ternary.tensor import LAYOUTS, segments
from paring.kernels.trellis import reference, tables
from paring.kernels.trellis.tensor import dense, quantise

few = settings(deadline=None, max_examples=30)
each_version = pytest.mark.parametrize("codec", [deflated_levels, trellis], ids=["1", "2"])
DTYPES = ("F16", "BF16", "F32", "F64")
tensors = st.tuples(
    st.lists(st.integers(0, 12), max_size=3).map(tuple),
    st.sampled_from(LAYOUTS),
    st.lists(st.sampled_from([0, 0, 1, 9, 20, 27, 33, 48]), min_size=1, max_size=4),
)


def tensor_of(spec, seed, bits=3, huge=0.01):
    """Segments of the classes ``spec[2]`` in turn, with some symbols that need the escape."""
    shape, layout, classes = spec
    layout = layout if shape else "whole"
    count, n = segments(shape, layout)
    rng = np.random.default_rng([seed, count, n])
    each = np.resize(np.array(classes, np.uint8), count)
    k = np.rint(rng.standard_normal((count, n)) * 0.3 * 2.0 ** (each[:, None] / 8.0)).astype(np.int16)
    odd = rng.random((count, n)) < huge
    k[odd] = rng.integers(-32_768, 32_768, int(odd.sum()))
    scale = (rng.standard_normal(count) * 0.01).astype(np.float32)
    return Levels(shape, layout, bits, each, scale, k)


def by_the_book(item, dtype):
    """scale * level of every segment, rounded once; the value of level 0 is +0."""
    count, n = segments(item.shape, item.layout)
    out = np.zeros((count, n))
    for segment in range(count):
        if item.classes[segment]:
            levels = reference.levels(item.k[segment].tolist(), item.bits)
            out[segment] = np.where(levels == 0, 0.0, levels * float(item.scale[segment]))
    laid = out.T if item.layout == "columns" else out
    return from_f32(np.ascontiguousarray(laid).reshape(item.shape), dtype)


def same(stored, expected):
    assert (stored.dtype, stored.shape) == (expected.dtype, expected.shape)
    assert stored.tobytes() == expected.tobytes()


@each_version
@few
@given(st.lists(tensors, max_size=5), st.sampled_from(sorted(tables.CHECKS)), st.data())
@example(
    [((0,), "rows", [9]), ((), "whole", [1]), ((3, 0, 2), "columns", [48]), ((2, 3), "rows", [0])], 2, None
)
def test_round_trip(codec, specs, bits, draw):
    items = [tensor_of(spec, seed, bits) for seed, spec in enumerate(specs)]
    shapes = [item.shape for item in items]
    dtypes = [
        DTYPES[1 + i % 3] if draw is None else draw.draw(st.sampled_from(DTYPES[1:]))
        for i in range(len(items))
    ]
    payload = codec.encode(items)
    assert payload == codec.encode(items)
    expected = [by_the_book(item, dtype) for item, dtype in zip(items, dtypes, strict=True)]
    for threads in (1, 2):
        for stored, want in zip(
            codec.decode(payload, shapes, dtypes, threads=threads), expected, strict=True
        ):
            same(stored, want)
    for item, want in zip(items, expected, strict=True):
        wide = values(item, want.dtype)
        assert (wide.dtype, wide.shape) == (np.float64, item.shape)
        assert (wide == (want.data if want.dtype == "F64" else want.f32())).all()
    if items and draw:
        chosen = draw.draw(st.lists(st.integers(0, len(items) - 1), max_size=4))
        for i, stored in zip(chosen, codec.decode(payload, shapes, dtypes, chosen), strict=True):
            same(stored, expected[i])


@each_version
@few
@given(st.lists(tensors, min_size=1, max_size=5), st.integers(1, 40), st.data())
def test_blocks_may_end_anywhere(codec, specs, block, draw):
    items = [tensor_of(spec, seed, 4) for seed, spec in enumerate(specs)]
    shapes, dtypes = [item.shape for item in items], ["F32"] * len(items)
    chosen = draw.draw(st.sampled_from([None, [len(items) - 1], [0, 0]]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(levels, "BLOCK", block)
        payload = codec.encode(items)
        found = codec.decode(payload, shapes, dtypes, chosen, threads=2)
    for i, stored in zip(range(len(items)) if chosen is None else chosen, found, strict=True):
        same(stored, by_the_book(items[i], "F32"))


@each_version
@pytest.mark.parametrize("layout", LAYOUTS)
def test_many_blocks_in_threads_and_alone(codec, layout):
    items = [tensor_of(((301, 517), layout, [9, 14, 0, 30]), seed, 6, 1e-4) for seed in range(3)]
    shapes = [item.shape for item in items]
    payload = codec.encode(items)
    expected = [from_f32(values(item, "F64"), "BF16") for item in items]
    for threads in (1, 3):
        for stored, want in zip(
            codec.decode(payload, shapes, ["BF16"] * 3, threads=threads), expected, strict=True
        ):
            same(stored, want)
    same(codec.decode(payload, shapes, ["BF16"] * 3, [1])[0], expected[1])


@each_version
def test_a_selection_needs_only_its_own_blocks(codec):
    items = [tensor_of(((70_000,), "whole", [12]), seed) for seed in range(3)]
    shapes, dtypes = [item.shape for item in items], ["F32"] * 3
    payload = bytearray(codec.encode(items))
    payload[-10] ^= 1
    same(codec.decode(bytes(payload), shapes, dtypes, [0])[0], by_the_book(items[0], "F32"))
    with pytest.raises(BadFileError, match="damaged"):
        codec.decode(bytes(payload), shapes, dtypes, [2])


@each_version
def test_values_are_rounded_once(codec):
    # level 3 is worth 1 + 2^-8 + 2^-24 here: in bf16 1 + 2^-7, by way of fp32 it would be 1
    scale = np.float32((2**25 + 2**17 + 2) // 3 * 2.0**-25)
    k = np.array([[1, 2]], np.int16)
    item = Levels((2,), "whole", 2, np.array([9], np.uint8), np.array([scale]), k)
    assert dense(item).tolist() == [2, 3]
    assert (
        codec.decode(codec.encode([item]), [(2,)], ["BF16"])[0].f32()[1]
        == 1 + 2**-7
        == values(item, "BF16")[1]
    )
    assert codec.decode(codec.encode([item]), [(2,)], ["F64"])[0].data[1] == 1 + 2**-8 + 2**-24
    for dtype in DTYPES:
        same(
            codec.decode(codec.encode([item]), [(2,)], [dtype])[0],
            from_f32(np.array([2, 3]) * float(scale), dtype),
        )


@each_version
def test_zeros_are_positive(codec):
    item = Levels((4,), "whole", 2, np.array([1], np.uint8), np.array([-0.5], np.float32),
                  np.array([[0, 1, 0, 0]], np.int16))  # fmt: skip
    for dtype in DTYPES:
        [stored] = codec.decode(codec.encode([item]), [(4,)], [dtype])
        same(stored, from_f32(np.array([0.0, -1.0, 0.0, 0.0]), dtype))
        assert not np.signbit(values(item, dtype)[[0, 2, 3]]).any()


@each_version
def test_small_things_stay_small_and_zeros_cost_little(codec):
    assert len(codec.encode([])) < 8
    none = Levels((1000, 1000), "rows", 8, np.zeros(1000, np.uint8), np.zeros(1000, np.float32),
                  np.zeros((1000, 1000), np.int16))  # fmt: skip
    payload = codec.encode([none])
    assert len(payload) == -(-1_000_000 // 32_768)
    assert not codec.decode(payload, [none.shape], ["F32"])[0].data.any()
    for bad in (payload[:-1], payload + b"\0", payload[:-1] + b"\1"):
        with pytest.raises(BadFileError):
            codec.decode(bad, [none.shape], ["F32"])


@each_version
def test_what_quantise_gives_is_coded_and_comes_back(codec):
    x = np.random.default_rng(0).standard_normal((5, 400))
    rows = [quantise(row / 0.5, 0.34, 14, 6) for row in x]
    item = Levels((5, 400), "rows", 6, np.array([cls for *_, cls in rows], np.uint8),
                  np.full(5, 0.5, np.float32), np.stack([k for k, *_ in rows]))  # fmt: skip
    [stored] = codec.decode(codec.encode([item]), [(5, 400)], ["F32"])
    np.testing.assert_array_equal(stored.data, 0.5 * np.stack([levels for _, levels, _ in rows]))
    assert np.mean((stored.data - x) ** 2) < 0.08


def small_payload(codec):
    items = [tensor_of(((5, 9), "rows", [9, 0, 22]), 1), tensor_of(((3, 4), "columns", [30, 0]), 2)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(levels, "BLOCK", 16)
        return codec.encode(items), [item.shape for item in items]


def survives(codec, payload, shapes, dtypes):
    """Refused, or finite values in the right shapes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(levels, "BLOCK", 16)
        try:
            found = codec.decode(payload, shapes, dtypes, threads=1)
        except ParingError as error:
            # a scale may have become so large that its values do not fit fp16: that is no longer damage
            assert isinstance(error, BadFileError) or (
                isinstance(error, BadValueError) and "F64" not in dtypes
            )
            return False
    assert [stored.shape for stored in found] == list(shapes)
    assert all(np.isfinite(stored.data if stored.dtype == "F64" else stored.f32()).all() for stored in found)
    return True


@each_version
def test_every_damaged_byte_is_refused_or_does_no_harm(codec):
    payload, shapes = small_payload(codec)
    assert survives(codec, payload, shapes, ["F64", "F64"])
    refused = 0
    for at in range(len(payload)):
        for flip in (1, 2, 4, 8, 16, 32, 64, 128, 255, payload[at], 255 - payload[at]):
            broken = bytearray(payload)
            broken[at] ^= flip
            refused += not survives(codec, bytes(broken), shapes, ["F64", "F64"])
        broken[at] ^= 16
        survives(codec, bytes(broken), shapes, ["F16", "BF16"])
    assert refused > 5 * len(payload)


@each_version
def test_every_truncation_is_refused(codec):
    payload, shapes = small_payload(codec)
    for cut in (*(payload[:n] for n in range(len(payload))), payload + b"\0", payload + b"\0\0"):
        assert not survives(codec, cut, shapes, ["F64", "F64"])


@each_version
@few
@given(st.data())
def test_much_damage_is_refused_or_does_no_harm(codec, draw):
    payload, shapes = small_payload(codec)
    broken = bytearray(payload)
    near = draw.draw(st.sampled_from([4, 20, 40, len(payload)]))
    for _ in range(draw.draw(st.integers(1, 5))):
        broken[draw.draw(st.integers(0, near - 1))] = draw.draw(st.integers(0, 255))
    survives(codec, bytes(broken), shapes, ["F64", "F32"])


@each_version
def test_shapes_that_do_not_fit_are_refused(codec):
    item = tensor_of(((3, 9), "rows", [9]), 0)
    payload = codec.encode([item])
    same(codec.decode(payload, [(3, 9)], ["F32"])[0], by_the_book(item, "F32"))
    for shape in [(), (3, 8), (4, 9), (3, 9, 2)]:
        with pytest.raises(BadFileError):
            codec.decode(payload, [shape], ["F32"])


def test_words_at_odd_places_are_read():
    items = [tensor_of(((5, 9), "rows", [9, 0, 22]), 1), tensor_of(((3, 4), "columns", [30, 0]), 2)]
    shapes = [item.shape for item in items]
    payload = memoryview(b"x" + trellis.encode(items))[1:]
    for item, stored in zip(items, trellis.decode(payload, shapes, ["F32"] * 2), strict=True):
        same(stored, by_the_book(item, "F32"))


def test_an_index_that_makes_no_sense_is_refused():
    payload, shapes = small_payload(deflated_levels)
    at = 4 + int.from_bytes(payload[:4], "little")
    blocks = -(-(2 * 9 + 2 * 3) // 16)
    for first, second, state in [(1, -1, 0), (2, -2, 0), (0, 0, 8), (2**31, -(2**31), 0)]:
        broken = bytearray(payload)
        for place, change in ((at, first), (at + 4, second)):
            size = (int.from_bytes(broken[place : place + 4], "little") + change) % 2**32
            broken[place : place + 4] = size.to_bytes(4, "little")
        broken[at + 4 * blocks] += state
        assert not survives(deflated_levels, bytes(broken), shapes, ["F64", "F64"])


@each_version
def test_what_makes_no_sense_is_refused(codec):
    good = tensor_of(((3, 9), "rows", [9]), 0)
    codec.encode([good])
    fields = good.shape, good.layout, good.bits, good.classes, good.scale, good.k
    for at, wrong in [
        (5, good.k[:, 1:]), (5, good.k.reshape(-1)), (4, good.scale[:1]), (3, good.classes[:2]), (2, 9),
        (3, good.classes + np.uint8(40)), (4, good.scale * np.nan), (4, good.scale * np.inf),
    ]:  # fmt: skip
        bad = Levels(*fields[:at], wrong, *fields[at + 1 :])
        with pytest.raises(BadValueError):
            codec.encode([bad])
    with pytest.raises(BadValueError):
        codec.encode([good, Levels((3, 9), "rows", 5, *fields[3:])])
    with pytest.raises(UnsupportedError):
        codec.decode(codec.encode([good]), [(3, 9)], ["I8"])
    loud = Levels(
        (1,), "whole", 2, np.array([1], np.uint8), np.array([1e6], np.float32), np.ones((1, 1), np.int16)
    )
    with pytest.raises(BadValueError):
        codec.decode(codec.encode([loud]), [(1,)], ["F16"])
    # a segment of class 0 may hold what it likes
    void = Levels(
        (1, 3), "rows", 3, np.zeros(1, np.uint8), np.array([np.nan], np.float32), np.ones((1, 3), np.int16)
    )
    assert (
        not codec.decode(codec.encode([void]), [(1, 3)], ["F32"])[0].data.any()
        and not values(void, "F32").any()
    )


@each_version
def test_sizes_are_as_said(codec):
    for seed in range(5):
        item = tensor_of(((40, 50), "rows", [seed * 9 + 1, 20]), seed)
        assert len(codec.encode([item])) < codec.most_bytes(item) + 500 == 2 * numel(item.shape) + 500
