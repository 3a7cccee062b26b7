"""Searching weights: the best of its trials, from a seed, resumed, with passes made once."""

import sys
from pathlib import Path

import numpy as np
import pytest

from paring import ranks
from paring.api import merge, search
from paring.checkpoint import open_checkpoint
from paring.errors import BadFileError, OptionError, OutputError
from paring.merging.search import Space, _number
from tests.helpers import names
from tests.merging import arrays, put_model

pytest.importorskip("optuna")
BASE = arrays(0)
TUNED = [arrays(seed, BASE) for seed in (1, 2)]
GOAL = (0.4, 1.1)


@pytest.fixture
def models(tmp_path):
    return [
        put_model(tmp_path / name, values)
        for name, values in zip(("base", "a", "b"), (BASE, *TUNED), strict=True)
    ]


def distance(path):
    """How far a merged model is from base + .4 a + 1.1 b."""
    lost = 0.0
    with open_checkpoint(path) as found:
        for name, base in BASE.items():
            goal = base + sum(g * (t[name] - base) for g, t in zip(GOAL, TUNED, strict=True))
            lost += float(((found.read(name).f32() - goal) ** 2).sum())
    return lost


SCORE = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from tests.test_search import distance
for part in range(1, 4):
    print("step", part, distance(sys.argv[1]) * part / 3, flush=True)
print("score:", distance(sys.argv[1]))
"""


def find(models, out, space, score=distance, **options):
    base, *tuned = models
    return search(tuned, out, score, space=space, method="task_arithmetic", base=base, **options)


def test_it_finds_what_scores_best(models, tmp_path):
    found = find(models, tmp_path / "out", Space(trials=40, high=2.0, maximise=False))
    assert len(found.trials) == 40
    scores = [trial.score for trial in found.trials]
    assert found.best.score == min(scores) < 0.1 * scores[0]
    assert found.trials[0].weights == [1.0, 1.0], "what anybody would try comes first"
    np.testing.assert_allclose(found.best.weights, GOAL, atol=0.25)
    base, *tuned = models
    merge(tuned, tmp_path / "again", method="task_arithmetic", base=base, weights=found.best.weights)
    files = [tmp_path / out / "model.safetensors" for out in ("out", "again")]
    assert open_checkpoint(files[0]).digest() == open_checkpoint(files[1]).digest()
    assert names(tmp_path) == ["a", "again", "b", "base", "out"]


def test_a_seed_decides(models, tmp_path):
    made = [
        [
            t.weights
            for t in find(models, tmp_path / f"o{i}", Space(trials=12, seed=seed, maximise=False)).trials
        ]
        for i, seed in enumerate((1, 1, 2))
    ]
    assert made[0] == made[1] != made[2]


def test_a_stopped_search_goes_on(models, tmp_path):
    seen = []

    def stopped(path):
        seen.append(path)
        if len(seen) == 6:
            raise KeyboardInterrupt
        return distance(path)

    space = Space(trials=10, maximise=False)
    with pytest.raises(KeyboardInterrupt):
        find(models, tmp_path / "out", space, stopped)
    found = find(models, tmp_path / "out", space, stopped)
    assert len(seen) == 11, "the one that was cut off is made up for"
    assert sum(trial.score is not None for trial in found.trials) == 10


def test_passes_are_made_once_for_all_trials(models, tmp_path, monkeypatch):
    base, *tuned = models
    calls = []
    real = ranks.find
    monkeypatch.setattr(ranks, "find", lambda *a, **k: calls.append(1) or real(*a, **k))
    found = search(
        tuned, tmp_path / "out", distance, space=Space(trials=5), method="pcb", base=base, density=0.3
    )
    assert len(calls) == 2
    monkeypatch.setattr(ranks, "find", real)
    merge(tuned, tmp_path / "again", method="pcb", base=base, density=0.3, weights=found.best.weights)
    digests = [open_checkpoint(tmp_path / out / "model.safetensors").digest() for out in ("out", "again")]
    assert digests[0] == digests[1]


def test_weights_by_layer(models, tmp_path):
    found = find(models, tmp_path / "out", Space(trials=3, anchors=3))
    assert all(len(w) == 3 for trial in found.trials for w in trial.weights)


def test_a_command_scores_and_bad_trials_are_stopped(models, tmp_path):
    script = tmp_path / "score.py"
    script.write_text(SCORE)
    command = f"{sys.executable} {script} {{}}"
    found = find(models, tmp_path / "out", Space(trials=12, high=2.0, maximise=False), command)
    states = {trial.state for trial in found.trials}
    assert states == {"complete", "pruned"}
    assert found.best.score == pytest.approx(distance(tmp_path / "out"), rel=1e-6)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("print('nothing')", "printed no number"),
        ("print('nan')", "printed no number"),
        ("import sys; print(1); sys.exit('out of luck')", "failed with 1: out of luck"),
    ],
)
def test_commands_that_do_not_score(models, tmp_path, command, words):
    with pytest.raises(BadFileError, match=words):
        find(models, tmp_path / "out", Space(trials=2), f'{sys.executable} -c "{command}"')
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_meant(models, tmp_path):
    for space, words in (
        (Space(trials=0), "--trials 0"),
        (Space(low=1, high=1), "--low 1 --high 1"),
        (Space(anchors=0), "--anchors 0"),
    ):
        with pytest.raises(OptionError, match=words):
            find(models, tmp_path / "out", space)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(OutputError, match="exists"):
        find(models, tmp_path / "full", Space(trials=1))


def test_numbers_in_lines():
    assert [_number(line) for line in ("acc 0.5\n", "loss=2e-3", "3 of 4 done", "none", "")] == [
        0.5,
        0.002,
        4.0,
        None,
        None,
    ]
