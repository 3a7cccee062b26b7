"""Retraining from folder to folder, and ``prune --retrain``: recovery, exact zeros, resuming, refusals."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from paring import api, registry
from paring.checkpoint import open_checkpoint, write_safetensors
from paring.errors import BadFileError, BadValueError, OptionError, OutputError, UnsupportedError
from paring.loading import to_torch
from paring.retraining import fitting, perp, run
from paring.retraining.pupil import open_pupil
from paring.retraining.run import retrain
from tests import retraining as tiny

SPARSITY = 0.85


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """By kind, the folders of a dense and a pruned model and the text; made once."""
    kept = {}

    def of(kind="llama", dtype="BF16", pattern=None):
        key = kind, dtype, pattern
        if key not in kept:
            root = tmp_path_factory.mktemp("-".join((kind, dtype)))
            kept[key] = tiny.folders(root, kind, SPARSITY, dtype, pattern)
        return kept[key]

    return of


def go(folders, out, recipe="perp", **more):
    dense, pruned, data = folders
    options = {"steps": 20, "lr": 1e-2, **more.pop("options", {})}
    return retrain(
        pruned, out, data=data, dense=dense, recipe=recipe, options=options, length=32, threads=1, **more
    )


def same_masks(first, second):
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[name], second[name]) for name in first)


def zeros(folder):
    return {name: int((~mask).sum()) for name, mask in tiny.masks(folder).items()}


WAYS = {
    "PERP": ("perp", {"rank": 4, "alpha": 8.0}),
    "ScaleLoRA": ("perp", {"rank": 4, "alpha": 8.0, "adapter": "scalelora"}),
    "LoRA-Prune": ("perp", {"rank": 4, "alpha": 8.0, "adapter": "loraprune"}),
    "full": ("perp", {"train": "all"}),
    "APOLLO-Mini": ("perp", {"train": "all", "optimizer": "apollo-mini", "checkpointing": True}),
    "reconstruction": ("reconstruct", {}),
    "reconstruction + PERP": ("perp", {"rank": 4, "reconstruct": 15, "reconstruct_lr": 1e-2}),
    "adapters reconstruct": ("reconstruct", {"train": "norms,adapters", "rank": 4}),
}
ANEW = {
    "relaxed": ("reconstruct", {"relax": True}),
    "cycles": ("perp", {"cycles": 3, "rank": 4}),
    "cycles, reconstruction": ("perp", {"cycles": 3, "rank": 4, "reconstruct": 5}),
    "PDP": ("pdp", {}),
    "PST": ("pst", {}),
}


@pytest.mark.parametrize("way", WAYS)
def test_loss_falls_and_zeros_stay(made, tmp_path, way):
    folders = made()
    recipe, options = WAYS[way]
    report = go(folders, tmp_path / "out", recipe, options=options)
    bare, dense = tiny.loss(folders[1]), tiny.loss(folders[0])
    share = 0.2 if way in ("LoRA-Prune", "ScaleLoRA") else 0.5  # the slower ones
    assert tiny.loss(tmp_path / "out") < bare - share * (bare - dense)  # through from_pretrained
    same_masks(tiny.masks(tmp_path / "out"), tiny.masks(folders[1]))
    assert report.sparsity == pytest.approx(SPARSITY, abs=0.01)
    assert not (tmp_path / ".out.retraining").exists()


@pytest.mark.parametrize("way", ANEW)
def test_new_masks_have_the_same_counts(made, tmp_path, way):
    folders = made()
    recipe, options = ANEW[way]
    report = go(folders, tmp_path / "out", recipe, options=options)
    assert tiny.loss(tmp_path / "out") < tiny.loss(folders[1])
    assert zeros(tmp_path / "out") == zeros(folders[1])
    old, new = tiny.masks(folders[1]), tiny.masks(tmp_path / "out")
    assert any((old[name] != new[name]).any() for name in old)
    assert (report.reconstructed or 0) <= report.parameters  # not once a cycle
    if way == "PDP":
        assert report.gaps is not None and all(0 <= gap < 1 for gap in report.gaps.values())


def test_cycles_prune_as_far_as_they_are_told(made):
    dense, pruned, data = made()
    pupil = open_pupil(dense, [("text", data.read_text())], length=32, dense=dense, masks={})
    final = {name: torch.from_numpy(mask) for name, mask in tiny.masks(pruned).items()}
    for share in (0.4, 1.0):
        perp.prune(pupil, final, share)
        for name, mask in final.items():
            gone = round(share * int((~mask).sum()))
            assert int((pupil.model.get_parameter(name) == 0).sum()) == gone
            assert int((~pupil.masks[name]).sum()) == gone
    assert all(torch.equal(pupil.masks[name], mask) for name, mask in final.items())


@pytest.mark.parametrize("way", ["relaxed", "cycles", "PDP"])
def test_patterns_are_kept(made, tmp_path, way):
    folders = made("llama", "BF16", (2, 4))
    recipe, options = ANEW[way]
    go(folders, tmp_path / "out", recipe, options=options, pattern=(2, 4))
    for mask in tiny.masks(tmp_path / "out").values():
        assert (mask.reshape(len(mask), -1, 4).sum(2) == 2).all()


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16"])
@pytest.mark.parametrize("kind", ["gpt2", "untied"])
def test_zeros_are_exact_in_every_dtype(made, tmp_path, kind, dtype):
    folders = made(kind, dtype)
    train = "biases,norms,adapters" + (",head" if kind == "untied" else "")
    go(folders, tmp_path / "out", options={"train": train, "rank": 4})
    same_masks(tiny.masks(tmp_path / "out"), tiny.masks(folders[1]))
    with open_checkpoint(tmp_path / "out") as written, open_checkpoint(folders[1]) as before:
        assert {i.name: (i.dtype, i.shape) for i in written.tensors.values()} == {
            i.name: (i.dtype, i.shape) for i in before.tensors.values()
        }
        changed = {name for name in written if written.read(name).tobytes() != before.read(name).tobytes()}
        embedding = next(name for name in written if "embed" in name or "wte" in name)
        assert embedding not in changed and set(tiny.masks(folders[1])) <= changed
        pruned = ~tiny.masks(folders[1])[(name := sorted(tiny.masks(folders[1]))[0])]
        assert not np.signbit(written.read(name).f32()[pruned]).any()  # zeros, not minus zeros


@pytest.mark.parametrize("shards", ["safetensors", "bin"])
def test_models_in_shards(made, tmp_path, shards):
    """Those of PyTorch become one file."""
    dense, whole, data = made()
    pruned = tmp_path / "pruned"
    shutil.copytree(whole, pruned)
    (pruned / "model.safetensors").unlink()
    with open_checkpoint(whole) as source:
        tensors = {name: source.read(name) for name in source}
    files = {f"{i + 1:05}-of-00002": sorted(tensors)[i::2] for i in (0, 1)}
    stem = "model" if shards == "safetensors" else "pytorch_model"
    for number, names in files.items():
        path, part = pruned / f"{stem}-{number}.{shards}", {name: tensors[name] for name in names}
        if shards == "safetensors":
            write_safetensors(path, part, {"format": "pt"})
        else:
            torch.save({name: to_torch(tensor) for name, tensor in part.items()}, path)
    places = {name: f"{stem}-{number}.{shards}" for number, names in files.items() for name in names}
    index = f"{stem}.{shards}.index.json"
    (pruned / index).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    go((dense, pruned, data), tmp_path / "out", options={"rank": 4, "steps": 2})
    go((dense, whole, data), tmp_path / "plain", options={"rank": 4, "steps": 2})
    written = {path.name for path in (tmp_path / "out").iterdir() if "model" in path.name}
    assert written == ({index, *places.values()} if shards == "safetensors" else {"model.safetensors"})
    with open_checkpoint(tmp_path / "out") as found, open_checkpoint(tmp_path / "plain") as expected:
        assert set(found) == set(expected) == set(tensors)
        assert all(found.read(name).tobytes() == expected.read(name).tobytes() for name in found)
    assert np.isfinite(tiny.loss(tmp_path / "out"))  # transformers reads it


def test_masks_that_are_given_are_kept_though_survivors_are_zero(made, tmp_path):
    folders = made()
    given = tiny.masks(folders[1])
    name = sorted(given)[0]
    given[name] = np.ones_like(given[name])  # nothing of it was pruned: its zeros are zeros
    report = go(folders, tmp_path / "out", options={"rank": 4}, masks=given)
    assert report.pruned == sum(int((~mask).sum()) for mask in given.values())
    assert name not in tiny.masks(tmp_path / "out")


def test_masked_language_models(made, tmp_path):
    folders = made("bert")
    report = go(folders, tmp_path / "out", options={"rank": 4, "steps": 60})
    assert report.losses is not None and np.mean(report.losses[-10:]) < np.mean(report.losses[:10])
    same_masks(tiny.masks(tmp_path / "out"), tiny.masks(folders[1]))


def test_encoders_are_reconstructed_only(made, tmp_path):
    folders = made("encoder")
    report = go(folders, tmp_path / "out", "reconstruct")
    assert report.block_errors is not None and all(
        after < before / 2 for before, after in report.block_errors
    )
    same_masks(tiny.masks(tmp_path / "out"), tiny.masks(folders[1]))
    with pytest.raises(OptionError, match="predicts no text"):
        go(folders, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_what_is_no_stack_of_blocks_is_not_reconstructed(made, tmp_path, monkeypatch):
    """Blocks that see more than what the last one made."""
    from transformers.models.llama import modeling_llama as llama

    whole, block, seen = llama.LlamaForCausalLM.forward, llama.LlamaDecoderLayer.forward, [0.0]

    def model(self, *args, **kwargs):
        seen[0] = float(kwargs["input_ids"].sum())
        try:
            return whole(self, *args, **kwargs)
        finally:
            seen[0] = 0.0

    monkeypatch.setattr(llama.LlamaForCausalLM, "forward", model)
    monkeypatch.setattr(llama.LlamaDecoderLayer, "forward", lambda *a, **k: block(*a, **k) + seen[0])
    with pytest.raises(UnsupportedError, match="cannot be run block by block"):
        go(made(), tmp_path / "out", "reconstruct")
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # PEFT asks
def test_lora_stays_beside_the_sparse_weights(made, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    folders = made()
    report = go(folders, tmp_path / "out", options={"adapter": "lora", "train": "adapters", "rank": 4})
    with open_checkpoint(tmp_path / "out") as written, open_checkpoint(folders[1]) as before:
        assert written.digest() == before.digest()
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    both = PeftModel.from_pretrained(base, tmp_path / "out" / "adapter").eval()
    ids = torch.tensor(tiny.tokenizer()(tiny.text(seed=9))["input_ids"][:1024]).reshape(-1, 32)
    with torch.no_grad():
        assert float(both(input_ids=ids, labels=ids).loss) < tiny.loss(folders[1]) - 0.1
    assert report.losses is not None


@pytest.mark.parametrize("way", [
    "PERP", "full", "reconstruction + PERP", "cycles", "cycles, reconstruction", "relaxed", "PST", "PDP",
])  # fmt: skip
def test_a_killed_run_ends_as_if_it_had_not_been(made, tmp_path, way, monkeypatch):
    folders = made()
    recipe, options = {**WAYS, **ANEW}[way]
    options = {**options, "save_every": 4} if recipe == "perp" else options
    whole = go(folders, tmp_path / "whole", recipe, options=options)
    calls = [0]
    rate = fitting.Fit.rate

    def dying(self, step):
        calls[0] += 1
        if calls[0] == {"relaxed": 30, "cycles": 10}.get(way, 18):
            raise KeyboardInterrupt
        return rate(self, step)

    monkeypatch.setattr(fitting.Fit, "rate", dying)
    with pytest.raises(KeyboardInterrupt):
        go(folders, tmp_path / "out", recipe, options=options)
    assert not (tmp_path / "out").exists() and (tmp_path / ".out.retraining").exists()
    before = calls[0]
    again = go(folders, tmp_path / "out", recipe, options=options)
    if way in ("PERP", "full"):
        assert calls[0] - before < 10  # it did not begin anew
    for fact in ("losses", "trained", "reconstructed", "block_errors", "gaps"):
        assert getattr(again, fact) == getattr(whole, fact), fact
    files = [path.relative_to(tmp_path / "whole") for path in sorted((tmp_path / "whole").rglob("*"))]
    assert all((tmp_path / "out" / f).read_bytes() == (tmp_path / "whole" / f).read_bytes() for f in files)


def test_another_run_does_not_take_over(made, tmp_path, monkeypatch):
    folders = made()
    with monkeypatch.context() as patch:
        patch.setattr(run, "_log", None)  # after the claim, before any training
        with pytest.raises(AttributeError):
            go(folders, tmp_path / "out", options={"rank": 4})
    (tmp_path / ".out.retraining" / "state.pt").write_bytes(b"")
    with pytest.raises(OutputError, match="begun by a run with other inputs"):
        go(folders, tmp_path / "out", options={"rank": 2})
    go(folders, tmp_path / "out", options={"rank": 2, "steps": 2}, overwrite=True)


def test_nan_stops_and_keeps_the_last_good_state(made, tmp_path, monkeypatch):
    folders = made()
    monkeypatch.setattr(fitting.Fit, "rate", lambda self, step: 1e30 if step == 7 else 1e-3)
    with pytest.raises(BadValueError, match=r"of step 9 is .*: lower --lr.*step 6 is kept"):
        go(folders, tmp_path / "out", options={"train": "all", "save_every": 3})
    assert not (tmp_path / "out").exists()
    assert (tmp_path / ".out.retraining" / "state.pt").exists()


def test_updates_lost_in_rounding_are_counted(made, tmp_path):
    report = go(made(), tmp_path / "out", options={"rank": 4, "lr": 1e-5})
    assert any("lost in rounding" in warning for warning in report.warnings)


def test_refusals_before_any_work(made, tmp_path):
    dense, pruned, data = made()
    out = tmp_path / "out"

    def refused(error, message, folder=pruned, **more):
        with pytest.raises(error, match=message):
            retrain(folder, out, **{"data": data, "dense": dense, "length": 32, "threads": 1, **more})
        assert not out.exists() and not (tmp_path / ".out.retraining").exists()

    refused(OptionError, "is a way to prune", recipe="magnitude")
    refused(OptionError, "no option --stepps.*'steps'", options={"stepps": 3})
    refused(OptionError, "--adapter dora: expected masklora", options={"adapter": "dora"})
    refused(OptionError, "--length 65: this model takes at most 64", length=65)
    refused(OptionError, "at least 2", length=1)
    refused(OptionError, "no such file", data=tmp_path / "none.txt")
    refused(OptionError, "the dense model too", dense=None, recipe="reconstruct")
    refused(OptionError, "from 1 to as many", options={"cycles": 0})
    refused(OptionError, "add --reconstruct", options={"relax": True})
    refused(OptionError, "never merged", options={"cycles": 2, "adapter": "lora"})
    refused(OptionError, "cannot keep N of M", recipe="pst", pattern=(2, 4))
    refused(OptionError, "mask for another model", masks={"lm_head.weight": np.ones((3, 3), bool)})
    refused(OptionError, "--lr 0", options={"lr": 0.0})
    refused(OptionError, "expected 0 <= from", recipe="pst", options={"start": 0.9, "end": 0.1})
    refused(OptionError, "nothing is pruned", folder=dense, recipe="pst")
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(pruned / "model.safetensors", alone)
    refused((UnsupportedError, BadFileError), "config.json", folder=alone)
    other = tiny.folders(tmp_path, "gpt2")[0]
    refused(BadFileError, "of another model", dense=other, recipe="reconstruct")
    with pytest.raises(OutputError, match="input"):
        retrain(pruned, pruned, data=data, overwrite=True)


# --- prune --retrain ---


def prune(*arguments):
    from paring.cli.prune import command

    return CliRunner().invoke(command, [str(each) for each in arguments])


def test_prune_and_retrain_from_the_command_line(made, tmp_path):
    dense, _, data = made()
    common = [dense, "--sparsity", ".6", "--retrain", "perp", "--data", data, "--length", 32, "--threads", 1]
    done = prune(*common, "--steps", 5, "--rank", 2, "-o", tmp_path / "out", "--json")
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["command"] == "prune" and len(report["retraining"]["losses"]) == 5
    assert report["retraining"]["trained"] > 0
    found = tiny.masks(tmp_path / "out")
    assert sum(int((~mask).sum()) for mask in found.values()) == report["zeros"]
    api.prune(dense, tmp_path / "plain", sparsity=".6", threads=1)
    same_masks(found, tiny.masks(tmp_path / "plain"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "plain"]
    recipe = tiny.metadata(tmp_path / "out")
    assert recipe["method"] == "perp" and recipe["pruning"]["sparsity"] == "0.6"
    assert api.verify(tmp_path / "out", sparsity=".6").ok
    assert not api.verify(tmp_path / "out", sparsity=".61").ok
    shown = prune(*common, "--steps", 2, "-o", tmp_path / "out2", "--keep-going")
    assert shown.exit_code == 2
    common.remove("--length"), common.remove(32)  # it is what the model allows
    told = prune(*common, "--steps", 2, "-o", tmp_path / "out2")
    assert tiny.metadata(tmp_path / "out2")["length"] == 64
    assert told.exit_code == 0 and "of 5,088 parameters" in told.output and "loss" in told.output


def test_conv1d_masks_and_patterns_come_through(made, tmp_path):
    dense, _, data = made("gpt2")
    report = api.prune(
        dense, tmp_path / "out", keep=2, of=4, retrain="reconstruct", data=data, length=32, threads=1,
        save_mask=tmp_path / "mask.safetensors", retrain_options={"steps": 5, "relax": True},
    )  # fmt: skip
    assert report.retraining is not None and report.retraining.sparsity == 0.5
    for mask in tiny.masks(tmp_path / "out").values():
        assert (mask.T.reshape(mask.shape[1], -1, 4).sum(2) == 2).all()
    assert (tmp_path / "mask.safetensors").exists()


def test_prune_refuses_what_cannot_be_retrained(made, tmp_path):
    dense, _, data = made()
    done = prune(dense, "--sparsity", ".5", "--retrain", "perp", "-o", tmp_path / "out")
    assert done.exit_code and isinstance(done.exception, OptionError)
    for arguments, message in (
        (["--retrain", "perq", "--data", data, "-o", tmp_path / "out"], "did you mean 'perp'"),
        (["--retrain", "wanda", "--data", data, "-o", tmp_path / "out"], "is a way to prune"),
        (["--retrain", "perp", "--data", data, "-o", tmp_path / "o.safetensors"], "writes a folder"),
        (["--retrain", "perp", "--data", tmp_path / "no", "-o", tmp_path / "out"], "no such file"),
        (["--method", "perp", "-o", tmp_path / "out"], "retrains what is pruned"),
        (["--retrain", "perp", "--data", data, "--length", 65, "-o", tmp_path / "out"], "at most 64"),
        (["--retrain", "pst", "--lines", "outputs", "--data", data, "-o", tmp_path / "out"], "cannot keep"),
    ):
        done = prune(dense, "--sparsity", ".5", *arguments)
        assert done.exit_code and message in str(done.exception) + done.output, done.output
    assert not list(tmp_path.iterdir())


def test_an_interrupted_prune_keeps_its_training_and_nothing_else(made, tmp_path, monkeypatch):
    dense, _, data = made()
    calls = [0]
    rate = fitting.Fit.rate

    def dying(self, step):
        calls[0] += 1
        if calls[0] == 8:
            raise KeyboardInterrupt
        return rate(self, step)

    monkeypatch.setattr(fitting.Fit, "rate", dying)
    how = {"sparsity": ".6", "retrain": "perp", "data": data, "length": 32, "threads": 1}
    options = {"steps": 10, "rank": 2, "save_every": 2}
    with pytest.raises(KeyboardInterrupt):
        api.prune(dense, tmp_path / "out", retrain_options=options, **how)
    assert [path.name for path in tmp_path.iterdir()] == [".out.retraining"]
    assert (tmp_path / ".out.retraining" / "state.pt").exists()
    api.prune(dense, tmp_path / "out", retrain_options=options, **how)
    assert calls[0] < 16  # it did not begin anew
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_mask_that_is_there_is_not_replaced_unasked(made, tmp_path):
    dense, _, data = made()
    how = {"sparsity": ".6", "threads": 1}
    more = {"retrain": "perp", "data": data, "length": 32, "retrain_options": {"steps": 2, "rank": 2}}
    mask = tmp_path / "mask.safetensors"
    mask.write_bytes(b"of somebody")
    with pytest.raises(OutputError, match=r"mask\.safetensors exists"):
        api.prune(dense, tmp_path / "out", save_mask=mask, **how, **more)
    assert mask.read_bytes() == b"of somebody" and list(tmp_path.iterdir()) == [mask]
    for saved in (mask, tmp_path / ".out.pruned.mask.safetensors"):  # what a run leaves that was killed
        api.prune(dense, tmp_path / ".out.pruned", save_mask=saved, overwrite=True, **how)
    api.prune(dense, tmp_path / "out", save_mask=mask, **how, **more)
    (tmp_path / ".out.pruned.mask.safetensors").unlink()
    api.prune(dense, tmp_path / ".out.pruned", **how)
    api.prune(dense, tmp_path / "out", overwrite=True, **how, **more)
    assert {path.name for path in tmp_path.iterdir()} == {"out", "mask.safetensors"}
    (tmp_path / ".out2.pruned").mkdir()
    (tmp_path / ".out2.pruned" / "thesis.txt").write_text("")
    with pytest.raises(OutputError, match="thesis"):
        api.prune(dense, tmp_path / "out2", **how, **more)
    assert (tmp_path / ".out2.pruned" / "thesis.txt").exists()


def test_a_mask_that_exists_is_never_lost(made, tmp_path, monkeypatch):
    """Not without --overwrite, unless this very run has made it."""
    dense, _, data = made()
    mask, out = tmp_path / "mask.safetensors", tmp_path / "out"
    mask.write_bytes(b"somebody's")
    how = {"sparsity": ".5", "retrain": "perp", "data": data, "length": 32, "save_mask": mask}
    how["retrain_options"] = {"steps": 2}
    with pytest.raises(OutputError, match=r"mask\.safetensors exists"):
        api.prune(dense, out, **how)
    assert mask.read_bytes() == b"somebody's"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mask.safetensors"]
    mask.unlink()

    def stop(*arguments, **more):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("paring.retraining.whole.retrain", stop)
        with pytest.raises(KeyboardInterrupt):
            api.prune(dense, out, **how)
    first = mask.read_bytes()
    api.prune(dense, out, **how)
    assert mask.read_bytes() == first
    more = {**how, "sparsity": ".6"}
    with pytest.raises(OutputError, match=r"mask\.safetensors exists"):
        api.prune(dense, tmp_path / "other", **more)
    assert mask.read_bytes() == first
    api.prune(dense, tmp_path / "other", **more, overwrite=True)
    assert mask.read_bytes() != first


def test_a_dry_run_writes_nothing(made, tmp_path):
    dense, _, data = made()
    done = prune(
        dense, "--sparsity", ".5", "--retrain", "perp", "--data", data, "-o", tmp_path / "out", "--dry-run"
    )
    assert done.exit_code == 0 and not list(tmp_path.iterdir())


def test_recipes_are_listed_without_torch():
    import subprocess
    import sys

    code = (
        "import sys; from paring import registry; print([registry.load('prune', n).sees for n in "
        "('perp', 'pdp', 'pst', 'reconstruct')]); assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(["model"] * 4)
    for name in run.names():
        method = registry.load("prune", name)
        assert all(option.help for option in method.options.values()) and "arXiv" in method.reference
