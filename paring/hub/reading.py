"""Sources on the Hub: found, their small files downloaded, their weights announced by their headers.

What is downloaded at once are configuration and tokenizer files. Of weights only the headers are read, by
range requests; the files are :mod:`paring.awaited` and come when a tensor is read, so that a plan that is
refused costs kilobytes. A pickle is never taken unasked: only where the name says its file.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from logging import getLogger
from pathlib import Path, PurePosixPath

from paring import awaited
from paring.errors import BadFileError, HubError, OptionError, OutputError, UnsupportedError
from paring.folders import INDEX, choose
from paring.hub import client
from paring.hub.errors import reporting
from paring.hub.names import PathLike, Ref, is_commit, parse, ref_of, remember, told
from paring.merging.record import BESIDE
from paring.safetensors_io import MAX_HEADER
from paring.torch_file import SUFFIXES
from paring.untrusted import read_json

_log = getLogger("paring")
#: what is downloaded beside weights, from the folder of the source
_SMALL = (*BESIDE, "*.json", "README.md")
_HEAD = 100_000  # bytes; holds the header of most files
_WORKERS = 8  # headers read at once
_found: dict[Ref, str] = {}  # what this process has found: a branch that moves meanwhile is still one commit
_LOCK = threading.RLock()


def located(name: PathLike) -> str:
    """The path of a source: its own when there is such a file or folder, or that in the client's cache of a
    repository on the Hub, whose weights may still be awaited. Any other name is returned as it is.

    Raises HubError, UnsupportedError for a repository of pickles, OptionError for a wrong ``hf://``
    and for no name at all.
    """
    text = os.fspath(name)
    if not text:  # pathlib would take it for the current folder
        raise OptionError("the name of an input is empty: is a variable unset?")
    file, mark, _ = text.rpartition("#")
    if any(path and "\0" not in path and Path(path).exists() for path in (text, file if mark else "")):
        return text
    ref = parse(text)
    if ref is None:
        return text
    member = f"#{ref.member}" if ref.member else ""
    with _LOCK:
        plain = Ref(ref.repo, ref.revision, ref.inside)
        if plain not in _found:
            path = _found[plain] = str(_cached(plain) if client.offline() else _remote(plain, text))
            if at := ref_of(path):  # by its commit it will be asked for, too
                _found[plain.at(at.revision)] = path
        return _found[plain] + member


def pinned(name: PathLike) -> str:
    """A source as it is written down: on the Hub by its commit. Raises as :func:`located` does."""
    return told(located(name))


def _remote(ref: Ref, typed: str) -> Path:
    """Find a source on the Hub; returns its path in the cache."""
    hint = "" if typed.startswith("hf:") else f" (nor is there a file or folder {typed} here)"
    client.api()
    _log.info("looking for %s on the Hub", ref)
    with reporting(str(ref), hint=hint):
        info = client.api().model_info(ref.repo, revision=ref.revision, files_metadata=True)
    commit = str(info.sha)
    sizes = {item.rfilename: int(item.size or 0) for item in info.siblings or ()}
    at = ref.at(commit)
    home = _home(at)
    folder, chosen = _chosen(ref, sizes)
    small = [name for name in sizes if _is_small(name, folder)]
    remember(home, at)
    with reporting(str(ref)):
        home.joinpath(folder).mkdir(parents=True, exist_ok=True)
        if any(not (home / name).exists() for name in small):
            client.download(ref.repo, commit, small)
        _note(ref, commit)
    weights = _shards(home / chosen, chosen) if chosen.endswith(INDEX) else [chosen]
    _announce(at, home, [name for name in weights if name in sizes], sizes)
    return home / ref.inside


def _chosen(ref: Ref, sizes: Mapping[str, int]) -> tuple[str, str]:
    """The folder of a source in its repository, and the file there that stands for its checkpoint."""
    if ref.inside in sizes:
        return _parent(ref.inside), ref.inside
    names = [PurePosixPath(name).name for name in sizes if _parent(name) == ref.inside]
    if not names:
        raise HubError(
            f"{ref.repo} has no folder or file {ref.inside or '/'}: check the name behind the colon"
        )
    chosen = choose(names, ref)
    if PurePosixPath(chosen.removesuffix(INDEX)).suffix in SUFFIXES:
        here = ref.inside + "/" if ref.inside else ""
        raise UnsupportedError(
            f"{ref} holds its weights only as pickles, which are not taken unasked: name the file, as in "
            f"{Ref(ref.repo, ref.revision, here + chosen)}, to have it read without running its code"
        )
    return ref.inside, (ref.inside + "/" if ref.inside else "") + chosen


def _parent(name: str) -> str:
    return name.rpartition("/")[0]


def _is_small(name: str, folder: str) -> bool:
    """Whether a file is one of those that are downloaded beside weights."""
    inside = name.removeprefix(folder + "/") if folder else name
    top, _, below = inside.partition("/")
    patterns = BESIDE if below else _SMALL
    return (inside != name or not folder) and any(fnmatchcase(top, pattern) for pattern in patterns)


def _home(ref: Ref) -> Path:
    """The folder of a commit in the client's cache."""
    return client.cache_folder() / f"models--{ref.repo.replace('/', '--')}" / "snapshots" / str(ref.revision)


def _note(ref: Ref, commit: str) -> None:
    """Let the cache know what a branch is, for ``--offline``, as the client itself does."""
    if not is_commit(ref.revision):
        note = _home(ref).parent.parent / "refs" / (ref.revision or "main")
        note.parent.mkdir(parents=True, exist_ok=True)
        partial = note.with_name(f"{note.name}.{os.getpid()}.{threading.get_ident()}")
        partial.write_text(commit, encoding="utf-8")
        partial.replace(note)


def _shards(index: Path, name: str) -> list[str]:
    """The files that an index names; what else is wrong with it is found when it is opened."""
    listed = read_json(index, MAX_HEADER).get("weight_map")
    named = {text for text in listed.values() if isinstance(text, str)} if isinstance(listed, dict) else set()
    folder = _parent(name) + "/" if "/" in name else ""
    return sorted(folder + text for text in named)


def _announce(ref: Ref, home: Path, names: Iterable[str], sizes: Mapping[str, int]) -> None:
    """Read the headers of weights that are not here; pickles, which have none, are downloaded."""
    away = [n for n in names if not (home / n).exists() and awaited.awaited(home / n) is None]

    def bring(paths: Sequence[Path]) -> None:
        _bring(ref, home, [path.relative_to(home).as_posix() for path in paths], sizes)

    if pickles := [name for name in away if PurePosixPath(name).suffix in SUFFIXES]:
        _bring(ref, home, pickles, sizes)
    plain = [name for name in away if name not in pickles]
    with reporting(str(ref)), ThreadPoolExecutor(_WORKERS) as pool:
        for name, head in zip(plain, pool.map(lambda name: _header(ref, name), plain), strict=True):
            awaited.announce(home / name, awaited.Awaited(sizes[name], head, bring))


def _header(ref: Ref, name: str) -> bytes:
    """The first bytes of a file, all of its header among them."""
    head = client.first_bytes(ref.repo, str(ref.revision), name, _HEAD)
    length = 8 + int.from_bytes(head[:8], "little")
    if len(head) < length <= 8 + MAX_HEADER and len(head) == _HEAD:
        head += client.first_bytes(ref.repo, str(ref.revision), name, length - _HEAD, _HEAD)
    return head


def _bring(ref: Ref, home: Path, names: Sequence[str], sizes: Mapping[str, int]) -> None:
    """Download files whole."""
    nbytes = sum(sizes[name] for name in names)
    free = shutil.disk_usage(home).free
    if free < nbytes:
        raise OutputError(
            f"no room for {ref.repo}: it takes {nbytes} bytes, {free} are free in the Hub's cache "
            f"{client.cache_folder()} (HF_HOME moves it)"
        )
    _log.info("downloading %s: %d files, %.1f MB", ref.repo, len(names), nbytes / 1e6)
    with reporting(str(ref)):
        client.download(ref.repo, str(ref.revision), list(names))


def _cached(ref: Ref) -> Path:
    """Find a source among what was downloaded before. Raises HubError when it is not there, or not whole."""
    commit = ref.revision or "main"
    if not is_commit(commit):
        note = _home(ref).parent.parent / "refs" / commit
        commit = note.read_text(encoding="utf-8").strip() if note.is_file() else ""
    home = _home(ref.at(commit or "none"))
    lacking = HubError(
        f"{ref} was not downloaded before, or not in full; --offline or HF_HUB_OFFLINE forbids the network"
    )
    if not home.is_dir():
        raise lacking
    remember(home, ref.at(commit))
    sizes = {path.relative_to(home).as_posix(): path.stat().st_size for path in _files(home)}
    try:
        _, chosen = _chosen(ref, sizes)
        needed = _shards(home / chosen, chosen) if chosen.endswith(INDEX) else [chosen]
    except (HubError, BadFileError):
        raise lacking from None
    if any(name not in sizes for name in needed):
        raise lacking
    return home / ref.inside


def _files(home: Path) -> Iterable[Path]:
    return (path for path in home.rglob("*") if path.is_file())
