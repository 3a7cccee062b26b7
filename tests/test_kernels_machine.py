"""Kernels of bare machine code: the same as numpy, kept, linked without numba, never run when damaged."""

import subprocess
import sys
from ctypes import c_int64
from pathlib import Path

import numpy as np
import pytest

from paring.dtypes import from_f32
from paring.kernels import merging
from paring.kernels.machine import Machine
from paring.kernels.merging import reference
from paring.merging.writing import Writer
from paring.safetensors_io import write_safetensors

WEIGHTS = np.array([0.7, -0.5, 0.1])
#: entries: none, one, a vector, a block of the kernel and its neighbours, several
SIZES = (0, 1, 16, 2047, 2048, 2049, 7000)
USE = """
import sys
from paring.kernels import elementwise
import numpy as np
print(elementwise.checksum(np.arange(100, dtype=np.uint8)), "numba" in sys.modules)
"""


def rows(k, scale=1.0):
    """A base and three near it, of many magnitudes, zeros of both signs and subnormals among them; and more
    columns than are asked for.
    """
    rng = np.random.default_rng(k)
    base = rng.standard_normal(k + 5) * 10.0 ** rng.integers(-40, 30, k + 5)
    base[rng.random(k + 5) < 0.1] = 0
    base[rng.random(k + 5) < 0.1] *= -0.0
    tuned = base * (1 + scale * 0.01 * rng.standard_normal((3, k + 5)) * (rng.random((3, k + 5)) < 0.7))
    return from_f32(np.vstack([base, tuned]).astype(np.float32), "BF16").data


@pytest.mark.parametrize("k", SIZES)
@pytest.mark.parametrize("scale", [1.0, -0.3, 0.0])
def test_sums_of_bits_are_those_of_numbers(k, scale):
    for based, few in ((True, rows(k)), (False, rows(k)[1:])):
        found, expected = np.empty(k, np.uint16), np.empty(k, np.uint16)
        args = (few, k, based, WEIGHTS, scale if based else 1.0)
        assert merging.mix(*args, found) == reference.mix(*args, expected) >= 0
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("bad", [0x7F80, 0xFF80, 0x7FC0])
@pytest.mark.parametrize("row", range(4))
def test_one_bad_value_is_noticed(bad, row):
    few, out = rows(5000), np.empty(5000, np.uint16)
    few[row, 4321] = bad
    assert merging.mix(few, 5000, True, WEIGHTS, 1.0, out) == -1
    assert merging.mix(few, 4321, True, WEIGHTS, 1.0, out) >= 0, "nothing beyond what is asked for"


def test_overflow_is_noticed():
    few, out = np.full((2, 8), 0x7F7F, np.uint16), np.empty(8, np.uint16)
    assert merging.mix(few, 8, False, np.array([1.0, 0.0]), 1.0, out) == 0
    assert merging.mix(few, 8, False, np.array([1.0, 1.0]), 1.0, out) == -1


def used(folder: Path) -> tuple[str, str]:
    """What a new process computes, and whether it needed numba for that."""
    env = {"NUMBA_CACHE_DIR": str(folder), "PATH": ""}
    done = subprocess.run([sys.executable, "-c", USE], env=env, capture_output=True, text=True, check=True)
    return tuple(done.stdout.split())


def test_code_is_kept_and_linked_without_numba(tmp_path):
    first = used(tmp_path / "cache")
    (file,) = (tmp_path / "cache").glob("*.o")
    assert first[1] == "True" and used(tmp_path / "cache") == (first[0], "False")
    whole = file.read_bytes()
    for damaged in (whole[:-9], whole[:900] + bytes(1) + whole[901:], b""):
        file.write_bytes(damaged)
        assert used(tmp_path / "cache") == first, "compiled again"
        assert file.read_bytes() == whole


def test_without_a_place_for_code_each_process_compiles(tmp_path):
    (tmp_path / "file").touch()
    assert used(tmp_path / "file" / "cache")[1] == "True"


def test_a_user_without_a_home_can_work(monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert Machine(_twice, "int64(int64)", c_int64, c_int64)(21) == 42


def _twice(a):
    return 2 * a


def _wild(a):
    return divmod(a, 7.5)[0] if a > 3 else np.sin(a) + np.arange(a).sum()


def test_code_that_needs_more_than_the_c_library_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    assert Machine(_wild, "int64(int64)", c_int64, c_int64)(9) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("options", [{"method": "linear"}, {"method": "task_arithmetic", "scale": 0.3}])
def test_bits_to_bits_or_by_chunks_is_the_same(tmp_path, monkeypatch, options):
    from paring.api import merge

    rng = np.random.default_rng(0)
    for name in ("base", "a", "b"):
        tensors = {
            n: from_f32(rng.standard_normal(shape).astype(np.float32), "BF16")
            for n, shape in (("w", (300, 70)), ("v", (70,)), ("empty", (0, 3)))
        }
        write_safetensors(tmp_path / f"{name}.safetensors", tensors)
    base = tmp_path / "base.safetensors" if options["method"] != "linear" else None
    models = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    fast = merge(models, tmp_path / "fast.safetensors", base=base, **options)
    monkeypatch.setattr(Writer, "whole", lambda *args: None)
    slow = merge(models, tmp_path / "slow.safetensors", base=base, **options)
    assert (tmp_path / "fast.safetensors").read_bytes() == (tmp_path / "slow.safetensors").read_bytes()
    assert fast.warnings == slow.warnings
