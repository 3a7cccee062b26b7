"""What is packed is what is read, whatever its names, shapes and dtypes; each part has its guard."""

import json
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paring import codecs, manifest, packed, packing
from paring.api import compress, inspect, verify
from paring.checkpoint import digest, open_checkpoint, write_safetensors
from paring.codecs import planes, stored, ternary
from paring.codecs.ternary import from_trits, segments
from paring.dtypes import STORAGE, Stored, from_bytes, from_f32, itemsize, numel
from paring.errors import BadFileError, BadValueError, ParingError, UnsupportedError
from paring.packed import Packed, open_source
from paring.packing import OWN_PAYLOAD, Image, Payload, Spec, padded, payloads
from tests.make_golden import lora

ADAPTERS = Path(__file__).parents[1] / "fixtures" / "adapters"
FLOATS = ("F64", "F32", "F16", "BF16")
few = settings(deadline=None, max_examples=40)

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
names = st.one_of(
    st.sampled_from(
        ["manifest", "ternary", "carried", "", "größe", "a\0b", "名前", '"\\'],
    ),
    texts,
)
shapes = st.lists(st.integers(0, 12), max_size=3).map(tuple)
items = st.dictionaries(
    names.filter(lambda name: name != "__metadata__"),
    st.tuples(
        shapes,
        st.sampled_from(sorted(STORAGE)),
        st.sampled_from([*ternary.LAYOUTS, "stored", "narrow", "ones"]),
        st.sampled_from([0.0, 0.1, 0.6, 1.0]),
    ),
    max_size=7,
)


def image_of(drawn, facts):
    """An image of the drawn tensors, and what it must decode to."""
    coded, kept, expected = [], [], {}
    for seed, (name, (shape, dtype, kind, density)) in enumerate(drawn.items()):
        rng = np.random.default_rng(seed)
        if kind == "stored" or dtype not in FLOATS:
            raw = rng.integers(0, 2 if dtype == "BOOL" else 256, numel(shape) * itemsize(dtype), np.uint8)
            tensor = from_bytes(dtype, shape, raw)
            kept.append((Spec(name, dtype, shape), tensor))
            expected[name] = tensor
        elif kind == "narrow":
            tensor = from_f32(rng.normal(size=shape), "F16")
            kept.append((Spec(name, dtype, shape, "F16" if dtype != "F16" else None), tensor))
            expected[name] = from_f32(tensor.f32(), dtype)
        else:
            layout = "whole" if kind == "ones" or not shape else kind
            trits = (
                (rng.choice([-1, 1], shape) * (rng.random(shape) < density)).astype(np.int8).reshape(shape)
            )
            scale = rng.normal(size=segments(shape, layout)[0]).astype(np.float32)
            item = from_trits(trits, scale, layout)
            coded.append((Spec(name, dtype, shape, ones=kind == "ones"), item))
            wide = trits.reshape(shape[0], -1) if layout == "columns" and numel(shape) else trits
            if layout == "rows":
                values = trits * scale.reshape(-1, *[1] * (len(shape) - 1)).astype(np.float64)
            else:
                values = (
                    (wide * scale.astype(np.float64)).reshape(shape) if numel(shape) else trits.astype(float)
                )
            expected[name] = from_f32(values + (1.0 if kind == "ones" else 0.0), dtype)
    return Image([*payloads(coded), *payloads(kept)], facts), expected


def write(image, path):
    image.write(path, digest(image.decoded()), lambda _: None, overwrite=True)
    return open_source(path)


def plain(tensor):
    # a zero times a negative scale is +0 in the format
    with np.errstate(invalid="ignore"):  # of a signalling NaN
        data = tensor.data + 0 if tensor.dtype in ("F64", "F32", "F16") else tensor.data
    return tensor.dtype, tensor.shape, data.tobytes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("packed")


@few
@given(items, st.dictionaries(texts, texts, max_size=3))
def test_what_is_packed_is_what_is_read(folder, drawn, metadata):
    image, expected = image_of(drawn, {"metadata": metadata})
    opened = write(image, folder / "x.safetensors")
    assert isinstance(opened, Packed) and opened.metadata == metadata
    assert opened.nbytes == image.nbytes == (folder / "x.safetensors").stat().st_size
    assert {n: (i.dtype, i.shape) for n, i in opened.tensors.items()} == {
        n: (t.dtype, t.shape) for n, t in expected.items()
    }
    found = dict(opened.read_all())
    assert {n: plain(t) for n, t in found.items()} == {n: plain(t) for n, t in expected.items()}
    assert {n: plain(t) for n, t in image.decoded()} == {n: plain(t) for n, t in expected.items()}
    assert opened.digest_recorded == opened.digest() == digest(found.items())
    for name in expected:
        assert plain(opened.read(name)) == plain(expected[name])
        assert [n for n, _ in opened.read_all([name])] == [name]


def test_large_codings_get_payloads_of_their_own(folder):
    rng = np.random.default_rng(0)
    big = from_trits(rng.integers(-1, 2, (600, 600), np.int8), 0.5)
    small = from_trits(rng.integers(-1, 2, (6, 6), np.int8), 0.5)
    wide = Stored("U8", rng.integers(0, 256, OWN_PAYLOAD, np.uint8))
    coded = payloads([(Spec("manifest", "F32", (600, 600)), big), (Spec("s", "F32", (6, 6)), small)])
    image = Image([*coded, *payloads([(Spec("__metadata__", "U8", wide.shape), wide)])], {})
    opened = write(image, folder / "big.safetensors")
    assert [held.entry for held in opened.payloads] == ["ternary", "manifest_", "__metadata___"]
    assert opened.read("__metadata__").tobytes() == wide.tobytes()
    assert (opened.planes("manifest").mask == big.mask).all() and (
        opened.planes("s").sign == small.sign
    ).all()
    with pytest.raises(UnsupportedError, match="not held as plain ternary"):
        opened.planes("__metadata__")
    for look in (opened.read, opened.planes, lambda name: list(opened.read_all([name]))):
        with pytest.raises(KeyError):
            look("missing")


# --- no more work than there is


def many(count=40):
    """An image of coded and carried tensors, each kind in a payload of its own, and its names by turns."""
    rng = np.random.default_rng(3)
    coded = [
        (Spec(f"{i}.a", "F32", (50, 9)), from_trits(rng.integers(-1, 2, (50, 9), np.int8), 0.5))
        for i in range(count)
    ]
    kept = [(Spec(f"{i}.b", "I32", (3,)), Stored("I32", np.full(3, i, np.int32))) for i in range(count)]
    image = Image([*payloads(coded), *payloads(kept)], {})
    return image, [f"{i}.{kind}" for i in range(count) for kind in "ab"]


def count_calls(monkeypatch, owner, name):
    calls = []
    real = getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda *args, **rest: calls.append(args) or real(*args, **rest))
    return calls


def test_reading_name_by_name_decodes_a_payload_once(folder, monkeypatch):
    image, names = many()
    opened = write(image, folder / "many.safetensors")
    expected = {name: plain(tensor) for name, tensor in opened.read_all()}
    decoded = [count_calls(monkeypatch, codec, "decode") for codec in (ternary, planes)]
    for name in names:
        found = opened.read(name)
        assert plain(found) == expected[name]
        with pytest.raises(ValueError, match="read-only"):
            found.data[...] = 0
    assert opened.digest() == opened.digest_recorded
    assert [len(calls) for calls in decoded] == [1, 1]
    opened.close()
    opened.read(names[0])
    assert len(decoded[0]) == 2


def test_a_large_payload_is_decoded_in_batches_and_checked_once(folder, monkeypatch):
    image, names = many()
    monkeypatch.setattr(packed, "_BATCH", 10 * 50 * 9 * 4)
    opened = write(image, folder / "many.safetensors")
    expected = {name: plain(tensor) for name, tensor in image.decoded()}
    decoded = [count_calls(monkeypatch, codec, "decode") for codec in (ternary, planes)]
    checked = count_calls(monkeypatch, packed.zlib, "crc32")
    assert {name: plain(opened.read(name)) for name in names} == expected
    assert [len(calls) for calls in decoded] == [4, 1]
    assert len(checked) == 2
    assert {name: plain(tensor) for name, tensor in opened.read_all()} == expected
    assert dict(opened.read_all(["7.a", "39.a"])).keys() == {"7.a", "39.a"}
    assert opened.digest() == opened.digest_recorded


def test_several_threads_read_the_same(folder):
    image, names = many()
    opened = write(image, folder / "many.safetensors")
    expected = {name: plain(tensor) for name, tensor in image.decoded()}
    with ThreadPoolExecutor(4) as pool:
        assert dict(zip(names, map(plain, pool.map(opened.read, names)), strict=True)) == expected


def test_a_budget_reads_carried_payloads_once(monkeypatch):
    kept = [(Spec("x", "U8", (OWN_PAYLOAD + 1,)), Stored("U8", np.zeros(OWN_PAYLOAD + 1, np.uint8)))]
    carried = payloads(kept)
    monkeypatch.setattr(Image, "entries", None)
    checked = count_calls(monkeypatch, packing.zlib, "crc32")
    assert len({Image(carried, {"error": trial / 8}).nbytes for trial in range(8)}) >= 1
    assert sum(args[0] is carried[0].data for args in checked) == 1


def test_codecs_are_found_by_file(tmp_path, monkeypatch):
    monkeypatch.setattr(codecs, "__path__", [*codecs.__path__, str(tmp_path)])
    (tmp_path / "other.py").write_text("ID = 'vector'\nVERSION = 3\n")
    (tmp_path / "_shared.py").write_text("")
    codecs._known.cache_clear()
    try:
        found = codecs.find("vector", 3)
        assert found is not None and found.__name__ == "paring.codecs.other"
        assert codecs.find("ternary", 1) is ternary and codecs.find("bytes", 1) is stored
        assert all(codecs.find(*odd) is None for odd in (("vector", 2), ("other", 3), ("..errors", 1)))
    finally:
        codecs._known.cache_clear()
        sys.modules.pop("paring.codecs.other", None)


# --- files that were tampered with

SPECS = (Spec("a", "F32", (8, 6)), Spec("b", "F16", (6, 4)))


def sample(folder):
    """A file with two payloads, its facts and its entries."""
    items = [(spec, from_trits(np.ones(spec.shape, np.int8), 0.5)) for spec in SPECS]
    kept = [(Spec("c", "I32", (3,)), Stored("I32", np.arange(3, dtype=np.int32)))]
    path = folder / "sample.safetensors"
    image = Image([*payloads(items), *payloads(kept)], {"tool": "t"})
    opened = write(image, path)
    return path, json.loads(json.dumps(dict(opened.facts))), dict(image.entries())


def rewrite(path, facts, entries, metadata=None):
    """The same file with other facts or entries, and a CRC that fits."""
    raw = manifest.dump(facts)
    blobs = {**entries, "manifest": Stored("U8", np.frombuffer(raw, np.uint8))}
    write_safetensors(
        path, blobs, metadata or {"format": "paring", "version": "1", "digest": "0" * 64}, overwrite=True
    )
    return path


def test_an_unknown_codec_refuses_only_its_tensors(folder):
    path, facts, entries = sample(folder)
    facts["payloads"][0][1:3] = ["vector", 3]
    opened = open_source(rewrite(path, facts, entries))
    assert opened.read("c").data.tolist() == [0, 1, 2]
    for name in "ab":
        with pytest.raises(UnsupportedError, match=r"vector version 3.*upgrade"):
            opened.read(name)
    found = verify(path)
    assert not found.ok and "upgrade" in found.failed[0] and len(found.passed) == 3


def test_unknown_keys_and_entries_are_ignored(folder):
    path, facts, entries = sample(folder)
    facts["later"] = {"x": [1]}
    entries["extra"] = Stored("F32", np.zeros(3, np.float32))
    assert len(dict(open_source(rewrite(path, facts, entries)).read_all())) == 3


@pytest.mark.parametrize("version", ["2", "", "0", None])
def test_an_unknown_format_version_is_refused(folder, version):
    path, facts, entries = sample(folder)
    told = {"format": "paring", "digest": "0" * 64} | ({} if version is None else {"version": version})
    with pytest.raises(UnsupportedError, match=r"format version .*this paring reads 1: upgrade"):
        open_source(rewrite(path, facts, entries, told))


@pytest.mark.parametrize("entry", ["ternary", "carried"])
def test_each_payload_has_a_checksum_of_its_own(folder, entry):
    path, _, _ = sample(folder)
    info = open_checkpoint(path).tensors[entry]
    raw = bytearray(path.read_bytes())
    raw[info.start + 5] ^= 4
    path.write_bytes(raw)
    opened = open_source(path)
    bad, good = ("ab", "c") if entry == "ternary" else ("c", "ab")
    for name in good:
        opened.read(name)
    for name in bad:
        with pytest.raises(BadFileError, match=f"payload '{entry}' is damaged"):
            opened.read(name)
    assert verify(path).failed[0].startswith(f"checksum of payload '{entry}'")


def test_a_damaged_manifest_is_refused(folder):
    path, _, _ = sample(folder)
    info = open_checkpoint(path).tensors["manifest"]
    raw = bytearray(path.read_bytes())
    for at in (info.start, info.start + 9, info.stop - 1):
        path.write_bytes(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])
        with pytest.raises(BadFileError, match="manifest is damaged"):
            open_source(path)


NONSENSE = [
    ("names", ["a", "b"]),
    ("names", ["a", "a", "c"]),
    ("names", ["a", "b", 3]),
    ("names", ["a", "b", "\ud800"]),
    ("names", None),
    ("tensors", [0, 1, 9]),
    ("tensors", [0, 1, -1]),
    ("tensors", [0, 1, True]),
    ("specs", {}),
    ("specs", [["F32", [8, 6]], ["F16", [-6, 4]], ["I32", [3]]]),
    ("specs", [["F32", [8, 6]], ["F16", [6.0, 4]], ["I32", [3]]]),
    ("specs", [["F32", [1 << 40, 1 << 40]], ["F16", [6, 4]], ["I32", [3]]]),
    ("specs", [["F32", [1] * 65], ["F16", [6, 4]], ["I32", [3]]]),
    ("specs", [["F33", [8, 6]], ["F16", [6, 4]], ["I32", [3]]]),
    ("specs", [["F32", [8, 6]], ["F16", [6, 4]], ["I32", [3], "F16"]]),
    ("specs", [["F32", [8, 6], "I8"], ["F16", [6, 4]], ["I32", [3]]]),
    ("ones", [2]),
    ("ones", [7]),
    ("ones", [[1]]),
    ("payloads", []),
    ("payloads", [["manifest", "ternary", 1, 0, 1, 3]]),
    ("payloads", [["missing", "ternary", 1, 0, 1, 3]]),
    ("payloads", [[["x"], "ternary", 1, 0, 1, 3]]),
    ("payloads", [["ternary", "ternary", 1, 0, 1 << 80, 3]]),
    ("payloads", [["ternary", "ternary", 1, 0, 5]]),
    ("metadata", {"a": 1}),
    ("metadata", []),
    ("config", "x"),
    ("recipe", []),
    ("source", {"name": "../../etc/passwd", "bytes": 1, "sha256": ""}),
    ("source", {"name": "..", "bytes": 1, "sha256": ""}),
    ("source", {"name": "a\\b", "bytes": 1, "sha256": ""}),
    ("source", {"name": "a\0b", "bytes": 1, "sha256": ""}),
    ("source", {"name": "", "bytes": 1, "sha256": ""}),
    ("source", {"name": "a", "bytes": 0, "sha256": ""}),
    ("source", {"name": "a", "bytes": 1 << 53, "sha256": ""}),
    ("source", 3),
    ("error", "small"),
    ("error", 10**400),
    ("error", -0.5),
    ("modules", {"error": [0.5]}),
    ("modules", {"error": [10**400]}),
    ("modules", {"nonzero": [1 << 53]}),
    ("modules", {"nonzero": [-1]}),
    ("rounded", {"a": 1e300}),
    ("modules", [1]),
    ("dropped", [1]),
    ("method", 4),
]


@pytest.mark.parametrize(("key", "value"), NONSENSE)
def test_a_manifest_that_makes_no_sense_is_refused(folder, key, value, monkeypatch):
    path, facts, entries = sample(folder)
    facts[key] = value
    if key == "names" and "\ud800" in (value or ()):
        text = json.dumps(facts).encode()
        monkeypatch.setattr(manifest, "dump", lambda _: _packed(text))
    with pytest.raises(BadFileError, match="manifest"):
        open_source(rewrite(path, facts, entries))


def _packed(text):
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zdict=manifest.DICTIONARY)
    body = deflate.compress(text) + deflate.flush()
    return zlib.crc32(body).to_bytes(4, "little") + body


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b'{"a":1,"a":2}',
        b'{"a":NaN}',
        b"\xff",
        b"[" * 100_000,
        b'{"a":' * 3000 + b"1" + b"}" * 3000,
    ],
)
def test_a_manifest_that_is_not_an_object_is_refused(text):
    with pytest.raises(BadFileError, match="manifest"):
        manifest.load(_packed(text), "x")


def test_a_manifest_is_bounded_and_whole():
    with pytest.raises(BadFileError, match="larger than"):
        manifest.load(_packed(b" " * (manifest.MAX_MANIFEST + 1)), "x")
    body = _packed(b"{}")[4:-1]
    with pytest.raises(BadFileError, match="cut short"):
        manifest.load(zlib.crc32(body).to_bytes(4, "little") + body, "x")
    body = _packed(b"{}")[4:] + b"\1"
    with pytest.raises(BadFileError, match="cut short"):
        manifest.load(zlib.crc32(body).to_bytes(4, "little") + body, "x")
    for raw in (b"", b"abc"):
        with pytest.raises(BadFileError, match="manifest is damaged"):
            manifest.load(raw, "x")


def nested(depth):
    deep = []
    for _ in range(depth):
        deep = [deep]
    return deep


def test_deep_configuration_is_refused():
    with pytest.raises(BadFileError, match="config"):
        manifest.load(manifest.dump({"config": {"a": nested(200)}}), "x")


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"config": {"a": nested(64)}}, "config is"),
        ({"recipe": {"a": nested(100_000)}}, "recipe is"),
        ({"later": nested(100_000)}, "cannot be put"),
        ({"config": {"a": ["\ud800"]}}, "cannot be put"),
        ({"config": {"a": float("inf")}}, "cannot be put"),
        ({"source": {"name": "a/b", "bytes": 1, "sha256": ""}}, "source is"),
        ({"error": float("nan")}, "error is"),
        ({"metadata": {"a": "x" * manifest.MAX_MANIFEST}}, "more than the 32000000"),
    ],
)
def test_facts_are_checked_before_they_are_packed(facts, words):
    with pytest.raises(BadFileError, match=f"^src: what is told .*{words}"):
        manifest.check(facts, "src: what is told")


def test_what_is_checked_is_read_back():
    source = {"name": "lora:v1.safetensors", "bytes": (1 << 53) - 1, "sha256": "0"}
    facts = {"config": {"a": nested(62)}, "source": source, "error": 0.5, "rounded": {"größe": 0}}
    manifest.check(facts, "x")
    assert manifest.load(manifest.dump(facts), "x") == facts


def test_entries_of_another_size_or_dtype_are_refused(folder):
    path, facts, entries = sample(folder)
    size = entries["ternary"].nbytes
    for blob in (
        np.zeros(size + 8, np.uint8),
        np.zeros(size // 4, np.float32),
        np.zeros(padded(size) - 8, np.uint8),
    ):
        odd = {**entries, "ternary": Stored("U8" if blob.dtype == np.uint8 else "F32", blob)}
        with pytest.raises(BadFileError, match="another size or dtype"):
            open_source(rewrite(path, facts, odd))


def test_shapes_that_do_not_fit_a_payload_are_refused(folder):
    path, facts, entries = sample(folder)
    for shape in ([8, 7], [800, 600], [1 << 30, 1 << 29], [1 << 30, 0], []):
        facts["specs"][0] = ["F32", shape]
        opened = open_source(rewrite(path, facts, entries))
        try:
            parts = dict(opened.read_all())
        except ParingError:
            continue
        assert parts["a"].shape == tuple(shape)


def test_what_is_stored_in_a_wider_dtype_is_rounded_once():
    value = 1 + 2**-11 + 2**-40  # by way of fp32 it would be a tie, and 1
    (found,) = Spec("x", "F16", (1,), "F64").finish(Stored("F64", np.array([value]))).f64()
    assert found == 1 + 2**-10


def test_a_scale_too_large_for_its_dtype_is_refused(folder):
    image = Image(payloads([(Spec("a", "F32", (4,)), from_trits(np.ones(4, np.int8), 1e6))]), {})
    path = folder / "wide.safetensors"
    opened = write(image, path)
    facts = {**opened.facts, "specs": [["F16", [4]]]}
    with pytest.raises(BadValueError, match="too large for F16"):
        open_source(rewrite(path, facts, dict(image.entries()))).read("a")
    odd = Payload("x", stored.ID, 1, b"", (Spec("a", "F32", (4,)),))
    with pytest.raises(BadFileError):
        Image([odd], {}).decoded()


# --- real adapters

SMALL = {"bits_per_param": 0.25}
LARGE = {
    "method": "compeft",
    "density": 0.5,
    "basis": "trained",
    "scope": "tensor",
}  # close to two bits a parameter


@pytest.mark.parametrize("name", ["brown", "reuters8", "rotten"])
def test_manifests_of_real_adapters_are_small(name, tmp_path):
    for bits, options in ((0.25, SMALL), (2.0, LARGE)):
        made = compress(ADAPTERS / name, tmp_path / f"{bits}.safetensors", **options)
        found = inspect(made.output)
        size = Path(made.output).stat().st_size
        assert found.packed["manifest_bytes"] <= 1200
        assert made.bytes_out == size <= bits * found.elements / 8
        source = (ADAPTERS / name / "adapter_model.safetensors").stat().st_size
        assert made.ratio == found.packed["ratio"] == source / size
        assert made.ratio_fp16 == found.packed["ratio_fp16"] == 2 * found.elements / size
        assert made.bits_per_param == found.packed["bits_per_param"] == 8 * size / found.elements


def test_recorded_modules_find_their_names_when_payloads_reorder_them(tmp_path):
    rng = np.random.default_rng(1)
    tensors = lora()
    name = "base_model.model.a_large_one"
    tensors[f"{name}.lora_A.weight"] = from_f32(rng.normal(size=(4, 90_000)).astype(np.float32), "F32")
    tensors[f"{name}.lora_B.weight"] = from_f32(rng.normal(size=(90_000, 4)).astype(np.float32), "F32")
    (tmp_path / "s").mkdir()
    write_safetensors(tmp_path / "s" / "adapter_model.safetensors", tensors)
    made = compress(
        tmp_path / "s",
        tmp_path / "p.safetensors",
        density=0.6,
        method="compeft",
        basis="trained",
        scope="tensor",
    )
    assert len(open_source(tmp_path / "p.safetensors").payloads) == 3
    told = {m.name: m for m in made.modules}
    found = {m.name: m for m in inspect(made.output).modules}
    assert list(told) != list(found)
    for key, module in told.items():
        assert found[key].density == module.density and abs(found[key].error - module.error) <= 1e-4
