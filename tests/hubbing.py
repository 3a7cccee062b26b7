"""What tests of the Hub share: repositories put there, commands run against it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.hub_server import HubServer

ROOT = Path(__file__).parent.parent
ADAPTERS = ROOT / "fixtures" / "adapters"


def put(hub: HubServer, repo: str, folder: Path, *, branch: str = "main", private: bool = False) -> str:
    """Put all files of a folder on the Hub without the client; returns the commit."""
    made = hub.store.repos.get(repo) or hub.store.create(repo, private=private)
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            data = path.read_bytes()
            lfs = path.suffix in (".safetensors", ".bin")
            name = path.relative_to(folder).as_posix()
            files[name] = hub.store.file(hub.store.put(data), len(data), lfs=lfs)
    made.branches.setdefault(branch, made.branches["main"])
    return made.add(branch, files, "put", "somebody").sha


def held(hub: HubServer, repo: str, revision: str = "main") -> dict[str, bytes]:
    """The files of a repository, by name."""
    commit = hub.store.repos[repo].commit(revision)
    assert commit is not None, revision
    return {name: hub.store.read(file.sha256) for name, file in commit.files.items()}


def weights_read(hub: HubServer) -> list[str]:
    """The requests that brought bytes of weights other than headers."""
    whole = [r.path for r in hub.requests("GET", "/storage/") if "Range" not in r.headers]
    return whole + [r.path for r in hub.requests("GET", "/xet-read-token/")]


def paring(
    *args: object, cwd: Path | None = None, function: str = "main", **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own; an empty variable is unset."""
    return subprocess.run(
        [sys.executable, "-c", f"from paring.cli import {function}; {function}()", *map(str, args)],
        cwd=cwd, env=variables(**environment), capture_output=True, text=True, check=False, timeout=200,
    )  # fmt: skip


def variables(**changes: str) -> dict[str, str]:
    """The environment of such a process."""
    found = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "passive", **changes}
    return {name: value for name, value in found.items() if value}
