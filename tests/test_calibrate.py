"""Calibration against hooks on the whole model; perplexity against a plain loop."""

import json
import math

import numpy as np
import pytest
import torch
import transformers
from click.testing import CliRunner

from paring.api import calibrate, evaluate
from paring.checkpoint import open_checkpoint, write_safetensors
from paring.cli import paring as command
from paring.dtypes import from_f32
from paring.errors import BadFileError, BadValueError, OptionError, OutputError, UnsupportedError
from paring.pruning.matrix import Budget, Matrix
from paring.pruning.statistics import open_stats
from tests import running
from tests.pruning import inputs, pruned

KINDS = {"llama": "AutoModelForCausalLM", "gpt2": "AutoModelForCausalLM", "bert": "AutoModel"}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    (folder / "text.txt").write_text(running.TEXT)
    for kind in KINDS:
        running.put(folder / kind, kind)
    return folder


def windows_of(home, kind, length, samples=None):
    tokens = transformers.AutoTokenizer.from_pretrained(home / kind)(running.TEXT)["input_ids"]
    begins = list(range(0, len(tokens) - length + 1, length))
    chosen = begins if samples is None else [begins[i * len(begins) // samples] for i in range(samples)]
    return [torch.tensor(tokens[begin : begin + length]) for begin in chosen]


def near(got, X):
    """Statistics are those of inputs ``X (tokens, in)``."""
    expected = inputs(X.T)
    assert got.tokens == len(X)
    np.testing.assert_allclose(got.norms, expected.norms, rtol=1e-4)
    np.testing.assert_allclose(got.gram, expected.gram, rtol=1e-3, atol=1e-4 * np.abs(expected.gram).max())


@pytest.mark.parametrize("kind", KINDS)
def test_statistics_are_what_hooks_on_the_whole_model_see(home, tmp_path, kind):
    out = tmp_path / "s.safetensors"
    report = calibrate(home / kind, home / "text.txt", out, gram=True, samples=3, window=20, threads=1)
    model = running.loaded(home / kind, KINDS[kind])
    stats = open_stats(out)
    with open_checkpoint(home / kind) as checkpoint:
        stats.check(checkpoint)
        names = {
            name: name if hasattr(model, name.split(".")[0]) else f"transformer.{name}"
            for name in stats.measured
        }
        assert set(names) < set(checkpoint)
    layers = {name: own.removesuffix(".weight") for name, own in names.items()}
    expected = running.given(model, windows_of(home, kind, 20, 3), layers.values())
    for name, layer in layers.items():
        near(stats.inputs(name), expected[layer])
    kinds = (torch.nn.Linear, transformers.pytorch_utils.Conv1D)
    every = [name for name, each in model.named_modules() if isinstance(each, kinds)]
    assert set(every) - set(layers.values()) <= {"lm_head"}
    assert (report.windows, report.tokens, report.matrices) == (3, 60, len(names))


def test_shared_inputs_are_found(home, tmp_path):
    calibrate(home / "llama", home / "text.txt", tmp_path / "s.safetensors", samples=2, window=16)
    stats = open_stats(tmp_path / "s.safetensors")
    groups = {frozenset(n.split(".")[-2] for n in each.tensors) for each in stats.measured.values()}
    assert groups == {
        frozenset({"q_proj", "k_proj", "v_proj"}), frozenset({"o_proj"}),
        frozenset({"gate_proj", "up_proj"}), frozenset({"down_proj"}),
    }  # fmt: skip
    assert len({each.name for each in stats.measured.values()}) == 8
    assert stats.facts["window"] == 16 and stats.facts["windows"] == 2 and not stats.gram


@pytest.mark.parametrize(
    ("method", "budget"),
    [("wanda", {"sparsity": ".3"}), ("sparsegpt", {"sparsity": ".5"}), ("wanda", {"keep": 2, "of": 4})],
)
def test_sequential_statistics_are_those_behind_pruned_blocks(home, tmp_path, method, budget):
    out = tmp_path / "s.safetensors"
    how = {"gram": True, "samples": 3, "window": 20, "sequential": True, "method": method}
    calibrate(home / "llama", home / "text.txt", out, **how, **budget)
    stats, model = open_stats(out), running.loaded(home / "llama")
    windows = windows_of(home, "llama", 20, 3)
    for block in range(2):
        prefix = f"model.layers.{block}."
        names = [n for n in stats.measured if n.startswith(prefix)]
        seen = running.given(model, windows, [n.removesuffix(".weight") for n in names])
        for name in names:
            layer = name.removesuffix(".weight")
            near(stats.inputs(name), seen[layer])
            weight = model.get_submodule(layer).weight
            out_, in_ = weight.shape
            if "of" in budget:
                keep = Budget(2, of=4)
            elif method == "wanda":
                keep = Budget(in_ - int(3 * in_ / 10), row=True)
            else:
                keep = Budget(out_ * in_ - out_ * in_ // 2)
            matrix = Matrix(name, weight.detach().numpy().copy(), stats.inputs(name))
            weight.data = torch.from_numpy(pruned(method, matrix, keep)[1])
    dense = tmp_path / "dense.safetensors"
    calibrate(home / "llama", home / "text.txt", dense, gram=True, samples=3, window=20)
    last, first = "model.layers.1.mlp.down_proj.weight", "model.layers.0.self_attn.q_proj.weight"
    assert not np.allclose(open_stats(dense).inputs(last).norms, stats.inputs(last).norms, rtol=1e-2)
    np.testing.assert_array_equal(open_stats(dense).inputs(first).norms, stats.inputs(first).norms)


def test_conv1d_is_pruned_as_it_lies(home, tmp_path):
    """GPT-2 stores (in, out): rows of outputs are columns there."""
    out = tmp_path / "s.safetensors"
    calibrate(home / "gpt2", home / "text.txt", out, samples=2, window=20, sequential=True, sparsity=".25")
    stats, model = open_stats(out), running.loaded(home / "gpt2")
    names = list(stats.measured)
    for name in (each for each in names if ".0." in each):
        weight = model.get_parameter(name if name.startswith("transformer.") else f"transformer.{name}")
        matrix = Matrix(name, weight.detach().numpy().T.copy(), stats.inputs(name))
        keep = Budget(len(weight) - len(weight) // 4, row=True)
        weight.data = torch.from_numpy(pruned("wanda", matrix, keep)[1].T.copy())
    last = [each for each in names if ".1." in each]
    layers = {n: n.removeprefix("transformer.").removesuffix(".weight") for n in last if "c_attn" in n}
    seen = running.given(model.transformer, windows_of(home, "gpt2", 20, 2), layers.values())
    for name, layer in layers.items():
        np.testing.assert_allclose(stats.inputs(name).norms, inputs(seen[layer].T).norms, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"sparsity": ".5"}, OptionError, "--sequential"),
        ({"sequential": True}, OptionError, "--sparsity"),
        ({"sequential": True, "sparsity": ".5", "keep": 2, "of": 4}, OptionError, "--sparsity"),
        ({"sequential": True, "keep": 2}, OptionError, "--keep"),
        ({"sequential": True, "sparsity": "1.5"}, OptionError, "1.5"),
        ({"sequential": True, "sparsity": ".5", "method": "sparsegpt"}, OptionError, "--gram"),
        ({"sequential": True, "sparsity": ".5", "method": "pdp"}, OptionError, "--retrain pdp"),
        ({"sequential": True, "sparsity": ".5", "method": "wandr"}, OptionError, "wanda"),
        ({"sequential": True, "keep": 3, "of": 5}, UnsupportedError, r"weight has 16 inputs.*groups of 5"),
        ({"window": 65}, OptionError, "at most 64"),
        ({"window": 1}, OptionError, "--window 1"),
        ({"samples": 0}, OptionError, "--samples 0"),
        ({"dtype": "int8"}, OptionError, "--dtype int8"),
        ({"device": "tpu"}, OptionError, "--device tpu"),
        ({"threads": 0}, OptionError, "--threads 0"),
    ],
)
def test_options_that_cannot_be_meant(home, tmp_path, options, error, said):
    given = {"window": 20} | options
    with pytest.raises(error, match=said):
        calibrate(home / "llama", home / "text.txt", tmp_path / "s.safetensors", **given)
    assert not list(tmp_path.iterdir())


def test_files_that_cannot_be_used(home, tmp_path):
    model, text, out = home / "llama", home / "text.txt", tmp_path / "s.safetensors"
    (tmp_path / "short.txt").write_text("the cat")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 " * 99)
    with pytest.raises(OptionError, match=r"short\.txt has \d+ tokens"):
        calibrate(model, tmp_path / "short.txt", out)
    with pytest.raises(BadFileError, match="not UTF-8"):
        calibrate(model, tmp_path / "latin.txt", out)
    with pytest.raises(BadFileError, match="not found"):
        calibrate(model, tmp_path / "none.txt", out)
    with pytest.raises(BadFileError, match="does not exist"):
        calibrate(tmp_path / "none", text, out)
    with pytest.raises(OptionError, match=r"\.safetensors"):
        calibrate(model, text, tmp_path / "s.bin")
    with pytest.raises(OutputError, match="is an input"):
        calibrate(model, text, model / "model.safetensors", overwrite=True)
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes())
    with pytest.raises(UnsupportedError, match=r"config\.json"):
        calibrate(bare, text, out)
    (bare / "config.json").write_text((model / "config.json").read_text())
    with pytest.raises(UnsupportedError, match="tokenizer"):
        calibrate(bare, text, out)
    assert not out.exists()


def test_models_that_do_not_fit(home, tmp_path):
    text, out = home / "text.txt", tmp_path / "s.safetensors"

    def changed(kind, **facts):
        folder = running.put(tmp_path / f"m{len(list(tmp_path.iterdir()))}", kind)
        config = json.loads((folder / "config.json").read_text()) | facts
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    with pytest.raises(UnsupportedError, match="NovelForCausalLM"):
        calibrate(changed("llama", architectures=["NovelForCausalLM"]), text, out)
    with pytest.raises(UnsupportedError, match=r"lacks model\.layers\.2.* random"):
        calibrate(changed("llama", num_hidden_layers=3), text, out)
    with pytest.raises(BadFileError, match="cannot"):
        calibrate(changed("llama", hidden_size=32), text, out)
    broken = running.put(tmp_path / "broken")
    with open_checkpoint(broken) as checkpoint:
        tensors = {name: checkpoint.read(name) for name in checkpoint}
    name = "model.layers.1.mlp.up_proj.weight"
    values = tensors[name].f32().copy()
    values[0] = np.nan
    write_safetensors(
        broken / "model.safetensors",
        tensors | {name: from_f32(values, "F32")},
        {"format": "pt"},
        overwrite=True,
    )
    with pytest.raises(BadValueError, match=r"down_proj was given NaN"):
        calibrate(broken, text, out, window=16, samples=2)
    with pytest.raises(BadValueError, match="NaN"):
        evaluate(broken, text, window=16, samples=2)
    assert not out.exists()


def test_a_model_that_is_no_stack_is_refused(home, tmp_path, monkeypatch):
    """A model whose blocks run twice, and one whose blocks see more than the states."""
    from transformers.models.llama import modeling_llama as llama

    model = transformers.models.llama.LlamaForCausalLM
    plain = model.forward

    def twice(self, *args, **kwargs):
        plain(self, *args, **kwargs)
        return plain(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(model, "forward", twice)
        with pytest.raises(UnsupportedError, match="runs 4 blocks of 2"):
            calibrate(home / "llama", home / "text.txt", tmp_path / "s.safetensors", window=16)
    body = llama.LlamaDecoderLayer.forward

    def between(self, hidden_states, *args, **kwargs):
        return body(self, hidden_states, *args, **kwargs) + between.extra

    def outer(self, *args, **kwargs):
        between.extra = float(kwargs["input_ids"].sum())
        try:
            return plain(self, *args, **kwargs)
        finally:
            between.extra = 0.0

    between.extra = 0.0
    monkeypatch.setattr(llama.LlamaDecoderLayer, "forward", between)
    monkeypatch.setattr(model, "forward", outer)
    with pytest.raises(UnsupportedError, match="block by block"):
        calibrate(home / "llama", home / "text.txt", tmp_path / "s.safetensors", window=16)


# --- perplexity ---


@pytest.mark.parametrize(("window", "stride"), [(16, None), (16, 5), (20, 1)])
def test_perplexity_is_that_of_a_plain_loop(home, window, stride):
    found = evaluate(home / "llama", home / "text.txt", window=window, stride=stride, samples=4, threads=1)
    model, step = running.loaded(home / "llama"), stride or window
    tokens = transformers.AutoTokenizer.from_pretrained(home / "llama")(running.TEXT)["input_ids"]
    begins = list(range(0, len(tokens) - window + 1, step))
    begins = [begins[i * len(begins) // 4] for i in range(4)]
    total, count, means = 0.0, 0, []
    for begin in begins:
        ids = torch.tensor(tokens[begin : begin + window])
        with torch.no_grad():
            chances = model(input_ids=ids[None]).logits[0].double().log_softmax(-1)
        first = 1 if begin == 0 else max(1, window - step)
        each = [-chances[i - 1, ids[i]].item() for i in range(first, window)]
        means.append(sum(each) / len(each))
        total, count = total + sum(each), count + len(each)
    assert math.isclose(found.nll, total / count, rel_tol=1e-5)
    assert math.isclose(found.perplexity, math.exp(total / count), rel_tol=1e-4)
    assert math.isclose(found.nll_error, np.std(means, ddof=1) / 2, rel_tol=1e-3)
    assert (found.scored, found.windows, found.stride) == (count, 4, step)


def test_perplexity_refuses_what_does_not_predict(home):
    with pytest.raises(UnsupportedError, match="BertModel does not predict"):
        evaluate(home / "bert", home / "text.txt", window=16)
    for options in ({"stride": 0}, {"stride": 17}, {"samples": 0}, {"window": 100}):
        with pytest.raises(OptionError, match=f"--{next(iter(options))}"):
            evaluate(home / "llama", home / "text.txt", **({"window": 16} | options))


# --- the command line ---


def test_the_commands(home, tmp_path):
    out, model, text = tmp_path / "s.safetensors", str(home / "llama"), str(home / "text.txt")
    words = ["calibrate", model, "--data", text, "-o", str(out), "--window", "16", "--samples", "99"]
    dry = CliRunner().invoke(command, [*words, "--dry-run"], catch_exceptions=False)
    assert dry.exit_code == 0 and "would be measured" in dry.output and not out.exists()
    told = CliRunner().invoke(command, words, catch_exceptions=False)
    assert told.exit_code == 0 and "8 inputs of 14 matrices" in told.output and "fewer than 99" in told.output
    again = [
        *words,
        "--overwrite",
        "--json",
        "--sequential",
        "--method",
        "ria",
        "--exponent",
        "1",
        "--sparsity",
        ".5",
    ]
    report = json.loads(CliRunner().invoke(command, again, catch_exceptions=False).stdout)
    assert report["sequential"] == {"method": "ria", "sparsity": "0.5", "options": {"exponent": 1.0}}
    assert report["bytes_out"] == out.stat().st_size
    asked = ["eval", model, "--data", text, "--window", "16", "--samples", "3"]
    shown = CliRunner().invoke(command, asked, catch_exceptions=False)
    quiet = CliRunner().invoke(command, [*asked, "-q"], catch_exceptions=False)
    report = json.loads(CliRunner().invoke(command, [*asked, "--json"], catch_exceptions=False).stdout)
    assert f"{report['perplexity']:.4f}" == quiet.output.strip() and quiet.output.strip() in shown.output
