"""The test hub itself: that its xet store is still what it takes it for, and its own errors."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import huggingface_hub.constants
import pytest
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError

from tests.hub_server import HubServer
from tests.hubbing import held

# the client's own, when it uploads over LFS
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two large files, one of them twice, and small ones."""
    made = tmp_path / "made"
    (made / "sub").mkdir(parents=True)
    data = os.urandom(3_000_000)
    (made / "model.safetensors").write_bytes(data)
    (made / "sub" / "copy.bin").write_bytes(data)
    (made / "tiny.bin").write_bytes(b"tiny" + data[:10])
    (made / "config.json").write_text("{}")
    (made / "README.md").write_text("---\nlicense: mit\n---\n")
    return made


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_the_wheels_local_store_is_as_we_read_it(tmp_path: Path) -> None:
    """Without any hub: if this fails, hf_xet has changed its store, and tests of pushing need another leg."""
    import hf_xet

    from tests.hub_store import Store

    store = Store(tmp_path / "store")
    data = [os.urandom(2_000_000), b"small" * 50]
    commit = hf_xet.XetSession().new_upload_commit(endpoint=f"local://{store.turn()}")
    handles = [commit.start_upload_bytes(d, sha256=hf_xet.COMPUTE_SHA256, name=str(len(d))) for d in data]
    commit.wait_to_finish()
    infos = [handle.result().xet_info for handle in handles]
    expected = {
        hashlib.sha256(d).hexdigest(): (info.hash, len(d)) for d, info in zip(data, infos, strict=True)
    }
    assert store.xet_hashes() == expected
    assert [store.read(sha256) for sha256 in expected] == data
    assert store.xet_bytes() > 2_000_000


@pytest.mark.parametrize("leg", ["xet", "basic", "multipart"])
def test_up_and_down(
    hub: HubServer, folder: Path, tmp_path: Path, leg: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", leg != "xet")
    hub.part_size = 1_000_000 if leg == "multipart" else None
    api = HfApi()
    api.create_repo("me/x")
    api.upload_folder(repo_id="me/x", folder_path=folder)
    puts = [r.path for r in hub.requests("PUT", "/storage/")]
    assert len(puts) == {"xet": 0, "basic": 2, "multipart": 4}[leg]
    assert held(hub, "me/x") == contents(folder)
    there = Path(snapshot_download("me/x", cache_dir=tmp_path / "one"))
    assert contents(there) == contents(folder)
    # pushed by whatever leg, the bytes come over plain HTTP too
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    assert (
        Path(hf_hub_download("me/x", "tiny.bin", cache_dir=tmp_path / "two")).read_bytes().startswith(b"tiny")
    )
    before = len(hub.requests("POST", "/commit/"))
    api.upload_folder(repo_id="me/x", folder_path=folder)
    assert len(hub.requests("POST", "/commit/")) == before  # nothing has changed
    assert not any("Authorization" in r.headers for r in hub.log if r.to_storage)


def test_what_the_client_asks_beside(hub: HubServer, folder: Path) -> None:
    api = HfApi()
    api.create_repo("me/x", private=True)
    with pytest.raises(HfHubHTTPError):
        api.create_repo("me/x")
    api.create_repo("me/x", exist_ok=True)
    api.upload_folder(repo_id="me/x", folder_path=folder, commit_message="one")
    api.create_branch("me/x", branch="dev")
    api.delete_file("tiny.bin", "me/x", revision="dev")
    api.delete_folder("sub", "me/x", revision="dev")
    assert sorted(api.list_repo_files("me/x", revision="dev")) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    assert {item.path for item in api.list_repo_tree("me/x")} >= {"sub", "config.json"}
    assert [item.path for item in api.list_repo_tree("me/x", "sub")] == ["sub/copy.bin"]
    assert api.file_exists("me/x", "sub/copy.bin") and not api.file_exists("me/x", "none")
    assert [commit.title for commit in api.list_repo_commits("me/x")] == ["one", "initial commit"]
    assert {ref.name for ref in api.list_repo_refs("me/x").branches} == {"main", "dev"}
    assert [info.path for info in api.get_paths_info("me/x", ["config.json", "none"])] == ["config.json"]
    info = api.model_info("me/x", files_metadata=True)
    assert info.private and info.card_data is not None and info.card_data.license == "mit"
    assert {item.size for item in info.siblings or ()} >= {2, 3_000_000}
    pull = api.upload_folder(repo_id="me/x", folder_path=folder / "sub", create_pr=True)
    assert pull.pr_num == 1 and api.get_discussion_details("me/x", 1).is_pull_request
    api.delete_repo("me/x")
    assert not api.repo_exists("me/x")


def test_faults_and_a_parent_that_moved(hub: HubServer, folder: Path) -> None:
    api = HfApi()
    api.create_repo("me/x")
    first = api.model_info("me/x").sha
    api.upload_folder(repo_id="me/x", folder_path=folder / "sub")
    with pytest.raises(HfHubHTTPError, match="412"):
        api.upload_folder(repo_id="me/x", folder_path=folder, parent_commit=first)
    hub.fail("GET", "/api/models/", 503, message="tired", Retry_After="1")
    with pytest.raises(HfHubHTTPError, match="503") as caught:
        api.model_info("me/x")
    assert caught.value.response.headers["Retry-After"] == "1" and hub.log[-1].status == 503
    assert api.model_info("me/x").sha != first


def test_a_commit_needs_its_bytes(hub: HubServer) -> None:
    """A file is named by its SHA-256; one that was never uploaded is refused, as the real Hub does."""
    import json

    import httpx2

    hub.store.create("me/x")
    lines = [
        {"key": "header", "value": {"summary": "s"}},
        {"key": "lfsFile", "value": {"path": "a.bin", "algo": "sha256", "oid": "0" * 64, "size": 1}},
    ]
    body = "\n".join(map(json.dumps, lines))
    headers = {"Authorization": "Bearer hf_owner"}
    answer = httpx2.post(f"{hub.url}/api/models/me/x/commit/main", content=body, headers=headers)
    assert answer.status_code == 400 and "never uploaded" in answer.text
    assert httpx2.get(f"{hub.url}/nothing/here/at/all").status_code == 404
