"""Many models in one packed file, and each of them out of it again."""

import json

import numpy as np
import pytest

from paring.api import inspect, load, merge, verify
from paring.checkpoint import open_checkpoint
from paring.dtypes import Stored
from paring.errors import BadFileError, OptionError, UnsupportedError
from paring.merging.tasks import holds_tasks
from paring.packed import open_source
from tests.helpers import names
from tests.merging import SHAPES, arrays, put_model

BASE = arrays(0)
TUNED = {"maths": arrays(1, BASE), "code": arrays(2, BASE), "chat": arrays(3, BASE)}
POSITIONS = {"model.position_ids": Stored("I64", np.arange(9))}


@pytest.fixture
def models(tmp_path):
    base = put_model(tmp_path / "base", BASE, extra=POSITIONS)
    return base, [put_model(tmp_path / name, values, extra=POSITIONS) for name, values in TUNED.items()]


@pytest.fixture
def pack(models, tmp_path):
    base, tuned = models
    out = tmp_path / "all.paring.safetensors"
    report = merge(tuned, out, method="emr", base=base)
    assert report.bytes_out == out.stat().st_size
    return out


def values(path):
    with open_checkpoint(path) as found:
        return {name: found.read(name).f32() for name in SHAPES}


def test_each_task_comes_back_as_if_merged_alone(models, pack, tmp_path):
    base, tuned = models
    for number, name in enumerate(TUNED, 1):
        merge(tuned, tmp_path / f"plain{number}", method="emr", base=base, task=number)
        for wanted in (number, name):
            out = tmp_path / f"out{wanted}"
            merge([f"{pack}#{wanted}"], out, method="task_arithmetic", base=base)
            for tensor, expected in values(tmp_path / f"plain{number}").items():
                np.testing.assert_allclose(values(out)[tensor], expected, rtol=1e-5, atol=1e-6)
        nearest = [
            sum(float(((values(out)[t] - model[t]) ** 2).sum()) for t in SHAPES) for model in TUNED.values()
        ]
        assert int(np.argmin(nearest)) == number - 1


def test_the_file_is_an_ordinary_packed_one(pack):
    assert verify(pack).ok
    opened = open_source(pack)
    assert holds_tasks(opened) and [task["name"] for task in opened.facts["tasks"]] == list(TUNED)
    found = load(pack)
    assert set(found) == {*SHAPES, *(f"{name}.masks" for name in SHAPES), "model.position_ids"}
    assert found["model.norm.weight.masks"].shape == (3, 3)
    assert inspect(pack).packed["method"] == "emr"


def test_tasks_take_part_in_other_merges(models, pack, tmp_path):
    base, tuned = models
    merge([f"{pack}#1", tuned[1]], tmp_path / "out", method="task_arithmetic", base=base, weights=[1, -1])
    merge([f"{pack}#1"], tmp_path / "one", method="task_arithmetic", base=base)
    name = "model.norm.weight"
    expected = values(tmp_path / "one")[name] - (TUNED["code"][name] - BASE[name])
    np.testing.assert_allclose(values(tmp_path / "out")[name], expected, rtol=1e-5, atol=1e-6)


def test_what_is_refused(models, pack, tmp_path):
    base, tuned = models
    before = names(tmp_path)
    out = tmp_path / "out"
    cases = [
        ([pack], out, UnsupportedError, r"holds several tasks: name one, as in .*#1"),
        ([f"{pack}#4"], out, UnsupportedError, "no task '4'; there are 1 maths, 2 code, 3 chat"),
        ([f"{pack}#poetry"], out, UnsupportedError, "no task 'poetry'"),
        ([f"{tuned[0]}#1"], out, UnsupportedError, "holds no tasks"),
        (tuned, tmp_path / "x.paring.safetensors", OptionError, "task_arithmetic makes one model"),
    ]
    for given, output, error, words in cases:
        with pytest.raises(error, match=words):
            merge(given, output, method="task_arithmetic", base=base)
    other = put_model(tmp_path / "other", {"model.norm.weight": np.ones(7, np.float32)})
    with pytest.raises(UnsupportedError, match="is not so in the base"):
        merge([f"{pack}#1"], out, method="task_arithmetic", base=other)
    assert set(names(tmp_path)) - set(before) == {"other"}


@pytest.mark.parametrize("tasks", [3, [], [1], [{"name": 1, "scale": 1}], [{"name": "a", "scale": "b"}]])
def test_manifests_that_make_no_sense(pack, tasks):
    opened = open_source(pack)
    opened.facts = json.loads(json.dumps(dict(opened.facts))) | {"tasks": tasks}
    with pytest.raises(BadFileError, match="tasks is"):
        holds_tasks(opened)
