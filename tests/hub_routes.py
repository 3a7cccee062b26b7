"""What the test hub answers: one function a route, named after what is asked for. docs/hub.md lists them."""

from __future__ import annotations

import base64
import json
import re
from typing import Any

import yaml

from tests.hub_server import Answer, HubServer, Refused, Request
from tests.hub_store import Commit, File, Repo

_LARGE = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".onnx", ".gguf", ".npz")
_DAY = "2026-01-01T00:00:00.000Z"


def whoami(hub: HubServer, request: Request) -> Answer:
    account = hub.account(request)
    if account is None:
        raise Refused(401, "Invalid username or password.", "")
    orgs = [{"type": "org", "name": name} for name in account.orgs]
    token = {"displayName": "test", "role": account.role}
    auth = {"type": "access_token", "accessToken": token}
    return Answer.of({"type": "user", "name": account.user, "orgs": orgs, "auth": auth})


def validate_yaml(hub: HubServer, request: Request) -> Answer:
    errors = []
    try:
        told = _header(request.json()["content"])
        relations = ("quantized", "merge", "adapter", "finetune")
        if told.get("base_model_relation", "merge") not in relations:
            errors.append({"message": '"base_model_relation" must be one of ' + ", ".join(relations)})
        if not isinstance(told.get("license", ""), str):
            errors.append({"message": '"license" must be a string'})
    except yaml.YAMLError as error:
        errors.append({"message": f"not YAML: {error}"})
    return Answer.of({"errors": errors, "warnings": []}, 400 if errors else 200)


def _header(card: str) -> dict[str, Any]:
    match = re.match(r"---\n(.*?)\n---", card, re.S)
    return (yaml.safe_load(match[1]) if match else None) or {}


def create(hub: HubServer, request: Request) -> Answer:
    account, told = hub.account(request), request.json()
    if account is None:
        raise Refused(401, "Invalid username or password.", "")
    name = f"{told.get('organization') or account.user}/{told['name']}"
    url = {"url": f"{hub.url}/{name}"}
    hub.refuse_writing(account, name)
    with hub.store.lock:
        if name in hub.store.repos:
            return Answer.of({"error": "You already created this model repo", **url}, 409)
        hub.store.create(name, private=told.get("visibility") == "private")
    return Answer.of(url)


def delete(hub: HubServer, request: Request) -> Answer:
    told = request.json()
    name = f"{told['organization']}/{told['name']}"
    hub.repo(request, name, write=True)
    del hub.store.repos[name]
    return Answer.of({})


def info(hub: HubServer, request: Request, name: str, revision: str) -> Answer:
    repo = hub.repo(request, name)
    commit = commit_of(repo, revision or "main")
    rows = []
    for path, file in sorted(commit.files.items()):
        row: dict[str, Any] = {"rfilename": path}
        if "blobs" in request.query:
            row |= {"size": file.size, "blobId": file.oid}
            if file.lfs:
                row["lfs"] = {"sha256": file.sha256, "size": file.size, "pointerSize": 130}
        rows.append(row)
    gated = "manual" if repo.granted is not None else False
    about = {"id": name, "modelId": name, "sha": commit.sha, "private": repo.private, "gated": gated}
    if card := commit.files.get("README.md"):
        about["cardData"] = _header(hub.store.read(card.sha256).decode())
    return Answer.of({**about, "lastModified": _DAY, "createdAt": _DAY, "tags": [], "siblings": rows})


def refs(hub: HubServer, request: Request, name: str) -> Answer:
    repo = hub.repo(request, name)
    rows = [
        {"name": branch, "ref": f"refs/heads/{branch}", "targetCommit": sha}
        for branch, sha in repo.branches.items()
        if not branch.startswith("refs/")
    ]
    return Answer.of({"branches": rows, "tags": [], "converts": []})


def commits(hub: HubServer, request: Request, name: str, revision: str) -> Answer:
    repo = hub.repo(request, name)
    at: Commit | None = commit_of(repo, revision)
    rows = []
    while at is not None:
        about = {"id": at.sha, "title": at.title, "message": "", "date": _DAY}
        rows.append({**about, "authors": [{"user": at.author}]})
        at = repo.commits.get(at.parent or "")
    return Answer.of(rows)


def branch(hub: HubServer, request: Request, name: str, made: str) -> Answer:
    repo = hub.repo(request, name, write=True)
    with hub.store.lock:
        if made in repo.branches:
            raise Refused(409, f"Reference refs/heads/{made} already exists", "")
        told = request.json() if request.body else {}
        repo.branches[made] = commit_of(repo, told.get("startingPoint") or "main").sha
    return Answer.of({})


def preupload(hub: HubServer, request: Request, name: str, revision: str) -> Answer:
    asking = hub.repo(request, name, write=not asks_for_request(request, revision))
    commit = commit_of(asking, revision)
    if hub.account(request) is None:
        raise Refused(401, "Invalid username or password.", "")
    rows = []
    for told in request.json()["files"]:
        large = told["path"].endswith(_LARGE) or told["size"] > 10 << 20
        there = commit.files.get(told["path"])
        oid = None if there is None else there.sha256 if there.lfs else there.oid
        mode = "lfs" if large else "regular"
        rows.append({"path": told["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
    return Answer.of({"files": rows})


def commit(hub: HubServer, request: Request, name: str, revision: str) -> Answer:
    asks_pr = "create_pr" in request.query
    repo = hub.repo(request, name, write=not asks_for_request(request, revision))
    account = hub.account(request)
    if account is None:
        raise Refused(401, "Invalid username or password.", "")
    operations = [json.loads(line) for line in request.body.splitlines() if line.strip()]
    with hub.store.lock:
        before = commit_of(repo, revision)
        header = next(o["value"] for o in operations if o["key"] == "header")
        if header.get("parentCommit", before.sha) != before.sha:
            raise Refused(412, "A commit has happened since. Please refresh and try again.", "")
        files = dict(before.files)
        for operation in operations:
            _apply(hub, files, operation["key"], operation["value"])
        ref = _request(repo, header["summary"]) if asks_pr else revision
        made = repo.add(ref, files, header["summary"], account.user)
    url = f"{hub.url}/{name}/discussions/{len(repo.requests)}" if asks_pr else None
    told = {"commitUrl": f"{hub.url}/{name}/commit/{made.sha}", "commitOid": made.sha}
    return Answer.of({"success": True, **told, "pullRequestUrl": url})


def _apply(hub: HubServer, files: dict[str, File], key: str, told: dict[str, Any]) -> None:
    if key == "file":
        data = base64.b64decode(told["content"])
        files[told["path"]] = hub.store.file(hub.store.put(data), len(data), lfs=False)
    elif key == "lfsFile":
        if not hub.store.has(told["oid"]):
            raise Refused(400, f"{told['path']}: its bytes were never uploaded", "")
        files[told["path"]] = hub.store.file(told["oid"], told.get("size", 0), lfs=True)
    elif key == "deletedFile":
        files.pop(told["path"], None)
    elif key == "deletedFolder":
        for path in [p for p in files if p.startswith(told["path"].rstrip("/") + "/")]:
            del files[path]


def discussions(hub: HubServer, request: Request, name: str) -> Answer:
    repo = hub.repo(request, name)
    if hub.account(request) is None:
        raise Refused(401, "Invalid username or password.", "")
    with hub.store.lock:
        _request(repo, request.json()["title"])
    return Answer.of({"num": len(repo.requests)})


def discussion(hub: HubServer, request: Request, name: str, number: str) -> Answer:
    title = hub.repo(request, name).requests[int(number) - 1]
    about = {"title": title, "num": int(number), "createdAt": _DAY, "status": "draft", "isPullRequest": True}
    changes = {"base": "refs/heads/main", "mergeCommitId": None}
    more = {"changes": changes, "filesWithConflicts": False, "events": [], "author": {"name": "someone"}}
    return Answer.of({**about, **more, "repo": {"name": name, "type": "model"}, "diff": ""})


def _request(repo: Repo, title: str) -> str:
    """A new pull request; returns its ref."""
    repo.requests.append(title)
    ref = f"refs/pr/{len(repo.requests)}"
    repo.branches[ref] = repo.branches["main"]
    return ref


def asks_for_request(request: Request, revision: str) -> bool:
    """Whether this is for a pull request, which anybody may make."""
    return "create_pr" in request.query or revision.startswith("refs/pr/")


def commit_of(repo: Repo, revision: str) -> Commit:
    found = repo.commit(revision)
    if found is None:
        raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
    return found


MODEL = r"/api/models/([^/]+/[^/]+)"
ROUTES = [
    ("GET", "/api/whoami-v2", whoami),
    ("POST", "/api/validate-yaml", validate_yaml),
    ("POST", "/api/repos/create", create),
    ("DELETE", "/api/repos/delete", delete),
    ("GET", MODEL + "(?:/revision/([^/]+))?", info),
    ("GET", MODEL + "/refs", refs),
    ("GET", MODEL + "/commits/([^/]+)", commits),
    ("POST", MODEL + "/branch/([^/]+)", branch),
    ("POST", MODEL + "/preupload/([^/]+)", preupload),
    ("POST", MODEL + "/commit/([^/]+)", commit),
    ("POST", MODEL + "/discussions", discussions),
    ("GET", MODEL + r"/discussions/(\d+)", discussion),
]
