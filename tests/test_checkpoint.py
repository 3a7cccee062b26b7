"""Checkpoints of several files, their digest, and what lies beside them."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paring.atomic import refuse_same_file
from paring.checkpoint import digest, open_checkpoint, write_safetensors
from paring.dtypes import Stored, from_f32
from paring.errors import BadFileError, BadValueError, OutputError, ParingError
from tests.helpers import fill, layouts

FEW = settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])


def f32(*values: float) -> Stored:
    return from_f32(np.array(values, np.float32), "F32")


def test_a_file_changed_after_opening_is_noticed(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    write_safetensors(file, {"a": f32(1, 2)})
    checkpoint = open_checkpoint(file)
    write_safetensors(file, {"a": f32(1, 2), "b": f32(3)}, overwrite=True)
    with pytest.raises(BadFileError, match="changed after it was opened"):
        checkpoint.read("a")
    checkpoint = open_checkpoint(file)
    os.truncate(file, 70)
    with pytest.raises(BadFileError, match="changed after it was opened"):
        checkpoint.read("b")
    file.unlink()
    with pytest.raises(BadFileError, match="'b' cannot be read"):
        checkpoint.read("b")


def test_a_path_without_checkpoint_names_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(BadFileError, match="does not exist"):
        open_checkpoint(tmp_path / "gone.safetensors")
    with pytest.raises(BadFileError, match=r"adapter_model\.safetensors.*pytorch_model\.bin"):
        open_checkpoint(tmp_path)
    with pytest.raises(BadFileError, match="not a path"):
        open_checkpoint("a\0b")
    os.mkfifo(tmp_path / "pipe.safetensors")
    with pytest.raises(BadFileError, match="not a regular file"):
        open_checkpoint(tmp_path / "pipe.safetensors")


# --- the digest


def test_the_digest_is_as_documented(tmp_path: Path) -> None:
    stored = {"b": from_f32(np.array([[1.0, -2.0]], np.float32), "BF16"), "é": f32(), "a": f32(0.5).data}
    stored["a"] = Stored("F32", stored["a"].reshape(()))
    expected = hashlib.sha256()
    for record in (
        (1, b"a", 3, b"F32", 0, struct.pack("<f", 0.5)),
        (1, b"b", 4, b"BF16", 2, 1, 2, bytes.fromhex("803f00c0")),
        (2, "é".encode(), 3, b"F32", 1, 0),
    ):
        for part in record:
            expected.update(part.to_bytes(8, "little") if isinstance(part, int) else part)
    assert digest(stored.items()) == expected.hexdigest()
    write_safetensors(tmp_path / "x.safetensors", stored)
    assert open_checkpoint(tmp_path).digest() == expected.hexdigest()
    with pytest.raises(BadValueError, match="'a' is given twice"):
        digest([("a", f32()), ("a", f32())])


@FEW
@given(layouts, st.randoms())
def test_the_digest_ignores_order_and_sees_every_change(specs: Any, random: Any) -> None:
    items = list(fill(specs).items())
    shuffled = random.sample(items, len(items))
    assert digest(shuffled) == digest(items)
    name, tensor = items[0]
    flat = Stored(tensor.dtype, tensor.data.reshape(1, *tensor.shape))
    assert digest([(name, flat), *items[1:]]) != digest(items)
    assert digest([(name + "x", tensor)]) != digest([(name, tensor)])


# --- folders and shards


def shards(folder: Path, prefix: str = "model") -> dict[str, str]:
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(folder / f"{prefix}-1.safetensors", {"a": f32(1), "b": f32(2)}, {"format": "pt"})
    write_safetensors(folder / f"{prefix}-2.safetensors", {"c": f32(3, 4)}, {"format": "pt"})
    return {"a": f"{prefix}-1.safetensors", "b": f"{prefix}-1.safetensors", "c": f"{prefix}-2.safetensors"}


def index(folder: Path, weight_map: object, name: str = "model.safetensors.index.json") -> Path:
    (folder / name).write_text(json.dumps({"metadata": {"total_size": 16}, "weight_map": weight_map}))
    return folder / name


@pytest.mark.parametrize("prefix", ["model", "adapter_model", "diffusion_pytorch_model"])
def test_shards_are_one_checkpoint(tmp_path: Path, prefix: str) -> None:
    listed = index(tmp_path, shards(tmp_path, prefix), f"{prefix}.safetensors.index.json")
    for path in (tmp_path, listed):
        checkpoint = open_checkpoint(path)
        assert list(checkpoint) == ["a", "b", "c"]
        assert [file.name for file in checkpoint.files] == [
            f"{prefix}-1.safetensors",
            f"{prefix}-2.safetensors",
        ]
        assert checkpoint.nbytes == sum(file.stat().st_size for file in checkpoint.files)
        assert checkpoint.metadata == {"format": "pt"}
        assert checkpoint.digest() == digest([("c", f32(3, 4)), ("b", f32(2)), ("a", f32(1))])
        assert checkpoint.path == path


def absent(folder: Path, weight_map: dict[str, str]) -> None:
    (folder / "model-2.safetensors").unlink()


def stray_link(folder: Path, weight_map: dict[str, str]) -> None:
    (folder / "model-2.safetensors").rename(folder.parent / "outside.safetensors")
    (folder / "model-2.safetensors").symlink_to(folder.parent / "outside.safetensors")


def both(folder: Path, weight_map: dict[str, str]) -> None:
    write_safetensors(folder / "model-2.safetensors", {"b": f32(2), "c": f32(3)}, overwrite=True)


SHARDS: list[tuple[Callable[[Path, dict[str, str]], object], str]] = [
    (lambda folder, listed: listed.update(c="../model/model-2.safetensors"), "not a file in its folder"),
    (lambda folder, listed: listed.update(c=str(folder / "model-2.safetensors")), "not a file in its folder"),
    (lambda folder, listed: listed.update(c="."), "not a file in its folder"),
    (lambda folder, listed: listed.update(c=""), "not a file in its folder"),
    (lambda folder, listed: listed.update(c="a\0b"), "not a file in its folder"),
    (lambda folder, listed: listed.update(c="x" * 300), "cannot be read: File name too long"),
    (lambda folder, listed: listed.update(c=3), "weight_map must map"),
    (lambda folder, listed: listed.clear(), "names no tensors"),
    (absent, "model-2.safetensors is missing"),
    (stray_link, "is a link that leaves its folder"),
    (lambda folder, listed: listed.update(d="model-2.safetensors"), "'d' is missing, though"),
    (
        lambda folder, listed: listed.update(b="model-2.safetensors"),
        "model-2.safetensors: tensor 'b' is missing",
    ),
    (lambda folder, listed: listed.pop("b"), "'b' is not named by model.safetensors.index.json"),
    (both, "'b' is also in"),
]


@pytest.mark.parametrize(("spoil", "words"), SHARDS)
def test_an_index_that_does_not_fit_is_refused(tmp_path: Path, spoil: Any, words: str) -> None:
    folder = tmp_path / "model"
    weight_map = shards(folder)
    spoil(folder, weight_map)
    index(folder, weight_map)
    with pytest.raises(BadFileError) as caught:
        open_checkpoint(folder)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"weight_map": {"a": "x", "a": "y"}}', "'a' is given twice"),
        ('{"weight_map": []}', "weight_map must map"),
        ("[]", "must be a JSON object, not a list"),
        ("version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ('{"weight_map": {"a": "model.safetensors.index.json"}}', "not a kind of checkpoint file"),
    ],
)
def test_a_damaged_index_is_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ParingError) as caught:
        open_checkpoint(tmp_path)
    assert words in str(caught.value)


def test_links_of_the_hub_cache_are_followed(tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "models--x" / "snapshots" / "123", tmp_path / "models--x" / "blobs"
    index(snapshot, shards(snapshot))
    blobs.mkdir()
    for number, file in enumerate(sorted(snapshot.iterdir())):
        file.rename(blobs / str(number))
        file.symlink_to(Path("../../blobs", str(number)))
    assert list(open_checkpoint(snapshot)) == ["a", "b", "c"]


def test_a_folder_is_searched_in_order(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "one.safetensors", {"one": f32(1)})
    assert list(open_checkpoint(tmp_path)) == ["one"]
    write_safetensors(tmp_path / "two.safetensors", {"two": f32(1)})
    with pytest.raises(BadFileError, match=r"2 checkpoints \(one\.safetensors, two\.safetensors\)"):
        open_checkpoint(tmp_path)
    write_safetensors(tmp_path / "model.safetensors", {"model": f32(1)})
    assert list(open_checkpoint(tmp_path)) == ["model"]
    write_safetensors(tmp_path / "adapter_model.safetensors", {"adapter": f32(1)})
    assert list(open_checkpoint(tmp_path)) == ["adapter"]


def test_inputs_are_all_the_files_of_a_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    index(folder, shards(folder))
    listed, config = folder / "model.safetensors.index.json", folder / "adapter_config.json"
    for path in (folder, listed):
        opened = open_checkpoint(path)
        assert opened.inputs == (*opened.files, listed) and len(opened.files) == 2
    config.write_text("{}")
    for path in (folder, listed):
        assert open_checkpoint(path).inputs == (*opened.files, listed, config)
    assert open_checkpoint(opened.files[0]).inputs == (opened.files[0], config)
    for path in open_checkpoint(folder).inputs:
        with pytest.raises(OutputError, match="is an input"):
            refuse_same_file(path, open_checkpoint(folder).inputs)


def test_the_config_beside_a_checkpoint(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "adapter_model.safetensors", {"a": f32(1)})
    config = tmp_path / "adapter_config.json"
    for path in (tmp_path, tmp_path / "adapter_model.safetensors"):
        checkpoint = open_checkpoint(path)
        assert checkpoint.config("adapter_config.json") is None
        config.write_text('{"r": 8, "more": [1, {"b": null}]}')
        assert checkpoint.config("adapter_config.json") == {"r": 8, "more": [1, {"b": None}]}
        config.unlink()
    config.write_text('{"r": 8, "rank_pattern": {"q": 1, "q": 2}}')
    with pytest.raises(BadFileError, match="'q' is given twice"):
        checkpoint.config("adapter_config.json")
    config.write_text(json.dumps({"r": "8" * 16_000_000}))
    with pytest.raises(BadFileError, match="larger than 16000000 bytes"):
        checkpoint.config("adapter_config.json")


def test_reading_safetensors_needs_no_torch() -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_safetensors(Path(folder, "x.safetensors"), {"a": f32(1)})
        code = (
            "import sys; from paring.checkpoint import open_checkpoint; "
            f"open_checkpoint({folder!r}).digest(); "
            "sys.exit(bool({'torch', 'numba', 'safetensors'} & set(sys.modules)))"
        )
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
