"""safetensors files: what is sound is read and written exactly, what is not is refused by name."""

from __future__ import annotations

import json
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paring.checkpoint import Checkpoint, open_checkpoint, write_safetensors
from paring.dtypes import STORAGE, Stored, from_f32
from paring.errors import BadFileError, BadValueError, OutputError, ParingError, UnsupportedError
from tests.helpers import fill, layouts

FEW = settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
COPY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def pack(header: object, data: bytes = bytes(8)) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def f32(*values: float) -> Stored:
    return from_f32(np.array(values, np.float32), "F32")


def everything(checkpoint: Checkpoint) -> dict[str, Stored]:
    return {name: checkpoint.read(name) for name in checkpoint}


def same(one: Stored, other: Stored) -> bool:
    return (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())


# --- what is refused in a safetensors file

REFUSED: dict[str, tuple[bytes, type[ParingError], str]] = {
    "empty": (b"", BadFileError, "is empty"),
    "short": (b"1234567", BadFileError, "7 bytes long, too short"),
    "header beyond file": (struct.pack("<Q", 100) + b"{}", BadFileError, "ends 98 bytes early, within"),
    "header cut": (struct.pack("<Q", 0x280) + b"{}", BadFileError, "ends 638 bytes early, within"),
    "header over limit": (struct.pack("<Q", 1 << 40) + b"{}", BadFileError, "over the limit of 100000000"),
    "truncated": (pack({"a": COPY}, bytes(5)), BadFileError, "ends 3 bytes early"),
    "after": (pack({"a": COPY}, bytes(11)), BadFileError, "3 bytes follow 'a'"),
    "after nothing": (pack({}, bytes(1)), BadFileError, "1 bytes follow the header"),
    "not json": (pack(b"{nonsense}"), BadFileError, "not valid JSON"),
    "array": (pack(b"[1, 2]"), BadFileError, "no JSON header"),
    "not utf-8": (pack(b'{"\xff": 1}'), BadFileError, "not valid UTF-8"),
    "surrogate": (pack(b'{"\\ud800": ' + json.dumps(COPY).encode() + b"}"), BadFileError, "not valid UTF-8"),
    "nan": (pack(b'{"a": NaN}'), BadFileError, "NaN is not JSON"),
    "deep": (pack(b'{"a":' * 100_000 + b"1" + b"}" * 100_000), BadFileError, "nested too deeply"),
    "deep lists": (pack(b'{"a":' + b"[" * 100_000), BadFileError, "nested too deeply"),
    "twice": (pack(b'{"a": 1, "a": 2}'), BadFileError, "'a' is given twice"),
    "twice inside": (pack(b'{"a": {"b": "F32", "b": "I32"}}'), BadFileError, "'b' is given twice"),
    "metadata number": (pack({"__metadata__": {"a": 1}}, b""), BadFileError, "__metadata__ must map"),
    "metadata list": (pack({"__metadata__": []}, b""), BadFileError, "__metadata__ must map"),
    "entry": (pack({"a": 1}), BadFileError, "'a' must be described"),
    "extra field": (pack({"a": COPY | {"zip": 1}}), BadFileError, "and nothing else"),
    "dtype unknown": (pack({"a": COPY | {"dtype": "F4"}}), UnsupportedError, "unknown dtype 'F4'"),
    "dtype number": (pack({"a": COPY | {"dtype": 4}}), BadFileError, "dtype that is not text"),
    "shape text": (pack({"a": COPY | {"shape": "2"}}), BadFileError, "not a list of whole numbers"),
    "shape negative": (pack({"a": COPY | {"shape": [-2]}}), BadFileError, "not a list of whole numbers"),
    "shape float": (pack({"a": COPY | {"shape": [2.0]}}), BadFileError, "not a list of whole numbers"),
    "shape bool": (pack({"a": COPY | {"shape": [2, True]}}), BadFileError, "not a list of whole numbers"),
    "shape long": (pack({"a": COPY | {"shape": [1] * 65}}), BadFileError, "65 axes"),
    "shape overflow": (pack({"a": COPY | {"shape": [1 << 40, 1 << 40]}}), BadFileError, "overflows"),
    "overflow hidden by 0": (pack({"a": COPY | {"shape": [1 << 62, 4, 0]}}), BadFileError, "overflows"),
    "offsets three": (pack({"a": COPY | {"data_offsets": [0, 8, 9]}}), BadFileError, "not two whole numbers"),
    "offsets size": (pack({"a": COPY | {"data_offsets": [0, 4]}}), BadFileError, "takes 8 bytes as F32"),
    "offsets reversed": (pack({"a": COPY | {"data_offsets": [8, 0]}}), BadFileError, "span -8"),
    "offsets far": (pack({"a": COPY | {"data_offsets": [1 << 40, (1 << 40) + 8]}}), BadFileError, "a hole"),
    "hole": (
        pack({"a": COPY, "b": COPY | {"data_offsets": [12, 20]}}, bytes(20)),
        BadFileError,
        "a hole of 4 bytes between 'a' and 'b'",
    ),
    "overlap": (
        pack({"a": COPY, "b": COPY | {"data_offsets": [4, 12]}}, bytes(12)),
        BadFileError,
        "overlaps 'a'",
    ),
    "lfs": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n",
        BadFileError,
        "is a Git LFS pointer, not the file: run `git lfs pull`",
    ),
    "zip": (b"PK\x03\x04" + bytes(40), BadFileError, "zip archive"),
    "pickle": (pickle.dumps({"a": [1, 2, 3]}), BadFileError, "pickle"),
    "html": (b"\n<!DOCTYPE html><html></html>", BadFileError, "web page"),
    "gguf": (b"GGUF" + bytes([3, 0, 0, 0]) * 4, BadFileError, "GGUF"),
    "bare json": (b'{"weight_map": {}}', BadFileError, "JSON text"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_damaged_file_is_refused(tmp_path: Path, case: str) -> None:
    content, kind, words = REFUSED[case]
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(kind) as caught:
        open_checkpoint(tmp_path / "x.safetensors")
    assert type(caught.value) is kind
    assert words in str(caught.value)
    assert str(tmp_path / "x.safetensors") in str(caught.value)


def test_a_long_header_is_refused_even_in_a_long_file(tmp_path: Path) -> None:
    with (tmp_path / "x.safetensors").open("wb") as file:
        file.write(pack({}, b"").replace(struct.pack("<Q", 2), struct.pack("<Q", 100_000_001)))
        file.truncate(200_000_000)
    with pytest.raises(BadFileError, match="100000001 bytes is over the limit"):
        open_checkpoint(tmp_path)


@FEW
@given(st.data())
def test_random_damage_raises_only_our_errors(tmp_path: Path, data: st.DataObject) -> None:
    file = tmp_path / "x.safetensors"
    write_safetensors(file, {"a": f32(1, 2), "b": f32(3)}, {"k": "v"}, overwrite=True)
    content = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content) - 1))
        kind = data.draw(st.sampled_from(["set", "cut", "insert"]))
        if kind == "set":
            content[at] = data.draw(st.integers(0, 255))
        elif kind == "cut":
            del content[at : at + data.draw(st.integers(1, 8))]
        else:
            content[at:at] = data.draw(st.binary(min_size=1, max_size=8))
        if not content:
            break
    file.write_bytes(content)
    try:
        with open_checkpoint(file) as checkpoint:
            everything(checkpoint)
    except ParingError as error:
        assert str(file) in str(error)


# --- what is read and written


@FEW
@given(layouts, st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), st.text('ab"\\é')))
def test_the_reference_library_reads_what_we_write(
    tmp_path: Path, specs: Any, metadata: dict[str, str]
) -> None:
    ours, file = fill(specs), tmp_path / "x.safetensors"
    write_safetensors(file, ours, metadata, overwrite=True)
    theirs = safetensors.numpy.load_file(file)
    assert {name: (array.dtype, array.shape) for name, array in theirs.items()} == {
        name: (tensor.data.dtype, tensor.shape) for name, tensor in ours.items()
    }
    assert all(array.tobytes() == ours[name].tobytes() for name, array in theirs.items())
    with safetensors.safe_open(file, "numpy") as opened:
        assert (opened.metadata() or {}) == metadata
    again = open_checkpoint(file)
    assert all(same(again.read(name), ours[name]) for name in ours)
    assert again.metadata == metadata
    assert again.nbytes == file.stat().st_size


@FEW
@given(layouts)
def test_we_read_what_the_reference_library_writes(tmp_path: Path, specs: Any) -> None:
    stored, file = fill(specs), tmp_path / "x.safetensors"
    safetensors.numpy.save_file(
        {name: tensor.data for name, tensor in stored.items()}, file, {"by": "library"}
    )
    with open_checkpoint(file) as checkpoint:
        assert set(checkpoint) == set(stored)
        assert all(same(checkpoint.read(name), stored[name]) for name in stored)
        assert checkpoint.metadata == {"by": "library"}
        starts = [info.start for info in checkpoint.tensors.values()]
        assert starts == sorted(starts)


def test_bits_of_every_dtype_survive(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    stored = {
        code: Stored(
            code, rng.integers(0, 2 if code == "BOOL" else 256, (3, kind.itemsize), np.uint8).view(kind)
        )
        for code, kind in STORAGE.items()
    }
    write_safetensors(tmp_path / "x.safetensors", stored)
    checkpoint = open_checkpoint(tmp_path / "x.safetensors")
    assert all(same(checkpoint.read(code), stored[code]) for code in STORAGE)
    assert [info.start % np.dtype(STORAGE[name]).itemsize for name, info in checkpoint.tensors.items()] == [
        0
    ] * len(STORAGE)


def test_what_is_read_is_described_and_read_only(tmp_path: Path) -> None:
    aliases = {"head.weight": "embed.weight"}
    write_safetensors(tmp_path / "m.safetensors", {"a": f32(1, 2, 3), "none": f32()}, aliases)
    checkpoint = open_checkpoint(tmp_path)  # the only .safetensors file in the folder
    assert (len(checkpoint), "a" in checkpoint, "head.weight" in checkpoint) == (2, True, False)
    assert checkpoint.metadata == aliases
    info = checkpoint.tensors["a"]
    assert (info.numel, info.nbytes, info.dtype, info.shape) == (3, 12, "F32", (3,))
    assert info.file.read_bytes()[info.start : info.stop] == checkpoint.read("a").tobytes()
    assert checkpoint.read("none").shape == (0,)
    with pytest.raises(ValueError, match="read-only"):
        checkpoint.read("a").data[0] = 1
    with pytest.raises(KeyError):
        checkpoint.read("b")


def test_unaligned_tensors_are_read(tmp_path: Path) -> None:
    header = {
        "a": {"dtype": "I8", "shape": [1], "data_offsets": [0, 1]},
        "b": COPY | {"data_offsets": [1, 9]},
    }
    (tmp_path / "x.safetensors").write_bytes(pack(header, b"\1" + f32(5, 6).tobytes()))
    assert open_checkpoint(tmp_path).read("b").f32().tolist() == [5, 6]


def test_a_stream_in_any_order_gives_the_same_bytes(tmp_path: Path) -> None:
    parts = {"b": f32(1, 2), "a": f32(3), "h": from_f32(np.ones((2, 2), np.float32), "BF16")}
    layout = [(name, part.dtype, part.shape) for name, part in parts.items()]
    write_safetensors(tmp_path / "1", parts, {"k": "v"})
    write_safetensors(
        tmp_path / "2", ((name, parts[name]) for name in "hab"), {"k": "v"}, layout=layout[::-1]
    )
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([("a", f32(1, 2))], "'b' was announced but never written"),
        ([("a", f32(1, 2)), ("a", f32(1, 2)), ("b", f32(1))], "'a' is written twice"),
        ([("c", f32(1))], "'c' is written twice, or was never announced"),
        ([("a", f32(1)), ("b", f32(1))], "'a' is F32"),
        ([("a", Stored("F32", np.zeros(2))), ("b", f32(1))], "held as float64"),
    ],
)
def test_a_stream_must_be_what_was_announced(tmp_path: Path, given: Any, words: str) -> None:
    with pytest.raises(BadValueError, match=words):
        write_safetensors(tmp_path / "x", iter(given), layout=[("a", "F32", [2]), ("b", "F32", [1])])
    assert list(tmp_path.iterdir()) == []


def test_writing_refuses_before_it_reads_a_tensor(tmp_path: Path) -> None:
    def untouched() -> Any:
        raise AssertionError("a tensor was asked for")
        yield

    (tmp_path / "there").write_text("old")
    with pytest.raises(OutputError, match="exists: add --overwrite"):
        write_safetensors(tmp_path / "there", untouched(), layout=[("a", "F32", [2])])
    with pytest.raises(OutputError, match=r"no room for .*: it needs \d{16,} bytes"):
        write_safetensors(tmp_path / "x", untouched(), layout=[("a", "F32", [1 << 52])])
    with pytest.raises(UnsupportedError, match="dtype 'F4'"):
        write_safetensors(tmp_path / "x", untouched(), layout=[("a", "F4", [2])])
    for names in (["a", "a"], ["__metadata__"], ["\ud800"]):
        with pytest.raises(BadValueError):
            write_safetensors(tmp_path / "x", untouched(), layout=[(name, "F32", [1]) for name in names])
    with pytest.raises(BadValueError, match="metadata"):
        write_safetensors(tmp_path / "x", {}, {"a": 1})  # type: ignore[dict-item]
