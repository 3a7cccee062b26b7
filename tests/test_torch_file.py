"""Files that torch.save wrote: tensors are read exactly, everything else is refused, and no code runs."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paring.checkpoint import Checkpoint, open_checkpoint
from paring.dtypes import Stored
from paring.errors import BadFileError, ParingError, UnsupportedError

FEW = settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])


def everything(checkpoint: Checkpoint) -> dict[str, Stored]:
    return {name: checkpoint.read(name) for name in checkpoint}


def save(value: object, path: Path, **options: Any) -> Path:
    torch = pytest.importorskip("torch")
    torch.save(value, path, **options)
    return path


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pytorch_file_is_read(tmp_path: Path, zipped: bool) -> None:
    torch = pytest.importorskip("torch")
    base = torch.arange(1_000_000, dtype=torch.float32)
    held = {
        "view": base[:2],
        "strided": base[:6].reshape(2, 3).T,
        "bf16": torch.tensor([1.5, -2], dtype=torch.bfloat16),
        "f8": torch.tensor([1.5, -2]).to(torch.float8_e4m3fn),
        "scalar": torch.tensor(3, dtype=torch.int64),
        "mask": torch.tensor([True, False]),
        "none": torch.zeros(0, 4),
        "tied": base[:2],
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "conj": torch.tensor([1 + 2j]).conj(),
    }
    if not zipped:  # torch itself cannot read back fp8 from its old format
        held["f8"] = held["f8"].view(torch.uint8)
    file = save(
        {"state_dict": held, "epoch": 3},
        tmp_path / "pytorch_model.bin",
        _use_new_zipfile_serialization=zipped,
    )
    with open_checkpoint(tmp_path) as checkpoint:
        read = everything(checkpoint)
    assert list(read) == list(held)
    assert checkpoint.others == ("epoch",)
    assert checkpoint.nbytes == file.stat().st_size
    assert checkpoint.tensors["view"].nbytes == read["view"].nbytes == 8
    assert read["view"].data.base is None or read["view"].data.base.nbytes == 8
    assert read["strided"].f32().tolist() == [[0, 3], [1, 4], [2, 5]]
    assert read["strided"].data.flags.c_contiguous
    assert (read["bf16"].dtype, read["bf16"].f32().tolist()) == ("BF16", [1.5, -2])
    assert (read["f8"].dtype, read["f8"].data.tolist()) == ("F8_E4M3" if zipped else "U8", [0x3C, 0xC0])
    assert (read["scalar"].shape, int(read["scalar"].data)) == ((), 3)
    assert (read["mask"].dtype, read["none"].shape) == ("BOOL", (0, 4))
    assert read["conj"].data.tolist() == [1 - 2j]
    assert not read["view"].data.flags.writeable


class Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("ran",))


def test_a_pickle_that_wants_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for options in ({}, {"_use_new_zipfile_serialization": False}):
        with pytest.raises(BadFileError, match=r"could run code .*mkdir"):
            open_checkpoint(save({"a": Code()}, tmp_path / "x.bin", **options))
    assert not (tmp_path / "ran").exists()


def test_other_pytorch_files_are_refused(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    cases: list[tuple[object, type[ParingError], str]] = [
        ([torch.zeros(2)], UnsupportedError, "holds a list"),
        ({"epoch": 3}, BadFileError, "holds no tensors (but epoch)"),
        ({3: torch.zeros(2)}, BadFileError, "not valid text"),
        ({"a": torch.zeros(2).to_sparse()}, UnsupportedError, "'a' is sparse"),
        ({"a": torch.zeros(2, device="meta")}, UnsupportedError, "without data"),
        ({"a": torch.zeros(2, dtype=torch.complex128)}, UnsupportedError, "dtype torch.complex128"),
        ({"a": torch.zeros(1).expand(1 << 40)}, UnsupportedError, "the file holds 4: save it contiguous"),
    ]
    for value, kind, words in cases:
        with pytest.raises(kind) as caught:
            open_checkpoint(save(value, tmp_path / "x.pt"))
        assert words in str(caught.value)
    for content in (bytes(100_000), b"short"):
        with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
            archive.writestr("x/data.pkl", content, zipfile.ZIP_DEFLATED)
        with pytest.raises(BadFileError, match="compressed, or claim more bytes than the file has"):
            open_checkpoint(tmp_path / "x.pt")
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("notes.txt", "hello")
    with pytest.raises(BadFileError, match=r"not one that torch\.save wrote"):
        open_checkpoint(tmp_path / "x.pt")
    for content, words in ((b"", "is empty"), (b"version https://git-lfs.github.com/spec/", "git lfs pull")):
        (tmp_path / "x.pt").write_bytes(content)
        with pytest.raises(BadFileError, match=words):
            open_checkpoint(tmp_path / "x.pt")


@FEW
@given(st.data())
def test_random_damage_to_a_pytorch_file_raises_only_our_errors(tmp_path: Path, data: st.DataObject) -> None:
    torch = pytest.importorskip("torch")
    file = save({"a": torch.ones(4), "b": torch.zeros(2, 2)}, tmp_path / "x.bin")
    content = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    file.write_bytes(
        content[: data.draw(st.integers(1, len(content)))] if data.draw(st.booleans()) else content
    )
    try:
        with open_checkpoint(file) as checkpoint:
            everything(checkpoint)
    except ParingError as error:
        assert str(file) in str(error)


def test_a_pytorch_file_changed_after_opening_is_noticed(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    checkpoint = open_checkpoint(save({"a": torch.ones(50_000)}, tmp_path / "x.bin"))
    os.truncate(tmp_path / "x.bin", 100)
    with pytest.raises(BadFileError, match="changed after it was opened"):
        checkpoint.read("a")
