"""The file of calibration statistics: round trips, and files of strangers."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paring.checkpoint import open_checkpoint, write_safetensors
from paring.dtypes import Stored
from paring.errors import BadFileError, BadValueError, OutputError, UnsupportedError
from paring.pruning.matrix import Inputs
from paring.pruning.statistics import Measured, open_stats, pack, unpack, write_stats
from tests.pruning import inputs

Q, K, DOWN, EXPERTS = "q.weight", "k.weight", "down.weight", "experts.up"
MEASURED = [
    Measured(Q, 4, {Q: (6, 4), K: (2, 4)}),
    Measured(DOWN, 3, {DOWN: (3, 5)}),
    Measured(f"{EXPERTS}[1]", 3, {f"{EXPERTS}[1]": (2, 3, 4)}),
]


def found(gram=True):
    rng = np.random.default_rng(0)
    return {each.name: inputs(rng.standard_normal((each.n, 9)), gram) for each in MEASURED}


def put_model(path, seed=0, **changed):
    rng = np.random.default_rng(seed)
    shapes = {Q: (6, 4), K: (2, 4), DOWN: (3, 5), EXPERTS: (2, 3, 4), "norm": (4,)} | changed
    tensors = {
        n: Stored("F32", rng.standard_normal(shape).astype(np.float32))
        for n, shape in shapes.items()
        if shape
    }
    write_safetensors(path, tensors, overwrite=True)
    return open_checkpoint(path)


def put(path, gram=True, model=None, **more):
    facts = {"model": {"name": "m", **({} if model is None else {"sha256": model.digest()})}}
    write_stats(path, MEASURED, found(gram).items(), facts, gram=gram, **more)
    return path


@pytest.mark.parametrize("gram", [False, True])
def test_what_is_written_is_read(tmp_path, gram):
    stats = open_stats(put(tmp_path / "s.safetensors", gram))
    assert stats.gram == gram and set(stats.measured) == {Q, K, DOWN, f"{EXPERTS}[1]"}
    for name, shared in ((Q, Q), (K, Q), (DOWN, DOWN), (f"{EXPERTS}[1]", f"{EXPERTS}[1]")):
        expected, got = found(gram)[shared], stats.inputs(name)
        np.testing.assert_array_equal(got.norms, expected.norms)
        assert got.tokens == 9 and (got.gram is not None) == gram
        if gram:
            np.testing.assert_array_equal(got.gram, expected.gram)


def test_shared_inputs_are_stored_once_and_products_by_halves(tmp_path):
    with open_checkpoint(put(tmp_path / "s.safetensors")) as file:
        assert set(file) == {f"{e.name}.{part}" for e in MEASURED for part in ("norms", "tokens", "gram")}
        assert file.tensors[f"{Q}.gram"].shape == (10,)


@given(st.integers(0, 8))
def test_packing_keeps_the_lower_triangle_row_by_row(n):
    half = np.random.default_rng(n).standard_normal((n, n)).astype(np.float32)
    gram = half + half.T
    packed = pack(gram)
    np.testing.assert_array_equal(packed, gram[np.tril_indices(n)])
    np.testing.assert_array_equal(unpack(packed, n), gram)


def test_the_model_calibrated_is_known_again(tmp_path):
    model = put_model(tmp_path / "m.safetensors")
    stats = open_stats(put(tmp_path / "s.safetensors", model=model))
    stats.check(model)
    stats.covers([Q, DOWN])
    open_stats(put(tmp_path / "without.safetensors")).check(put_model(tmp_path / "n.safetensors", seed=1))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": 1}, "not those calibrated"),
        ({K: None}, r"no tensor k\.weight"),
        ({K: (3, 4)}, r"k\.weight is \[3, 4\].*\[2, 4\]"),
        ({EXPERTS: (3, 3, 4)}, "experts.up"),
    ],
)
def test_another_model_is_refused(tmp_path, change, said):
    stats = open_stats(put(tmp_path / "s.safetensors", model=put_model(tmp_path / "m.safetensors")))
    other = put_model(tmp_path / "other.safetensors", **change)
    with pytest.raises(BadFileError, match=f"another model: .*{said}"):
        stats.check(other)
    if "seed" in change:
        stats.check(other, digest=False)


def test_what_was_not_measured_is_named(tmp_path):
    stats = open_stats(put(tmp_path / "s.safetensors"))
    with pytest.raises(BadFileError, match=r"v\.weight and 1 more"):
        stats.covers([Q, "v.weight", "o.weight"])
    with pytest.raises(BadFileError, match="for another model"):
        stats.covers(["v.weight", "o.weight"])
    with pytest.raises(BadFileError, match=r"v\.weight"):
        stats.inputs("v.weight")


# --- files of strangers ---


def forge(path, *, tensors=None, metadata=None, **facts):
    """The sound file with some of it replaced; None takes away."""
    put(path, overwrite=True)
    with open_checkpoint(path) as file:
        held = {name: file.read(name) for name in file} | (tensors or {})
        told = file.metadata
    known = json.loads(told["statistics"]) | facts
    known = {key: value for key, value in known.items() if value is not None}
    told = told | {"statistics": json.dumps(known)} | (metadata or {})
    write_safetensors(path, {n: t for n, t in held.items() if t is not None}, told, overwrite=True)
    return path


def entry(**change):
    """The inputs as they are, the first of them changed."""
    told = [
        {"name": e.name, "n": e.n, "tensors": {k: list(v) for k, v in e.tensors.items()}} for e in MEASURED
    ]
    return [told[0] | change, *told[1:]]


@pytest.mark.parametrize(
    "forged",
    [
        {"metadata": {"format": "pt"}},
        {"metadata": {"statistics": "["}},
        {"metadata": {"statistics": "{}"}},
        {"gram": 1},
        {"gram": False},
        {"model": None},
        {"model": {"sha256": 3}},
        {"inputs": 3},
        {"inputs": [3]},
        {"inputs": entry()[1:]},
        {"inputs": entry(n=-4)},
        {"inputs": entry(n=True)},
        {"inputs": entry(n=1 << 40)},
        {"inputs": entry(tensors={})},
        {"inputs": entry(tensors={Q: [6, 5]})},
        {"inputs": entry(tensors={Q: "64"})},
        {"inputs": entry(tensors={Q: [4]})},
        {"inputs": entry()[:1] + entry()},
        {"tensors": {f"{Q}.norms": None}},
        {"tensors": {f"{Q}.norms": Stored("F32", np.ones(5, np.float32))}},
        {"tensors": {f"{Q}.norms": Stored("F64", np.ones(4))}},
        {"tensors": {f"{Q}.tokens": Stored("F32", np.ones(1, np.float32))}},
        {"tensors": {f"{Q}.gram": Stored("F32", np.ones(16, np.float32))}},
        {"tensors": {"more": Stored("F32", np.ones(1, np.float32))}},
    ],
)
def test_metadata_and_shapes_are_checked_when_opened(tmp_path, forged):
    with pytest.raises(BadFileError, match=r"s\.safetensors"):
        open_stats(forge(tmp_path / "s.safetensors", **forged))


def test_what_is_forged_is_otherwise_sound(tmp_path):
    assert open_stats(forge(tmp_path / "s.safetensors", inputs=entry())).inputs(K).tokens == 9


@pytest.mark.parametrize("value", [-1, np.nan, np.inf])
def test_norms_are_checked_without_products_too(tmp_path, value):
    path = put(tmp_path / "s.safetensors", gram=False)
    with open_checkpoint(path) as file:
        held, told = {name: file.read(name) for name in file}, file.metadata
    held[f"{Q}.norms"] = Stored("F32", np.array([1, 1, 1, value], np.float32))
    write_safetensors(path, held, told, overwrite=True)
    with pytest.raises(BadFileError, match=r"q\.weight: its norms"):
        open_stats(path).inputs(K)


def test_two_inputs_of_one_matrix_are_refused(tmp_path):
    twice = [{"name": each.name, "n": each.n, "tensors": {Q: [4, 3]}} for each in MEASURED]
    with pytest.raises(BadFileError, match="two inputs"):
        open_stats(forge(tmp_path / "s.safetensors", inputs=twice))


def test_a_newer_version_is_refused_by_its_number(tmp_path):
    with pytest.raises(UnsupportedError, match="version 2"):
        open_stats(forge(tmp_path / "s.safetensors", metadata={"version": "2"}))


def test_keys_that_are_not_known_are_ignored(tmp_path):
    assert open_stats(forge(tmp_path / "s.safetensors", windows="what?", novel=[1])).inputs(Q).tokens == 9


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("norms", [1, 1, 1, -1]),
        ("norms", [1, 1, 1, np.nan]),
        ("norms", [1, 1, 1, np.inf]),
        ("norms", [9, 1, 1, 1]),
        ("tokens", [-1]),
        ("gram", [np.nan] * 10),
        ("gram", [np.inf] * 10),
        ("gram", [1, 5, 1, 0, 0, 1, 0, 0, 0, 1]),
    ],
)
def test_values_are_checked_when_read(tmp_path, part, value):
    kind = {"tokens": np.int64}.get(part, np.float32)
    ones = {f"{Q}.norms": np.ones(4), f"{Q}.gram": pack(np.eye(4, dtype=np.float32))} | {f"{Q}.{part}": value}
    tensors = {
        name: Stored(
            "I64" if "tokens" in name else "F32", np.asarray(v, kind if part in name else np.float32)
        )
        for name, v in ones.items()
    }
    stats = open_stats(forge(tmp_path / "s.safetensors", tensors=tensors))
    with pytest.raises(BadFileError, match=r"s\.safetensors: q\.weight"):
        stats.inputs(K)


# --- writing ---


@pytest.mark.parametrize(
    "wrong",
    [
        Inputs(np.ones(5, np.float32), 9, np.eye(5, dtype=np.float32)),
        Inputs(np.ones(4, np.float32), 9),
        Inputs(np.full(4, np.nan, np.float32), 9, np.eye(4, dtype=np.float32)),
        Inputs(np.ones(4, np.float32), 9, np.full((4, 4), np.inf, np.float32)),
    ],
)
def test_wrong_statistics_leave_nothing_behind(tmp_path, wrong):
    with pytest.raises(BadValueError, match=r"q\.weight"):
        write_stats(
            tmp_path / "s.safetensors", MEASURED, (found() | {Q: wrong}).items(), {"model": {}}, gram=True
        )
    assert not list(tmp_path.iterdir())


def test_a_file_is_not_replaced_unasked(tmp_path):
    put(tmp_path / "s.safetensors")
    with pytest.raises(OutputError, match="--overwrite"):
        put(tmp_path / "s.safetensors")
    put(tmp_path / "s.safetensors", overwrite=True)
