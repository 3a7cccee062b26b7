"""What is pruned of a checkpoint and how it lies in its file: experts, Conv1D; budgets; commands."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner

from paring.api import prune
from paring.checkpoint import open_checkpoint
from paring.cli import paring
from paring.errors import BadFileError, OptionError, UnsupportedError
from paring.kernels.pruning import reference
from paring.pruning import budgets, tensors
from tests.prunable import PRUNED, arrays, floor, put, read

ALONE = {
    "model.embed_tokens.weight": (8, 4), "transformer.wte.weight": (8, 4), "shared.weight": (8, 4),
    "bert.embeddings.word_embeddings.weight": (8, 4), "lm_head.weight": (8, 4), "score.weight": (2, 4),
    "classifier.dense.weight": (4, 4), "output.weight": (8, 4), "cls.predictions.decoder.weight": (8, 4),
    "layers.0.input_layernorm.weight": (4,), "layers.0.norm1.weight": (4, 1), "layers.0.q_proj.bias": (4,),
    "layers.0.mlp.gate.weight": (2, 4), "layers.0.block_sparse_moe.router.weight": (2, 4),
    "layers.0.mixer.conv1d.weight": (8, 1, 4), "layers.0.mixer.A_log": (4, 4),
    "layers.0.mlp.experts.gate_up_proj_bias": (2, 4), "layers.0.rel.relative_attention_bias.weight": (4, 2),
    "layers.0.empty.weight": (0, 4),
}  # fmt: skip
TAKEN = {
    "layers.0.self_attn.qkv_proj.weight": (12, 4), "layers.0.mlp.gate_proj.weight": (8, 4),
    "h.0.attn.c_proj.weight": (4, 4), "layers.0.mlp.experts.gate_up_proj": (2, 8, 4),
    "layers.0.mlp.experts.1.w1.weight": (8, 4), "conv1.weight": (8, 4, 3), "down.0.conv.weight": (4, 4, 3, 3),
    "multihead.0.in_proj_weight": (12, 4), "encoder.layer.0.output.dense.weight": (4, 8),
    "pooler.dense.weight": (4, 4),
}  # fmt: skip


def test_what_is_left_alone_by_default(tmp_path):
    model = put(tmp_path / "m", arrays(shapes={**ALONE, **TAKEN}), config={"model_type": "x"})
    report = prune(model, tmp_path / "out", sparsity=".5")
    assert {module.name for module in report.modules} == TAKEN.keys()
    assert {carried.name for carried in report.carried} == ALONE.keys()
    assert all(carried.why for carried in report.carried)
    before, after = read(model), read(tmp_path / "out")
    for name in ALONE:
        np.testing.assert_array_equal(after[name], before[name])


def test_patterns(tmp_path):
    model = put(tmp_path / "m", arrays())

    def chosen(**patterns):
        report = prune(model, tmp_path / "o", sparsity=".5", dry_run=True, **patterns)
        return [module.name for module in report.modules]

    assert chosen(exclude=["layers.1"]) == [name for name in PRUNED if "layers.1" not in name]
    assert chosen(include=["lm_head"]) == ["lm_head.weight"]
    assert chosen(include=["model.layers.?.mlp.*"], exclude=["gate"]) == [n for n in PRUNED if "mlp" in n]
    for option in ("include", "exclude"):
        with pytest.raises(OptionError, match=f"--{option} 'nothing' fits no tensor"):
            chosen(**{option: ["nothing"]})
    with pytest.raises(UnsupportedError, match="nothing that is pruned"):
        chosen(include=["model.norm"])


@pytest.mark.parametrize("options", [{"keep": 1, "of": 4}, {"sparsity": ".5", "scope": "row"},
                                     {"sparsity": ".5", "lines": "outputs"}])  # fmt: skip
def test_conv1d_is_pruned_along_its_inputs(tmp_path, options):
    """GPT-2 stores (in, out): the result is that of the transposed linear layer."""
    x = arrays(shapes={"h.0.mlp.c_fc.weight": (16, 24)}, decimals=None)["h.0.mlp.c_fc.weight"]
    gpt2 = put(tmp_path / "gpt2", {"h.0.mlp.c_fc.weight": x}, config={"model_type": "gpt2"})
    plain = put(tmp_path / "plain", {"h.0.mlp.up.weight": x.T.copy()})
    prune(gpt2, tmp_path / "a", **options)
    prune(plain, tmp_path / "b", **options)
    a, b = read(tmp_path / "a")["h.0.mlp.c_fc.weight"], read(tmp_path / "b")["h.0.mlp.up.weight"]
    np.testing.assert_array_equal(a, b.T)
    (gpt2 / "config.json").unlink()
    with pytest.raises(UnsupportedError, match=r"c_fc.weight .* may be stored as \(in, out\)"):
        prune(gpt2, tmp_path / "c", **options)
    prune(gpt2, tmp_path / "d", sparsity=".5")  # where it does not matter


@pytest.mark.parametrize(("name", "shape", "config", "turned"), [
    ("mlp.experts.gate_up_proj", (2, 16, 8), {"hidden_size": 8}, False),
    ("mlp.experts.gate_up_proj", (2, 8, 16), {"hidden_size": 8}, True),
    ("mlp.experts.down_proj", (2, 8, 4), {"hidden_size": 8}, False),
    ("mlp.experts.down_proj", (2, 4, 8), {"hidden_size": 8}, True),
    ("mlp.experts.down_proj", (2, 4, 8), {"text_config": {"hidden_size": 8}}, True),
    ("mlp.experts.down_proj", (2, 8, 8), {"model_type": "gpt_oss", "hidden_size": 8}, True),
    ("mlp.experts.down_proj", (2, 8, 4), {}, None),
])  # fmt: skip
def test_experts_in_a_stack(tmp_path, name, shape, config, turned):
    """Each expert is a matrix: what it would be in a file of its own."""
    name = f"model.layers.0.{name}"
    x = arrays(shapes={name: shape}, decimals=None)[name]
    model = put(tmp_path / "m", {name: x}, "F32", config=config)
    with open_checkpoint(model) as opened:
        ((target,), _) = tensors.sort(opened, config)
    assert (target.stack, target.turned) == (2, turned)
    prune(model, tmp_path / "half", sparsity=".5")
    for matrix, expert in zip(read(tmp_path / "half")[name], x, strict=True):
        keep = reference.best(np.abs(expert).reshape(1, -1), expert.size // 2).reshape(expert.shape)
        np.testing.assert_array_equal(matrix, np.where(keep, expert, 0))
    if turned is None:
        with pytest.raises(UnsupportedError, match=r"config\.json"):
            prune(model, tmp_path / "groups", keep=2, of=4)
        return
    prune(model, tmp_path / "groups", keep=2, of=4)
    for matrix, expert in zip(read(tmp_path / "groups")[name], x, strict=True):
        rows = np.abs(expert.T if turned else expert)
        keep = reference.grouped(rows, 2, 4)
        np.testing.assert_array_equal(matrix, np.where(keep.T if turned else keep, expert, 0))


@pytest.mark.parametrize("inn", [10, 9])
def test_inputs_that_groups_do_not_divide(tmp_path, inn):
    """Published loops prune 60 % of ten inputs, or fail at nine."""
    model = put(tmp_path / "m", arrays(shapes={"a.q_proj.weight": (8, inn)}, decimals=None))
    with pytest.raises(UnsupportedError, match=f"a.q_proj.weight has {inn} inputs, which groups of 4 do not"):
        prune(model, tmp_path / "out", keep=2, of=4)
    report = prune(model, tmp_path / "out", keep=2, of=4, tail="dense")
    assert report.zeros == 8 * 2 * (inn // 4)
    assert read(tmp_path / "out")["a.q_proj.weight"][:, inn // 4 * 4 :].all()


def test_kernels_for_2_of_4_are_checked_before(tmp_path):
    shapes = {"a.q_proj.weight": (32, 64), "b.q_proj.weight": (32, 68), "c.q_proj.weight": (16, 48)}
    model = put(tmp_path / "m", arrays(shapes=shapes))
    report = prune(model, tmp_path / "out", keep=2, of=4, dry_run=True)
    assert len(report.warnings) == 2
    assert "16 × 16: b.q_proj.weight, 32 × 68 will run dense" in report.warnings[0]
    assert "32 × 64: b.q_proj.weight, 32 × 68 and 1 more will run dense" in report.warnings[1]
    assert not prune(model, tmp_path / "out", keep=1, of=4, dry_run=True).warnings


def test_budgets_by_pattern(tmp_path):
    model = put(tmp_path / "m", arrays(decimals=None))
    told = {"*q_proj*": "1:4", "layers.2": "dense", "layers.1.mlp": 0.25}
    report = prune(model, tmp_path / "out", sparsity=".5", budgets=told)
    shares = {module.name: module.zeros for module in report.modules}
    assert shares == {
        "model.layers.0.mlp.down_proj.weight": 720, "model.layers.1.mlp.down_proj.weight": 360,
        "model.layers.0.self_attn.q_proj.weight": 432, "model.layers.1.self_attn.q_proj.weight": 432,
        "model.layers.2.self_attn.q_proj.weight": 0,
    }  # fmt: skip
    file = tmp_path / "budgets.yaml"
    file.write_text("'*q_proj*': 1:4\nlayers.2: dense\nlayers.1.mlp: .25\n")
    assert budgets.read([], str(file)) == {"*q_proj*": "1:4", "layers.2": "dense", "layers.1.mlp": ".25"}
    assert budgets.read(["layers.2=.5"], str(file))["layers.2"] == ".5"
    with pytest.raises(OptionError, match="no --budget fits"):
        prune(model, tmp_path / "out2", budgets={"q_proj": ".5"})
    with pytest.raises(OptionError, match="fits nothing that is pruned"):
        prune(model, tmp_path / "out2", sparsity=".5", budgets={"lm_head": ".5"})
    for bad in ("q", "q=", "=.5", "q=2", "q=1:x"):
        with pytest.raises(OptionError):
            budgets.read([bad], None)
    for text in ("- 1", "q: [1]", "q: {", "q: '3:2'"):
        file.write_text(text)
        with pytest.raises((BadFileError, OptionError)):
            budgets.read([], str(file))
    with pytest.raises(BadFileError, match="cannot be read"):
        budgets.read([], str(tmp_path / "none.yaml"))


@pytest.mark.parametrize("allocate", ["erk", "lamp"])
@pytest.mark.parametrize("share", [".29", ".9"])
def test_allocators_are_exact_in_all(tmp_path, allocate, share):
    shapes = {"a.q_proj.weight": (8, 40), "b.q_proj.weight": (50, 31), "c.mlp.experts.up": (3, 7, 11)}
    model = put(tmp_path / "m", arrays(shapes=shapes))
    report = prune(model, tmp_path / "out", sparsity=share, allocate=allocate)
    n = sum(int(np.prod(shape)) for shape in shapes.values())
    assert report.kept == n - floor(share, n)
    assert len({round(module.density, 3) for module in report.modules}) > 1
    assert all(module.zeros < np.prod(shapes[module.name]) for module in report.modules)


def test_an_all_zero_tensor(tmp_path):
    values = arrays()
    values[PRUNED[0]][:] = 0
    model = put(tmp_path / "m", values)
    ways = {"scope": "tensor"}, {"scope": "global"}, {"allocate": "lamp"}, {"allocate": "erk"}
    for number, options in enumerate(ways):
        report = prune(model, tmp_path / f"o{number}", sparsity=".5", **options)
        assert report.modules[0].zeros == values[PRUNED[0]].size
        assert report.modules[0].error == 0
    for name in values:
        values[name][:] = 0
    report = prune(put(tmp_path / "n", values), tmp_path / "all", sparsity=".5", scope="global")
    assert (report.error, report.sparsity) == (0, 1)


def test_the_command(tmp_path):
    model = put(tmp_path / "m", arrays())

    def run(*words):
        return CliRunner().invoke(paring, ["prune", str(model), *words])

    found = run("--pattern", "2:4", "-o", str(tmp_path / "a"), "--json")
    told = json.loads(found.output)
    assert (told["pattern"], told["command"]) == ("keeps 2 of 4", "prune")
    assert told["zeros"] == sum(module["zeros"] for module in told["modules"])
    assert told["recipe"]["keep"] == 2
    found = run("--keep", "1", "--of", "4", "-o", str(tmp_path / "b"))
    assert "keeps 1 of 4" in found.output
    assert "75.00%" in found.output
    found = run("--sparsity", ".5", "--budget", "*mlp*=.25", "-v", "-o", str(tmp_path / "c"))
    assert "25.00%" in found.output
    assert "an embedding" in found.output
    assert run("--pattern", "2:4", "--keep", "2", "-o", str(tmp_path / "d")).exit_code == 2
    assert isinstance(run("--pattern", "2/4", "-o", str(tmp_path / "d")).exception, OptionError)
    assert run("--sparsity", ".5", "-o", str(tmp_path / "d"), "--dry-run", "-q").output == ""
    assert not (tmp_path / "d").exists()


def test_the_commands_of_masks(tmp_path):
    model, mask = put(tmp_path / "m", arrays()), str(tmp_path / "k.safetensors")
    prune(model, tmp_path / "out", keep=2, of=4, save_mask=mask)

    def run(*words):
        return CliRunner().invoke(paring, ["mask", *map(str, words)], standalone_mode=False)

    assert run("verify", mask, tmp_path / "out", "--keep", "2", "--of", "4").return_value == 0
    assert run("verify", mask, model).return_value == 1
    assert "2:4" in run("stats", mask).output
    assert json.loads(run("stats", mask, "--json").output)["density"] == 0.5
    assert "1.0000" in run("diff", mask, mask).output
    for join in ("union", "intersect"):
        out = tmp_path / f"{join}.safetensors"
        found = json.loads(run(join, mask, mask, "-o", out, "--json").output)
        assert found["command"] == f"mask {join}"
        assert json.loads(run("diff", mask, out, "--json").output)["iou"] == 1.0
    assert "50.00%" in run("extract", tmp_path / "out", "-o", tmp_path / "x.safetensors").output
    assert "50.00%" in run("apply", mask, model, "-o", tmp_path / "again").output
    found = CliRunner().invoke(paring, ["verify", str(tmp_path / "again"), "--keep", "2", "--of", "4"])
    assert (found.exit_code, "keeps 2 of 4" in found.output) == (0, True)
