"""The test hub's LFS: instructions for uploads, and the storage that bytes go to and come from."""

from __future__ import annotations

import hashlib

from tests.hub_files import ranged
from tests.hub_server import Answer, HubServer, Refused, Request


def batch(hub: HubServer, request: Request, name: str) -> Answer:
    hub.repo(request, name, write="refs/pr/" not in str(request.json().get("ref")))
    rows = []
    for told in request.json()["objects"]:
        oid, size = told["oid"], told["size"]
        row = {"oid": oid, "size": size}
        if not hub.store.has(oid):
            upload: dict[str, object] = {"href": f"{hub.storage}/{oid}"}
            if hub.part_size and size > hub.part_size:
                count = -(-size // hub.part_size)
                parts = {f"{i:05}": f"{hub.storage}/{oid}/{i}" for i in range(1, count + 1)}
                upload = {
                    "href": f"{hub.storage}/{oid}/all",
                    "header": {"chunk_size": str(hub.part_size), **parts},
                }
            row["actions"] = {"upload": upload, "verify": {"href": f"{hub.url}/api/lfs/verify"}}
        rows.append(row)
    return Answer.of({"transfer": "basic", "objects": rows})


def verify(hub: HubServer, request: Request) -> Answer:
    told = request.json()
    if not hub.store.has(told["oid"]) or len(hub.store.read(told["oid"])) != told["size"]:
        raise Refused(400, "the object is not there", "")
    return Answer.of({})


def put(hub: HubServer, request: Request, oid: str) -> Answer:
    if hashlib.sha256(request.body).hexdigest() != oid:
        raise Refused(400, "these are not the bytes that were announced", "")
    hub.store.put(request.body)
    return Answer()


def put_part(hub: HubServer, request: Request, oid: str, number: str) -> Answer:
    (hub.store.folder / "parts" / f"{oid}.{number}").write_bytes(request.body)
    return Answer(headers={"ETag": f'"{hashlib.md5(request.body).hexdigest()}"'})


def join(hub: HubServer, request: Request, oid: str) -> Answer:
    parts = [hub.store.folder / "parts" / f"{oid}.{part['partNumber']}" for part in request.json()["parts"]]
    data = b"".join(part.read_bytes() for part in parts)
    if hashlib.sha256(data).hexdigest() != oid:
        raise Refused(400, "the parts are not the bytes that were announced", "")
    hub.store.put(data)
    return Answer.of({})


def get(hub: HubServer, request: Request, oid: str) -> Answer:
    if not hub.store.has(oid):
        raise Refused(404, "no such object", "")
    return ranged(request, hub.store.read(oid), {"ETag": f'"{oid}"'})


ROUTES = [
    ("POST", r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", batch),
    ("POST", "/api/lfs/verify", verify),
    ("PUT", "/storage/([0-9a-f]{64})", put),
    ("PUT", r"/storage/([0-9a-f]{64})/(\d+)", put_part),
    ("POST", "/storage/([0-9a-f]{64})/all", join),
    ("GET", "/storage/([0-9a-f]{64})", get),
    ("HEAD", "/storage/([0-9a-f]{64})", get),
]
