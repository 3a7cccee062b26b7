"""The test hub's files: what a commit holds, and their bytes, whole or in ranges."""

from __future__ import annotations

import re
import time
from typing import Any

from tests.hub_routes import MODEL, asks_for_request, commit_of
from tests.hub_server import Answer, HubServer, Refused, Request
from tests.hub_store import File


def tree(hub: HubServer, request: Request, name: str, revision: str, folder: str) -> Answer:
    commit = commit_of(hub.repo(request, name, files=True), revision)
    deep = request.query.get("recursive", ["false"])[0].lower() == "true"
    rows: dict[str, dict[str, Any]] = {}
    for path, file in sorted(commit.files.items()):
        if folder and not path.startswith(folder + "/"):
            continue
        parents = path[len(folder) + 1 if folder else 0 :].split("/")[:-1]
        for depth in range(1, len(parents) + 1):
            above = "/".join([*filter(None, [folder]), *parents[:depth]])
            rows.setdefault(above, {"type": "directory", "path": above, "oid": "0" * 40, "size": 0})
            if not deep:
                break
        if deep or not parents:
            rows[path] = _row(hub, path, file)
    if folder and not rows:
        raise Refused(404, f"{folder} does not exist on {revision}", "EntryNotFound")
    return Answer.of(list(rows.values()))


def paths_info(hub: HubServer, request: Request, name: str, revision: str) -> Answer:
    commit = commit_of(hub.repo(request, name, files=True), revision)
    asked = request.json()["paths"] if b"{" in request.body else []
    return Answer.of([_row(hub, path, commit.files[path]) for path in asked if path in commit.files])


def xet_token(hub: HubServer, request: Request, name: str, kind: str, revision: str) -> Answer:
    repo = hub.repo(
        request, name, files=True, write=kind == "write" and not asks_for_request(request, revision)
    )
    commit_of(repo, revision)
    if not hub.xet:
        raise Refused(404, "this hub has no xet", "Unknown")
    address, expires = f"local://{hub.store.xet}", str(int(time.time()) + 3600)
    told = {"casUrl": address, "accessToken": "xet-only", "exp": int(expires)}
    headers = {"X-Xet-Cas-Url": address, "X-Xet-Access-Token": "xet-only", "X-Xet-Token-Expiration": expires}
    return Answer.of(told, **headers)


def resolve(hub: HubServer, request: Request, name: str, revision: str, path: str) -> Answer:
    commit = commit_of(hub.repo(request, name, files=True), revision)
    file = commit.files.get(path)
    told = {"X-Repo-Commit": commit.sha, "Accept-Ranges": "bytes"}
    if file is None:
        return Answer.of({"error": "Entry not found"}, 404, **{"X-Error-Code": "EntryNotFound", **told})
    if not file.lfs:
        told |= {"ETag": f'"{file.oid}"', "Content-Length": str(file.size)}
        return ranged(request, hub.store.read(file.sha256), told)
    told |= {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(file.size), "ETag": f'"{file.oid}"'}
    if found := _xet_hash(hub, file):
        route = f"{hub.url}/api/models/{name}/xet-read-token/{commit.sha}"
        told |= {"X-Xet-Hash": found, "Link": f'<{route}>; rel="xet-auth"'}
    return Answer(302, b"", {**told, "Location": f"{hub.storage}/{file.sha256}"})


def ranged(request: Request, data: bytes, headers: dict[str, str]) -> Answer:
    """All of ``data``, or the range that is asked for."""
    match = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))
    if match is None:
        return Answer(200, data, headers)
    first, last = int(match[1]), min(int(match[2] or len(data) - 1), len(data) - 1)
    if first > last:
        return Answer(416, b"", {"Content-Range": f"bytes */{len(data)}"})
    part = data[first : last + 1]
    more = {"Content-Range": f"bytes {first}-{last}/{len(data)}", "Content-Length": str(len(part))}
    return Answer(206, part, {**headers, **more})


def _xet_hash(hub: HubServer, file: File) -> str | None:
    """What the file is called in the xet store, if it lies there."""
    found = hub.store.xet_hashes().get(file.sha256) if file.lfs and hub.xet else None
    return None if found is None else found[0]


def _row(hub: HubServer, path: str, file: File) -> dict[str, Any]:
    row: dict[str, Any] = {"type": "file", "path": path, "size": file.size, "oid": file.oid}
    if file.lfs:
        row["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": 130}
    if found := _xet_hash(hub, file):
        row["xetHash"] = found
    return row


ROUTES = [
    ("GET", MODEL + "/tree/([^/]+)(?:/(.+))?", tree),
    ("POST", MODEL + "/paths-info/([^/]+)", paths_info),
    ("GET", MODEL + "/xet-(read|write)-token/([^/]+)", xet_token),
    ("HEAD", "/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", resolve),
    ("GET", "/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", resolve),
]
