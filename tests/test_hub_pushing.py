"""Results pushed to the Hub with the real client, over xet and over LFS, and taken from there again."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from paring import api, card
from paring.errors import BadFileError, HubError, OptionError
from tests.hub_server import HubServer
from tests.hubbing import ADAPTERS, held, paring, put, variables
from tests.merging import arrays, put_model

# the client's own, when it uploads over LFS
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
BASE = arrays(0)
QUICK = ("--method", "compeft", "--density", "0.1")


def header(text: bytes) -> dict[str, object]:
    return card.split(text.decode())[0]


def test_compressed_pushed_pulled_and_decompressed(hub: HubServer, transport: str, tmp_path: Path) -> None:
    put(hub, "lab/rotten", ADAPTERS / "rotten")
    packed = tmp_path / "small.paring.safetensors"
    done = paring(
        "compress", "lab/rotten", *QUICK, "-o", packed, "--push-to-hub", "me/small", "--private", "--json",
    )  # fmt: skip
    assert done.returncode == 0 and done.stderr == "", done.stderr
    report = json.loads(done.stdout)
    assert report["pushed"]["url"] == f"{hub.url}/me/small"
    assert report["pushed"]["commit"] == hub.store.repos["me/small"].branches["main"]
    assert len(hub.requests("POST", "/commit/")) == 1  # weights and card in one
    assert hub.store.repos["me/small"].private
    there = held(hub, "me/small")
    assert there["small.paring.safetensors"] == packed.read_bytes()
    assert header(there["README.md"])["base_model"] == ["lab/rotten"]
    route = "/xet-write-token/" if transport == "xet" else "/objects/batch"
    assert hub.requests(part=route) and bool(hub.requests("PUT", "/storage/")) == (transport != "xet")
    api.decompress(packed, tmp_path / "here")
    assert paring("decompress", "me/small", "-o", tmp_path / "back").returncode == 0
    weights = "adapter_model.safetensors"
    assert (tmp_path / "back" / weights).read_bytes() == (tmp_path / "here" / weights).read_bytes()


def test_three_repositories_merged_and_pushed(hub: HubServer, transport: str, tmp_path: Path) -> None:
    for i, name in enumerate(("base", "a", "b", "c")):
        put(hub, f"lab/{name}", put_model(tmp_path / name, arrays(i, BASE) if i else BASE, "BF16"))
    done = paring(
        "lab/a", "lab/b", "lab/c", "--base", "lab/base", "--method", "ties", "--shard-size", "100kB",
        "-o", tmp_path / "out", "--push-to-hub", "lab/merged", "--revision", "dev",
        "--commit-message", "Three of them", function="merge_main",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"pushed to {hub.url}/lab/merged/tree/dev" in done.stdout
    assert (
        held(hub, "lab/merged") == {} and hub.store.repos["lab/merged"].commit("dev").title == "Three of them"
    )
    there = held(hub, "lab/merged", "dev")
    here = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert there.keys() == here.keys() and len(there) > 5
    assert all(there[name] == here[name] for name in here if name != "README.md")
    told = header(there["README.md"])
    assert told["base_model"] == ["lab/base", "lab/a", "lab/b", "lab/c"]
    assert told["base_model_relation"] == "merge" and told["library_name"] == "transformers"
    assert b'AutoModelForCausalLM.from_pretrained("lab/merged")' in there["README.md"]
    report = api.inspect("lab/merged@dev")
    assert report.elements == sum(np.prod(x.shape, dtype=int) for x in BASE.values())
    assert api.load("lab/merged@dev").keys() == api.load(tmp_path / "out").keys()


def test_a_pull_request(hub: HubServer, transport: str, tmp_path: Path) -> None:
    put(hub, "other/model", ADAPTERS / "rotten")
    api.merge([ADAPTERS / "rotten", ADAPTERS / "brown"], tmp_path / "out")
    done = api.push(tmp_path / "out", "other/model", create_pr=True, message="Better")
    assert (done.url, done.revision) == (f"{hub.url}/other/model/discussions/1", "refs/pr/1")
    assert hub.store.repos["other/model"].requests == ["Better"]
    weights = "adapter_model.safetensors"
    assert held(hub, "other/model", "refs/pr/1")[weights] == (tmp_path / "out" / weights).read_bytes()
    assert held(hub, "other/model")[weights] == (ADAPTERS / "rotten" / weights).read_bytes()
    assert len(api.load("other/model@refs/pr/1")) == len(api.load(tmp_path / "out"))
    with pytest.raises(OptionError, match="one of"):
        api.push(tmp_path / "out", "other/model", create_pr=True, revision="dev")


def test_a_private_repository_is_private(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.push(ADAPTERS / "rotten", "rotten", private=True)
    assert len(api.load("me/rotten")) == 48
    api.push(ADAPTERS / "brown", "me/public")
    assert not hub.store.repos["me/public"].private
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    assert paring("inspect", "me/public").returncode == 0
    done = paring("inspect", "me/rotten", "-q", HF_HOME=str(tmp_path))
    assert done.returncode == 1 and "is not on the Hub, or is private" in done.stderr


def test_a_push_that_fails_says_how_to_go_on(hub: HubServer, transport: str, tmp_path: Path) -> None:
    packed = tmp_path / "x.paring.safetensors"
    hub.fail("POST", "/commit/", 403, message="no")
    done = paring("compress", ADAPTERS / "rotten", *QUICK, "-o", packed, "--push-to-hub", "me/x")
    assert done.returncode == 1 and f"`paring push {packed} me/x` goes on with it" in done.stderr
    uploads = len(hub.requests("PUT", "/storage/"))
    again = paring("push", packed, "me/x", "--json")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["files"] == ["README.md", packed.name]
    assert held(hub, "me/x")[packed.name] == packed.read_bytes()
    assert len(hub.requests("PUT", "/storage/")) == uploads  # what had come was not sent again
    before = len(hub.requests("POST", "/commit/"))
    assert api.push(packed, "me/x").commit == hub.store.repos["me/x"].branches["main"]
    assert len(hub.requests("POST", "/commit/")) == before  # and nothing at all the third time


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_a_push_that_is_cut_off_goes_on(hub: HubServer, tmp_path: Path, sent: signal.Signals) -> None:
    folder = put_model(tmp_path / "model", arrays(1), limit=100_000)
    hold = hub.hold("POST", "/commit/")
    code = "from paring.cli import main; main()"
    with subprocess.Popen(
        [sys.executable, "-c", code, "push", str(folder), "me/model"], env=variables(),
        stderr=subprocess.PIPE, text=True,
    ) as run:  # fmt: skip
        assert hold.arrived.wait(60)
        run.send_signal(sent)
        told = run.communicate(timeout=60)[1]
    assert run.returncode == (130 if sent == signal.SIGINT else -sent)
    assert (f"`paring push {folder} me/model` goes on" in told) == (sent == signal.SIGINT)
    hub.store.repos["me/model"].branches["main"] = next(iter(hub.store.repos["me/model"].commits))
    hub.heal()
    before = hub.store.xet_bytes()
    assert paring("push", folder, "me/model").returncode == 0
    assert hub.store.xet_bytes() == before > 0
    there = held(hub, "me/model")
    assert all(there[path.name] == path.read_bytes() for path in folder.iterdir())


def test_pushes_beside_each_other(hub: HubServer, transport: str, tmp_path: Path) -> None:
    folders = [put_model(tmp_path / str(i), arrays(i)) for i in range(4)]
    for i in (2, 3):  # two of them to one repository, other files
        (folders[i] / "model.safetensors").rename(folders[i] / f"part{i}.safetensors")
    repos = ["me/zero", "lab/one", "me/both", "me/both"]
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda i: paring("push", folders[i], repos[i]), range(4)))
    assert [run.returncode for run in done] == [0] * 4, [run.stderr for run in done]
    for i, folder in enumerate(folders):
        name = f"part{i}.safetensors" if i > 1 else "model.safetensors"
        assert held(hub, repos[i])[name] == (folder / name).read_bytes()


def test_many_in_one_repository_and_pools(hub: HubServer, tmp_path: Path) -> None:
    sources = [ADAPTERS / "rotten", ADAPTERS / "brown"]
    done = paring(
        "compress", *sources, *QUICK, "-o", tmp_path / "many", "--push-to-hub", "me/many", "--json"
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["pushed"]["repo"] == "me/many"
    names = {"rotten.paring.safetensors", "brown.paring.safetensors"}
    assert held(hub, "me/many").keys() == names | {"README.md"}
    assert len(api.load("me/many:brown.paring.safetensors")) == 48
    done = paring(
        "compress", *sources, "--method", "mos", "-o", tmp_path / "pool", "--push-to-hub", "me/pool", "--json"
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(api.load("me/pool#rotten")) == 48


def test_nothing_is_pushed_in_a_dry_run(hub: HubServer, tmp_path: Path) -> None:
    done = paring(
        "merge", ADAPTERS / "rotten", ADAPTERS / "brown", "-o", tmp_path / "x", "--push-to-hub", "me/x",
        "--dry-run",
    )  # fmt: skip
    assert done.returncode == 0 and "pushed to" not in done.stdout
    assert not hub.requests("POST") and not hub.store.repos
    done = paring("merge", ADAPTERS / "rotten", "-o", tmp_path / "x", "--push-to-hub", "other/x")
    assert done.returncode == 1 and "me may not write there" in done.stderr and not (tmp_path / "x").exists()


def test_a_pruned_model(hub: HubServer, tmp_path: Path) -> None:
    put(hub, "lab/model", put_model(tmp_path / "model", BASE))
    done = paring(
        "prune", "lab/model", "--sparsity", ".5", "-o", tmp_path / "out", "--push-to-hub", "me/sparse",
        "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["pushed"]["url"] == f"{hub.url}/me/sparse"
    told = header(held(hub, "me/sparse")["README.md"])
    assert told["base_model"] == ["lab/model"] and told["library_name"] == "transformers"
    commit = hub.store.repos["lab/model"].branches["main"]
    assert f"prune lab/model@{commit} --method".encode() in held(hub, "me/sparse")["README.md"]
    assert api.inspect("me/sparse").elements == api.inspect("lab/model").elements


def test_what_cannot_be_meant(hub: HubServer, tmp_path: Path) -> None:
    for arguments, text in (
        (("compress", ADAPTERS / "rotten", "--create-pr"), "--create-pr needs --push-to-hub ID"),
        (("push", tmp_path, "me/x", "--create-pr", "--revision", "a"), "one of"),
        (("push", tmp_path, "me x"), "not the id of a repository"),
        (("push", tmp_path), "Missing argument"),
    ):
        done = paring(*arguments)
        assert done.returncode == 2 and text in done.stderr, done.stderr
    with pytest.raises(BadFileError, match="does not exist"):
        api.push(tmp_path / "none", "me/x")
    with pytest.raises(BadFileError, match="holds no files"):
        api.push(tmp_path, "me/x")
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.safetensors").write_bytes(b"")
    with pytest.raises(OptionError, match=r"is called x\.safetensors, too"):
        api.push([tmp_path / "a" / "x.safetensors", tmp_path / "b" / "x.safetensors"], "me/x")
    with pytest.raises(OptionError, match="is a folder"):
        api.push([tmp_path / "a", tmp_path / "b"], "me/x")
    assert not hub.store.repos


def test_hidden_files_stay_here_and_folders_go_along(hub: HubServer, tmp_path: Path) -> None:
    put_model(tmp_path / "model", arrays(1))
    (tmp_path / "model" / "1_Pooling").mkdir()
    (tmp_path / "model" / "1_Pooling" / "config.json").write_text("{}")
    (tmp_path / "model" / ".git").mkdir()
    (tmp_path / "model" / ".git" / "config").write_text("secret")
    (tmp_path / "model" / ".env").write_text("secret")
    api.push(tmp_path / "model", "me/x")
    assert held(hub, "me/x").keys() == {
        "README.md", "config.json", "model.safetensors", "1_Pooling/config.json", "tokenizer.json",
    }  # fmt: skip


def test_a_recipe_may_be_pushed(hub: HubServer, tmp_path: Path) -> None:
    for name in ("rotten", "brown"):
        put(hub, f"lab/{name}", ADAPTERS / name)
    (tmp_path / "recipe.yaml").write_text("models: [lab/rotten, lab/brown]\n")
    done = paring(
        "merge", tmp_path / "recipe.yaml", "-o", tmp_path / "out", "--push-to-hub", "me/out", "--private"
    )
    assert done.returncode == 0, done.stderr
    assert "adapter_model.safetensors" in held(hub, "me/out")


def test_a_fine_grained_token_that_may_not_make_repositories(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.push(ADAPTERS / "rotten", "me/x")
    hub.fail("POST", "/repos/create", 403, message="may not create")
    assert api.push(ADAPTERS / "brown", "me/x").repo == "me/x"
    hub.fail("POST", "/repos/create", 403, message="may not create")
    with pytest.raises(HubError, match=r"me/y: your token has no right to do this \(may not create\)"):
        api.push(ADAPTERS / "brown", "me/y")
