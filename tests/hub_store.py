"""What the test hub keeps: repositories as commits of files, and the bytes of files by their SHA-256.

Bytes pushed over LFS or within a commit lie in ``blobs/``. Bytes pushed over xet lie in the local store that
the client's own wheel keeps (``local://DIR``): a commit names them by SHA-256, a download by xet hash, and
the store's shards say which is which. Only one process can have the store open, so processes take turns.
None of this is a promise of the wheel's: ``tests/test_hub_server.py`` fails loudly when it changes.
"""

from __future__ import annotations

import hashlib
import itertools
import struct
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

_RECORD = 48  # bytes of every record of a shard
_VERIFIED, _EXTENDED = 1 << 31, 1 << 30  # flags of a file: records of checks follow, and one of its SHA-256


_OPENING = 3.0  # seconds from a token to the store being opened with it, at most
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
        self._xet = folder / "cas"
        self._turns = threading.Lock()
        self._over = threading.Event()
        self._over.set()
        self._holder: str | None = None
        self._shards: dict[str, dict[str, tuple[str, int]]] = {}

    def turn(self, port: int = 0) -> Path:
        """The folder of the xet store, once no other process has it open, or is about to open it. ``port`` is
        that of the client's end of its connection.
        """
        process = _process_of(port)
        with self._turns:
            if process is None or process != self._holder:
                self._over.wait(20)
            self._holder, self._over = process, threading.Event()
            threading.Thread(target=self._watch, args=(self._over,), daemon=True).start()
        return self._xet

    def _watch(self, over: threading.Event) -> None:
        """Tell when the store, which somebody is about to open, was opened and closed, or was not."""
        until = time.monotonic() + _OPENING
        while not self._is_open() and time.monotonic() < until:
            time.sleep(0.004)
        while self._is_open():
            time.sleep(0.004)
        over.set()

    def _is_open(self) -> bool:
        """Whether a process holds the lock of the store's database; where this cannot be told, no."""
        try:
            status = (self._xet / "xet" / "xorbs" / "global_dedup_lookup.redb").stat()
            return f":{status.st_ino} " in Path("/proc/locks").read_text()
        except OSError:
            return False

    def xet_bytes(self) -> int:
        """How many bytes the xet store takes."""
        return sum(path.stat().st_size for path in (self._xet / "xet" / "xorbs" / "xorbs").iterdir())

    def create(self, name: str, *, private: bool = False) -> Repo:
        repo = self.repos[name] = Repo(name, private)
        repo.add("main", {}, "initial commit", name.partition("/")[0])
        return repo

    def put(self, data: bytes) -> str:
        """Keep bytes; returns their SHA-256."""
        sha256 = hashlib.sha256(data).hexdigest()
        partial = self.folder / "parts" / f"{sha256}.{threading.get_ident()}"
        partial.write_bytes(data)
        partial.replace(self.folder / "blobs" / sha256)  # whole at once: somebody may ask for it already
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
        with hf_xet.XetSession().new_file_download_group(endpoint=f"local://{self._xet}") as group:
            group.start_download_file(hf_xet.XetFileInfo(*found), str(partial))
        partial.replace(path)

    def xet_hashes(self) -> dict[str, tuple[str, int]]:
        """SHA-256 -> xet hash and size, of all files in the xet store."""
        found: dict[str, tuple[str, int]] = {}
        for shard in (self._xet / "xet" / "xorbs" / "shards").glob("*.mdb"):
            if shard.name not in self._shards:
                self._shards[shard.name] = _files_in(shard.read_bytes())
            found |= self._shards[shard.name]
        return found


def _files_in(shard: bytes) -> dict[str, tuple[str, int]]:
    """SHA-256 -> xet hash and size, of the files that a shard tells of."""
    found = {}
    at = _RECORD  # behind the shard's own header
    while shard[at : at + 32] != b"\xff" * 32:
        name = shard[at : at + 32]
        flags, count = struct.unpack_from("<II", shard, at + 32)
        segments = range(at + _RECORD, at + _RECORD * (1 + count), _RECORD)
        size = sum(struct.unpack_from("<I", shard, segment + 36)[0] for segment in segments)
        at += _RECORD * (1 + count * (2 if flags & _VERIFIED else 1))
        if flags & _EXTENDED:
            found[_hex(shard[at : at + 32])] = _hex(name), size
            at += _RECORD
    return found


def _process_of(port: int) -> str | None:
    """The process whose end of a connection on this machine has ``port``, where Linux tells it."""
    try:
        rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        sockets = {f"socket:[{row[9]}]" for row in rows if row[1].endswith(f":{port:04X}")}
    except OSError:
        return None
    for found in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):  # another's, or gone meanwhile
            if str(found.readlink()) in sockets:
                return found.parts[2]
    return None


def _hex(raw: bytes) -> str:
    """A hash as it is printed: four words, each with its highest byte first."""
    return "".join(f"{word:016x}" for word in struct.unpack("<4Q", raw))
