"""The bytes codec: any tensor comes back bit for bit, in any selection; damage does no harm."""

import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paring.codecs.stored import decode, encode
from paring.dtypes import Stored
from paring.errors import BadFileError, ParingError
from tests.helpers import alike, specs, tensor_of

few = settings(deadline=None, max_examples=40)


@few
@given(st.lists(specs, max_size=6), st.data())
def test_round_trip_of_any_selection(drawn, data):
    tensors = [tensor_of(spec, seed) for seed, spec in enumerate(drawn)]
    payload = encode(tensors)
    assert payload == encode(tensors)
    shapes, dtypes = [t.shape for t in tensors], [t.dtype for t in tensors]
    select = data.draw(st.lists(st.sampled_from(range(len(tensors))), max_size=4)) if tensors else []
    assert all(map(alike, decode(payload, shapes, dtypes), tensors))
    chosen = decode(memoryview(payload), shapes, dtypes, select)
    assert len(chosen) == len(select) and all(
        alike(a, tensors[i]) for a, i in zip(chosen, select, strict=True)
    )


def test_weights_shrink_and_noise_hardly_grows():
    weights = Stored("F32", np.random.default_rng(0).normal(0, 0.02, 50_000).astype(np.float32))
    assert len(encode([weights])) < 0.9 * weights.nbytes
    noise = Stored("U8", np.random.default_rng(0).integers(0, 256, 50_000, np.uint8))
    assert len(encode([noise])) <= noise.nbytes + 32
    scalars = [Stored("F32", np.array(16, np.float32))] * 500
    assert len(encode(scalars)) < 4 * 500 + 100  # alphas of a large adapter


@few
@given(st.data())
def test_damage_is_refused_or_harmless(data):
    tensors = [tensor_of((dtype, (5, 4), "ramp"), 1) for dtype in ("F32", "BF16", "I64")] * 3
    shapes, dtypes = [t.shape for t in tensors], [t.dtype for t in tensors]
    payload = bytearray(encode(tensors))
    for _ in range(data.draw(st.integers(1, 3))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.one_of(st.none(), st.integers(0, len(payload))))
    try:
        parts = decode(bytes(payload[:cut]), shapes, dtypes)
    except ParingError:
        return
    assert [(t.dtype, t.shape) for t in parts] == list(zip(dtypes, shapes, strict=True))


def payload_of(words, planes):
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15, 9)
    header = deflate.compress(np.array(words, "<u8").tobytes()) + deflate.flush()
    return len(header).to_bytes(4, "little") + header + planes


DEFLATED = zlib.compress(bytes(99))
BOMB = zlib.compress(bytes(50_000_000), 9)


@pytest.mark.parametrize(
    ("payload", "shape"),
    [
        (b"", (2,)),
        (payload_of([2, 2], b"abc"), (2,)),
        (payload_of([2], b"ab"), (2,)),
        (payload_of([1, 1], b"ab"), (2,)),
        (payload_of([1 << 62, 1 << 62], b"ab"), (2,)),
        (payload_of([2, 2, 2], b"ababab"), (2,)),
        (payload_of([2 | 1 << 63, 2], b"abcd"), (2,)),
        (payload_of([len(BOMB) | 1 << 63, 2], BOMB + b"ab"), (2,)),
        (payload_of([len(DEFLATED) - 1 | 1 << 63, 99], DEFLATED[:-1] + bytes(99)), (99,)),
        (payload_of([len(DEFLATED) + 1 | 1 << 63, 99], DEFLATED + bytes(100)), (99,)),
        (payload_of([1, 1], b"ab"), (1 << 40, 1 << 19)),
        (payload_of([12 | 1 << 63, 0], zlib.compress(b"abcd")[:12]), (1 << 59,)),
    ],
)
def test_lengths_that_lie(payload, shape):
    with pytest.raises(BadFileError):
        decode(payload, [shape], ["F16"])
