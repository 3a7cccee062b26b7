"""Large outputs that a killed run leaves to the next: files beside the target, and a journal of what is done.

What is written goes to ``.NAME.resume/files``; ``.NAME.resume/journal`` names the run (a fingerprint of its
inputs and recipe) and every tensor that is complete, with its checksum. The same command run again takes both
up, checks each tensor against the journal and goes on; any other run is refused. When all is there, on disk
and read again, the files take the target's name at once.

Tensors are written in pieces from several threads. The journal is not synced: what a power cut loses, the
checksums notice.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from paring import atomic
from paring.dtypes import itemsize, numel
from paring.errors import BadFileError, OutputError
from paring.kernels import elementwise
from paring.safetensors_io import TensorInfo, plan_file
from paring.stream import in_order

_READ = 4 << 20  # bytes
_PAUSE = 0.1  # seconds

#: checksum, and what was noted with it: a number, or a list of numbers
Done = tuple[int, Any]


@dataclass(frozen=True, slots=True)
class Shard:
    """One file of the output: its name, its first bytes and the places of its tensors."""

    name: str
    head: bytes
    places: dict[str, TensorInfo]

    @property
    def nbytes(self) -> int:
        return max([len(self.head), *(place.stop for place in self.places.values())])


def shards(
    layout: Sequence[tuple[str, str, Sequence[int]]],
    stem: str,
    limit: int,
    metadata: dict[str, str],
) -> list[Shard]:
    """Cut tensors (name, dtype, shape), in order, into files of at most ``limit`` bytes, larger ones alone.

    They are called ``STEM.safetensors``, or ``STEM-00001-of-00003.safetensors`` and so on.
    """
    groups: list[list[tuple[str, str, Sequence[int]]]] = [[]]
    size = 0
    for name, dtype, shape in layout:
        nbytes = numel(shape) * itemsize(dtype)
        if groups[-1] and size + nbytes > limit:
            groups.append([])
            size = 0
        groups[-1].append((name, dtype, shape))
        size += nbytes
    many = len(groups) > 1
    out = []
    for number, group in enumerate(groups, 1):
        name = f"{stem}-{number:05}-of-{len(groups):05}.safetensors" if many else f"{stem}.safetensors"
        head, places = plan_file(Path(name), group, metadata)
        out.append(Shard(name, head, places))
    return out


def index_of(files: Sequence[Shard]) -> dict[str, Any]:
    """The Hub's index of several shards."""
    places = [place for shard in files for place in shard.places.values()]
    return {
        "metadata": {
            "total_parameters": sum(place.numel for place in places),
            "total_size": sum(place.nbytes for place in places),
        },
        "weight_map": {name: shard.name for shard in files for name in sorted(shard.places)},
    }


class Staging:
    """Files being written. ``done`` maps complete tensors to their checksums and what was noted of them."""

    def __init__(self, home: Path, files: Sequence[Shard], journal: IO[str], done: dict[str, Done]) -> None:
        self.folder, self.done = home / "files", done
        self._journal = journal
        self._files = {
            shard.name: os.open(self.folder / shard.name, os.O_RDWR | os.O_CLOEXEC) for shard in files
        }
        self._places = {
            name: (self._files[shard.name], place) for shard in files for name, place in shard.places.items()
        }

    def write(self, name: str, start: int, data: npt.NDArray[Any]) -> int:
        """Write ``data (n,)`` from entry ``start`` of ``name`` on; returns its part of the checksum."""
        descriptor, place = self._places[name]
        raw = data.view(np.uint8)
        offset = start * data.itemsize
        assert place.start + offset + len(raw) <= place.stop, "beyond the end of its tensor"
        done = 0
        while done < len(raw):
            done += os.pwrite(descriptor, raw[done:].data, place.start + offset + done)
        return elementwise.checksum(raw, offset)

    def complete(self, name: str, checksum: int, noted: int | list[Any] = 0) -> None:
        """Note that all of ``name`` is written, and a number, or some, to be kept with that."""
        self.done[name] = checksum, noted
        self._journal.write(json.dumps([name, checksum, noted], ensure_ascii=False) + "\n")
        self._journal.flush()

    def verify(self, threads: int) -> None:
        """Read everything again. Raises BadFileError for a tensor that is not as it was written."""

        def check(name: str) -> None:
            if not self.sound(name):
                raise BadFileError(f"{name} does not read back as written; is the disk sound?")

        for _ in in_order(check, list(self._places), threads):
            pass

    def sound(self, name: str) -> bool:
        """Whether a complete tensor reads back as the journal says."""
        return self._checksum(name) == self.done[name][0]

    def forget(self, name: str) -> None:
        del self.done[name]

    def _checksum(self, name: str) -> int:
        descriptor, place = self._places[name]
        total = 0
        for begin in range(place.start, place.stop, _READ):
            raw = os.pread(descriptor, min(_READ, place.stop - begin), begin)
            total += elementwise.checksum(np.frombuffer(raw, np.uint8), begin - place.start)
        return total % 2**64

    @contextmanager
    def flushing(self) -> Iterator[None]:
        """What is written meanwhile goes to disk bit by bit, so that little is left in the end."""
        ended = threading.Event()

        def flush() -> None:
            took = _PAUSE
            while not ended.wait(max(_PAUSE, took)):  # a slow disk is not kept busy by that
                started = time.perf_counter()
                self.sync()
                took = time.perf_counter() - started

        with ThreadPoolExecutor(1) as apart:
            try:  # Ctrl-C may come as soon as the thread is there
                flushed = apart.submit(flush)
                yield
            finally:
                ended.set()
            flushed.result()

    def sync(self) -> None:
        """Make all files durable."""
        for descriptor in self._files.values():
            os.fsync(descriptor)

    def close(self) -> None:
        for descriptor in self._files.values():
            os.close(descriptor)
        self._files = {}
        self._journal.close()


@contextmanager
def staged(
    path: str | Path,
    files: Sequence[Shard],
    fingerprint: str,
    *,
    single: bool,
    overwrite: bool,
    replaceable: Collection[str] | None,
    threads: int = 1,
) -> Iterator[Staging]:
    """Write ``files`` to the folder ``path``, or with ``single`` the only one of them to the file ``path``.

    What the body puts in ``Staging.folder`` beside them comes along. When the body ends, all is read again,
    synced and takes its place. Killed or interrupted, it stays for the next run with the same
    ``fingerprint``; after any other error it is removed. Raises OutputError, BadFileError.
    """
    target = atomic.target_of(path)
    if single:
        atomic.refuse_existing(target, overwrite)
    else:
        with atomic.reporting(target):
            atomic.refuse_folder(target, overwrite, replaceable)
    with atomic.reserved(target), atomic.reporting(target):
        home = target.with_name(f".{target.name}.resume")
        _refuse_other(home, target, fingerprint, overwrite)
        done = _prepare(home, files, fingerprint, target)
        journal = (home / "journal").open("a", encoding="utf-8")
        staging = Staging(home, files, journal, done)
        try:
            for name in [name for name in done if not staging.sound(name)]:
                staging.forget(name)
            with atomic.reporting(target, only=atomic.FULL), staging.flushing():
                yield staging
            with ThreadPoolExecutor(1) as apart:  # the disk works while all is read again
                synced = apart.submit(staging.sync)
                staging.verify(threads)
                synced.result()
            staging.close()
            if single:
                atomic.publish_file(staging.folder / files[0].name, target, overwrite)
            else:
                for found in staging.folder.iterdir():
                    atomic.sync(found)
                atomic.publish_folder(staging.folder, target, overwrite, replaceable)
        except Exception:
            shutil.rmtree(home, ignore_errors=True)
            raise
        finally:
            with suppress(OSError):
                staging.close()
        shutil.rmtree(home, ignore_errors=True)


def _refuse_other(home: Path, target: Path, fingerprint: str, overwrite: bool) -> None:
    """A journal of another run is refused, or with ``overwrite`` removed."""
    if not home.exists():
        return
    lines = _lines(home)
    if lines and lines[0] == {"fingerprint": fingerprint}:
        return
    if lines and not overwrite:
        raise OutputError(
            f"{target} was begun by a run with other inputs or options, which did not end: "
            "run that one again, or add --overwrite to start afresh"
        )
    shutil.rmtree(home)


def _lines(home: Path) -> list[Any]:
    """The sound lines of a journal: the last one may be cut short."""
    try:
        text = (home / "journal").read_text(encoding="utf-8")
    except (OSError, UnicodeError):
        return []
    lines = []
    for line in text.splitlines(keepends=True):
        try:
            lines.append(json.loads(line) if line.endswith("\n") else None)
        except ValueError:
            break
    return [line for line in lines if line is not None]


def _prepare(home: Path, files: Sequence[Shard], fingerprint: str, target: Path) -> dict[str, Done]:
    """Make the files and the journal where they are not there yet; returns what the journal says is done."""
    folder = home / "files"
    lines = _lines(home)
    if lines:
        sizes = {found.name: found.stat().st_size for found in folder.iterdir()} if folder.is_dir() else {}
        if all(sizes.get(shard.name) == shard.nbytes for shard in files):
            names = {name for shard in files for name in shard.places}
            told = (line for line in lines[1:] if isinstance(line, list) and len(line) == 3)
            return {name: (checksum, noted) for name, checksum, noted in told if name in names}
        shutil.rmtree(home)
    atomic.check_room(target, sum(shard.nbytes for shard in files))
    home.mkdir(exist_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for shard in files:
        with (folder / shard.name).open("xb") as file:
            file.write(shard.head)
            file.truncate(shard.nbytes)
    with (home / "journal").open("w", encoding="utf-8") as journal:
        journal.write(json.dumps({"fingerprint": fingerprint}) + "\n")
    return {}
