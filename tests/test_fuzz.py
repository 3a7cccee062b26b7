"""Damaged files: nothing but a ParingError, no hang, no more memory than the file can stand for.

Damage goes in at every depth: any byte of the file; the container's header with lengths that fit; the
manifest with a CRC that fits; payloads with CRCs that fit.
"""

import json
import random
import struct
import subprocess
import sys
import tracemalloc
import zlib
from pathlib import Path

import pytest

from paring import manifest
from paring.api import decompress, inspect, verify
from paring.checkpoint import open_checkpoint, write_safetensors
from paring.dtypes import from_bytes
from paring.errors import ParingError
from paring.packed import Packed, open_source
from tests.make_golden import lora

GOLDEN = sorted((Path(__file__).parents[1] / "fixtures" / "packed").glob("lora_bf16*.safetensors"))
GOLDEN += sorted((Path(__file__).parents[1] / "fixtures" / "packed").glob("[bikst]*.safetensors"))
ROUNDS = 60
MOST = 64 << 20  # bytes; the largest golden file decodes to a megabyte

ODD = (
    0,
    1,
    2,
    7,
    8,
    255,
    256,
    1 << 16,
    (1 << 31) - 1,
    1 << 32,
    1 << 40,
    (1 << 62) - 1,
    1 << 63,
    1 << 80,
    -1,
    0.5,
)
ODD_VALUES = (
    *ODD,
    None,
    True,
    "",
    "a",
    "manifest",
    "F32",
    "BF16",
    "I64",
    "ternary",
    "bytes",
    [],
    [1],
    {},
    {"a": 1},
    [[]],
)


def damage(raw, rng):
    """Flip, cut, insert, splice or repeat bytes."""
    raw = bytearray(raw)
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(len(raw) + 1)
        n = rng.choice((1, 1, 2, 4, 8, 40))
        match rng.randrange(6):
            case 0 | 1 if raw:
                raw[min(at, len(raw) - 1)] ^= 1 << rng.randrange(8)
            case 2:
                raw[at : at + n] = rng.randbytes(n)
            case 3:
                del raw[at : at + n]
            case 4:
                raw[at:at] = rng.choice((bytes(n), b"\xff" * n, rng.randbytes(n)))
            case _:
                other = rng.randrange(len(raw) + 1)
                raw[at : at + n] = raw[other : other + n]
    return bytes(raw)


def mutate(value, rng):
    """One place of a JSON value changed."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(sorted(value))
        changed = dict(value)
        if rng.random() < 0.08:
            del changed[key]
        else:
            changed[key] = mutate(value[key], rng)
        return changed
    if isinstance(value, list) and value and rng.random() < 0.9:
        at = rng.randrange(len(value))
        match rng.randrange(8):
            case 0:
                return value[:at] + value[at + 1 :]
            case 1:
                return [*value[: at + 1], *value[at:]]
            case 2:
                return rng.sample(value, len(value))
            case _:
                return [*value[:at], mutate(value[at], rng), *value[at + 1 :]]
    if type(value) is int and rng.random() < 0.5:
        return value + rng.choice((-1, 1, 8, 1000))
    return rng.choice(ODD_VALUES)


def with_header(raw, rng):
    """The container's JSON changed, its length kept true."""
    size = int.from_bytes(raw[:8], "little")
    text = raw[8 : 8 + size]
    changed = json.dumps(mutate(json.loads(text), rng)).encode() if rng.random() < 0.7 else damage(text, rng)
    return struct.pack("<Q", len(changed)) + changed + raw[8 + size :]


def with_manifest(raw, rng, path):
    """The manifest changed, its CRC kept true; sometimes payloads too, and their CRCs."""
    path.write_bytes(raw)
    opened = open_source(path)
    blobs = {name: opened.container.read(name).tobytes() for name in opened.container if name != "manifest"}
    facts = json.loads(json.dumps(dict(opened.facts)))
    if rng.random() < 0.5:
        row = rng.choice(facts["payloads"])
        blobs[row[0]] = damage(blobs[row[0]][: row[4]], rng)
        row[3:5] = [zlib.crc32(blobs[row[0]]), len(blobs[row[0]])]
    else:
        facts.pop("config", None)  # what is in there means something to adapters, not to the format
        facts = mutate(facts, rng)
    text = json.dumps(facts).encode()  # manifest.dump would refuse some of it
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zdict=manifest.DICTIONARY)
    body = deflate.compress(damage(text, rng) if rng.random() < 0.1 else text) + deflate.flush()
    blobs["manifest"] = zlib.crc32(body).to_bytes(4, "little") + body
    header, end = {"__metadata__": opened.container.metadata}, 0
    for name, blob in blobs.items():
        blobs[name] = blob + bytes(-len(blob) % 8)
        header[name] = {
            "dtype": "U8",
            "shape": [len(blobs[name])],
            "data_offsets": [end, end + len(blobs[name])],
        }
        end += len(blobs[name])
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + b"".join(blobs.values())


def use(path, output):
    """All that a stranger's file is put through."""
    inspect(path)
    verify(path)
    opened = open_source(path)
    for name in list(opened.tensors)[:3]:
        opened.read(name)
    if isinstance(opened, Packed):
        decompress(path, output, overwrite=True)


def survives(make, source, tmp_path, seed):
    rng = random.Random(f"{source.name} {seed}")
    path, output = tmp_path / "x.safetensors", tmp_path / "o"
    outcomes = set()
    for _ in range(ROUNDS):
        raw = make(source.read_bytes(), rng)
        path.write_bytes(raw)
        tracemalloc.start()
        try:
            use(path, output)
            outcomes.add("used")
        except ParingError as error:
            assert len(str(error)) < 2000
            outcomes.add("refused")
        except BaseException:
            (tmp_path / "crash").write_bytes(raw)
            raise
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert peak < MOST
    assert "refused" in outcomes
    left = {found.name for found in tmp_path.iterdir()} - {"x.safetensors", "o", "source"}
    assert not left


@pytest.mark.parametrize("source", GOLDEN, ids=lambda path: path.name.split(".")[0])
def test_damage_anywhere(source, tmp_path):
    survives(damage, source, tmp_path, 1)


@pytest.mark.parametrize("source", GOLDEN[::2], ids=lambda path: path.name.split(".")[0])
def test_headers_that_lie(source, tmp_path):
    survives(with_header, source, tmp_path, 2)


@pytest.mark.parametrize("source", GOLDEN, ids=lambda path: path.name.split(".")[0])
def test_manifests_and_payloads_that_lie(source, tmp_path):
    scratch = tmp_path / "source"
    survives(lambda raw, rng: with_manifest(raw, rng, scratch), source, tmp_path, 3)


@pytest.mark.parametrize("make", [damage, with_header])
def test_plain_files(make, tmp_path):
    source = tmp_path / "source"
    write_safetensors(source, lora("F16"), {"format": "pt"})
    survives(make, source, tmp_path, 4)


BOUNDED = """
import resource, sys
from paring.errors import ParingError
from paring.packed import open_source
opened = open_source(sys.argv[1])
resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
for name in opened.tensors:
    try:
        opened.read(name)
        print(name, "read")
    except ParingError as error:
        print(name, "refused")
"""


@pytest.mark.parametrize("name", ["blocks", "trellis_blocks", "trellis2_blocks"])
def test_sizes_that_lie_take_no_memory(name, tmp_path):
    golden = next(path for path in GOLDEN if path.name.startswith(name))
    path = tmp_path / "x.safetensors"
    path.write_bytes(golden.read_bytes())
    facts = json.loads(json.dumps(dict(open_source(path).facts)))
    facts["specs"] = [[spec[0], [1 << 20, 1 << 19]] for spec in facts["specs"]]
    container = open_checkpoint(path)
    entries = {name: container.read(name) for name in container if name != "manifest"}
    told = manifest.dump(facts)
    entries["manifest"] = from_bytes("U8", (len(told),), told)
    write_safetensors(path, entries, container.metadata, overwrite=True)
    done = subprocess.run(
        [sys.executable, "-c", BOUNDED, str(path)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[1],
    )
    assert done.stdout.count("refused") == len(facts["names"]), done.stdout
