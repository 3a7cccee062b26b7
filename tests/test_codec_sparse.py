"""The sparse codec: every bit of any tensor comes back; damage does no harm; 2:4 that is none is refused."""

import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paring import codecs
from paring.codecs import deflated, planes, sparse
from paring.codecs.sparse import FORMS, Sparse, coded_bytes, decode, encode, occupied
from paring.compress.sparse import sparse as method
from paring.dtypes import STORAGE, Stored, from_bytes, from_f32, itemsize, numel
from paring.errors import BadFileError, BadValueError, ParingError

few = settings(deadline=None, max_examples=60)
shapes_ = st.lists(st.integers(0, 9), max_size=3).map(tuple)
specs = st.tuples(st.sampled_from(sorted(STORAGE)), shapes_, st.sampled_from([0.0, 0.1, 0.5, 1.0]))


def tensor_of(spec, seed=0):
    """Any bits at all, -0 and NaN among them, a share of the entries kept."""
    dtype, shape, density = spec
    rng = np.random.default_rng(seed)
    raw = rng.integers(0, 256, (numel(shape), itemsize(dtype)), np.uint8)
    raw[rng.random(len(raw)) >= density] = 0
    return from_bytes(dtype, shape, (raw & 1 if dtype == "BOOL" else raw).reshape(-1))


def two_of_four(dtype, shape, seed=0, fewer=0.2):
    """At most two values in every four."""
    rng = np.random.default_rng(seed)
    groups = rng.standard_normal((numel(shape) // 4, 4)).astype(np.float32)
    groups[np.arange(len(groups))[:, None], np.argsort(rng.random(groups.shape))[:, 2:]] = 0
    groups[rng.random(groups.shape) < fewer] = 0
    return from_f32(groups.reshape(shape), dtype)


def alike(a, b):
    return (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())


@few
@given(st.lists(specs, max_size=5), st.data())
def test_any_bits_come_back_in_any_selection(drawn, data):
    tensors = [tensor_of(spec, seed) for seed, spec in enumerate(drawn)]
    items = [Sparse(tensor) for tensor in tensors]
    payload = encode(items)
    assert payload == encode(items)
    shapes, dtypes = [t.shape for t in tensors], [t.dtype for t in tensors]
    assert all(map(alike, decode(payload, shapes, dtypes), tensors))
    select = data.draw(st.lists(st.sampled_from(range(len(tensors))), max_size=4)) if tensors else []
    chosen = decode(memoryview(payload), shapes, dtypes, select)
    assert all(alike(a, tensors[i]) for a, i in zip(chosen, select, strict=True))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16"])
@pytest.mark.parametrize("shape", [(4,), (12,), (5, 8), (3, 2, 4), (0, 4), (7, 4), (1, 28)])
def test_two_of_four_comes_back(form, dtype, shape):
    tensor = two_of_four(dtype, shape)
    payload = encode([Sparse(tensor, form), Sparse(tensor, "2:4"), Sparse(tensor)])
    back = decode(payload, [shape] * 3, [dtype] * 3)
    assert all(alike(each, tensor) for each in back)


def test_minus_zero_and_nan_payloads_are_values():
    bits = np.array([0, 0x8000, 0x7F81, 0xFFC1, 0x7F80, 1, 0, 0], np.uint16)
    tensor = Stored("BF16", bits.reshape(2, 4))
    assert occupied(tensor).tolist() == [0b00111110]
    assert alike(decode(encode([Sparse(tensor)]), [(2, 4)], ["BF16"])[0], tensor)
    pairs = Stored("F8_E4M3", np.array([[0x80, 0, 0, 0x7F], [0, 0xFF, 0x80, 0]], np.uint8))
    assert alike(decode(encode([Sparse(pairs, "2:4")]), [(2, 4)], ["F8_E4M3"])[0], pairs)


@pytest.mark.parametrize(
    "rows", [[[1, 2, 3, 0]], [[1, 0, 0, 0], [1, 1, 1, 1]], [[0.0, -0.0, 1, 2]], [[1, 0, 0, 0, 0]]]
)
def test_three_in_a_group_is_no_two_of_four(rows):
    tensor = from_f32(np.array(rows, np.float32), "F32")
    assert coded_bytes(occupied(tensor), tensor.numel, "2:4") is None
    with pytest.raises(BadValueError, match="more than two values in a group of four"):
        encode([Sparse(tensor, "2:4")])


def test_sizes_are_those_of_places_and_values():
    rng = np.random.default_rng(0)
    n = 1 << 16
    noise = rng.integers(1, 1 << 16, n).astype(np.uint16)
    half = Stored("U16", np.where(rng.random(n) < 0.5, noise, 0).astype(np.uint16))
    tenth = Stored("U16", np.where(rng.random(n) < 0.1, noise, 0).astype(np.uint16))
    assert len(encode([Sparse(half)])) == pytest.approx(n / 8 + n, rel=0.02)
    entropy = -(0.1 * np.log2(0.1) + 0.9 * np.log2(0.9)) * n / 8
    assert len(encode([Sparse(tenth)])) == pytest.approx(entropy + 0.2 * n, rel=0.05)
    groups = noise.reshape(-1, 4).copy()
    groups[np.arange(len(groups))[:, None], np.argsort(rng.random(groups.shape))[:, 2:]] = 0
    pairs = Stored("U16", groups)
    told = len(encode([Sparse(pairs, "2:4")])) - n
    assert n / 4 * np.log2(6) / 8 < told < n / 12 * 0.995
    assert told < len(encode([Sparse(pairs)])) - n


@pytest.mark.parametrize(
    ("tensor", "form"),
    [
        (tensor_of(("BF16", (64, 64), 1.0)), None),
        (tensor_of(("BF16", (64, 64), 0.5)), "mask"),
        (tensor_of(("U8", (64, 64), 0.5)), "mask"),
        (Stored("F32", np.zeros((3, 5), np.float32)), "mask"),
        (Stored("F32", np.zeros((0, 5), np.float32)), None),
        (two_of_four("BF16", (64, 64), fewer=0.0), "2:4"),
        (two_of_four("BF16", (64, 64), fewer=0.5), "mask"),  # half of its pairs would be stored zeros
    ],
)
def test_the_smallest_form_is_taken(tensor, form):
    item = method(tensor)
    assert (item.form if isinstance(item, Sparse) else None) == form
    sizes = {
        name: len(encode([Sparse(tensor, name)]))
        for name in FORMS
        if coded_bytes(occupied(tensor), tensor.numel, name)
    }
    sizes[None] = len(planes.encode([tensor]))
    if tensor.numel > 15:
        assert sizes[form] <= min(sizes.values()) + 64


def test_zeros_cost_little_and_small_payloads_stand_for_little():
    zeros = Stored("F64", np.zeros((1000, 1000)))
    payload = encode([Sparse(zeros)])
    assert deflated.least_bytes([zeros.shape]) <= len(payload) < 400
    assert alike(decode(payload, [zeros.shape], ["F64"])[0], zeros)
    with pytest.raises(BadFileError, match="too short for the shapes"):
        decode(payload, [(1 << 40,)], ["F64"])
    for bad in (payload[:-1], payload + b"\0", b"", payload[:12]):
        with pytest.raises(BadFileError):
            decode(bad, [zeros.shape], ["F64"])


def payload_of(rows, places, kept, pad=0):
    header = deflated.written(b"".join(bytes([form]) + count.to_bytes(8, "little") for form, count in rows))
    parts = [part for pair in zip(places, kept, strict=True) for part in pair]
    body = planes.encode(parts)
    sizes = len(header).to_bytes(4, "little") + len(body).to_bytes(8, "little") + bytes([planes.VERSION])
    return sizes + header + body + bytes(pad)


def u8(*values):
    return Stored("U8", np.array(values, np.uint8))


@pytest.mark.parametrize(
    ("row", "places", "kept", "shape", "told"),
    [
        ((0, 3), u8(0b11), u8(1, 2, 3), (8,), "another number"),
        ((0, 2), u8(0b10001), u8(1, 2), (4,), "another number"),  # beyond the last entry
        ((0, 9), u8(255), u8(*range(9)), (8,), "not so many"),
        ((2, 2), u8(3), u8(1, 2), (4,), "no such form"),
        ((1, 2), u8(3), u8(1, 2), (5,), "no such form"),
        ((1, 3), u8(3), u8(1, 2, 3), (4,), "not so many"),
        ((1, 2), u8(216), u8(1, 2), (4,), "two in four"),
        ((1, 2), u8(6), u8(1, 2), (4,), "beyond the last group"),
        ((0, 2), u8(0b11, 0), u8(1, 2), (8,), "shape"),
        ((0, 2), u8(0b11), u8(1, 2), (4, 3), "shape"),
    ],
)
def test_what_makes_no_sense_is_refused(row, places, kept, shape, told):
    good = payload_of([(0, 2)], [u8(0b11)], [u8(1, 2)])
    assert decode(good, [(4,)], ["U8"])[0].data.tolist() == [1, 2, 0, 0]
    with pytest.raises(BadFileError, match=told):
        decode(payload_of([row], [places], [kept]), [shape], ["U8"])


def small_payload():
    tensors = [tensor_of(("BF16", (5, 9), 0.4)), two_of_four("F32", (4, 8)), tensor_of(("I64", (2, 3), 0.5))]
    forms = ["mask", "2:4", "mask"]
    payload = encode([Sparse(t, form) for t, form in zip(tensors, forms, strict=True)])
    return payload, [t.shape for t in tensors], [t.dtype for t in tensors]


def survives(payload, shapes, dtypes):
    try:
        found = decode(payload, shapes, dtypes)
    except ParingError as error:
        assert isinstance(error, BadFileError)
        return False
    assert [(t.dtype, t.shape) for t in found] == list(zip(dtypes, shapes, strict=True))
    return True


def test_every_damaged_byte_is_refused_or_does_no_harm():
    payload, shapes, dtypes = small_payload()
    assert survives(payload, shapes, dtypes)
    refused = 0
    for at in range(len(payload)):
        for flip in (1, 2, 4, 8, 16, 32, 64, 128, 255):
            broken = bytearray(payload)
            broken[at] ^= flip
            refused += not survives(bytes(broken), shapes, dtypes)
    assert refused > 2 * len(payload)
    for n in range(len(payload)):
        assert not survives(payload[:n], shapes, dtypes)


BOMB = zlib.compressobj(9, zlib.DEFLATED, -15)
BOMB = BOMB.compress(bytes(50_000_000)) + BOMB.flush()


@pytest.mark.parametrize(
    "payload",
    [
        len(BOMB).to_bytes(4, "little") + (0).to_bytes(8, "little") + b"\2" + BOMB,
        b"\xff\xff\xff\xff" + b"\xff" * 8 + b"\2" + bytes(100),
        payload_of([(0, 1 << 62)], [u8(1)], [u8(1)], 1000),
        payload_of([(0, 1)], [u8(1)], [u8(1)], 60_000),
    ],
)
@pytest.mark.parametrize("shape", [((1 << 59) + 1,), (1 << 40,), (1 << 20, 1 << 11)])
def test_sizes_that_lie_take_no_memory(payload, shape):
    tracemalloc.start()
    with pytest.raises(BadFileError):
        decode(payload, [shape], ["F64"])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20


def test_it_is_found_by_name_and_by_item():
    assert codecs.find("sparse", 1) is sparse and codecs.find("sparse", 2) is None
    item = Sparse(tensor_of(("F32", (3, 4), 0.5)))
    assert codecs.of(item) is sparse and len(encode([item])) < sparse.most_bytes(item) + 40
    assert np.array_equal(sparse.values(item, "F32"), item.tensor.f64(), equal_nan=True)
    assert sparse.key(item) == sparse.key(Sparse(Stored("F32", item.tensor.data.copy())))


def pruned(share):
    """Normal weights, pruned by magnitude: to a share, or 2:4."""
    n = 1 << 18
    w = (0.02 * np.random.default_rng(0).standard_normal(n)).astype(np.float32)
    if share is not None:
        return np.where(np.abs(w) >= np.sort(np.abs(w))[int(share * n)], w, np.float32(0))
    groups = w.reshape(-1, 4).copy()
    np.put_along_axis(groups, np.argsort(np.abs(groups), axis=1)[:, :2], 0, axis=1)
    return groups.reshape(-1)


@pytest.mark.parametrize(("row", "share"), [("half", 0.5), ("2:4", None), ("70 %", 0.7), ("90 %", 0.9)])
def test_the_figures_in_the_documentation(row, share):
    page = (Path(__file__).parents[1] / "docs" / "sparse.md").read_text()
    (line,) = (line for line in page.splitlines() if line.startswith(f"| {row} |"))
    told = [float(cell) for cell in line.split("|")[2:6]]
    half, whole = (from_f32(pruned(share), dtype) for dtype in ("BF16", "F32"))
    found = [len(encode([method(t)])) / t.nbytes for t in (half, whole)]
    found += [len(planes.encode([half])) / half.nbytes, 1 / 16 + np.count_nonzero(half.data) / half.numel]
    assert found == pytest.approx(told, abs=0.003)
