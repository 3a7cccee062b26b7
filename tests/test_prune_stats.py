"""``prune`` with statistics: files in, files out, against the methods alone."""

import json
import os
import threading
from fractions import Fraction

import numpy as np
import pytest
from click.testing import CliRunner

from paring.api import prune, rerun, verify
from paring.checkpoint import Checkpoint, open_checkpoint, write_safetensors
from paring.cli import paring as command
from paring.dtypes import Stored, from_f32
from paring.errors import BadFileError, BadValueError, OptionError, OutputError
from paring.pruning.matrix import Budget, Matrix
from paring.pruning.outliers import outliers, share_out, total
from paring.pruning.refitting import lost, refit
from paring.pruning.scoring import Scorer
from paring.pruning.statistics import Measured, open_stats, write_stats
from tests import pruning

#: two blocks of unequal size, in one of them a stack of experts and a matrix that is stored as (in, out)
SHAPES = {
    "h.0.attn.c_attn.weight": (16, 24),
    "h.0.mlp.up.weight": (40, 16),
    "h.1.attn.c_attn.weight": (16, 8),
    "h.1.mlp.experts.up_proj": (3, 20, 16),
    "wte.weight": (5, 16),
}
MATRICES = [name for name in SHAPES if "wte" not in name and "experts" not in name]
MATRICES += [f"h.1.mlp.experts.up_proj[{i}]" for i in range(3)]


def put_model(folder, seed=0, dtype="BF16", **changed):
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(seed)
    tensors = {
        name: from_f32(rng.standard_normal(shape).astype(np.float32), dtype)
        for name, shape in (SHAPES | changed).items()
    }
    write_safetensors(folder / "model.safetensors", tensors, {"format": "pt"}, overwrite=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2", "hidden_size": 16}))
    return folder


def put_stats(path, model, *, gram=True, names=MATRICES, digest=True):
    rng = np.random.default_rng(1)
    with open_checkpoint(model) as checkpoint:
        shapes = {name: checkpoint.tensors[name.partition("[")[0]].shape for name in names}
        told = {"name": "m", **({"sha256": checkpoint.digest()} if digest else {})}
    measured = [Measured(name, 16, {name: shapes[name]}) for name in names]
    found = {}
    for name in names:
        X = rng.standard_normal((16, 16)) @ rng.standard_normal((16, 60)) * rng.exponential(size=(16, 1))
        found[name] = pruning.inputs(X, gram)
    write_stats(path, measured, found.items(), {"model": told}, gram=gram, overwrite=True)
    return path


@pytest.fixture
def model(tmp_path):
    return put_model(tmp_path / "model")


@pytest.fixture
def stats(tmp_path, model):
    return put_stats(tmp_path / "s.safetensors", model)


def matrices(folder):
    """All matrices ``(out, in)``, fp32, by name."""
    with open_checkpoint(folder) as checkpoint:
        read = {name: checkpoint.read(name).f32() for name in checkpoint}
    stack = read["h.1.mlp.experts.up_proj"]
    out = {name: (read[name].T if "c_attn" in name else read[name]) for name in MATRICES if "[" not in name}
    return out | {f"h.1.mlp.experts.up_proj[{i}]": each for i, each in enumerate(stack)}


def expected(model, stats, method, budget, refitted=False, **options):
    out, found = {}, open_stats(stats)
    for name, weights in matrices(model).items():
        matrix = Matrix(name, np.ascontiguousarray(weights), found.inputs(name))
        mask, made = pruning.pruned(method, matrix, budget(*weights.shape), **options)
        if refitted:
            made = refit(made, weights, mask, found.inputs(name).gram)
        out[name] = from_f32(made, "BF16").f32()
    return out


def by_rows(rows, columns):
    return Budget(columns - columns // 4, row=True)


def by_tensor(rows, columns):
    return Budget(rows * columns - rows * columns // 4)


@pytest.mark.parametrize(
    ("method", "budget", "options"),
    [
        ("wanda", by_rows, {}),
        ("ria", by_tensor, {"exponent": 1.0}),
        ("sparsegpt", by_tensor, {"block": 8}),
        ("alps", by_tensor, {}),
        ("wanda", by_tensor, {"scope": "tensor"}),
        ("sparsegpt", by_rows, {"scope": "row"}),
    ],
)
def test_files_hold_what_methods_make(tmp_path, model, stats, method, budget, options):
    report = prune(model, tmp_path / "out", method=method, sparsity=".25", stats=stats, **options)
    own = {key: value for key, value in options.items() if key != "scope"}
    wanted = expected(model, stats, method, budget, **own)
    for name, found in matrices(tmp_path / "out").items():
        np.testing.assert_array_equal(found, wanted[name], err_msg=name)
    assert report.zeros == sum(int((each == 0).sum()) for each in wanted.values())


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
@pytest.mark.parametrize("amount", [{"sparsity": ".25"}, {"keep": 2, "of": 4}])
def test_refitting_is_for_any_method(tmp_path, model, stats, method, amount):
    how = {"method": method, "stats": stats, **amount} | ({"scope": "tensor"} if "sparsity" in amount else {})
    prune(model, tmp_path / "plain", **how)
    prune(model, tmp_path / "out", refit=True, **how)
    budget = by_tensor if "sparsity" in amount else lambda *_: Budget(2, of=4)
    wanted = expected(model, stats, method, budget, refitted=True)
    plain, dense, found = matrices(tmp_path / "plain"), matrices(model), open_stats(stats)
    for name, made in matrices(tmp_path / "out").items():
        np.testing.assert_array_equal(made, wanted[name], err_msg=name)
        np.testing.assert_array_equal(made == 0, plain[name] == 0)
        gram = found.inputs(name).gram
        assert lost(made, dense[name], gram) < lost(plain[name], dense[name], gram)


def test_owl_gives_blocks_with_outliers_more(tmp_path, model, stats):
    asked = {"method": "ria", "allocate": "owl", "outliers": 2.0, "spread": 0.2, "stats": stats}
    report = prune(model, tmp_path / "out", sparsity=".6", **asked)
    dense, found = matrices(model), open_stats(stats)
    shares, sizes = [], []
    for block in ("h.0.", "h.1."):
        own = {
            name: (each, found.inputs(name).norms) for name, each in dense.items() if name.startswith(block)
        }
        sizes.append(sum(each.size for each, _ in own.values()))
        least = 2 * sum(total(*each) for each in own.values()) / sizes[-1]
        shares.append(sum(outliers(*each, least) for each in own.values()) / sizes[-1])
    keeps = share_out(shares, sizes, Fraction(".6"), 0.2)
    pruned = matrices(tmp_path / "out")
    for block, keep, size in zip(("h.0.", "h.1."), keeps, sizes, strict=True):
        kept = sum(int((each != 0).sum()) for name, each in pruned.items() if name.startswith(block))
        assert abs(kept - keep) <= 4 and abs(keep / size - 0.4) > 0.03
    assert report.zeros == int(Fraction(".6") * sum(sizes))


def test_verify_knows_what_owl_gives_rows(tmp_path, model, stats):
    report = prune(model, tmp_path / "out", method="wanda", allocate="owl", sparsity=".6", stats=stats)
    assert report.zeros < int(Fraction(".6") * report.elements)
    assert verify(tmp_path / "out", sparsity=".6").ok
    assert not verify(tmp_path / "out", sparsity=".8").ok and not verify(model, sparsity=".6").ok


def test_owl_keeps_to_its_memory(tmp_path, model, stats, monkeypatch):
    """Where only one matrix at a time fits, none is looked at in another thread."""
    real, seen = Scorer.matrix, set()

    def seeing(self, *arguments):
        seen.add(threading.current_thread())
        return real(self, *arguments)

    monkeypatch.setattr(Scorer, "matrix", seeing)
    how = {"sparsity": ".5", "allocate": "owl", "stats": stats, "threads": 4}
    prune(model, tmp_path / "wide", **how, memory=1 << 30)
    assert len(seen) > 1
    seen.clear()
    prune(model, tmp_path / "narrow", **how, memory=30_000)
    assert seen == {threading.current_thread()}
    assert (tmp_path / "narrow/model.safetensors").read_bytes() == (
        tmp_path / "wide/model.safetensors"
    ).read_bytes()


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_and_shards_make_no_difference(tmp_path, model, stats, threads):
    for method, more in (("sparsegpt", {"refit": True}), ("wanda", {"allocate": "owl"})):
        first, again = tmp_path / f"{method}1", tmp_path / f"{method}2"
        prune(model, first, method=method, sparsity=".3", stats=stats, threads=1, **more)
        prune(
            model, again, method=method, sparsity=".3", stats=stats, threads=threads, shard_size=2000, **more
        )
        with open_checkpoint(first) as one, open_checkpoint(again) as two:
            assert one.digest() == two.digest() and len(two.files) > 1


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ({"method": "wanda", "stats": None}, OptionError, "wanda needs statistics.*paring calibrate"),
        ({"method": "magnitude", "stats": None, "refit": True}, OptionError, "--refit needs statistics"),
        ({"method": "ria", "stats": None, "allocate": "owl"}, OptionError, "statistics"),
        ({"refit": True, "scope": "global"}, OptionError, "matrix by matrix"),
        ({"allocate": "owl", "spread": 1.5}, OptionError, "--spread"),
        ({"allocate": "owl", "outliers": 0.0}, OptionError, "--outliers"),
        ({"allocate": "owl", "scope": "global"}, OptionError, "exclude each other"),
        ({"method": "wanda", "stats": "none.safetensors"}, BadFileError, "paring calibrate"),
    ],
)
def test_options_that_cannot_be_meant(tmp_path, model, stats, given, error, said):
    with pytest.raises(error, match=said):
        prune(model, tmp_path / "out", sparsity=".5", **({"stats": stats} | given))
    assert not (tmp_path / "out").exists()


def test_statistics_that_do_not_fit(tmp_path, model):
    def refused(error, said, name="m", **given):
        with pytest.raises(error, match=said):
            prune(tmp_path / name, tmp_path / "out", sparsity=".5", **given)
        assert not (tmp_path / "out").exists()

    put_model(tmp_path / "m")
    path = tmp_path / "s.safetensors"
    refused(
        OptionError, "sparsegpt needs products", method="sparsegpt", stats=put_stats(path, model, gram=False)
    )
    refused(OptionError, "--refit needs products", method="wanda", refit=True, stats=path)
    refused(
        BadFileError,
        r"c_attn\.weight and 1 more",
        method="wanda",
        stats=put_stats(path, model, names=MATRICES[1:2] + MATRICES[3:]),
    )
    put_stats(path, model)
    put_model(tmp_path / "tuned", seed=1)
    refused(BadFileError, "not those calibrated", name="tuned", method="wanda", stats=path)
    put_model(tmp_path / "wide", **{"h.0.mlp.up.weight": (41, 16)})
    refused(BadFileError, r"up\.weight is \[41, 16\]", name="wide", method="wanda", stats=path)
    refused(BadFileError, "no calibration statistics", method="wanda", stats=model / "model.safetensors")
    put_stats(path, model, digest=False)
    prune(tmp_path / "tuned", tmp_path / "out", sparsity=".5", method="wanda", stats=path)


def test_what_is_kept_whole_needs_no_statistics(tmp_path, model):
    path = put_stats(tmp_path / "s.safetensors", model, names=MATRICES[1:])
    for method in ("wanda", "sparsegpt"):
        prune(
            model, tmp_path / method, method=method, sparsity=".5", stats=path, budgets={MATRICES[0]: "dense"}
        )
        np.testing.assert_array_equal(matrices(tmp_path / method)[MATRICES[0]], matrices(model)[MATRICES[0]])


@pytest.mark.parametrize("what", ["out", "out.safetensors", "mask.safetensors"])
def test_an_output_that_exists_is_refused_before_the_model_is_read(tmp_path, model, stats, monkeypatch, what):
    there = tmp_path / what
    if not there.suffix:
        there.mkdir()
        there /= "model.safetensors"
    there.write_bytes(b"mine")
    monkeypatch.setattr(Checkpoint, "digest", lambda self: pytest.fail("the model was read"))
    output = tmp_path / (what if "mask" not in what else "new")
    with pytest.raises(OutputError, match=f"{what} exists"):
        prune(
            model, output, sparsity=".5", method="wanda", stats=stats, save_mask=tmp_path / "mask.safetensors"
        )


def test_statistics_are_never_overwritten(tmp_path, model, stats):
    before = stats.read_bytes()
    for places in ({"output": stats}, {"output": tmp_path / "out", "save_mask": stats}):
        with pytest.raises(OutputError, match="is an input"):
            prune(model, sparsity=".5", method="wanda", stats=stats, overwrite=True, **places)
    assert stats.read_bytes() == before


def test_statistics_that_nobody_looks_at_cost_nothing(tmp_path, model, stats, monkeypatch):
    """Those of another model, too; the recipe names them."""
    tuned = put_model(tmp_path / "tuned", seed=1)
    monkeypatch.setattr(Checkpoint, "digest", lambda self: pytest.fail("the model was read"))
    report = prune(tuned, tmp_path / "out", sparsity=".5", stats=stats)
    assert "magnitude does not look at --stats" in report.warnings
    assert report.recipe["stats"] == str(stats)


def test_a_run_is_not_taken_up_with_other_statistics(tmp_path, model, stats, monkeypatch):
    """Of the same name, size and time."""
    how = {"sparsity": ".5", "method": "wanda", "stats": stats, "threads": 1}

    def stop(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("paring.pruning.run._beside", stop)
        with pytest.raises(KeyboardInterrupt):
            prune(model, tmp_path / "out", **how)
    before = stats.stat()
    with open_checkpoint(stats) as file:
        tensors, told = {name: file.read(name) for name in file}, file.metadata
    tensors[f"{MATRICES[1]}.norms"] = Stored("F32", np.arange(16, dtype=np.float32))
    write_safetensors(stats, tensors, told, overwrite=True)
    os.utime(stats, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert stats.stat().st_size == before.st_size
    with pytest.raises(OutputError, match="other inputs or options"):
        prune(model, tmp_path / "out", **how)


def test_damage_found_late_leaves_nothing(tmp_path, model, stats):
    with open_checkpoint(stats) as file:
        tensors, told = {name: file.read(name) for name in file}, file.metadata
    name = f"{MATRICES[1]}.norms"
    tensors[name] = Stored("F32", np.full(16, np.nan, np.float32))
    write_safetensors(stats, tensors, told, overwrite=True)
    with pytest.raises((BadFileError, BadValueError), match=r"up\.weight"):
        prune(model, tmp_path / "out", sparsity=".5", method="wanda", stats=stats)
    assert not (tmp_path / "out").exists()


def test_the_command(tmp_path, model, stats):
    words = ["prune", str(model), "-o", str(tmp_path / "out"), "--sparsity", ".5", "--stats", str(stats)]
    told = CliRunner().invoke(command, [*words, "--refit", "--json"], catch_exceptions=False)
    recipe = json.loads(told.stdout)["recipe"]
    assert recipe["refit"] is True and recipe["scope"] == "tensor" and "outliers" not in recipe
    warned = CliRunner().invoke(command, [*words, "--overwrite"], catch_exceptions=False)
    assert warned.exit_code == 0 and "does not look at --stats" in warned.output


@pytest.mark.parametrize("more", [{"refit": True}, {"allocate": "owl", "spread": 0.3}])
def test_runs_with_statistics_are_repeated(tmp_path, model, stats, more):
    prune(model, tmp_path / "out", method="wanda", sparsity=".4", stats=stats, **more)
    assert rerun(tmp_path / "out", tmp_path / "again").same
    plain = prune(model, tmp_path / "plain", method="wanda", sparsity=".4", stats=stats)
    with open_checkpoint(tmp_path / "again") as again, open_checkpoint(tmp_path / "plain") as other:
        assert again.digest() != other.digest() and plain.zeros


def test_the_default_scope_is_the_methods(tmp_path, model, stats):
    report = prune(model, tmp_path / "a", method="wanda", sparsity=".5", stats=stats, dry_run=True)
    assert report.recipe["scope"] == "row"
    report = prune(model, tmp_path / "b", method="wanda", keep=2, of=4, stats=stats, dry_run=True)
    assert report.recipe["scope"] == "tensor"
