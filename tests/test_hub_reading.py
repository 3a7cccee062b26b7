"""Sources on the Hub: planned by their headers, downloaded when read, written down by their commit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from paring import api, awaited
from paring.checkpoint import open_checkpoint, write_safetensors
from paring.dtypes import from_f32
from paring.errors import BadFileError, OptionError, OutputError, UnsupportedError
from paring.hub.reading import located, pinned
from paring.pruning import masking
from tests.hub_server import HubServer
from tests.hubbing import ADAPTERS, paring, put, weights_read
from tests.merging import arrays, put_model

BASE = {name: values for name, values in arrays(0).items() if values.ndim}


@pytest.fixture
def models(hub: HubServer, tmp_path: Path) -> list[str]:
    """A base and two fine-tunes of it on the Hub, in shards; their folders are gone."""
    for i, name in enumerate(("base", "a", "b")):
        folder = put_model(tmp_path / name, arrays(i, BASE) if i else BASE, "BF16", limit=60_000)
        put(hub, f"lab/{name}", folder)
        shutil.rmtree(folder)
    return ["lab/base", "lab/a", "lab/b"]


def test_inspecting_takes_the_header_only(hub: HubServer) -> None:
    put(hub, "lab/rotten", ADAPTERS / "rotten")
    found = api.inspect("lab/rotten")
    here = api.inspect(ADAPTERS / "rotten")
    assert (found.bytes_in, found.modules, found.base) == (here.bytes_in, here.modules, here.base)
    assert found.inputs == [f"lab/rotten@{hub.store.repos['lab/rotten'].branches['main']}"]
    assert not weights_read(hub) and hub.requests("GET", "/storage/")


def test_a_header_that_one_request_does_not_hold(hub: HubServer, tmp_path: Path) -> None:
    names = {f"layer.{i}.{'x' * 200}": from_f32(np.full(2, i), "F32") for i in range(700)}
    write_safetensors(tmp_path / "model.safetensors", names)
    put(hub, "lab/wide", tmp_path)
    assert len(open_checkpoint(located("lab/wide"))) == 700
    ranges = [r.headers["Range"] for r in hub.requests("GET", "/storage/")]
    assert len(ranges) == 2 and ranges[0] == "bytes=0-99999" and ranges[1].startswith("bytes=100000-")


def test_a_plan_that_is_refused_downloads_no_weights(
    hub: HubServer, models: list[str], tmp_path: Path
) -> None:
    values = {**arrays(3, BASE), "model.norm.weight": np.ones(7, np.float32)}
    put(hub, "lab/odd", put_model(tmp_path / "odd", values, "BF16"))
    with pytest.raises(
        UnsupportedError, match=r"model\.norm\.weight is \(24,\) in lab/base@\w{10}, \(7,\) in lab/odd@"
    ):
        api.merge(["lab/a", "lab/odd"], tmp_path / "out", base="lab/base", method="ties")
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine").write_text("mine")
    with pytest.raises(OutputError):
        api.merge(["lab/a", "lab/b"], tmp_path / "there")
    report = api.merge(["lab/a", "lab/b"], tmp_path / "out", base="lab/base", method="ties", dry_run=True)
    assert report.bytes_out and not (tmp_path / "out").exists()
    with pytest.raises(UnsupportedError, match="no adapter factors"):
        api.compress("lab/a", tmp_path / "x.paring.safetensors")
    assert not weights_read(hub)


def test_a_merge_is_that_of_the_same_files_here(hub: HubServer, models: list[str], tmp_path: Path) -> None:
    folders = [put_model(tmp_path / str(i), arrays(i, BASE) if i else BASE, "BF16") for i in range(3)]
    api.merge(folders[1:], tmp_path / "here", base=folders[0], method="ties")
    report = api.merge(models[1:], tmp_path / "there", base=models[0], method="ties")
    here, there = open_checkpoint(tmp_path / "here"), open_checkpoint(tmp_path / "there")
    assert here.digest() == there.digest() and here.config("config.json") == there.config("config.json")
    recipe = json.loads(there.metadata["paring"])
    commits = {name: hub.store.repos[name].branches["main"] for name in models}
    assert recipe["base"] == f"lab/base@{commits['lab/base']}"
    assert recipe["models"] == [f"{name}@{commits[name]}" for name in models[1:]]
    assert report.inputs == [recipe["base"], *recipe["models"]]
    # another commit of a branch changes nothing of what was written down
    put(hub, "lab/a", put_model(tmp_path / "new", arrays(9, BASE), "BF16"))
    assert api.rerun(tmp_path / "there", tmp_path / "again").same


def test_branches_subfolders_files_and_members(hub: HubServer, tmp_path: Path) -> None:
    repo = tmp_path / "repo"
    shutil.copytree(ADAPTERS / "brown", repo / "deep" / "brown")
    shutil.copytree(ADAPTERS / "rotten", repo / "rotten")
    put(hub, "lab/many", repo, branch="dev")
    commit = hub.store.repos["lab/many"].branches["dev"]
    for name in ("lab/many@dev:deep/brown", "hf://lab/many@dev/deep/brown", f"lab/many@{commit}:deep/brown"):
        assert len(api.load(name)) == len(api.load(ADAPTERS / "brown")), name
    found = api.inspect("lab/many@dev:rotten/head.safetensors")
    assert found.inputs == [f"lab/many@{commit}:rotten/head.safetensors"]
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "note.json").write_text("{}")
    put(hub, "lab/many", empty, branch="other")
    with pytest.raises(BadFileError, match="lab/many@other holds no checkpoint"):
        api.inspect("lab/many@other")
    pool = tmp_path / "pool" / "pool.paring.safetensors"
    api.compress([ADAPTERS / "brown", ADAPTERS / "rotten"], pool, method="mos")
    put(hub, "lab/pool", pool.parent)
    assert len(api.load("lab/pool#brown")) == len(api.load(ADAPTERS / "brown"))


def test_paths_come_first(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(hub, "lab/a", ADAPTERS / "brown")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ADAPTERS / "rotten", "lab/a")
    assert api.inspect("lab/a").inputs == ["lab/a"] and not hub.log
    assert api.inspect("hf://lab/a").inputs[0].startswith("lab/a@") and hub.log


def test_every_command_takes_names(
    hub: HubServer, models: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    put(hub, "lab/rotten", ADAPTERS / "rotten")
    put(hub, "lab/brown", ADAPTERS / "brown")
    report = api.compress("lab/rotten", method="compeft")
    assert report.output == str(tmp_path / "rotten.paring.safetensors")  # here, not in the cache
    assert report.recipe and report.recipe["source"] == report.inputs[0]
    assert api.verify(report.output, "lab/rotten").ok
    assert api.rerun(report.output, "again.paring.safetensors").same
    packed = tmp_path / "packed"
    packed.mkdir()
    Path(report.output).rename(packed / "p.paring.safetensors")
    put(hub, "lab/packed", packed)
    assert api.decompress("lab/packed", "back").inputs[0].startswith("lab/packed@")
    assert api.verify("lab/packed", "lab/rotten").ok
    assert api.convert("lab/rotten", "kohya.safetensors", dialect="kohya").inputs[0].startswith("lab/rotten@")
    assert api.diff(["lab/a", "lab/b"], base="lab/base").base == f"lab/base@{_commit(hub, 'lab/base')}"
    api.extract("lab/a", "lora", base="lab/base", rank=4)
    assert json.loads(Path("lora/adapter_config.json").read_text())["base_model_name_or_path"] == "lab/base"
    delta = api.compress("lab/a", "delta.paring.safetensors", base="lab/base")
    assert delta.recipe and delta.recipe["base"] == f"lab/base@{_commit(hub, 'lab/base')}"
    assert api.decompress("delta.paring.safetensors", "tuned", base="lab/base").bytes_out
    assert api.rerun("delta.paring.safetensors", "delta2.paring.safetensors").same
    api.merge(["lab/rotten", "lab/brown"], "merged", weights=[0.5, 2.0])
    assert api.rerun("merged", "merged2").same


def _commit(hub: HubServer, repo: str) -> str:
    return hub.store.repos[repo].branches["main"]


def test_recipes_name_repositories(hub: HubServer, models: list[str], tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "method: linear\nmodels: [first, lab/b]\n"
        "stages:\n  first: {method: linear, models: [lab/a, lab/base]}\n"
    )
    api.merge_recipe(recipe, tmp_path / "out")
    told = json.loads(open_checkpoint(tmp_path / "out").metadata["paring"])
    assert told["models"] == ["first", f"lab/b@{_commit(hub, 'lab/b')}"]
    assert told["stages"]["first"]["models"][0] == f"lab/a@{_commit(hub, 'lab/a')}"
    assert api.rerun(tmp_path / "out", tmp_path / "again").same
    recipe.write_text(
        "merge_method: task_arithmetic\nbase_model: lab/base\nmodels:\n"
        "  - model: lab/a\n    parameters: {weight: 0.5}\n"
    )
    assert api.merge_recipe(recipe, tmp_path / "kit").inputs[0].startswith("lab/base@")
    recipe.write_text("models:\n  - lab/a\n  - lab/missing\n")
    with pytest.raises(OptionError, match=r"recipe\.yaml:3: lab/missing is not on the Hub"):
        api.merge_recipe(recipe, tmp_path / "none")


def test_offline_takes_what_was_downloaded(hub: HubServer, models: list[str], tmp_path: Path) -> None:
    api.inspect("lab/a")
    done = paring("inspect", "lab/a", "--offline", "--json")
    assert done.returncode == 1 and "was not downloaded before, or not in full" in done.stderr
    assert paring("merge", "lab/a", "lab/b", "-o", tmp_path / "out").returncode == 0
    before = len(hub.log)
    done = paring("merge", "lab/a", "lab/b@main", "-o", tmp_path / "again", "--offline", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["inputs"] == [
        f"{name}@{_commit(hub, name)}" for name in ("lab/a", "lab/b")
    ]
    commit = f"lab/a@{_commit(hub, 'lab/a')}"
    assert paring("inspect", commit, HF_HUB_OFFLINE="1").returncode == 0
    assert len(hub.log) == before
    one, two = (open_checkpoint(tmp_path / name).digest() for name in ("out", "again"))
    assert one == two


@pytest.mark.parametrize("command", [
    ("mask", "apply", "{mask}", "lab/a", "-o", "{out}"), ("eval", "lab/a", "--data", "{mask}"),
    ("calibrate", "lab/a", "--data", "{mask}", "-o", "{out}"), ("mask", "verify", "{mask}", "lab/a"),
    ("mask", "extract", "lab/a", "-o", "{out}"), ("mask", "stats", "lab/masks:m.safetensors"),
])  # fmt: skip
def test_commands_of_pruning_go_offline(
    hub: HubServer, models: list[str], tmp_path: Path, command: tuple[str, ...]
) -> None:
    places = {"mask": tmp_path / "mask.safetensors", "out": tmp_path / "out.safetensors"}
    api.prune(models[0], tmp_path / "pruned", sparsity=".5", include=["*"], save_mask=places["mask"])
    before = len(hub.log)
    done = paring(*(word.format(**places) for word in command), "--offline", HF_HOME=str(tmp_path / "none"))
    assert done.returncode == 1 and "was not downloaded before" in done.stderr, done.stderr
    assert len(hub.log) == before and not places["out"].exists()


def test_masks_and_their_models_are_taken_from_the_hub(
    hub: HubServer, models: list[str], tmp_path: Path
) -> None:
    pruned, mask = tmp_path / "pruned", tmp_path / "masks" / "m.safetensors"
    mask.parent.mkdir()
    api.prune("lab/a", pruned, sparsity=".5", include=["*"], save_mask=mask)
    put(hub, "lab/sparse", pruned)
    put(hub, "lab/masks", mask.parent)
    away, told = "lab/masks:m.safetensors", f"lab/sparse@{_commit(hub, 'lab/sparse')}"
    done = paring("mask", "extract", "lab/sparse", "-o", tmp_path / "found.safetensors", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["inputs"] == [told] and found["digest"] == masking.stats(mask).digest
    assert paring("mask", "verify", away, "lab/sparse").returncode == 0
    wrong = paring("mask", "verify", mask, "lab/b", "--json")
    assert wrong.returncode == 1 and "is zero where it is masked: " in wrong.stdout
    assert json.loads(wrong.stdout)["inputs"][1] == f"lab/b@{_commit(hub, 'lab/b')}"
    assert (
        json.loads(paring("mask", "stats", away, "--offline", "--json").stdout)["digest"] == found["digest"]
    )
    assert json.loads(paring("mask", "diff", mask, away, "--json").stdout)["iou"] == 1
    assert paring("mask", "union", mask, away, "-o", tmp_path / "union.safetensors").returncode == 0
    api.apply_mask(away, "lab/b", tmp_path / "applied")
    assert masking.verify(mask, tmp_path / "applied").ok
    shutil.rmtree(mask.parent)
    assert api.rerun(tmp_path / "applied", tmp_path / "again").same
    none = paring("mask", "extract", "lab/none", "-o", tmp_path / "none.safetensors")
    assert none.returncode == 1 and "lab/none" in none.stderr and not (tmp_path / "none.safetensors").exists()


def test_a_file_that_is_not_what_its_header_said(hub: HubServer, tmp_path: Path) -> None:
    for name, shape in (("one", (4, 6)), ("two", (6, 4))):
        put(hub, f"lab/{name}", put_model(tmp_path / name, {"a.weight": np.ones(shape, np.float32)}))
    home = Path(located("lab/one"))
    with open_checkpoint(home) as opened:
        assert awaited.awaited(home / "model.safetensors") is not None
        other = next(
            f for n, f in hub.store.repos["lab/two"].commit("main").files.items() if n.endswith("safetensors")
        )
        files = hub.store.repos["lab/one"].commit("main").files
        files["model.safetensors"] = other
        with pytest.raises(BadFileError, match="is not what its header said"):
            opened.read("a.weight")


def test_no_room_for_a_download(hub: HubServer, models: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "paring.hub.reading.shutil.disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1)
    )
    with open_checkpoint(located("lab/a")) as opened, pytest.raises(OutputError, match="no room for lab/a"):
        opened.digest()
    assert not weights_read(hub)


def test_a_branch_that_moves_meanwhile_is_one_commit(
    hub: HubServer, models: list[str], tmp_path: Path
) -> None:
    first = located("lab/a")
    put(hub, "lab/a", put_model(tmp_path / "new", arrays(7, BASE), "BF16"))
    assert located("lab/a") == located("hf://lab/a") == first
    asked = len(hub.log)
    assert located(pinned("lab/a")) == first and len(hub.log) == asked  # known by its commit
    assert located(f"lab/a@{_commit(hub, 'lab/a')}") != first


def test_damage_in_a_header_is_told_by_name(hub: HubServer, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"<html>not found</html>" * 9)
    put(hub, "lab/bad", tmp_path)
    with pytest.raises(BadFileError, match=r"^lab/bad@\w{10}/model.safetensors is a web page"):
        api.inspect("lab/bad")


def test_a_name_that_is_a_path_is_a_missing_file(hub: HubServer, tmp_path: Path) -> None:
    for name in ("nowhere/at/all", "/lab/a", "./lab/a", "lab/a.safetensors", str(tmp_path / "x")):
        with pytest.raises(BadFileError, match="does not exist"):
            api.inspect(name)
    assert not hub.log
