"""Slimming: modules and ranks of least score go, by our proxy or by scores that are given."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paring.api import compress, decompress, verify
from paring.errors import BadFileError, BudgetError, OptionError, UnsupportedError
from paring.registry import load
from tests.helpers import put_adapter
from tests.make_golden import LORA, ia3, lora
from tests.test_api import tensors_of
from tests.test_compeft import random_module
from tests.test_truncate import ranks_of, view

METHOD = load("compress", "slim")
few = settings(deadline=None, max_examples=40)
MODULES = [random_module(3, 10, 12, i, name=f"layers.{i}.q", scale=0.5 + (i * 7 % 5)) for i in range(6)]


def kept(**options):
    found = METHOD.function(MODULES, 1, **METHOD.parse(options))
    assert (found.fixed, found.dials) == (0, 1)
    return found.encode(0)


def scores_file(tmp_path, told):
    path = tmp_path / "scores.json"
    path.write_text(told if isinstance(told, str) else json.dumps(told))
    return str(path)


@few
@given(st.integers(1, 100), st.integers(1, 100))
def test_the_proxy_keeps_the_largest_updates_and_singular_values(percent, of_ranks):
    coded = kept(modules=percent / 100, ranks=of_ranks / 100)
    s = [m.scale * np.linalg.svd(m.B.astype(np.float64) @ m.A)[1][:3] for m in MODULES]
    stay = sorted(range(6), key=lambda i: -float((s[i] ** 2).sum()))[: -(-6 * percent // 100)]
    pool = sorted((-value, i) for i in stay for value in s[i])[: -(-3 * len(stay) * of_ranks // 100)]
    assert ranks_of(MODULES, coded) == [sum(i == j for _, j in pool) for i in range(6)]
    for m in MODULES:
        if m.a in coded.tensors:
            a, b = coded.tensors[m.a].data.astype(np.float64), coded.tensors[m.b].data.astype(np.float64)
            U, values, V = np.linalg.svd(m.B.astype(np.float64) @ m.A)
            r = len(a)
            np.testing.assert_allclose(b @ a, (U[:, :r] * values[:r]) @ V[:r], atol=1e-6)


def test_the_published_shares_are_the_defaults():
    assert METHOD.parse({}) | {"modules": 0.25, "ranks": 0.5} == METHOD.parse({})
    assert sum(ranks_of(MODULES, kept())) == 3  # 2 of 6 modules, 3 of their 6 ranks


def test_scores_of_modules_are_taken(tmp_path):
    path = scores_file(tmp_path, {f"layers.{i}.q": float(i == 2) + 2 * (i == 5) for i in range(6)})
    assert ranks_of(MODULES, kept(scores=path, modules=1 / 3, ranks=1.0)) == [0, 0, 3, 0, 0, 3]


def test_scores_of_ranks_pick_rank_vectors_as_trained(tmp_path):
    told = {f"layers.{i}.q": [0, 0, 0] for i in range(6)}
    told |= {"layers.1.q": [5, -1, 4], "layers.4.q": [0, 9, 1]}
    coded = kept(scores=scores_file(tmp_path, told), modules=1 / 3, ranks=0.5)
    assert ranks_of(MODULES, coded) == [0, 2, 0, 0, 1, 0]
    assert (coded.tensors["layers.1.q.a"].data == MODULES[1].A[[0, 2]]).all()
    assert (coded.tensors["layers.4.q.b"].data == MODULES[4].B[:, [1]]).all()


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"layers.0.k": 1}, "the adapter has no module 'layers.0.k'; did you mean 'layers.0.q'?"),
        ({f"layers.{i}.q": 1 for i in range(5)}, "no score for layers.5.q (1 modules have none)"),
        ('{"layers.0.q": NaN}', "NaN is not JSON"),
        ('{"layers.0.q": 1e999}', "the scores of layers.0.q must be finite numbers"),
        ({"layers.0.q": "high"}, "the scores of layers.0.q must be finite numbers"),
        ({"layers.0.q": [1, True, 2]}, "the scores of layers.0.q must be finite numbers"),
        ({"layers.0.q": [1, 2]}, "2 scores for layers.0.q, which has 3 ranks"),
        (
            {f"layers.{i}.q": 1 if i else [1, 2, 3] for i in range(6)},
            "give a score for every module, or a list",
        ),
        ("[1]", "scores.json"),
        ("nonsense", "scores.json"),
    ],
)
def test_scores_that_make_no_sense_are_refused(tmp_path, told, message):
    with pytest.raises(BadFileError) as caught:
        kept(scores=scores_file(tmp_path, told))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modules": 0.0}, "--modules 0.0: the share kept, in (0, 1]"),
        ({"modules": 1.5}, "--modules 1.5: the share kept, in (0, 1]"),
        ({"ranks": "nan"}, "--ranks nan: the share kept, in (0, 1]"),
        ({"scores": "/nowhere/s.json"}, "--scores /nowhere/s.json: No such file"),
    ],
)
def test_what_cannot_be_meant_is_refused(options, message):
    with pytest.raises(OptionError) as caught:
        kept(**options)
    assert message in str(caught.value)


def test_files_say_the_truth(tmp_path):
    source = put_adapter(tmp_path / "s", lora(), LORA)
    made = compress(source, tmp_path / "x.safetensors", method="slim", modules=0.5, ranks=0.5)
    decompress(made.output, tmp_path / "d")
    before, after = view(source), view(tmp_path / "d")
    assert len(after) == 2 and sum(rank for rank, _, _ in after.values()) == 4
    assert all(scale == before[name][1] for name, (_, scale, _) in after.items())
    assert verify(made.output, source).ok and any("2 of 4 modules are left out" in w for w in made.warnings)
    assert len(tensors_of(made.output)) == 4


def test_a_budget_is_checked(tmp_path):
    source = put_adapter(tmp_path / "s", lora(), LORA)
    compress(source, tmp_path / "x.safetensors", method="slim", error=0.95)
    with pytest.raises(BudgetError, match="--ratio 100 cannot be met"):
        compress(source, tmp_path / "y.safetensors", method="slim", ratio=100)
    with pytest.raises(UnsupportedError, match="no ranks to cut"):
        compress(put_adapter(tmp_path / "v", ia3("F16"), {"peft_type": "IA3"}), tmp_path / "z", method="slim")
