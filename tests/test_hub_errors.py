"""Every way in which the Hub says no: one sentence that says what, where, and what to do."""

from __future__ import annotations

import socket
from pathlib import Path

import huggingface_hub.constants
import pytest

from paring import api
from paring.errors import HubError, OptionError, ParingError, UnsupportedError
from tests.hub_server import HubServer
from tests.hubbing import ADAPTERS, paring, put

# the client's own, when it uploads over LFS
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "made"
    made.mkdir()
    (made / "model.safetensors").write_bytes(b"\0" * 1000 + tmp_path.name.encode())
    (made / "README.md").write_text("---\nlicense: mit\n---\nA model.\n")
    return made


def refusal(folder: Path, repo: str = "me/x", **options: object) -> str:
    """What a push says that is refused; a single line, without the token."""
    with pytest.raises(HubError) as caught:
        api.push(folder, repo, **options)  # type: ignore[arg-type]
    text = str(caught.value)
    assert "\n" not in text and "hf_" not in text and len(text) < 400
    return text


def test_no_token(hub: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    assert "needs a token, and there is none: run `hf auth login`, or set HF_TOKEN" in refusal(folder)


def test_wrong_token(hub: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_unknown")
    assert "does not take the token" in refusal(folder)
    with pytest.raises(HubError, match="does not take the token"):
        api.inspect("me/x")


def test_a_token_that_may_not_write(hub: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "other/x: me may not write there (but to me, lab)" in refusal(folder, "other/x")
    monkeypatch.setenv("HF_TOKEN", "hf_reader")
    assert "your token may only read" in refusal(folder)
    assert not hub.requests("POST")  # refused before anything was sent


def test_the_server_says_why_it_is_forbidden(hub: HubServer, folder: Path) -> None:
    hub.fail("POST", "/commit/", 403, message="Private repository storage limit reached")
    assert "no right to do this (Private repository storage limit reached)" in refusal(folder)


@pytest.mark.parametrize("status", [401, 403])
def test_a_token_refused_within_xet(hub: HubServer, folder: Path, status: int) -> None:
    hub.fail("GET", "/xet-write-token/", status, times=20)
    assert {401: "does not take the token", 403: "no right to do this"}[status] in refusal(folder)


def test_a_repository_that_is_missing_or_private(hub: HubServer, tmp_path: Path) -> None:
    with pytest.raises(HubError, match=r"is not on the Hub, or is private .*nor is there a file or folder"):
        api.inspect("me/none")
    hub.store.create("other/hidden", private=True)
    with pytest.raises(HubError, match=r"other/hidden is not on the Hub, or is private"):
        api.inspect("hf://other/hidden")
    with pytest.raises(HubError, match="is not on the Hub"):
        api.push(ADAPTERS / "rotten", "other/none", create_pr=True)


def test_a_gated_repository(hub: HubServer) -> None:
    put(hub, "other/gated", ADAPTERS / "rotten")
    hub.store.repos["other/gated"].granted = set()
    with pytest.raises(HubError, match=r"is gated: ask for access .*/other/gated"):
        api.inspect("other/gated")
    hub.store.repos["other/gated"].granted = {"me"}
    assert api.inspect("other/gated").modules


def test_a_branch_or_file_that_is_missing(hub: HubServer) -> None:
    put(hub, "me/rotten", ADAPTERS / "rotten")
    with pytest.raises(HubError, match="me/rotten has no branch, tag or commit nope"):
        api.inspect("me/rotten@nope")
    with pytest.raises(HubError, match="me/rotten has no folder or file sub"):
        api.inspect("me/rotten:sub")
    hub.fail("GET", "/resolve/", 404, code="EntryNotFound", times=9)
    with pytest.raises(HubError, match=r"has no file .*: it was renamed or removed"):
        api.inspect("me/rotten:head.safetensors")


def test_conflicts(hub: HubServer, folder: Path) -> None:
    api.push(folder, "me/x")
    api.push(folder, "me/x", revision="dev")
    api.push(folder, "me/x", revision="dev")  # repository and branch are there: no conflict
    (folder / "model.safetensors").write_bytes(b"other")
    hub.fail("POST", "/commit/", 409, message="the branch is being changed")
    assert "there is one already, or it is being changed (the branch is being changed)" in refusal(folder)
    hub.fail("POST", "/commit/", 412)
    assert "was changed while this was pushed: run the command again" in refusal(folder)


def test_a_card_that_the_hub_refuses(hub: HubServer, folder: Path) -> None:
    (folder / "README.md").write_text("---\nlicense: [1]\n---\n")
    assert '"license" must be a string' in refusal(folder)
    (folder / "README.md").write_text("---\na: [\n---\n")
    with pytest.raises(ParingError, match="its header is not YAML"):
        api.push(folder, "me/x")
    assert not hub.requests("POST", "/commit/")


@pytest.mark.parametrize("repo", ["a/b/c", "", "a b", "me/x@dev", "../x", "me/x--y", "me/.x"])
def test_ids_that_are_none(hub: HubServer, folder: Path, repo: str) -> None:
    with pytest.raises(OptionError, match="not the id of a repository"):
        api.push(folder, repo)
    assert not hub.log


def test_too_many_requests_and_a_server_in_trouble(hub: HubServer, folder: Path) -> None:
    hub.fail("GET", "/whoami", 429, Retry_After="7")
    assert "the Hub's rate limit is reached: try again in 7 seconds" in refusal(folder)
    hub.fail("GET", "/whoami", 503)
    assert "the Hub has trouble (HTTP 503): try again later" in refusal(folder)
    hub.fail("GET", "/api/models/", 502)
    with pytest.raises(HubError, match=r"the Hub has trouble \(HTTP 502\)"):
        api.inspect("me/x")
    hub.fail("GET", "/whoami")  # hangs up
    assert "cannot be reached" in refusal(folder)


def test_a_moment_of_trouble_is_got_over(hub: HubServer, folder: Path) -> None:
    hub.fail("POST", "/preupload/", 503)
    hub.fail("POST", "/commit/", 429, Retry_After="0")
    assert api.push(folder, "me/x").commit == hub.store.repos["me/x"].branches["main"]
    assert [r.status for r in hub.requests("POST", "/commit/")] == [429, 200]


def test_a_hub_that_is_down(folder: Path) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        for command in (("push", folder, "me/x"), ("inspect", "me/x")):
            done = paring(*command, HF_ENDPOINT=address, HF_TOKEN="hf_owner")
            assert done.returncode == 1 and done.stdout == ""
            assert f"the Hub at {address} cannot be reached" in done.stderr
            assert len(done.stderr.splitlines()) == 1


def test_offline(hub: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "--offline or HF_HUB_OFFLINE forbids" in refusal(folder)
    with pytest.raises(HubError, match=r"was not downloaded before.*HF_HUB_OFFLINE"):
        api.inspect("me/never-seen")
    assert not hub.log


def test_a_hub_without_xet(hub: HubServer, folder: Path) -> None:
    hub.xet = False
    assert "has no xet storage: set HF_HUB_DISABLE_XET=1" in refusal(folder)


def test_a_storage_that_refuses(hub: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    hub.fail("PUT", "/storage/", 403)
    assert "the storage refused the bytes" in refusal(folder)
    hub.fail("POST", "/objects/batch", 507)
    assert "the Hub has trouble (HTTP 507)" in refusal(folder)


def test_other_kinds_of_repositories(hub: HubServer) -> None:
    with pytest.raises(OptionError, match="not one of datasets"):
        api.inspect("hf://datasets/me/x")
    with pytest.raises(OptionError, match="leaves the repository"):
        api.inspect("me/x:../y")


def test_pickles_are_not_taken_unasked(hub: HubServer, tmp_path: Path) -> None:
    import torch

    torch.save({"a.weight": torch.ones(3)}, tmp_path / "pytorch_model.bin")
    put(hub, "me/pickled", tmp_path)
    with pytest.raises(UnsupportedError, match=r"name the file, as in me/pickled:pytorch_model\.bin"):
        api.inspect("me/pickled")
    assert not hub.requests("GET", "/storage/")
    assert api.inspect("me/pickled:pytorch_model.bin").elements == 3
