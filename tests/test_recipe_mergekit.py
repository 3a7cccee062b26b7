"""mergekit's YAML: what is taken means the same, what is not is refused with its line and the reason."""

from pathlib import Path

import numpy as np
import pytest

from paring.api import load, merge, merge_recipe
from paring.checkpoint import open_checkpoint
from paring.errors import OptionError
from paring.merging.recipes.recipe import read_recipe
from tests.merging import arrays, put_model

BASE = arrays(0)
A, B = arrays(1, BASE), arrays(2, BASE)
NORM, EMBED = "model.norm.weight", "model.embed_tokens.weight"
Q, MLP = "model.layers.{}.self_attn.q_proj.weight", "model.layers.{}.mlp.down_proj.weight"


@pytest.fixture
def here(tmp_path, monkeypatch):
    for name, values in (("base", BASE), ("a", A), ("b", B)):
        put_model(tmp_path / name, values)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(text):
    Path("r.yml").write_text(text)
    return "r.yml"


def read(text):
    return read_recipe(Path(write(text)))


def values(path):
    return {name: tensor.numpy() for name, tensor in load(path).items()}


def same(first, second):
    with open_checkpoint(first) as one, open_checkpoint(second) as other:
        return one.digest() == other.digest()


MODELS = "models:\n  - {model: a, parameters: {weight: 1}}\n  - {model: b, parameters: {weight: 0.5}}\n"
BASED = "base_model: base\n" + MODELS
SPARSE = MODELS.replace("weight: 1", "weight: 1, density: 0.4").replace("0.5", "0.5, density: 0.4")
DELTAS = "base_model: base\n" + SPARSE

#: recipe, and the same merge in our terms
TAKEN = [
    ("merge_method: linear\n" + MODELS, {"weights": [1, 0.5]}),
    (
        "merge_method: linear\n" + MODELS + "parameters: {normalize: false}\ndtype: bfloat16",
        {"weights": [1, 0.5], "normalise": False, "dtype": "bf16"},
    ),
    (
        "merge_method: task_arithmetic\n" + BASED + "parameters: {lambda: 0.7, int8_mask: true}",
        {"method": "task_arithmetic", "base": "base", "weights": [1, 0.5], "scale": 0.7},
    ),
    (
        "merge_method: task_arithmetic\n" + BASED + "parameters: {normalize: true}\nout_dtype: float16",
        {"method": "task_arithmetic", "base": "base", "weights": [1 / 1.5, 0.5 / 1.5], "dtype": "fp16"},
    ),
    (
        "merge_method: ties\n" + DELTAS,
        {"method": "ties", "base": "base", "weights": [1, 0.5], "density": 0.4, "trim": "tensor"},
    ),
    (
        "merge_method: ties\nbase_model: base\nmodels:\n  - model: base\n  - model: b\n  - model: a\n"
        "parameters: {weight: 1, density: .4, normalize: false}",
        {
            "method": "ties",
            "base": "base",
            "models": ["b", "a"],
            "density": 0.4,
            "trim": "tensor",
            "combine": "sum",
        },
    ),
    (
        "merge_method: dare_linear\n" + DELTAS + "parameters: {rescale: false}",
        {"method": "dare", "base": "base", "weights": [1, 0.5], "density": 0.4, "rescale": False},
    ),
    (
        "merge_method: dare_ties\n" + DELTAS + "parameters: {rescale: false, normalize: true}",
        {
            "method": "dare",
            "base": "base",
            "weights": [1, 0.5],
            "density": 0.4,
            "rescale": False,
            "combine": "ties",
        },
    ),
    (
        "merge_method: breadcrumbs\n" + DELTAS + "parameters: {gamma: 0.05}",
        {"method": "breadcrumbs", "base": "base", "weights": [1, 0.5], "density": 0.4, "gamma": 0.05},
    ),
    (
        "merge_method: model_stock\nbase_model: base\nmodels: [{model: a}, {model: b}]",
        {"method": "model_stock", "base": "base"},
    ),
    (
        "merge_method: sce\nbase_model: base\nmodels: [{model: a}, {model: b}]",
        {"method": "sce", "base": "base", "density": 1.0, "normalise": True},
    ),
    (
        "merge_method: karcher\nmodels: [{model: a}, {model: b}]\nparameters: {max_iter: 50}",
        {"method": "karcher"},
    ),
    ("merge_method: nuslerp\n" + MODELS, {"method": "nuslerp", "weights": [1, 0.5]}),
    (
        "merge_method: slerp\nbase_model: b\nmodels: [{model: a}, {model: b}]\nparameters: {t: 0.3}",
        {"method": "slerp", "models": ["b", "a"], "t": 0.3},
    ),
    (
        "merge_method: slerp\nbase_model: b\nmodels: [{model: a}]\nparameters: {t: 0.3}",
        {"method": "slerp", "models": ["b", "a"], "t": 0.3},
    ),
    (
        "merge_method: slerp\nbase_model: a\nslices:\n  - sources:\n    - {model: a, layer_range: [0, 3]}\n"
        "    - {model: b, layer_range: [0, 3]}\n    parameters: {t: 0.3}",
        {"method": "slerp", "t": 0.3},
    ),
]


@pytest.mark.parametrize(("text", "ours"), TAKEN)
def test_what_is_taken_is_the_same_merge(here, text, ours):
    merge_recipe(write(text), "out")
    merge(ours.pop("models", ["a", "b"]), "ours", **ours)
    assert same("out", "ours")


def test_filters_and_gradients_are_weights_by_pattern(here):
    text = """
merge_method: linear
models:
  - model: a
    parameters:
      weight:
        - {filter: down_proj, value: 4}
        - {filter: layers.1., value: 3}
        - value: [0, 1, 0.5]
        - {filter: q_proj, value: 9}
  - {model: b}
parameters:
  weight: [{filter: "*", value: 1}]
  normalize: false
"""
    merge_recipe(write(text), "out")
    found = values("out")
    expected = {MLP.format(1): 4, Q.format(1): 3, Q.format(0): 0, Q.format(2): 0.5, EMBED: 0, NORM: 0}
    for name, a in expected.items():
        assert (found[name] == np.float32(a) * A[name] + B[name]).all(), name


def test_slerp_by_layer_and_filter_is_nuslerp(here):
    text = """
merge_method: slerp
base_model: a
models: [{model: a}, {model: b}]
parameters:
  t:
    - filter: self_attn
      value: [0, 0.5, 1]
    - value: 0.25
"""
    report = merge_recipe(write(text), "out")
    assert "this is nuslerp" in report.warnings[0]
    found = values("out")
    assert (found[Q.format(0)] == A[Q.format(0)]).all()
    assert (found[Q.format(2)] == B[Q.format(2)]).all()
    for name, t in ((NORM, 0.25), (Q.format(1), 0.5)):
        a, b = A[name].ravel().astype(float), B[name].ravel().astype(float)
        angle = np.arccos(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
        expected = (np.sin((1 - t) * angle) * a + np.sin(t * angle) * b) / np.sin(angle)
        np.testing.assert_allclose(found[name].ravel(), expected, rtol=1e-5, atol=1e-6)


def test_passthrough_stacks_slices(here):
    for name, seed in (("c", 5), ("d", 6)):
        some = {k: v for k, v in arrays(seed).items() if ".mlp." not in k}
        put_model(here / name, some)
    text = """
merge_method: passthrough
slices:
  - sources: [{model: c, layer_range: [0, 2]}]
  - sources:
    - model: d
      layer_range: [1, 3]
      parameters: {scale: [{filter: q_proj, value: 0.5}, {value: 1.0}]}
"""
    merge_recipe(write(text), "out")
    c, d, out = values("c"), values("d"), values("out")
    assert [(out[Q.format(k)] == c[Q.format(k)]).all() for k in (0, 1)] == [True, True]
    assert [(out[Q.format(k)] == d[Q.format(k - 1)] / 2).all() for k in (2, 3)] == [True, True]
    assert (out[EMBED] == c[EMBED]).all()
    assert (out[NORM] == d[NORM]).all()  # mergekit's head comes from the last slice


REFUSED = [
    ("merge_method: teis\n" + BASED, 1, "did you mean 'ties'"),
    ("merge_method: della\n" + DELTAS, 1, "as published: method: della"),
    ("merge_method: nearswap\n" + BASED, 1, "no such rule"),
    ("merge_method: dare_ties\n" + DELTAS, 1, "write rescale: false"),
    ("merge_method: dare_ties\n" + DELTAS + "parameters: {rescale: false}", 1, "takes the mean: write true"),
    (
        "merge_method: dare_linear\n" + DELTAS + "parameters:\n  rescale: false\n  normalize: true",
        8,
        "write false",
    ),
    ("merge_method: linear\ntokenizer_source: union\n" + MODELS, 2, "one tokenizer"),
    ("merge_method: linear\n" + MODELS + "chat_template: auto", 5, "leave it out"),
    ("merge_method: dare_linear\nrandom_seed: 3\n" + DELTAS, 2, "seed: 0"),
    ("merge_method: linear\nmodules: {}", 2, "parts of models"),
    ("merge_method: linear\nmodles: []\n" + MODELS, 2, "did you mean 'models'"),
    ("merge_method: linear", 1, "models or slices"),
    (
        "merge_method: ties\n"
        + SPARSE.replace("0.5, density: 0.4", "0.5, density: 0.2")
        + "base_model: base",
        4,
        "one for all",
    ),
    ("merge_method: ties\n" + BASED + "parameters:\n  density: [.1, .2]", 7, "takes one number"),
    ("merge_method: ties\n" + BASED.replace("weight: 1", "weight: -1"), 1, "negative weight"),
    ("merge_method: ties\n" + MODELS, 1, "needs base_model"),
    ("merge_method: ties\nbase_model: a\nmodels: [{model: a}]", 2, "no model beside the base"),
    ("merge_method: linear\n" + MODELS.replace("weight: 1", "weigth: 1"), 3, "did you mean 'weight'"),
    (
        "merge_method: linear\n" + MODELS.replace("weight: 1", "weight: 1, density: .5"),
        3,
        "mergekit ignores it",
    ),
    ("merge_method: ties\n" + BASED.replace("weight: 1", "weight: 1, normalize: true"), 4, "for all models"),
    ("merge_method: linear\nmodels:\n  - model: a", 3, "has no weight"),
    (
        "merge_method: linear\nmodels:\n  - {model: a, parameters: {weight: [{filter: x, value: 1}]}}",
        3,
        "no filter fits",
    ),
    ("merge_method: linear\nmodels:\n  - model: a\n    parameters:\n      weight: [1, two]", 5, "'two'"),
    ("merge_method: linear\nmodels:\n  - {model: a+b, parameters: {weight: 1}}", 3, "a stage of paring's"),
    ("merge_method: linear\nmodels:\n  - {model: zz, parameters: {weight: 1}}", 3, "does not exist"),
    ("merge_method: linear\n" + MODELS.replace("model: b", "model: a"), 4, "given twice"),
    ("merge_method: linear\n" + BASED, 2, "must be one of the models"),
    ("merge_method: nuslerp\n" + BASED, 2, "turns deltas"),
    ("merge_method: nuslerp\n" + MODELS + "parameters: {nuslerp_flatten: false}", 5, "per: row"),
    ("merge_method: slerp\nmodels: [{model: a}, {model: b}]\nparameters: {t: 1}", 1, "needs base_model"),
    ("merge_method: slerp\nbase_model: a\nmodels: [{model: b}]\nparameters: {t: 2}", 4, "from 0, the base"),
    ("merge_method: slerp\nbase_model: a\nmodels: [{model: b}]", 1, "has no t"),
    (
        "merge_method: sce\nbase_model: base\nmodels: [{model: a}]\nparameters: {select_topk: .5}",
        4,
        "differ at all",
    ),
    ("merge_method: model_stock\nbase_model: base\nmodels: [{model: a}]", 1, "two models"),
    ("merge_method: karcher\nmodels: [{model: a}]\nparameters: {max_iter: 1}", 3, "leave max_iter"),
    ("merge_method: breadcrumbs\n" + BASED, 1, "more than the whole"),
    (
        "merge_method: task_arithmetic\n" + BASED.replace("0.5", "-1") + "parameters: {normalize: true}",
        6,
        "sum to one",
    ),
    ("merge_method: linear\n" + MODELS + "dtype: bf16", 5, "expected float64, float32"),
    (
        "merge_method: passthrough\nslices:\n  - sources:\n    - {model: a, layer_range: [0, 1]}\n"
        "    - {model: b, layer_range: [0, 1]}",
        4,
        "one source for each slice",
    ),
    (
        "merge_method: passthrough\nslices:\n  - sources: [{model: a, layer_range: [0]}]",
        3,
        "one after the last",
    ),
    (
        "merge_method: linear\nparameters: {weight: 1}\nslices:\n"
        "  - sources: [{model: a, layer_range: [0, 1]}]\n  - sources: [{model: a, layer_range: [0, 1]}]",
        5,
        "stack them by passthrough",
    ),
    (
        "merge_method: linear\nslices:\n  - sources: [{model: a, layer_range: [0, 1]}]\n"
        "    residual_weight: 1",
        4,
        "leave it out",
    ),
]


@pytest.mark.parametrize(("text", "line", "what"), REFUSED)
def test_what_differs_is_refused_with_the_reason(here, text, line, what):
    with pytest.raises(OptionError) as caught:
        read(text)
    assert str(caught.value).startswith(f"r.yml:{line}: "), caught.value
    assert what in str(caught.value)
