"""Full fine-tunes against their base, file to file: what is kept, and what is refused."""

import numpy as np
import pytest

from paring.api import compress, decompress, inspect, verify
from paring.checkpoint import open_checkpoint, write_safetensors
from paring.dtypes import from_f32
from paring.errors import BadFileError, BadValueError, OptionError, ParingError, UnsupportedError

SHAPES = {
    "model.embed_tokens.weight": (90, 48),
    "model.layers.0.q_proj.weight": (48, 48),
    "model.layers.0.up_proj.weight": (128, 48),
    "model.layers.0.norm.weight": (48,),
}


def save(folder, arrays, dtype="F32"):
    folder.mkdir(exist_ok=True)
    tensors = {name: from_f32(values.astype(np.float32), dtype) for name, values in arrays.items()}
    write_safetensors(folder / "model.safetensors", tensors, {"format": "pt"})
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return folder


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    base = {name: 0.1 * rng.standard_normal(shape) for name, shape in SHAPES.items()}
    tuned = {}
    for name, values in base.items():
        delta = 0.001 * rng.standard_normal(values.shape)
        if values.ndim == 2:  # two components stand out
            u, v = rng.standard_normal((values.shape[0], 2)), rng.standard_normal((2, values.shape[1]))
            delta = delta + 0.01 * u @ v
        tuned[name] = values + delta
    return base, tuned


@pytest.fixture
def models(tmp_path, arrays):
    return save(tmp_path / "base", arrays[0]), save(tmp_path / "tuned", arrays[1])


def error_of(folder, arrays):
    base, tuned = arrays
    with open_checkpoint(folder) as opened:
        found = {name: opened.read(name).f32() for name in opened}
    assert set(found) == set(tuned)
    two = [name for name, shape in SHAPES.items() if len(shape) == 2]
    lost = sum(float(((found[n] - tuned[n]) ** 2).sum()) for n in two)
    return (lost / sum(float(((base[n] - tuned[n]) ** 2).sum()) for n in two)) ** 0.5, found


@pytest.mark.parametrize("error", [0.5, 0.2, 0.05])
def test_there_and_back_within_the_error_asked_for(tmp_path, models, arrays, error):
    base, tuned = models
    report = compress(tuned, tmp_path / "x", base=base, error=error)
    assert report.error <= error
    decompress(tmp_path / "x", tmp_path / "back", base=base)
    found, tensors = error_of(tmp_path / "back", arrays)
    assert found == pytest.approx(report.error, abs=2e-3)
    norm = "model.layers.0.norm.weight"
    assert (tensors[norm] == arrays[1][norm].astype(np.float32)).all()  # norms are kept bit for bit
    assert (tmp_path / "back" / "config.json").exists()
    assert verify(tmp_path / "x", tuned, base=base).ok
    assert inspect(tmp_path / "x").kind == "delta of a fine-tune"


def test_more_bytes_lose_less_and_budgets_are_met(tmp_path, models):
    base, tuned = models
    reports = [compress(tuned, tmp_path / f"{ratio}", base=base, ratio=ratio) for ratio in (6, 10, 14)]
    assert all(report.ratio >= asked for report, asked in zip(reports, (6, 10, 14), strict=True))
    assert reports[0].error < reports[1].error < reports[2].error


def test_the_same_bytes_for_any_threads(tmp_path, models):
    base, tuned = models
    for threads in (1, 2):
        compress(tuned, tmp_path / f"{threads}", base=base, ratio=8, threads=threads)
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def test_only_the_very_base_is_added_to(tmp_path, models, arrays):
    base, tuned = models
    compress(tuned, tmp_path / "x", base=base, ratio=8)
    with pytest.raises(ParingError, match="add --base"):
        decompress(tmp_path / "x", tmp_path / "back")
    other = save(tmp_path / "other", {name: values + 1e-3 for name, values in arrays[0].items()})
    with pytest.raises(BadFileError, match="is not the base that"):
        decompress(tmp_path / "x", tmp_path / "back", base=other)
    assert not (tmp_path / "back").exists()


def test_what_does_not_fit_is_refused_before_the_work(tmp_path, models, arrays):
    base, tuned = models
    with pytest.raises(UnsupportedError):
        compress(tuned, tmp_path / "x", ratio=8)  # a checkpoint without a base
    wider = {**arrays[1], "model.layers.0.q_proj.weight": np.zeros((48, 50))}
    with pytest.raises(ParingError, match="q_proj"):
        compress(save(tmp_path / "wider", wider), tmp_path / "x", base=base, ratio=8)
    broken = {name: values.copy() for name, values in arrays[1].items()}
    broken["model.layers.0.q_proj.weight"][3, 3] = np.nan
    with pytest.raises(BadValueError, match="q_proj"):
        compress(save(tmp_path / "nan", broken), tmp_path / "x", base=base, ratio=8)
    with pytest.raises(OptionError, match="--norm"):
        compress(tuned, tmp_path / "x", base=base, ratio=8, norm=0.5)
    assert not (tmp_path / "x").exists()


def test_bf16_comes_back_as_bf16(tmp_path, arrays):
    base, tuned = (save(tmp_path / str(i), values, "BF16") for i, values in enumerate(arrays))
    report = compress(tuned, tmp_path / "x", base=base, error=0.3)
    assert report.error <= 0.3
    decompress(tmp_path / "x", tmp_path / "back", base=base)
    with open_checkpoint(tmp_path / "back") as opened:
        assert {info.dtype for info in opened.tensors.values()} == {"BF16"}
