"""What decompress writes is what was packed, or nothing; and it takes nothing away."""

import json

import numpy as np
import pytest

from paring import safetensors_io
from paring.api import compress, decompress
from paring.checkpoint import digest, open_checkpoint, write_safetensors
from paring.codecs.ternary import from_trits
from paring.dtypes import Stored
from paring.errors import BadFileError, OutputError
from paring.packing import Image, Spec, payloads
from tests.helpers import names
from tests.make_golden import LORA, kohya


@pytest.fixture
def packed(tmp_path):
    """A packed file with a configuration, a coded and a carried tensor."""
    return write(tmp_path / "x.paring.safetensors", {"config": LORA})


def write(path, facts, recorded=None):
    trits = np.random.default_rng(0).integers(-1, 2, (20, 30), np.int8)
    coded = payloads([(Spec("w", "F32", trits.shape), from_trits(trits, 0.3))])
    kept = payloads([(Spec("n", "I64", (4,)), Stored("I64", np.arange(4)))])
    image = Image([*coded, *kept], facts)
    image.write(path, recorded or digest(image.decoded()), lambda _: None)
    return path


@pytest.mark.parametrize("target", ["out", "out.safetensors"])
@pytest.mark.parametrize("dtype", [None, "fp16", "fp64"])
def test_tensors_that_are_not_those_that_were_packed_are_refused(tmp_path, target, dtype):
    path = write(tmp_path / "wrong.paring.safetensors", {}, recorded="0" * 64)
    with pytest.raises(BadFileError, match=r"wrong\.paring\.safetensors is damaged.*digest"):
        decompress(path, tmp_path / target, dtype=dtype)
    assert names(tmp_path) == [path.name]


@pytest.mark.parametrize("target", ["out", "out.safetensors"])
@pytest.mark.parametrize("dtype", [None, "bf16"])
def test_what_the_disk_loses_is_noticed(tmp_path, packed, target, dtype, monkeypatch):
    real = safetensors_io._write_tensor

    def ill(file, place, tensor):
        real(file, place, tensor)
        if place.name == "w":
            file.seek(place.start + 5)
            file.write(b"\x01")

    monkeypatch.setattr(safetensors_io, "_write_tensor", ill)
    with pytest.raises(BadFileError, match="w does not read back"):
        decompress(packed, tmp_path / target, dtype=dtype)
    assert names(tmp_path) == [packed.name]


def test_a_folder_that_holds_more_is_left_alone(tmp_path, packed):
    out = tmp_path / "out"
    decompress(packed, out)
    decompress(packed, out, overwrite=True)
    assert names(out) == ["adapter_config.json", "adapter_model.safetensors"]
    (out / "README.md").write_text("mine")
    with pytest.raises(OutputError, match=r"also holds README\.md"):
        decompress(packed, out, overwrite=True)
    assert len(names(out)) == 3
    # without a configuration of its own, a run has none to put in place of the old one
    (out / "README.md").unlink()
    bare = write(tmp_path / "bare.paring.safetensors", {})
    with pytest.raises(OutputError, match=r"also holds adapter_config\.json"):
        decompress(bare, out, overwrite=True)


def test_a_file_alone_says_what_it_leaves_out(tmp_path, packed):
    (warning,) = decompress(packed, tmp_path / "out.safetensors").warnings
    assert "adapter_config.json" in warning and "folder" in warning
    assert decompress(packed, tmp_path / "out").warnings == []
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text()) == LORA
    bare = write(tmp_path / "bare.paring.safetensors", {})
    assert decompress(bare, tmp_path / "bare.safetensors").warnings == []


@pytest.mark.parametrize("name", ["lora:v1.safetensors", "...", "a b", "größe.bin", "adapter_config.json"])
def test_any_file_name_comes_back(tmp_path, name):
    facts = {"source": {"name": name, "bytes": 1, "sha256": "0"}}
    path = write(tmp_path / "x.paring.safetensors", facts)
    decompress(path, tmp_path / "out")
    (made,) = (tmp_path / "out").iterdir()
    assert made.suffix == ".safetensors" and made.stem == (tmp_path / name).stem
    assert len(open_checkpoint(made)) == 2


def test_a_source_with_a_colon_in_its_name_can_be_packed(tmp_path):
    source = tmp_path / "lora:v1.safetensors"
    write_safetensors(source, kohya())
    made = compress(source, tmp_path / "x.paring.safetensors", density=0.4, method="compeft")
    decompress(made.output, tmp_path / "out")
    assert names(tmp_path / "out") == [source.name]


def test_inputs_are_never_outputs(tmp_path, packed):
    with pytest.raises(OutputError, match="is an input"):
        decompress(packed, packed, overwrite=True)
    (tmp_path / "link.safetensors").symlink_to(packed)
    with pytest.raises(OutputError, match="is an input"):
        decompress(packed, tmp_path / "link.safetensors", overwrite=True)
    with pytest.raises(OutputError, match="holds the input"):
        decompress(packed, tmp_path, overwrite=True)
    assert len(open_checkpoint(packed)) == 3
