"""Output that is either whole or absent: every command writes through here.

What is written goes to ``.NAME.<random>.partial`` beside its target, reaches the disk (fsync), and only then
takes the target's name. Whatever goes wrong before that, an error, Ctrl-C or a killed process, the target is
as it was.

While it writes, a run holds an advisory lock on ``.NAME.lock``. The kernel frees that lock when the process
ends, however it ends, so a dead run blocks nobody; and since only the holder may write, the holder clears
away what dead runs have left. On file systems without locks the run goes on unlocked and clears nothing.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import stat
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, cast

from paring.errors import OutputError

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_SEALED = {errno.EROFS, errno.EACCES, errno.EPERM}
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV}


@contextmanager
def atomic_file(path: str | Path, overwrite: bool = False) -> Iterator[BinaryIO]:
    """Write the file ``path`` whole or not at all: yields a binary file to write, seek and read.

    Its ``name`` is the path under which it can be read again before it takes its place.

    Missing parent folders are made. Without ``overwrite`` no existing file is replaced, not even one that
    appears while this one is written. Permissions follow the umask. Raises OutputError; errors of the body
    pass through, but for those that say that the disk is full.
    """
    path = target_of(path)
    _refuse_existing(path, overwrite, stat.S_ISREG, "a regular file")
    with reserved(path) as partial:
        with reporting(path):
            file = cast(BinaryIO, partial.open("x+b"))
        try:
            with reporting(path, only=FULL):
                yield file
            with reporting(path):
                file.flush()
                os.fsync(file.fileno())
                file.close()
                publish_file(partial, path, overwrite)
        finally:
            with suppress(OSError):  # a full disk fails the last flush once more
                file.close()
            partial.unlink(missing_ok=True)


@contextmanager
def atomic_folder(
    path: str | Path, overwrite: bool = False, replaceable: Collection[str] | None = None
) -> Iterator[Path]:
    """Write the folder ``path`` whole or not at all: yields an empty folder beside it to fill.

    A folder that exists and holds anything is refused, or with ``overwrite`` replaced as a whole: it is moved
    aside, moved back if the new one cannot take its place, and removed once that has. ``replaceable`` names
    the files (and folders, ``NAME/``) that it may hold for that; one that holds anything else is refused.
    Raises OutputError.
    """
    path = target_of(path)
    with reporting(path):
        refuse_folder(path, overwrite, replaceable)
    with reserved(path) as partial:
        with reporting(path):
            partial.mkdir()
        try:
            with reporting(path, only=FULL):
                yield partial
            with reporting(path):
                for folder, _, names in os.walk(partial, topdown=False):
                    for name in names:
                        sync(Path(folder, name))
                    sync(Path(folder))
                publish_folder(partial, path, overwrite, replaceable)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def refuse_same_file(output: str | Path, inputs: Iterable[str | Path]) -> None:
    """Raise OutputError when ``output`` is one of ``inputs`` under any name, or a folder that holds one.

    A folder among ``inputs`` does not stand for the files in it: pass those as well (``Checkpoint.inputs``).
    """
    output = Path(output)
    for source in map(Path, inputs):
        if not output.exists() or not source.exists():
            continue
        if output.samefile(source):
            raise OutputError(f"{output} is an input, and inputs are never changed: choose another -o")
        if output.is_dir() and output.resolve() in source.resolve().parents:
            raise OutputError(f"{output} holds the input {source}: choose another -o")


def refuse_existing(output: str | Path, overwrite: bool) -> None:
    """Raise OutputError now for what :func:`atomic_file` would refuse later: an output that exists."""
    _refuse_existing(target_of(Path(output)), overwrite, stat.S_ISREG, "a regular file")


def check_room(path: str | Path, nbytes: int) -> None:
    """Raise OutputError when the file system that ``path`` will be on has less than ``nbytes`` bytes free."""
    here = next((folder for folder in target_of(path).parents if folder.exists()), None)
    try:
        room = shutil.disk_usage(here or ".")
    except OSError:
        return  # a file system that cannot tell is not refused
    if room.total and room.free < nbytes:
        raise OutputError(f"no room for {path}: it needs {nbytes} bytes, {room.free} are free in {here}")


def target_of(path: str | Path) -> Path:
    """``path`` made absolute, so that a change of the working folder does not move it. Raises OutputError."""
    if "\0" in str(path) or not Path(path).name or Path(path).name == "..":
        raise OutputError(f"{str(path)!r} cannot be an output: give the name of a new file or folder")
    return Path.cwd() / path


def _refuse_existing(path: Path, overwrite: bool, fits: Callable[[int], bool], kind: str) -> None:
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        mode = None
    except OSError as error:
        raise _output_error(error, path) from error
    if mode is not None and not fits(mode):  # never replace a device, or a folder by a file
        raise OutputError(f"{path} exists and is not {kind}: choose another -o")
    if not overwrite and os.path.lexists(path):
        raise OutputError(f"{path} exists: add --overwrite or choose another -o")


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink() and not any(path.iterdir())


def refuse_folder(path: Path, overwrite: bool, replaceable: Collection[str] | None) -> None:
    """Replacing a folder removes it: never where the user stands or lives, nor what is not written anew.
    Raises OutputError.
    """
    if not os.path.lexists(path) or _is_empty_folder(path):
        return
    _refuse_existing(path, overwrite, stat.S_ISDIR, "a folder")
    here = path.resolve()
    for kept in (Path.cwd(), Path.home()):
        if here == kept.resolve() or here in kept.resolve().parents:
            raise OutputError(f"{path} holds {kept}, which is never replaced: choose another -o")
    if replaceable is None or path.is_symlink():  # of a link, only the link is removed
        return
    for found in sorted(path.iterdir()):
        folder = found.is_dir() and not found.is_symlink()
        if found.name + "/" * folder not in replaceable:
            raise OutputError(f"{path} also holds {found.name}, which would be lost: choose another -o")


@contextmanager
def reserved(path: Path) -> Iterator[Path]:
    """Hold the lock on ``path``; yields the name of a partial beside it. Makes missing parents."""
    with reporting(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.with_name(f".{path.name}.lock")
        held = _lock(lock, path)
        if held is not None:
            _clear_dead(path)
    try:
        yield path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")
    finally:
        if held is not None:
            with suppress(OSError):
                lock.unlink()  # while held: whoever opened it meanwhile finds it gone, and opens another
            os.close(held)


if sys.platform == "win32":

    def _lock(lock: Path, path: Path) -> int | None:
        return None

    def sync(path: Path) -> None:
        pass

else:
    import fcntl

    def _lock(lock: Path, path: Path) -> int | None:
        """An open, locked file; None where the file system has no locks. OutputError when it is taken."""
        while True:
            held = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if lock.exists() and os.path.samestat(os.fstat(held), lock.stat()):
                    return held
                os.close(held)  # its last holder removed it between our open and our lock
            except FileNotFoundError:
                os.close(held)
            except BlockingIOError:
                os.close(held)
                raise OutputError(
                    f"another run is writing {path}: wait for it or choose another -o"
                ) from None
            except OSError:
                os.close(held)
                lock.unlink(missing_ok=True)
                return None

    def sync(path: Path) -> None:
        """Make the file or folder ``path`` durable; file systems that cannot sync a folder are not blamed."""
        if path.is_symlink():
            return
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
                raise
        finally:
            os.close(descriptor)


def _clear_dead(path: Path) -> None:
    """Remove what killed runs left of ``path``, and put back a folder that one had just moved aside."""
    left = re.compile(re.escape(f".{path.name}.") + r"[0-9a-f]{16}\.(partial|old)")
    for found in sorted(path.parent.iterdir()):
        match = left.fullmatch(found.name)
        if match is None:
            continue
        if match[1] == "old" and not os.path.lexists(path):
            found.rename(path)
        elif found.is_dir() and not found.is_symlink():
            shutil.rmtree(found)
        else:
            found.unlink(missing_ok=True)


def publish_file(partial: Path, path: Path, overwrite: bool) -> None:
    """Give the complete file ``partial`` the name ``path``. Raises OutputError, or OSError."""
    if overwrite:
        partial.replace(path)
    else:
        try:
            os.link(partial, path)  # unlike a rename, a link never replaces
        except FileExistsError:
            raise OutputError(f"{path} appeared while it was being written: choose another -o") from None
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            _refuse_existing(path, overwrite, stat.S_ISREG, "a regular file")
            partial.rename(path)
    sync(path.parent)


def publish_folder(partial: Path, path: Path, overwrite: bool, replaceable: Collection[str] | None) -> None:
    """Give the complete folder ``partial`` the name ``path``, in place of what was there."""
    if os.path.lexists(path) and not _is_empty_folder(path):
        refuse_folder(path, overwrite, replaceable)
        old = path.with_name(f".{path.name}.{secrets.token_hex(8)}.old")
        path.rename(old)
        try:
            partial.rename(path)
        except BaseException:
            old.rename(path)
            raise
        sync(path.parent)
        if old.is_symlink():
            old.unlink()
        else:
            shutil.rmtree(old, ignore_errors=True)
    else:
        if path.exists():
            path.rmdir()
        partial.rename(path)
        sync(path.parent)


@contextmanager
def reporting(path: Path, only: set[int] | None = None) -> Iterator[None]:
    """Turn OSErrors (those numbered in ``only``, when given) into OutputError."""
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        if only is not None and error.errno not in only:
            raise
        raise _output_error(error, path) from error


def _output_error(error: OSError, path: Path) -> OutputError:
    if error.errno in FULL:
        return OutputError(f"no room for {path}: the disk, a quota or a limit on file sizes is full")
    if error.errno in _SEALED:
        return OutputError(f"cannot write {path}: {path.parent} is read-only, or not yours to write in")
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return OutputError(f"cannot write {path}: a part of its path is a file, not a folder")
    return OutputError(f"cannot write {path}: {error.strerror or error}")
