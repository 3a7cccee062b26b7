"""Lossless: every bit comes back, whatever the dtype; what is there twice is stored once."""

import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paring import codecs
from paring.api import compress, decompress, inspect, verify
from paring.checkpoint import open_checkpoint, write_safetensors
from paring.codecs import planes, stored
from paring.dtypes import FLOATS, STORAGE, Stored, from_f32, itemsize
from paring.errors import BadFileError, BadValueError, BudgetError, OptionError, ParingError
from paring.packed import open_source
from tests.helpers import alike, put_adapter, specs, tensor_of
from tests.make_golden import carried, ia3, kohya, lora
from tests.test_api import ADAPTERS, same, tensors_of

few = settings(deadline=None, max_examples=60)


def source_of(path):
    with open_checkpoint(path) as opened:
        return {name: opened.read(name) for name in opened}


def odd(dtype):
    """-0.0, the smallest subnormal, the largest number and the like, of a floating-point dtype."""
    sign, most = {
        "F64": (63, 0x7FEF << 48),
        "F32": (31, 0x7F7FFFFF),
        "F16": (15, 0x7BFF),
        "BF16": (15, 0x7F7F),
    }[dtype]
    bits = [0, 1 << sign, 1, 1 << sign | 1, most, 1 << sign | most, 2, 3]
    return Stored(dtype, np.array(bits, f"<u{itemsize(dtype)}").view(STORAGE[dtype]).reshape(2, 4))


# the codec


@few
@given(st.lists(specs, max_size=6), st.data())
def test_any_tensors_come_back_in_any_selection(drawn, data):
    tensors = [tensor_of(spec, seed % 3) for seed, spec in enumerate(drawn)]
    payload = planes.encode(tensors)
    assert payload == planes.encode(tensors)
    shapes, dtypes = [t.shape for t in tensors], [t.dtype for t in tensors]
    select = data.draw(st.lists(st.sampled_from(range(len(tensors))), max_size=4)) if tensors else []
    assert all(map(alike, planes.decode(payload, shapes, dtypes), tensors))
    chosen = planes.decode(memoryview(payload), shapes, dtypes, select)
    assert all(alike(a, tensors[i]) for a, i in zip(chosen, select, strict=True))


@pytest.mark.parametrize("dtype", FLOATS)
def test_odd_bits_come_back(dtype):
    tensor = odd(dtype)
    (back,) = planes.decode(planes.encode([tensor]), [tensor.shape], [dtype])
    assert alike(back, tensor)


def test_numbers_shrink_more_than_in_version_1_and_noise_hardly_grows():
    normal = np.random.default_rng(0).normal(0, 0.02, 50_000).astype(np.float32)
    for dtype, share in (("F32", 0.84), ("F16", 0.86), ("BF16", 0.68)):
        tensor = from_f32(normal, dtype)
        size = len(planes.encode([tensor]))
        assert size < share * tensor.nbytes and size < len(stored.encode([tensor]))
    noise = Stored("U8", np.random.default_rng(0).integers(0, 256, 50_000, np.uint8))
    assert len(planes.encode([noise])) <= noise.nbytes + 32


def test_what_is_there_twice_is_stored_once():
    rng = np.random.default_rng(0)
    one, two = (from_f32(rng.normal(size=(30, 40)).astype(np.float32), "F32") for _ in range(2))
    alone, twice = len(planes.encode([one, two])), len(planes.encode([one, two, one, two, one]))
    assert twice < alone + 60
    transposed = Stored("F32", np.ascontiguousarray(one.data.reshape(40, 30)))
    assert len(planes.encode([one, transposed])) < len(planes.encode([one])) + 60
    assert planes.key(one) == planes.key(Stored("F32", one.data.copy()))
    assert len({planes.key(t) for t in (one, two, transposed, Stored("U32", one.data.view("<u4")))}) == 4


def test_repeats_end_before_a_small_file_stands_for_too_much():
    tensors = [Stored("U8", np.zeros(100_000, np.uint8))] * 3000
    payload = planes.encode(tensors)
    assert 3000 * 100_000 / 65_536 <= len(payload) < 3000 * 100_000 / 1032
    back = planes.decode(payload, [(100_000,)] * 3000, ["U8"] * 3000, [0, 2999])
    assert all(map(alike, back, tensors[:2]))
    with pytest.raises(BadFileError, match="too short for the shapes"):
        planes.decode(payload, [(100_000,)] * 30_000, ["U8"] * 30_000, [0])


def test_version_1_is_read_and_version_2_written():
    assert codecs.find("bytes", 1) is stored and codecs.find("bytes", 2) is planes
    assert codecs.of(odd("F32")) is planes


@few
@given(st.data())
def test_damage_is_refused_or_harmless(data):
    tensors = [tensor_of((dtype, (5, 4), "ramp"), 1) for dtype in ("F32", "BF16", "I64")] * 2
    shapes, dtypes = [t.shape for t in tensors], [t.dtype for t in tensors]
    payload = bytearray(planes.encode(tensors))
    for _ in range(data.draw(st.integers(1, 3))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.one_of(st.none(), st.integers(0, len(payload))))
    try:
        parts = planes.decode(bytes(payload[:cut]), shapes, dtypes)
    except ParingError:
        return
    assert [(t.dtype, t.shape) for t in parts] == list(zip(dtypes, shapes, strict=True))


def raw_deflated(data):
    stream = zlib.compressobj(9, zlib.DEFLATED, -15, 9)
    return stream.compress(data) + stream.flush()


def payload_of(words, parts):
    header = raw_deflated(np.array(words, "<u8").tobytes())
    return len(header).to_bytes(4, "little") + header + parts


DEFLATED, REPEATS = 1 << 63, 1 << 62
PLANE, BOMB = raw_deflated(bytes(99)), raw_deflated(bytes(50_000_000))


@pytest.mark.parametrize(
    ("payload", "shapes"),
    [
        (b"", [(2,)]),
        (payload_of([2, 2], b"abc"), [(2,)]),
        (payload_of([2], b"ab"), [(2,)]),
        (payload_of([1, 1], b"ab"), [(2,)]),
        (payload_of([1 << 61, 1 << 61], b"ab"), [(2,)]),
        (payload_of([2, 2, 2], b"ababab"), [(2,)]),
        (payload_of([REPEATS | 1, 2], b"ab"), [(2,)]),  # a later one
        (payload_of([REPEATS, 2], b"ab"), [(2,)]),  # itself
        (payload_of([2, REPEATS | DEFLATED | 99], b"ab"), [(2,)]),
        (payload_of([2, 2, REPEATS, REPEATS], b"abab"), [(2,), (3,)]),  # of another size
        (payload_of([2 | DEFLATED, 2], b"abcd"), [(2,)]),
        (payload_of([len(BOMB) | DEFLATED, 2], BOMB + b"ab"), [(2,)]),
        (payload_of([len(PLANE) - 1 | DEFLATED, 99], PLANE[:-1] + bytes(99)), [(99,)]),
        (payload_of([len(PLANE) + 1 | DEFLATED, 99], PLANE + bytes(100)), [(99,)]),
        (payload_of([1, 1], b"ab"), [(1 << 40, 1 << 19)]),
    ],
)  # fmt: skip
def test_lengths_that_lie(payload, shapes):
    with pytest.raises(BadFileError):
        planes.decode(payload, shapes, ["F16"] * len(shapes))


# the method


@pytest.mark.parametrize(
    "make", [lambda: lora("BF16") | carried(), kohya, lambda: ia3("F16"), lambda: lora("F64")]
)
def test_adapters_come_back_bit_for_bit(make, tmp_path):
    tensors = {**make(), **{f"odd.{dtype}": odd(dtype) for dtype in FLOATS}}
    source = put_adapter(tmp_path / "s", tensors)
    made = compress(source, tmp_path / "x.safetensors", method="lossless")
    assert made.error == 0 and not made.warnings and not made.carried
    assert same(tensors_of(made.output), tensors)
    decompress(made.output, tmp_path / "back")
    assert same(source_of(tmp_path / "back"), tensors)
    assert verify(made.output, source).ok
    assert inspect(made.output).packed["error"] == 0


def test_any_checkpoint_is_taken(tmp_path):
    tensors = {"w": tensor_of(("I32", (9, 9), "ramp"), 0), "none": Stored("F16", np.zeros((0, 3), "<f2")),
               "scalar": Stored("I64", np.array(-5)), "pair.lora_A.weight": odd("F32")}  # fmt: skip
    path = tmp_path / "model.safetensors"
    write_safetensors(path, tensors, {"format": "pt", "epoch": "3"})
    made = compress(path, method="lossless")
    opened = open_source(made.output)
    assert same(dict(opened.read_all()), tensors) and opened.metadata == {"format": "pt", "epoch": "3"}


def test_real_adapters_shrink(tmp_path):
    made = compress(ADAPTERS / "rotten", tmp_path / "x.safetensors", method="lossless")
    assert made.bytes_out < 0.83 * made.bytes_in
    assert same(tensors_of(made.output), source_of(ADAPTERS / "rotten"))


def test_copies_of_large_and_small_tensors_take_no_room(tmp_path):
    rng = np.random.default_rng(0)
    tensors = {name: from_f32(rng.normal(size=shape).astype(np.float32), "F16")
               for name, shape in (("large", (300, 400)), ("small", (30, 40)))}  # fmt: skip
    write_safetensors(tmp_path / "a.safetensors", tensors)
    write_safetensors(
        tmp_path / "b.safetensors", tensors | {f"{name}.copy": t for name, t in tensors.items()}
    )
    once, twice = (compress(tmp_path / f"{n}.safetensors", method="lossless") for n in "ab")
    assert twice.bytes_out < once.bytes_out + 150
    back = tensors_of(twice.output)
    assert alike(back["large.copy"], tensors["large"]) and alike(back["small.copy"], tensors["small"])
    assert alike(open_source(twice.output).read("large.copy"), tensors["large"])


def test_a_budget_is_checked(tmp_path):
    made = compress(ADAPTERS / "brown", tmp_path / "a.safetensors", method="lossless", ratio=1.2)
    assert made.ratio >= 1.2
    compress(ADAPTERS / "brown", tmp_path / "e.safetensors", method="lossless", error=0.1)
    with pytest.raises(BudgetError, match=r"--ratio 1.3 cannot.*the best that can be had is --ratio 1\.2"):
        compress(ADAPTERS / "brown", tmp_path / "b.safetensors", method="lossless", ratio=1.3)
    assert not (tmp_path / "b.safetensors").exists()


def test_what_cannot_be_meant_is_refused(tmp_path):
    source = put_adapter(tmp_path / "s", lora())
    with pytest.raises(OptionError, match="--carry fp16: method lossless keeps every tensor itself"):
        compress(source, tmp_path / "x", method="lossless", carry="fp16")
    with pytest.raises(OptionError, match="method lossless has no option --rank"):
        compress(source, tmp_path / "x", method="lossless", rank=2)
    bad = put_adapter(tmp_path / "n", lora() | {"nan": from_f32(np.array([np.nan], np.float32), "F32")})
    with pytest.raises(BadValueError, match="nan holds NaN or infinity"):
        compress(bad, tmp_path / "x", method="lossless")
