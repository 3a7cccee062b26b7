"""What the test hub keeps: repositories as commits of files, and the bytes of files by their SHA-256.

Bytes pushed over LFS or within a commit lie in ``blobs/``. Bytes pushed over xet lie in the local store that
the client's own wheel keeps (``local://DIR``): a commit names them by SHA-256, a download by xet hash, and
the store's shards say which is which. That store is no promise of the wheel's: ``tests/test_hub_server.py``
fails loudly when it changes.
"""

from __future__ import annotations

import hashlib
import itertools
import struct
import threading
from dataclasses import dataclass, field
from pathlib import Path

_RECORD = 48  # bytes of every record of a shard
_VERIFIED, _EXTENDED = 1 << 31, 1 << 30  # flags of a file: records of checks follow, and one of its SHA-256


_NUMBERS = itertools.count()  # no two commits are the same, as no two moments are


@dataclass(frozen=True, slots=True)
class File:
    """A file of a commit; ``lfs`` when its bytes are in the storage rather than in git."""

    sha256: str
    size: int
    oid: str
    lfs: bool


@dataclass(frozen=True, slots=True)
class Commit:
    sha: str
    parent: str | None
    title: str
    author: str
    files: dict[str, File]


@dataclass(slots=True)
class Repo:
    """A model repository. ``granted`` are the users let into a gated one, None where it is not gated."""

    name: str
    private: bool = False
    granted: set[str] | None = None
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)  # titles of pull requests, numbered from 1

    def commit(self, revision: str) -> Commit | None:
        """The commit that a branch, a pull request or a full id names."""
        return self.commits.get(self.branches.get(revision, revision))

    def add(self, branch: str, files: dict[str, File], title: str, author: str) -> Commit:
        """A new commit on a branch, of these files and no others."""
        parent = self.branches.get(branch)
        listed = sorted((path, file.sha256) for path, file in files.items())
        told = repr((parent, title, author, listed, next(_NUMBERS)))
        made = Commit(hashlib.sha1(told.encode()).hexdigest(), parent, title, author, files)
        self.commits[made.sha] = made
        self.branches[branch] = made.sha
        return made


class Store:
    """All repositories and all bytes, below ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.repos: dict[str, Repo] = {}
        self.lock = threading.RLock()
        (folder / "blobs").mkdir(parents=True)
        (folder / "parts").mkdir()

    @property
    def xet(self) -> Path:
        """The folder of the xet store."""
        return self.folder / "cas"

    def create(self, name: str, *, private: bool = False) -> Repo:
        repo = self.repos[name] = Repo(name, private)
        repo.add("main", {}, "initial commit", name.partition("/")[0])
        return repo

    def put(self, data: bytes) -> str:
        """Keep bytes; returns their SHA-256."""
        sha256 = hashlib.sha256(data).hexdigest()
        (self.folder / "blobs" / sha256).write_bytes(data)
        return sha256

    def file(self, sha256: str, size: int, *, lfs: bool) -> File:
        oid = hashlib.sha1(f"lfs {sha256}".encode()) if lfs else self._git(sha256)
        return File(sha256, size, oid.hexdigest(), lfs)

    def _git(self, sha256: str) -> hashlib._Hash:
        data = (self.folder / "blobs" / sha256).read_bytes()
        return hashlib.sha1(b"blob %d\0" % len(data) + data)

    def has(self, sha256: str) -> bool:
        return (self.folder / "blobs" / sha256).exists() or sha256 in self.xet_hashes()

    def read(self, sha256: str) -> bytes:
        """The bytes of a file, wherever they were pushed to."""
        path = self.folder / "blobs" / sha256
        if not path.exists():
            self._fetch(self.xet_hashes()[sha256], path)
        return path.read_bytes()

    def _fetch(self, found: tuple[str, int], path: Path) -> None:
        """Take a file out of the xet store."""
        import hf_xet

        partial = path.with_name(f".{path.name}.{threading.get_ident()}")
        session = hf_xet.XetSession()
        with session.new_file_download_group(endpoint=f"local://{self.xet}") as group:
            group.start_download_file(hf_xet.XetFileInfo(*found), str(partial))
        partial.replace(path)

    def xet_hashes(self) -> dict[str, tuple[str, int]]:
        """SHA-256 -> xet hash and size, of all files in the xet store."""
        found = {}
        for shard in (self.xet / "xet" / "xorbs" / "shards").glob("*.mdb"):
            raw = shard.read_bytes()
            at = _RECORD  # behind the shard's own header
            while raw[at : at + 32] != b"\xff" * 32:
                name = raw[at : at + 32]
                flags, count = struct.unpack_from("<II", raw, at + 32)
                segments = range(at + _RECORD, at + _RECORD * (1 + count), _RECORD)
                size = sum(struct.unpack_from("<I", raw, segment + 36)[0] for segment in segments)
                at += _RECORD * (1 + count * (2 if flags & _VERIFIED else 1))
                if flags & _EXTENDED:
                    found[_hex(raw[at : at + 32])] = _hex(name), size
                    at += _RECORD
        return found


def _hex(raw: bytes) -> str:
    """A hash as it is printed: four words, each with its highest byte first."""
    return "".join(f"{word:016x}" for word in struct.unpack("<4Q", raw))
