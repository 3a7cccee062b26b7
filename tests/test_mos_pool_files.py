"""Pools as files: codecs that refer to other tensors, hostile payloads, the command line, the picture."""

from __future__ import annotations

import json
import zlib
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from paring import api, cli
from paring.checkpoint import digest
from paring.codecs import residual, shards
from paring.codecs.residual import Difference
from paring.codecs.shards import Gather, Pool
from paring.dtypes import Stored, from_f32
from paring.errors import BadFileError, ParingError, UnsupportedError
from paring.mos.routing import Sizes
from paring.packed import open_source
from paring.packing import Image, Payload, Spec, payloads
from paring.pooling.plotting import shares
from tests import pooling


def stored(values, dtype="F32"):
    return from_f32(np.asarray(values, np.float32), dtype)


def gather(tensor, layout, length, index, moves=None, number=0):
    return Gather(tensor, layout, Pool(length, ((number, "rows"),)), np.asarray(index), moves)


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16"])
@pytest.mark.parametrize("layout", ["rows", "columns"])
def test_shards_are_gathered_and_moved_bit_for_bit(dtype, layout):
    rng = np.random.default_rng(0)
    pool = stored(rng.standard_normal((300, 8)), dtype)
    index = rng.integers(0, 300, 6)
    moves = np.array([0, 1, 2, -2 | 1, 6, -4], np.int16)
    taken = shards.moved(Stored(dtype, pool.data[index]), moves)
    factor = np.array([1, -1, 2, -0.5, 8, 0.25])
    np.testing.assert_array_equal(
        taken.f32(), Stored(dtype, pool.data[index]).f32() * factor[:, None].astype(np.float32)
    )
    rows = taken.data.reshape(2, 24)
    tensor = Stored(dtype, np.ascontiguousarray(rows if layout == "rows" else rows.T))
    items = [gather(tensor, layout, 8, index, moves), gather(pool, "rows", 8, np.arange(300))]
    raw = shards.encode(items)
    shapes = [tensor.shape, pool.shape]
    assert shards.references(raw, shapes) == [(0,), (0,)]
    for select in ([0, 1], [1], [0], [1, 0]):
        found = shards.decode(raw, shapes, [dtype] * 2, select, known={0: pool})
        assert [t.tobytes() for t in found] == [items[i].tensor.tobytes() for i in select]


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16"])
@pytest.mark.parametrize(
    "mix", [None, 0.3, np.array([[0.5, 0.1], [-2, 1]]), np.array([[1.0, 0], [0, 0], [3, 1]])]
)
def test_exact_differences_from_a_mix(dtype, mix):
    rng = np.random.default_rng(0)
    base = stored(rng.standard_normal((2, 40)), dtype)
    count = 2 if mix is None or np.ndim(mix) == 0 else len(mix)
    special = np.zeros((count, 40), np.float32)
    special[0, :5] = [0.0, -0.0, 6e-8, -6e4, 1]
    tensor = stored(rng.standard_normal((count, 40)) + special, dtype)
    mix = None if mix is None else np.asarray(mix, np.float64)
    item = Difference(tensor.shape, dtype, "rows", 7, base, mix, residual.apart(tensor, base, "rows", mix))
    twin = replace(item, left=None)
    raw = residual.encode([twin, item, item])
    assert residual.references(raw, [tensor.shape] * 3) == [(7,)] * 3
    found = residual.decode(raw, [tensor.shape] * 3, [dtype] * 3, known={7: base})
    assert found[1].tobytes() == found[2].tobytes() == tensor.tobytes()
    np.testing.assert_array_equal(
        residual.values(item, dtype), tensor.data if dtype == "F64" else tensor.f32()
    )
    assert found[0].tobytes() == from_f32(residual.predicted(base, "rows", mix), dtype).tobytes()


def damaged(raw, known, decode, shapes, dtypes):
    """Whatever is done to a payload, it decodes to the right shapes or is refused."""
    try:
        found = decode(raw, shapes, dtypes, known=known)
    except ParingError:
        return
    assert [t.shape for t in found] == shapes


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=60), st.integers(0, 200), st.integers(1, 255))
def test_damaged_shards_do_no_harm(junk, at, flip):
    pool = stored(np.random.default_rng(0).standard_normal((16, 4)))
    whole = Stored("F32", pool.data[:8].reshape(4, 8))
    raw = shards.encode(
        [
            gather(whole, "rows", 4, np.arange(8), np.zeros(8, np.int16)),
            gather(pool, "rows", 4, np.arange(16)),
        ]
    )
    side = bytearray(zlib.decompress(raw, -15))
    side[at % len(side)] ^= flip
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    for bad in (junk, raw[: at % len(raw)], deflate.compress(bytes(side)) + deflate.flush()):
        damaged(bad, dict.fromkeys(range(300), pool), shards_any, [whole.shape, pool.shape], ["F32"] * 2)


def shards_any(raw, shapes, dtypes, known):
    if any(number not in known for numbers in shards.references(raw, shapes) for number in numbers):
        raise BadFileError("refers to tensors behind it")  # as the reader does
    return shards.decode(raw, shapes, dtypes, known=known)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=60), st.integers(0, 400), st.integers(1, 255))
def test_damaged_differences_do_no_harm(junk, at, flip):
    rng = np.random.default_rng(0)
    base, tensor = stored(rng.standard_normal((4, 16))), stored(rng.standard_normal((4, 16)))
    mix = rng.standard_normal((4, 4))
    items = [
        Difference(tensor.shape, "F32", "rows", 0, base, m, residual.apart(tensor, base, "rows", m))
        for m in (None, np.array(2.0), mix)
    ]
    raw = bytearray(residual.encode(items))
    size = int.from_bytes(raw[:4], "little")
    side = bytearray(zlib.decompress(bytes(raw[14 : 14 + size]), -15))
    side[at % len(side)] ^= flip
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    head = deflate.compress(bytes(side)) + deflate.flush()
    turned = len(head).to_bytes(4, "little") + bytes(raw[4:14]) + head + bytes(raw[14 + size :])
    raw[at % len(raw)] ^= flip
    known = dict.fromkeys(range(300), base)

    def decode(raw, shapes, dtypes, known):
        if any(number not in known for (number,) in residual.references(raw, shapes)):
            raise BadFileError("refers to tensors behind it")
        return residual.decode(raw, shapes, dtypes, known=known)

    for bad in (junk, bytes(raw[: at % len(raw)]), bytes(raw), turned):
        damaged(bad, known, decode, [tensor.shape] * 3, ["F32"] * 3)


def test_bombs_are_refused_before_memory_is_taken():
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    one = (1).to_bytes(4, "little")
    head = one + one + one + (0).to_bytes(4, "little") + b"\1" + bytes(4) + b"\1\0"  # shards of one entry
    raw = deflate.compress(head) + deflate.flush()
    for huge, padding in ((1 << 58, 0), (1 << 28, 1 << 15)):
        with pytest.raises(BadFileError, match="short"):
            shards.decode(raw + bytes(padding), [(huge, 4)], ["F32"], known={0: stored([[1.0]])})
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    head = bytes(4) + bytes([1, 2, 0]) + bytes([255] * 4)  # a matrix of 2^32 - 1 columns
    head = deflate.compress(head) + deflate.flush()
    raw = len(head).to_bytes(4, "little") + bytes(8) + bytes(2) + head
    raw += bytes(1 << 14)  # as long as the shape asks for
    with pytest.raises(BadFileError, match="short"):
        residual.decode(raw, [(1 << 29, 1)], ["F32"], known={0: stored(np.ones((2, 4)))})


def write(path, parts, **facts):
    image = Image([*parts], {"tool": "test", **facts})
    image.write(path, "0" * 64, lambda _: None)
    return path


def root(name, tensor):
    (payload,) = payloads([(Spec(name, tensor.dtype, tensor.shape), tensor)])
    return payload


def told(name, item):
    (payload,) = payloads([(Spec(name, item.tensor.dtype, item.tensor.shape), item)])
    return replace(payload, entry=name)


def test_references_go_back_only_and_not_too_deep(tmp_path):
    tensor = stored(np.random.default_rng(0).standard_normal((4, 8)))
    chain = [root("t0", tensor)]
    chain += [told(f"t{i}", gather(tensor, "rows", 8, np.arange(4), number=i - 1)) for i in range(1, 14)]
    opened = open_source(write(tmp_path / "chain.safetensors", chain))
    assert opened.read("t4").tobytes() == tensor.tobytes()
    with pytest.raises(BadFileError, match="too many others"):
        open_source(tmp_path / "chain.safetensors").read("t13")
    for number in (0, 1, 7):  # itself, and tensors behind it
        loop = [told("a", gather(tensor, "rows", 8, np.arange(4), number=number)), root("b", tensor)]
        opened = open_source(write(tmp_path / f"loop{number}.safetensors", loop))
        with pytest.raises(BadFileError, match="refers to tensors behind it"):
            opened.read("a")
        assert opened.read("b").tobytes() == tensor.tobytes()


def test_many_references_are_decoded_once_each(tmp_path, monkeypatch):
    """A file in which every tensor is told by all earlier ones does not take exponential time."""
    tensor = stored(np.random.default_rng(0).standard_normal((1, 64)))
    parts = [root("t0", tensor)]
    for i in range(1, 8):
        pool = Pool(64, tuple((n, "rows") for n in range(i)))
        parts.append(told(f"t{i}", Gather(tensor, "rows", pool, np.array([i - 1]))))
    opened = open_source(write(tmp_path / "fan.safetensors", parts))
    calls = []
    decode = shards.decode
    monkeypatch.setattr(shards, "decode", lambda *a, **k: calls.append(1) or decode(*a, **k))
    assert opened.read("t7").tobytes() == tensor.tobytes()
    assert len(calls) <= 8


def test_misfits_are_refused(tmp_path):
    tensor, other = stored(np.ones((4, 8))), stored(np.ones((4, 8)), "F16")
    cases = {
        "dtype": (other, gather(tensor, "rows", 8, np.arange(4))),
        "beyond": (tensor, gather(tensor, "rows", 8, [0, 1, 2, 4])),
        "uncut": (stored(np.ones((4, 6))), gather(tensor, "rows", 8, np.arange(4))),
        "range": (tensor, gather(tensor, "rows", 8, np.arange(4), np.full(4, 1000, np.int16))),
    }
    for name, (base, item) in cases.items():
        path = write(tmp_path / f"{name}.safetensors", [root("base", base), told("a", item)])
        with pytest.raises(BadFileError, match="damaged"):
            open_source(path).read("a")
    item = Difference((4, 8), "F32", "rows", 0, tensor, None, None)
    data = residual.encode([item])
    for base in (stored(np.ones((4, 7))), stored(np.ones((3, 8))), Stored("I32", np.ones((4, 8), np.int32))):
        parts = [root("base", base), Payload("a", "residual", 1, data, (Spec("a", "F32", (4, 8)),))]
        path = write(tmp_path / f"r{base.shape[0]}{base.shape[1]}{base.dtype}.safetensors", parts)
        with pytest.raises(BadFileError, match="reference"):
            open_source(path).read("a")


@pytest.mark.parametrize(
    "adapters",
    [[], [{}], [{"name": "a"}], "a", [{"name": "a/b", "digest": ""}], [{"name": "", "digest": ""}],
     [{"name": "a", "digest": ""}] * 2, [{"name": "a#b", "digest": ""}],
     [{"name": "a", "digest": "", "error": "x"}],
     [{"name": "a", "digest": "", "source": {"name": "../x", "bytes": 1, "sha256": ""}}]],
)  # fmt: skip
def test_unsound_manifests_are_refused(tmp_path, adapters):
    path = write(tmp_path / "x.safetensors", [root("a/t", stored([[1.0]]))], adapters=adapters)
    with pytest.raises(BadFileError, match="adapters"):
        open_source(path)


def made(tmp_path):
    modules, _ = pooling.mos(Sizes(8, 4, 1, 4), 3, 192, 96)
    sources = [pooling.put(tmp_path / name, modules) for name in "ab"]
    sources.append(pooling.put(tmp_path / "c", pooling.gaussian(1), "F16"))
    return sources, api.compress(sources, tmp_path / "pool", method="mos", device="cpu")


def run(*args):
    """The command line: exit code and standard output."""
    return CliRunner().invoke(cli.paring, [str(arg) for arg in args], catch_exceptions=False)


def test_an_old_reader_reads_what_it_knows(tmp_path, monkeypatch):
    _, report = made(tmp_path)
    from paring import codecs

    known = {k: v for k, v in codecs._known().items() if k[0] not in ("shards", "residual")}
    monkeypatch.setattr(codecs, "_known", lambda: known)
    opened = open_source(report.output, whole=True)
    assert opened.read("c/base_model.model.layers.0.q.lora_A.weight").numel
    with pytest.raises(UnsupportedError, match="shards version 1, which this paring does not know"):
        opened.read("a/base_model.model.layers.0.q.lora_A.weight")


def test_decompress_load_merge_and_verify(tmp_path):
    sources, report = made(tmp_path)
    for name, source in zip("abc", sources, strict=True):
        api.decompress(report.output, tmp_path / f"back-{name}", adapter=name)
        file = "adapter_model.safetensors"
        assert digest(_all(tmp_path / f"back-{name}" / file)) == digest(_all(source))
        config = json.loads((tmp_path / f"back-{name}" / "adapter_config.json").read_text())
        assert config == json.loads((source / "adapter_config.json").read_text())
    loaded = api.load(report.output, adapter="2")
    assert sorted(loaded) == sorted(open_source(sources[1]).tensors)
    with pytest.raises(UnsupportedError, match="name one"):
        api.load(report.output)
    assert api.verify(report.output).ok and api.verify(f"{report.output}#c", sources[2]).ok
    merged = api.merge([f"{report.output}#a", f"{report.output}#2"], tmp_path / "merged", method="linear")
    assert merged.output
    with pytest.raises(UnsupportedError, match="name one"):
        api.merge([report.output], tmp_path / "not", method="linear")


def test_a_pool_of_one_is_that_one(tmp_path):
    modules, _ = pooling.mos(Sizes(8, 4, 1, 4), 3, 192, 96)
    source = pooling.put(tmp_path / "a", modules)
    report = api.compress(source, tmp_path / "one", method="mos", device="cpu")
    api.decompress(report.output, tmp_path / "back")
    assert digest(_all(tmp_path / "back")) == digest(_all(source))
    assert len(api.load(report.output)) == 6


def _all(path):
    opened = open_source(path)
    return [(name, opened.read(name)) for name in opened]


def test_reading_one_adapter_leaves_the_payloads_of_others_alone(tmp_path, monkeypatch):
    sources, report = made(tmp_path)
    opened = open_source(f"{report.output}#c")
    read = []
    payload = type(opened.whole).payload
    monkeypatch.setattr(
        type(opened.whole), "payload", lambda self, held: read.append(held.entry) or payload(self, held)
    )
    assert digest(opened.read_all()) == digest(_all(sources[2]))
    assert read and all(entry.startswith("c/") for entry in read)
    assert opened.nbytes < open_source(report.output, whole=True).nbytes / 2


def test_the_command_line(tmp_path):
    made(tmp_path)
    sources = [tmp_path / name for name in "abc"]
    result = run("compress", *sources, "--method", "mos", "-o", tmp_path / "cli")
    assert result.exit_code == 0 and "3 adapters written to" in result.output
    assert "b 100%" in result.output and "shards of pools serve several" in result.output
    result = run("compress", *sources, "--method", "mos", "-o", tmp_path / "json", "--json")
    found = json.loads(result.output)
    assert found["sharing"]["adapters"][0]["shared_with"]["b"] and found["gain"] > 0
    target = tmp_path / "cli.paring.safetensors"
    picture = tmp_path / "picture.png"
    result = run("inspect", target, "--plot", picture)
    assert result.exit_code == 0 and "pool of 3 adapters" in result.output and picture.stat().st_size > 5000
    told = json.loads(run("inspect", target, "--json").output)
    assert [each["name"] for each in told["sharing"]["adapters"]] == ["a", "b", "c"]
    assert "rank 8 in 3" in run("inspect", f"{target}#a").output
    assert run("decompress", target, "--adapter", "c", "-o", tmp_path / "out").exit_code == 0
    dry = run("compress", *sources, "--method", "mos", "-o", tmp_path / "dry", "--dry-run")
    assert "would be written" in dry.output and not (tmp_path / "dry.paring.safetensors").exists()


def test_the_picture_shows_parts(tmp_path):
    _, report = made(tmp_path)
    values = shares(report.sharing)
    assert values[0, 1] == values[1, 0] == 1 and values[2].sum() == 0 and 0 < values[0, 0] < 1
