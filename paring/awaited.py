"""Files that are not here yet, but known: their size, their first bytes, and how to bring them.

A repository on the Hub is opened before its weights are downloaded: :mod:`paring.hub.reading` announces the
files at the paths where they will be, with the headers that it has read, and every plan is made and checked
from those. Who reads a tensor brings the file.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

Bring = Callable[[Sequence[Path]], None]


@dataclass(frozen=True, slots=True)
class Awaited:
    """One file: ``head`` are its first bytes, its header at least; ``bring`` puts files in their places."""

    nbytes: int
    head: bytes
    bring: Bring


_FILES: dict[Path, Awaited] = {}
_LOCK = threading.RLock()


def announce(path: Path, file: Awaited) -> None:
    """From now on ``path`` is a file that is awaited, until it is there."""
    with _LOCK:
        _FILES[path] = file


def awaited(path: Path) -> Awaited | None:
    """What is known of a file that is not here yet; None for one that is here, or is not awaited."""
    found = _FILES.get(path)
    return None if found is None or path.exists() else found


def exists(path: Path) -> bool:
    """Whether there is such a file, or will be."""
    return path.exists() or path in _FILES


def names_in(folder: Path) -> set[str]:
    """The names of what ``folder`` holds and will hold."""
    here = {found.name for found in folder.iterdir()}
    return here | {path.name for path in _FILES if path.parent == folder}


def bring(paths: Sequence[Path]) -> None:
    """Have files here that may be awaited; all that come from one place at once."""
    with _LOCK:
        todo = {path: found for path in paths if (found := awaited(path)) is not None}
        for own in {id(found.bring): found.bring for found in todo.values()}.values():
            own([path for path, found in todo.items() if found.bring is own])
