"""What users feed to ``compress``: it works, or refuses in one sentence, and leaves every file as it was."""

import contextlib
import json
import pickle
import random
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from paring.api import compress, inspect, load
from paring.checkpoint import write_safetensors
from paring.dtypes import Stored, from_f32
from paring.errors import BadFileError, BadValueError, OutputError, UnsupportedError
from tests.helpers import put_adapter
from tests.make_golden import CASES, LORA, PREFIX, lora

QUICK = {"method": "compeft", "density": 0.3, "basis": "trained", "scope": "global", "alpha": 1.0}
FITTED = {
    "density": None,
    "basis": "semidiscrete",
    "scope": "component",
    "alpha": "lsq",
    "bits_per_param": 40,
}
A, B = f"{PREFIX}.0.self_attn.q_proj.lora_A.weight", f"{PREFIX}.0.self_attn.q_proj.lora_B.weight"
SAVED = "base_model.model.score.weight"


def snapshot(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def refuses(source, error, message, tmp_path, **options):
    """``compress`` refuses ``source`` and changes nothing, whether the output is new or exists."""
    old = tmp_path / "old.paring.safetensors"
    old.write_bytes(b"precious")
    before = snapshot(tmp_path)
    for output in (tmp_path / "new.paring.safetensors", tmp_path / "sub" / "new.safetensors", old):
        with pytest.raises(error, match=message) as caught:
            compress(source, output, overwrite=True, **QUICK, **options)
        assert "\n" not in str(caught.value) and type(caught.value) is error
        assert snapshot(tmp_path) == before


def works(source, tmp_path, **options):
    """``compress`` works on ``source`` and leaves exactly its output; returns the report."""
    before = snapshot(tmp_path)
    made = compress(source, tmp_path / "out.paring.safetensors", **(QUICK | options))
    assert set(snapshot(tmp_path)) - set(before) == {"out.paring.safetensors"}
    assert set(load(made.output)) == set(load(source))
    return made


# --- files that are not what they seem


def container(header, body=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def entry(start, stop, shape=None):
    return {"dtype": "F32", "shape": shape or [(stop - start) // 4], "data_offsets": [start, stop]}


FILES = {
    "empty": (b"", "is empty"),
    "few bytes": (b"1234", "too short"),
    "header longer than the file": (struct.pack("<Q", 5000) + b'{"a":', "truncated"),
    "header of many gigabytes": (struct.pack("<Q", 1 << 40) + b"{" * 100, "over the limit"),
    "overlap": (container({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12)), "overlaps"),
    "hole": (container({"a": entry(0, 4), "b": entry(8, 12)}, bytes(12)), "a hole of 4 bytes"),
    "out of range": (container({"a": entry(0, 400)}, bytes(12)), "truncated"),
    "shape against offsets": (container({"a": entry(0, 8, [3])}, bytes(8)), "takes 12 bytes"),
    "negative offsets": (container({"a": entry(-8, 0, [2])}, bytes(8)), "data_offsets"),
    "huge shape": (container({"a": entry(0, 8, [1 << 40, 1 << 40])}, bytes(8)), "overflows"),
    "duplicate keys": (container(b'{"a":{"dtype":"F32","dtype":"F32"}}'), "given twice"),
    "duplicate names": (container(b'{"a":{},"a":{}}'), "given twice"),
    "Git LFS pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 9\n",
        "git lfs pull",
    ),
    "web page": (b"<!DOCTYPE html><html><body>404</body></html>", "web page"),
    "trailing bytes": (container({"a": entry(0, 4)}, bytes(9)), "bytes follow"),
}


@pytest.mark.parametrize("kind", FILES)
def test_files_that_are_not_what_they_seem(kind, tmp_path):
    content, message = FILES[kind]
    source = tmp_path / "adapter_model.safetensors"
    source.write_bytes(content)
    refuses(source, BadFileError, message, tmp_path)


def test_a_truncated_file(tmp_path):
    source = put_adapter(tmp_path / "s", lora()) / "adapter_model.safetensors"
    source.write_bytes(source.read_bytes()[:-5])
    refuses(source, BadFileError, "truncated", tmp_path)


def test_no_file(tmp_path):
    refuses(tmp_path / "none", BadFileError, "does not exist", tmp_path)


class Payload:
    def __reduce__(self):
        return (Path.touch, (Path(__file__).parent / "pwned",))


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_is_never_run(protocol, tmp_path):
    source = tmp_path / "adapter_model.bin"
    source.write_bytes(pickle.dumps({"x": Payload()}, protocol=protocol))
    refuses(source, BadFileError, "adapter_model.bin", tmp_path)
    assert not (Path(__file__).parent / "pwned").exists()


# --- adapters that are not whole


def test_a_without_b(tmp_path):
    tensors = lora()
    del tensors[B]
    refuses(put_adapter(tmp_path / "s", tensors), BadFileError, "lora_A.weight has no matching B", tmp_path)


def test_ranks_that_disagree(tmp_path):
    tensors = lora()
    tensors[B] = from_f32(np.ones((56, 3), np.float32), "F32")
    refuses(put_adapter(tmp_path / "s", tensors), BadFileError, "ranks disagree in module", tmp_path)
    refuses(put_adapter(tmp_path / "t", lora(), LORA | {"r": 16}), BadFileError, "has rank 4, but", tmp_path)


def test_empty_placeholders(tmp_path):
    tensors = lora()
    tensors[A] = from_f32(np.ones((0,), np.float32), "F32")
    refuses(
        put_adapter(tmp_path / "s", tensors),
        BadFileError,
        "is empty, shape .*gather the full weights",
        tmp_path,
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16", "F64"])
def test_nan_and_infinity(bad, dtype, tmp_path):
    tensors = lora(dtype) | {SAVED: from_f32(np.ones(5, np.float32), "F32")}
    x = np.zeros((4, 40))
    x[1, 2] = bad
    source = put_adapter(tmp_path / "s", tensors | {A: from_f32(x, dtype)})
    refuses(
        source, BadValueError, "q_proj.lora_A.weight holds NaN or infinity .first at flat index 42", tmp_path
    )
    source = put_adapter(tmp_path / "t", tensors | {SAVED: from_f32(np.array([0, bad]), dtype)})
    refuses(source, BadValueError, "score.weight holds NaN or infinity .first at flat index 1.", tmp_path)


def test_numbers_too_large_for_the_arithmetic(tmp_path):
    tensors = lora("F64")
    tensors[A] = Stored("F64", np.full((4, 40), 1e300))
    refuses(put_adapter(tmp_path / "s", tensors), BadValueError, "lora_A.weight .*fp32", tmp_path)


def test_a_checkpoint_without_factors(tmp_path):
    full = {f"model.layers.{i}.weight": from_f32(np.ones((8, 8), np.float32), "F32") for i in range(3)}
    source = tmp_path / "model.safetensors"
    write_safetensors(source, full)
    refuses(
        source,
        UnsupportedError,
        "no adapter factors among its 3 tensors .the first is model.layers.0",
        tmp_path,
    )


def test_dora_is_carried_by_name_or_refused(tmp_path):
    magnitudes = {
        name.replace("lora_A.weight", "lora_magnitude_vector"): from_f32(np.ones(56, np.float32), "F32")
        for name in lora()
        if "lora_A" in name
    }
    source = put_adapter(tmp_path / "s", lora() | magnitudes, LORA | {"use_dora": True})
    refuses(source, UnsupportedError, "nothing here can be compressed.*DoRA", tmp_path)
    first = dict(list(magnitudes.items())[:1])
    made = works(put_adapter(tmp_path / "t", lora() | first), tmp_path)
    assert {tensor.name for tensor in made.carried} == {A, B, *first}
    assert all("DoRA" in tensor.why for tensor in made.carried) and len(made.modules) == 3


def test_quantised_factors_are_carried_by_name(tmp_path):
    tensors = lora() | {A: Stored("I8", np.ones((4, 40), np.int8))}
    made = works(put_adapter(tmp_path / "s", tensors), tmp_path)
    assert {tensor.name for tensor in made.carried} == {A, B}
    assert all("quantised or integer" in tensor.why for tensor in made.carried)
    assert (load(made.output)[A].numpy() == 1).all()


def test_what_no_manifest_can_hold_is_refused_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr("paring.compressing.run", None)
    deep = []
    for _ in range(70):
        deep = [deep]
    folder = put_adapter(tmp_path / "s", lora(), LORA | {"auto_mapping": {"a": deep}})
    refuses(folder, BadFileError, "what a packed file tells of it makes no sense: config is", tmp_path)


def test_a_packed_file_is_not_packed_again(tmp_path):
    source = tmp_path / "x.paring.safetensors"
    CASES["lora_rank_1"](source)
    refuses(source, UnsupportedError, "is packed already", tmp_path)


# --- odd adapters that work


@pytest.mark.parametrize("options", [QUICK, FITTED])
def test_an_adapter_of_zeros_warns(options, tmp_path):
    zeros = {name: from_f32(np.zeros(t.shape, np.float32), t.dtype) for name, t in lora().items()}
    made = works(put_adapter(tmp_path / "s", zeros), tmp_path, **options)
    assert made.error == 0 and "changes nothing" in made.warnings[0]
    assert all(not load(made.output)[name].any() for name in zeros)


@pytest.mark.parametrize("options", [QUICK, FITTED])
def test_constant_tensors(options, tmp_path):
    same = {name: from_f32(np.full(t.shape, 0.5, np.float32), t.dtype) for name, t in lora().items()}
    made = works(put_adapter(tmp_path / "s", same), tmp_path, **options)
    # a constant has no deviation: the published scale is zero, which is said; the fitted one is exact
    assert made.error < 0.01 or (made.error == 1 and "decode to the base model" in made.warnings[0])


def test_rank_one_and_rank_patterns(tmp_path):
    made = works(put_adapter(tmp_path / "s", lora(rank=1), LORA | {"r": 1}), tmp_path)
    assert {m.rank for m in made.modules} == {1}
    (tmp_path / "out.paring.safetensors").unlink()
    mixed = lora(modules=("q_proj",)) | {n: t for n, t in lora(rank=2).items() if "v_proj" in n}
    config = LORA | {"rank_pattern": {"v_proj": 2}, "alpha_pattern": {"v_proj": 32}}
    made = works(put_adapter(tmp_path / "t", mixed, config), tmp_path)
    assert [m.rank for m in made.modules] == [4, 2, 4, 2]
    assert [m.scale for m in inspect(made.output).modules] == [2, 16, 2, 16]


def test_rank_stabilised_scales(tmp_path):
    made = works(put_adapter(tmp_path / "s", lora(), LORA | {"use_rslora": True}), tmp_path)
    assert {m.scale for m in inspect(made.output).modules} == {4.0}


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16", "F64"])
def test_dtypes_are_kept(dtype, tmp_path):
    source = put_adapter(tmp_path / "s", lora(dtype))
    made = works(source, tmp_path)
    assert inspect(made.output).dtypes == {dtype: 8}
    assert {t.dtype for t in load(made.output).values()} == {t.dtype for t in load(source).values()}


# --- where the output cannot go


@contextlib.contextmanager
def mounted(folder, *options):
    folder.mkdir()
    try:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", *options, "none", str(folder)], capture_output=True, check=False
        )
        if done.returncode:
            pytest.skip("mounting a small file system is not permitted here")
    except OSError:
        pytest.skip("there is no mount here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_read_only_folder(tmp_path):
    nan = {SAVED: Stored("F32", np.array([np.nan], np.float32))}
    source = put_adapter(
        tmp_path / "s", lora() | nan
    )  # refused before any tensor is read, so before NaN is found
    with mounted(tmp_path / "sealed", "-o", "ro") as sealed:
        for output in (sealed / "x.safetensors", sealed / "sub" / "x.safetensors"):
            with pytest.raises(OutputError, match="read-only"):
                compress(source, output, **QUICK)
        assert not list(sealed.iterdir())


@pytest.mark.parametrize("told", [True, False])
def test_a_full_disk(told, tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    noise = {SAVED: Stored("F32", rng.normal(size=(100, 100)).astype(np.float32))}
    source = put_adapter(tmp_path / "s", lora() | noise)

    def unknown(path):
        raise OSError

    with mounted(tmp_path / "small", "-o", "size=16k") as small:
        if not told:  # a file system that does not tell its room, or fills up meanwhile
            monkeypatch.setattr("paring.atomic.shutil.disk_usage", unknown)
        (small / "old").write_bytes(b"precious")
        before = snapshot(small)
        for output in (small / "x.safetensors", small / "old"):
            with pytest.raises(OutputError, match="no room"):
                compress(source, output, overwrite=True, **QUICK)
            assert snapshot(small) == before


def test_an_output_that_is_the_input_or_exists(tmp_path):
    source = put_adapter(tmp_path / "s", lora())
    file = source / "adapter_model.safetensors"
    before = snapshot(tmp_path)
    for output in (file, source / ".." / "s" / file.name):
        with pytest.raises(OutputError, match="is an input, and inputs are never changed"):
            compress(source, output, overwrite=True, **QUICK)
    with pytest.raises(OutputError, match=r"is an input|holds the input"):
        compress(file, source, overwrite=True, **QUICK)
    (tmp_path / "link").hardlink_to(file)
    with pytest.raises(OutputError, match="is an input"):
        compress(source, tmp_path / "link", overwrite=True, **QUICK)
    (tmp_path / "link").unlink()
    with pytest.raises(OutputError, match="is an input"):
        compress(source, source / "adapter_config.json", overwrite=True, **QUICK)
    (source / "README.md").write_text("mine")
    with pytest.raises(OutputError, match="exists: add --overwrite"):
        compress(source, source / "README.md", **QUICK)
    (source / "README.md").unlink()
    with pytest.raises(OutputError, match="is not a folder"):
        compress(source, source / "adapter_config.json" / "x.safetensors", **QUICK)
    assert snapshot(tmp_path) == before


# --- interrupted, and in company

RUN = """
import sys
from paring.api import compress
from paring.errors import ParingError
print("ready", flush=True)
try:
    compress(sys.argv[1], sys.argv[2], overwrite=True, bits_per_param=20, method="compeft", sweeps=2)
except KeyboardInterrupt:
    sys.exit(130)
except ParingError as error:
    sys.exit(f"refused: {error}")
"""


@contextlib.contextmanager
def running(source, output):
    command = [sys.executable, "-c", RUN, str(source), str(output)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=Path(__file__).parents[1], **pipes) as run:
        assert run.stdout.readline() == b"ready\n"
        yield run


def test_interrupted_at_any_moment(tmp_path):
    source = put_adapter(tmp_path / "s", lora())
    output = tmp_path / "o" / "x.safetensors"
    output.parent.mkdir()
    begun = time.monotonic()
    with running(source, output) as run:
        assert run.wait() == 0
    whole = time.monotonic() - begun
    done = output.read_bytes()
    codes = set()
    for moment in random.Random(1).choices([0.0, 0.1, 0.3, 0.4, 0.5, 0.6, 0.8], k=4):
        output.write_bytes(b"precious")
        with running(source, output) as run:
            time.sleep(whole * moment)
            run.send_signal(signal.SIGINT)
            codes.add(run.wait())
        assert [path.name for path in output.parent.iterdir()] == ["x.safetensors"]
        assert output.read_bytes() in (b"precious", done)
    assert codes <= {0, 130, -signal.SIGINT} and codes != {0}


def test_two_runs_on_one_output(tmp_path):
    source = put_adapter(tmp_path / "s", lora())
    output = tmp_path / "o" / "x.safetensors"
    with running(source, output) as first, running(source, output) as second:
        runs = first, second
        told = [run.communicate()[1].decode() for run in runs]
    # whoever comes second is refused, or comes after: never a mixture, never a leftover
    assert sorted(run.returncode for run in runs) in ([0, 0], [0, 1])
    assert all(
        "another run is writing" in text for run, text in zip(runs, told, strict=True) if run.returncode
    )
    assert [path.name for path in output.parent.iterdir()] == ["x.safetensors"]
    assert set(load(output)) == set(lora())
