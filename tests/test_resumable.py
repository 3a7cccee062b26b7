"""Outputs that a killed run leaves to the next: complete, or taken up, or refused; never a mixture."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from paring.checkpoint import open_checkpoint
from paring.dtypes import STORAGE
from paring.errors import BadFileError, OutputError
from paring.resumable import index_of, shards, staged
from tests.helpers import names

LAYOUT = [
    ("a", "F32", (3, 4)),
    ("b", "BF16", (5,)),
    ("c", "I64", (2,)),
    ("d", "F16", (0, 3)),
    ("e", "F16", (7,)),
]
DATA = {
    name: np.arange(int(np.prod(shape)), dtype=np.int64).astype(STORAGE[dtype])
    for name, dtype, shape in LAYOUT
}


class Killed(BaseException):
    """As a signal would: nothing catches it."""


def files(limit=1 << 30):
    return shards(LAYOUT, "model", limit, {"format": "pt"})


def fill(staging, stop_after=None):
    written = []
    for name, data in DATA.items():
        if name in staging.done:
            continue
        half = len(data) // 2
        total = staging.write(name, half, data[half:]) + staging.write(name, 0, data[:half])
        if stop_after is not None and len(written) == stop_after:
            raise Killed
        staging.complete(name, total % 2**64)
        written.append(name)
    return written


def write(path, fingerprint="x", overwrite=False, stop_after=None, limit=1 << 30, single=False, spoil=None):
    with staged(
        path, files(limit), fingerprint, single=single, overwrite=overwrite, replaceable=None, threads=2
    ) as staging:
        if spoil:
            spoil(staging)
        written = fill(staging, stop_after)
        if not single:
            (staging.folder / "config.json").write_text("{}")
    return written


def whole(path):
    with open_checkpoint(path) as found:
        return {name: found.read(name).data.reshape(-1).tolist() for name in found}


EXPECTED = {name: data.tolist() for name, data in DATA.items()}


def test_shards_are_cut_in_order_and_indexed(tmp_path):
    cut = files(60)
    assert [set(shard.places) for shard in cut] == [{"a", "b"}, {"c", "d", "e"}]
    assert all(shard.name == f"model-{i:05}-of-{len(cut):05}.safetensors" for i, shard in enumerate(cut, 1))
    index = index_of(cut)
    assert index["metadata"] == {"total_parameters": 26, "total_size": 88}
    assert set(index["weight_map"]) == set(DATA)
    write(tmp_path / "out", limit=60)
    (tmp_path / "out" / "model.safetensors.index.json").write_text(json.dumps(index))
    assert whole(tmp_path / "out") == EXPECTED


@pytest.mark.parametrize("single", [True, False])
def test_whole_or_absent(tmp_path, single):
    path = tmp_path / ("out.safetensors" if single else "out")
    assert write(path, single=single) == list(DATA)
    assert names(tmp_path) == [path.name]
    assert whole(path) == EXPECTED
    with pytest.raises(OutputError, match="exists"):
        write(path, single=single)
    assert write(path, single=single, overwrite=True) == list(DATA)
    assert names(tmp_path) == [path.name]


@pytest.mark.parametrize("stop", range(len(DATA)))
@pytest.mark.parametrize("single", [True, False])
def test_the_same_run_goes_on(tmp_path, stop, single):
    path = tmp_path / ("out.safetensors" if single else "out")
    with pytest.raises(Killed):
        write(path, single=single, stop_after=stop)
    assert names(tmp_path) == [f".{path.name}.resume"]
    assert write(path, single=single) == list(DATA)[stop:]
    assert whole(path) == EXPECTED
    assert names(tmp_path) == [path.name]


def test_another_run_is_refused_or_told_to_start_afresh(tmp_path):
    with pytest.raises(Killed):
        write(tmp_path / "out", stop_after=2)
    with pytest.raises(OutputError, match="begun by a run with other inputs or options"):
        write(tmp_path / "out", fingerprint="y")
    assert write(tmp_path / "out", fingerprint="y", overwrite=True) == list(DATA)
    assert whole(tmp_path / "out") == EXPECTED


def damage(file, at):
    raw = bytearray(file.read_bytes())
    raw[at] ^= 1
    file.write_bytes(raw)


def test_what_a_power_cut_lost_is_written_again(tmp_path):
    with pytest.raises(Killed):
        write(tmp_path / "out", stop_after=3)
    file = tmp_path / ".out.resume" / "files" / "model.safetensors"
    place = files()[0].places["b"]
    damage(file, place.start)
    assert write(tmp_path / "out") == ["b", *list(DATA)[3:]]
    assert whole(tmp_path / "out") == EXPECTED


@pytest.mark.parametrize(
    "text",
    ["", "{", '{"fingerprint": "x"}\n["a", 1, 0]\n["zz", 2, 0]\n["b"', '{"fingerprint": "x"}\n3\n["a"]\n'],
)
def test_a_journal_that_was_cut_short(tmp_path, text):
    with pytest.raises(Killed):
        write(tmp_path / "out", stop_after=3)
    (tmp_path / ".out.resume" / "journal").write_text(text)
    write(tmp_path / "out")
    assert whole(tmp_path / "out") == EXPECTED


def test_a_file_that_was_cut_short(tmp_path):
    with pytest.raises(Killed):
        write(tmp_path / "out", stop_after=3)
    os.truncate(tmp_path / ".out.resume" / "files" / "model.safetensors", 50)
    assert write(tmp_path / "out") == list(DATA)


def test_what_the_disk_loses_is_noticed(tmp_path):
    def ill(staging):
        real = staging.complete
        staging.complete = lambda name, checksum, noted=0: real(name, checksum ^ (name == "c"))

    with pytest.raises(BadFileError, match="c does not read back"):
        write(tmp_path / "out", spoil=ill)
    assert names(tmp_path) == []


def test_an_error_leaves_nothing(tmp_path):
    def fail(staging):
        raise BadFileError("NaN")

    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").touch()
    with pytest.raises(BadFileError, match="NaN"):
        write(tmp_path / "out", overwrite=True, spoil=fail)
    assert names(tmp_path) == ["out"] and names(tmp_path / "out") == ["old"]


def test_stale_shards_do_not_stay(tmp_path):
    write(tmp_path / "out", limit=30)
    assert len(names(tmp_path / "out")) > 2
    write(tmp_path / "out", overwrite=True)
    assert names(tmp_path / "out") == ["config.json", "model.safetensors"]
    assert not Path(tmp_path / ".out.resume").exists()
