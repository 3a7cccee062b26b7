"""What a retrained model tells of itself: perplexity before and after, a card; and that it is made again."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import yaml
from click.testing import CliRunner

from paring import api, card, devices, evaluating
from paring.checkpoint import open_checkpoint
from paring.errors import BadFileError, OptionError, UnsupportedError
from paring.pruning import calibration
from paring.retraining import pupil, run, stored
from paring.retyping import command_of
from tests import retraining as tiny
from tests.helpers import names

OPTIONS = {"steps": 6, "lr": 1e-2, "rank": 2}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a dense model, a text to train on and one that is held out; made once."""
    root = tmp_path_factory.mktemp("dense")
    tiny.folders(root)
    (root / "held.txt").write_text(tiny.text(400, seed=9))
    return root


@pytest.fixture
def here(made, tmp_path, monkeypatch):
    """A copy of it, which is the current folder."""
    for name in ("dense", "corpus.txt", "held.txt"):
        place = made / name
        (shutil.copytree if place.is_dir() else shutil.copy)(place, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def prune(out="out", **more):
    how = {
        "sparsity": ".7", "retrain": "perp", "data": "corpus.txt", "length": 32, "threads": 1,
        "retrain_options": OPTIONS,
    }  # fmt: skip
    return api.prune("dense", out, **{**how, **more})


HELD = {"eval_data": "held.txt", "eval_window": 32, "eval_stride": 24}
BARE = {"retrain": None, "data": None}


def perplexity(folder):
    return api.evaluate(folder, "held.txt", window=32, stride=24, threads=1)


def header(folder):
    return yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])


# --- before and after ---


def test_perplexities_are_those_of_eval(here):
    report = prune(**HELD, save_mask="mask.safetensors")
    api.prune("dense", "pruned", sparsity=".7", threads=1)
    found, after = report.perplexity, perplexity("out")
    expected = {"dense": perplexity("dense"), "pruned": perplexity("pruned"), "retrained": after}
    for stage, one in expected.items():
        told = getattr(found, stage)
        assert (told.perplexity, told.nll, told.nll_error) == (one.perplexity, one.nll, one.nll_error)
    assert found.dense.perplexity < found.retrained.perplexity < found.pruned.perplexity
    assert (found.windows, found.window, found.stride) == (after.windows, 32, 24) and found.data == "held.txt"
    assert found.scored == after.scored
    told = report.to_json()["perplexity"]
    assert told["retrained"]["perplexity"] == after.perplexity and told["sha256"]


def test_pruning_alone_is_measured_too(here):
    report = prune(**BARE, **HELD)
    assert report.perplexity.retrained is None and report.retraining is None
    assert report.perplexity.pruned.perplexity == perplexity("out").perplexity
    assert report.perplexity.dense.perplexity == perplexity("dense").perplexity
    (result,) = header(here / "out")["model-index"][0]["results"]
    assert result["metrics"][0]["value"] == report.perplexity.pruned.perplexity
    plain = prune("plain", **BARE)
    assert plain.perplexity is None and "perplexity" not in (here / "plain/README.md").read_text()
    with open_checkpoint("out") as one, open_checkpoint("plain") as other:
        assert one.files[0].read_bytes() == other.files[0].read_bytes()  # measuring changes nothing


def test_an_adapter_beside_the_model_is_measured_with_it(here):
    report = prune(**HELD, retrain_options={**OPTIONS, "adapter": "lora", "train": "adapters"})
    assert report.perplexity.retrained.perplexity < 0.9 * report.perplexity.pruned.perplexity
    assert perplexity("out").perplexity == report.perplexity.pruned.perplexity
    assert (
        'PeftModel.from_pretrained(model, "PATH/TO/THIS/FOLDER", subfolder="adapter")'
        in (here / "out/README.md").read_text()
    )
    assert api.rerun("out", "again").same
    file = here / "again/adapter/adapter_model.safetensors"
    assert file.read_bytes() == (here / "out/adapter/adapter_model.safetensors").read_bytes()


def test_the_card_of_a_retrained_model(here):
    (here / "dense/README.md").write_text("---\nlicense: mit\n---\n")
    report = prune(**HELD)
    text, found = (here / "out/README.md").read_text(), report.perplexity
    told, stages = report.retraining, (found.dense, found.pruned, found.retrained)
    for part in (
        f"perp on {told.tokens:,} tokens of corpus.txt", f"{told.trained:,} of {told.parameters:,} param",
        f"{told.losses[0]:.4f} at first, {told.losses[-1]:.4f} at last", f"{told.sparsity:.2%} zeros",
        "| perplexity on `held.txt` | dense | pruned | retrained |", "windows of 32 tokens, one every 24",
        " | ".join(f"{stage.perplexity:.4f}" for stage in stages), "Method `magnitude`", "Method `perp`",
        "arXiv:2312.15230", "Pruned and retrained by paring from `dense`",
    ):  # fmt: skip
        assert part in text, part
    top = header(here / "out")
    assert top["license"] == "mit" and {"prune", "retrained", "paring"} <= set(top["tags"])
    (entry,) = top["model-index"]
    (result,) = entry["results"]
    assert result["task"] == {"type": "text-generation"} and result["dataset"]["name"] == "held.txt"
    (metric,) = result["metrics"]
    assert metric["value"] == found.retrained.perplexity and "one every 24" in metric["name"]
    assert report.retraining.bytes_out == (here / "out/model.safetensors").stat().st_size


def test_the_command_on_the_card_makes_it_again(here):
    from paring.cli.prune import command

    prune()
    told = command_of(tiny.metadata(here / "out"), "again")
    done = CliRunner().invoke(command, [*told.split()[1:], "--threads", "1"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert (here / "again/model.safetensors").read_bytes() == (here / "out/model.safetensors").read_bytes()


def test_more_evaluations_stand_beside_it(here):
    prune(**HELD)
    first = header(here / "out")["model-index"][0]["results"]
    more = [card.Evaluation("text-generation", "other", "perplexity", 3.5)]
    text = card.completed((here / "out/README.md").read_text(), "lab/out", more)
    (entry,) = yaml.safe_load(text.split("---\n")[1])["model-index"]
    assert entry["name"] == "lab/out" and entry["results"][:1] == first and len(entry["results"]) == 2
    assert card.completed(text, "lab/out", more).count("- type: perplexity") == 2  # told once


def test_what_eval_prints_is_an_evaluation(here):
    (here / "eval.json").write_text(json.dumps(perplexity("dense").to_json()))
    (row,) = card.evaluations(here / "eval.json")
    assert (row.task, row.dataset, row.metric) == ("text-generation", "held.txt", "perplexity")
    assert row.value == perplexity("dense").perplexity and "one every 24" in row.name
    (here / "eval.json").write_text(json.dumps({"command": "eval", "perplexity": 3}))
    with pytest.raises(OptionError, match="--evaluations"):
        card.evaluations(here / "eval.json")


def test_on_the_command_line(here):
    from paring.cli.prune import command

    words = "dense --sparsity .7 --retrain perp --data corpus.txt --length 32 --threads 1 --steps 2 -o out"
    held = "--eval-data held.txt --eval-window 32 --eval-samples 3"
    done = CliRunner().invoke(command, f"{words} {held}".split(), catch_exceptions=False)
    assert done.exit_code == 0 and " retrained" in done.output and "3 windows of 32 tokens" in done.output
    report = json.loads(CliRunner().invoke(command, f"{words} {held} --overwrite --json".split()).stdout)
    assert report["perplexity"]["windows"] == 3 and report["perplexity"]["dense"]["perplexity"] > 1
    assert "--eval-data TEXT" in CliRunner().invoke(command, ["--help"]).output


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize(
    ("more", "error", "told"),
    [
        ({"eval_data": "none.txt"}, BadFileError, "none.txt"),
        ({"eval_data": "bad.txt"}, BadFileError, "not UTF-8"),
        ({"eval_data": "short.txt"}, OptionError, "fewer than one window"),
        ({"eval_window": 65}, OptionError, "--eval-window 65: .* at most 64"),
        ({"eval_stride": 33}, OptionError, "--eval-stride 33"),
        ({"eval_samples": 0}, OptionError, "--eval-samples 0"),
        ({"eval_data": "lines.jsonl"}, OptionError, "lines of JSON"),
        ({"eval_data": None}, OptionError, "--eval-window goes with --eval-data"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_the_work(here, monkeypatch, alone, more, error, told):
    (here / "bad.txt").write_bytes(b"\xff")
    (here / "short.txt").write_text("the cat")
    before = names(here)
    monkeypatch.setattr(evaluating, "load_model", None)
    for dry in (False, True):
        with pytest.raises(error, match=told):
            prune(**{**HELD, **more, **(BARE if alone else {})}, dry_run=dry)
    assert names(here) == before


def test_what_is_trained_on_is_not_held_out(here):
    (here / "texts").mkdir()
    shutil.copy("held.txt", "texts/a.txt")
    shutil.copy("held.txt", "texts/b.rst")
    (here / "link.txt").symlink_to(here / "corpus.txt")
    for data, held in (("corpus.txt", "./corpus.txt"), ("corpus.txt", "link.txt"), ("texts", "texts/a.txt")):
        with pytest.raises(OptionError, match="held out"):
            prune(data=data, eval_data=held, eval_window=32)
    assert prune(data="texts", eval_data="texts/b.rst", eval_window=32, dry_run=True).dry_run  # not read
    assert "out" not in names(here)


def test_models_without_a_folder_or_perplexity_are_refused(here):
    (here / "b").mkdir()
    tiny.folders(here / "b", "bert")
    with pytest.raises(UnsupportedError, match="does not predict the next token"):
        api.prune("b/dense", "out", sparsity=".5", **HELD)
    for how in ({}, {"retrain": "perp", "data": "corpus.txt"}):
        with pytest.raises(OptionError, match=r"model\.safetensors: .*folder"):
            api.prune("dense/model.safetensors", "out", sparsity=".5", **HELD, **how)
    with pytest.raises(OptionError, match=r"-o out\.safetensors: --eval-data"):
        api.prune("dense", "out.safetensors", sparsity=".5", **HELD)
    assert not [name for name in names(here) if "out" in name]


# --- made again ---


WAYS = {
    "PERP": ("perp", {"steps": 4, "rank": 2}),
    "reconstruction": ("perp", {"steps": 2, "rank": 2, "reconstruct": 2}),
    "relaxed": ("reconstruct", {"steps": 3, "relax": True}),
    "PST": ("pst", {"steps": 3}),
    "PDP": ("pdp", {"steps": 3}),
}


@pytest.mark.parametrize("way", WAYS)
def test_rerun_gives_the_same_bytes(here, way):
    recipe, options = WAYS[way]
    how = {"keep": 2, "of": 4, "sparsity": None} if way == "PDP" else {}
    prune(retrain=recipe, retrain_options=options, seed=3, **how)
    report = api.rerun("out", "again")  # with one thread, as it was made
    assert report.same and report.command == "rerun" and not [w for w in report.warnings if "out was" in w]
    for name in ("model.safetensors", "README.md", "config.json", "tokenizer.json"):
        assert (here / "again" / name).read_bytes() == (here / "out" / name).read_bytes(), name
    assert [name for name in names(here) if name.startswith(".")] == []


def test_rerun_with_statistics_from_another_folder(here, monkeypatch):
    api.calibrate("dense", "corpus.txt", "stats.safetensors", window=32, samples=4, threads=1)
    prune(method="wanda", stats="stats.safetensors")
    (here / "below").mkdir()
    monkeypatch.chdir(here / "below")
    assert api.rerun(here / "out", "again").same  # inputs are beside the result
    assert names(here / "below") == ["again"]
    monkeypatch.chdir(here)
    (here / "more.txt").write_text(tiny.text(2000, seed=5))
    api.calibrate("dense", "more.txt", "stats.safetensors", window=32, samples=4, threads=1, overwrite=True)
    with pytest.raises(BadFileError, match=r"the statistics stats\.safetensors changed since"):
        api.rerun("out", "more")


def test_inputs_that_have_changed_are_refused_before_the_work(here, monkeypatch):
    prune()
    before = names(here)
    monkeypatch.setattr(pupil, "load_model", None)

    def refused(message, error=BadFileError):
        for dry in (False, True):
            with pytest.raises(error, match=message):
                api.rerun("out", "again", dry_run=dry)

    text = (here / "corpus.txt").read_text()
    (here / "corpus.txt").write_text(text + " and")
    refused(r"the text corpus\.txt changed since the result was made of it")
    (here / "corpus.txt").unlink()
    refused(r"out was made of corpus\.txt, which is not here")
    (here / "corpus.txt").write_text(text)
    tokenizer = here / "dense/tokenizer_config.json"
    told = tokenizer.read_text()
    tokenizer.write_text(told.replace("<eos>", "<mask>"))
    refused("the configuration or tokenizer of dense changed since")
    tokenizer.write_text(told)
    api.prune("dense", "other", sparsity=".1", threads=1)
    shutil.copy("other/model.safetensors", "dense/model.safetensors")
    refused("the tensors of dense changed since")
    shutil.rmtree(here / "dense")
    refused("out was made of dense, which is not here")
    assert set(names(here)) == {*before, "other"} - {"dense"}


def test_what_else_the_bits_depend_on_is_told(here, monkeypatch):
    prune()
    now = run.made_with
    for module in (run, stored):
        monkeypatch.setattr(module, "made_with", lambda *given: {**now(*given), "torch": "99.0"})
    report = api.rerun("out", "again")
    assert not report.same
    assert any("with torch" in warning and "99.0" in warning for warning in report.warnings)
    assert "beside other metadata" in report.warnings[-1]
    recipe = tiny.metadata(here / "out")
    found = stored.made_of(recipe, "out")
    assert (found.device("auto"), found.device("cuda")) == ("cpu", "cuda")
    assert (found.threads(None), found.threads(2)) == (1, 2)
    assert any("threads 1, this is 2" in text for text in found.warnings(here / "out", "cpu", 2))
    recipe["made_with"]["device"] = "cuda"
    found = stored.made_of(recipe, "out")
    assert found.device("auto") == "auto"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert "may give other bits each time" in found.warnings(here / "out", "auto", 1)[-1]


def test_recipes_that_cannot_be_repeated(here, made):
    run.retrain(made / "pruned", "out", data="corpus.txt", length=32, threads=1, options={"steps": 1})
    assert "Pruned and retrained by paring from `pruned`" in (here / "out/README.md").read_text()
    with pytest.raises(UnsupportedError, match=r"pruned, which was pruned before"):
        api.rerun("out", "again")
    assert command_of(tiny.metadata(here / "out"), "OUT") is None
    prune("whole")
    recipe = tiny.metadata(here / "whole")
    for key, value in (
        ("data", 3), ("length", "x"), ("options", []), ("sha256", {"model": 1}), ("pruning", "x"),
        ("made_with", {"device": "cpu"}), ("made_with", {**recipe["made_with"], "threads": 0}),
    ):  # fmt: skip
        with pytest.raises(BadFileError, match=rf"out: its recipe makes no sense: {key}"):
            stored.made_of({**recipe, key: value}, "out")
    with pytest.raises(BadFileError, match="out, pruning: its recipe"):
        stored.made_of({**recipe, "pruning": {**recipe["pruning"], "sparsity": 3}}, "out")


def test_a_data_set_on_the_hub_is_asked_for_by_its_name(here, monkeypatch):
    import huggingface_hub

    asked = []
    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda *a, **k: ["train.txt"])
    monkeypatch.setattr(
        huggingface_hub, "hf_hub_download", lambda repo, name, **k: asked.append(repo) or "corpus.txt"
    )
    prune(data="org/set")
    assert tiny.metadata(here / "out")["data"] == "org/set"
    assert api.rerun("out", "again").same and set(asked) == {"org/set"}


def test_auto_is_cuda_for_what_runs_a_model(here, monkeypatch):
    """One rule: told by where they would load the model."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert (devices.pick("auto"), devices.to_run("auto"), devices.to_run("cpu")) == ("cpu", "cuda", "cpu")
    places = []

    def stop(*arguments, device="cpu", **more):
        places.append(device)
        raise BadFileError("far enough")

    for module, name in ((evaluating, "load_model"), (calibration, "load_model"), (pupil, "open_pupil")):
        monkeypatch.setattr(module, name, stop)
    for go in (
        lambda: api.evaluate("dense", "held.txt", window=32),
        lambda: api.calibrate("dense", "held.txt", "stats.safetensors", window=32),
        prune,
        lambda: prune(**HELD),
    ):
        with pytest.raises(BadFileError, match="far enough"):
            go()
    assert places == ["cuda"] * 4
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert devices.to_run("auto") == "cpu"
    with pytest.raises(UnsupportedError, match="no CUDA device"):
        devices.to_run("cuda")
