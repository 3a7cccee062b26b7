"""Merging on another device: the torch kernels against the reference, and whole merges, wherever torch runs.

``cpu:0`` is torch on the CPU: the code that runs on a GPU, without one.
"""

import numpy as np
import pytest

from paring import registry
from paring.api import merge
from paring.checkpoint import open_checkpoint
from paring.dtypes import STORAGE, from_f32
from paring.errors import BadValueError, UnsupportedError
from paring.kernels import elementwise, merging, order
from paring.kernels.elementwise import reference as elementwise_reference
from paring.kernels.merging import reference
from paring.kernels.order import reference as order_reference
from tests.merging import arrays, put_model

torch = pytest.importorskip("torch")
DEVICES = ["cpu:0", pytest.param("cuda", marks=pytest.mark.gpu)]
BASE = arrays(0)
TUNED = [arrays(seed, BASE) for seed in (1, 2, 3)]


@pytest.fixture(params=DEVICES)
def device(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return request.param


@pytest.fixture
def chunk():
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((3, 5000)).astype(np.float32)
    vectors[:, ::7] = 0
    vectors[1, 1::7] = -vectors[0, 1::7]
    return vectors


LOW, HIGH = np.full(3, 0.02, np.float32), np.full(3, 2.2, np.float32)
WEIGHTS = np.array([1.0, 0.5, -2.0])
CASES = [
    ("weighted_sum", (WEIGHTS,)),
    ("gram", ()),
    *[("elected", (LOW * 30, WEIGHTS, sign)) for sign in ("mass", "count")],
    *[("ties", (LOW * 30, WEIGHTS, "mass", combine, -1.0)) for combine in ("mean", "sum", "max")],
    *[("pcb_scores", (LOW, HIGH, rule)) for rule in "EAV"],
    *[("pcb", (LOW, HIGH, HIGH, HIGH * 5, WEIGHTS, rule)) for rule in "EAV"],
]


@pytest.mark.parametrize(("name", "rest"), CASES)
def test_kernels_agree_with_the_reference(device, chunk, name, rest):
    found = getattr(merging, name)(torch.from_numpy(chunk.copy()).to(device), *rest)
    found = found if isinstance(found, np.ndarray) else found.cpu().numpy()
    np.testing.assert_allclose(found, getattr(reference, name)(chunk, *rest), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16"])
def test_bits_there_and_back(device, dtype):
    from paring.kernels.elementwise import gpu

    values = np.random.default_rng(1).standard_normal(1000).astype(np.float32)
    bits = from_f32(values, dtype).data
    bits.flags.writeable = False
    wide, finite = gpu.widen(bits, dtype, device)
    expected = np.empty(1000, np.float32)
    assert finite and elementwise_reference.widen(bits, dtype, expected)
    assert (wide.cpu().numpy() == expected).all()
    there = torch.from_numpy(values * 1.37).to(device)
    ours, theirs = np.empty((2, 1000), STORAGE[dtype])
    assert elementwise.narrow(there, dtype, ours)
    elementwise_reference.narrow(values * np.float32(1.37), dtype, theirs)
    assert ours.tobytes() == theirs.tobytes()
    assert elementwise.unmoved(there, bits, ours) == elementwise_reference.unmoved(values, bits, ours)
    there[3] = float("nan")
    assert not elementwise.narrow(there, dtype, ours)


@pytest.mark.parametrize("signed", [True, False])
def test_order_statistics(device, chunk, signed):
    x, there = chunk[0], torch.from_numpy(chunk[0].copy()).to(device)
    low = int(order.keys(x, signed)[5])
    wanted = [(0, low, high) for high in (low, low + 1_000_000, 0xFFFFFFFF)]
    found = order.brackets(there[None], signed, wanted)
    for ours, theirs in zip(found, order_reference.brackets(x[None], signed, wanted), strict=True):
        assert ours[0] == theirs[0] and ours[1].tolist() == theirs[1].tolist()
    for shift in (0, 16):
        ours, theirs = order.count(there, signed, low, shift), order_reference.count(x, signed, low, shift)
        assert ours[0] == theirs[0] and (ours[1] == theirs[1]).all()


ON_TORCH = [name for name in registry.names("merge") if registry.load("merge", name).torch]


@pytest.mark.parametrize("method", ON_TORCH)
def test_whole_merges_agree(device, method, tmp_path, monkeypatch):
    monkeypatch.setattr("paring.merging.verb.pick", lambda asked: "cpu" if asked == "auto" else asked)
    base = put_model(tmp_path / "base", BASE)
    count = 2 if method == "slerp" else 3
    tuned = [put_model(tmp_path / f"m{i}", values) for i, values in enumerate(TUNED[:count])]
    base = None if registry.load("merge", method).sees == "weights" else base
    merge(tuned, tmp_path / "here", method=method, base=base)
    report = merge(tuned, tmp_path / "there", method=method, base=base, device=device)
    assert report.device == device
    with open_checkpoint(tmp_path / "here") as here, open_checkpoint(tmp_path / "there") as there:
        for name in here:
            np.testing.assert_allclose(there.read(name).f32(), here.read(name).f32(), rtol=1e-4, atol=1e-5)


def test_whatever_is_broken_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("paring.merging.verb.pick", lambda asked: asked)
    broken = {name: x.copy() for name, x in TUNED[0].items()}
    broken["model.norm.weight"][3] = np.nan
    models = [put_model(tmp_path / "a", TUNED[1]), put_model(tmp_path / "b", broken)]
    with pytest.raises(BadValueError, match=r"b: model\.norm\.weight holds NaN"):
        merge(models, tmp_path / "out", device="cpu:0")


def test_rules_that_run_on_the_cpu_only_say_so(tmp_path, monkeypatch):
    monkeypatch.setattr("paring.merging.verb.pick", lambda asked: asked)
    with pytest.raises(UnsupportedError, match="della runs on the CPU only"):
        merge(["a", "b"], tmp_path / "out", method="della", device="cuda")
