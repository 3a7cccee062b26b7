"""Output is whole or absent, whatever happens while it is written."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from paring.atomic import atomic_file, atomic_folder
from paring.errors import OutputError
from tests.helpers import names, put, put_folder

# --- files


def test_a_file_appears_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "out"
    with atomic_file(path) as file:
        file.write(b"12345")
        file.seek(1)
        file.write(b"x")
        assert not path.exists()
        assert len(names(path.parent)) == 2
    assert path.read_bytes() == b"1x345"
    assert names(path.parent) == ["out"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, GeneratorExit])
@pytest.mark.parametrize("old", [b"old", None])
def test_a_failed_write_leaves_what_was_there(
    tmp_path: Path, error: type[BaseException], old: bytes | None
) -> None:
    path = tmp_path / "out"
    if old is not None:
        path.write_bytes(old)
    with pytest.raises(error), atomic_file(path, overwrite=True) as file:
        file.write(bytes(100_000))
        raise error
    assert names(tmp_path) == (["out"] if old else [])
    assert old is None or path.read_bytes() == old


def test_an_existing_file_needs_overwrite(tmp_path: Path) -> None:
    put(tmp_path / "out", b"1")
    with pytest.raises(OutputError, match="out exists: add --overwrite or choose another -o"):
        put(tmp_path / "out", b"2")
    assert (tmp_path / "out").read_bytes() == b"1"
    put(tmp_path / "out", b"2", overwrite=True)
    assert (tmp_path / "out").read_bytes() == b"2"
    (tmp_path / "dangling").symlink_to(tmp_path / "gone")
    with pytest.raises(OutputError, match="exists"):
        put(tmp_path / "dangling", b"1")
    assert names(tmp_path) == ["dangling", "out"]


@pytest.mark.parametrize("links", [True, False])
def test_a_file_that_appears_meanwhile_is_kept(
    tmp_path: Path, links: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not links:

        def link(*_: Any) -> None:
            raise OSError(errno.EPERM, "no links here")

        monkeypatch.setattr(os, "link", link)
        put(tmp_path / "other", b"1")
        assert (tmp_path / "other").read_bytes() == b"1"
        (tmp_path / "other").unlink()
    with pytest.raises(OutputError, match=r"appeared while|exists"), atomic_file(tmp_path / "out") as file:
        file.write(b"late")
        (tmp_path / "out").write_bytes(b"first")
    assert (tmp_path / "out").read_bytes() == b"first"
    assert names(tmp_path) == ["out"]


def test_targets_that_are_no_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    for path, words in (
        (tmp_path, "exists and is not a regular file"),
        (tmp_path / "pipe", "exists and is not a regular file"),
        (Path(os.devnull), "exists and is not a regular file"),
        (tmp_path / "file" / "out", "a part of its path is a file"),
        (tmp_path / "file" / "deeper" / "out", "a part of its path is a file"),
        (tmp_path / ("x" * 300), "name too long"),
        (Path("/"), "cannot be an output"),
        (tmp_path / "..", "cannot be an output"),
        (Path("a\0b"), "cannot be an output"),
    ):
        for overwrite in (False, True):
            with pytest.raises(OutputError, match=words):
                put(path, b"1", overwrite)
    assert Path(os.devnull).is_char_device()
    assert names(tmp_path) == ["file", "pipe"]


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        put(tmp_path / "out", b"1")
        put_folder(tmp_path / "folder", "1")
    finally:
        os.umask(old)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o750


def test_a_relative_target_stays_where_it_was_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    with atomic_file("out") as file:
        monkeypatch.chdir(tmp_path / "elsewhere")
        file.write(b"1")
    assert names(tmp_path) == ["elsewhere", "out"]


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_file_reaches_the_disk_before_it_takes_its_name(
    tmp_path: Path, overwrite: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = []
    fsync = os.fsync

    def watch(descriptor: int) -> None:
        synced.append((Path(f"/proc/self/fd/{descriptor}").resolve().name, (tmp_path / "out").exists()))
        fsync(descriptor)

    if not Path("/proc/self/fd").exists():
        pytest.skip("needs /proc to name open files")
    monkeypatch.setattr(os, "fsync", watch)
    with atomic_file(tmp_path / "out", overwrite) as file:
        file.write(b"1")
        partial = Path(f"/proc/self/fd/{file.fileno()}").resolve()
    assert synced == [(partial.name, False), (tmp_path.name, True)]


def test_errors_of_reading_are_not_blamed_on_the_output(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_file(tmp_path / "out"):
        (tmp_path / "gone").read_bytes()


# --- folders


def test_a_folder_appears_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "out"
    with atomic_folder(path) as folder:
        (folder / "x").write_text("1")
        assert not path.exists()
    assert (path / "x").read_text() == "1"
    assert names(path.parent) == ["out"]
    with pytest.raises(OutputError, match="out exists: add --overwrite"):
        put_folder(path, "2")
    put_folder(path, "2", overwrite=True)
    assert names(path) == ["sub"]
    assert names(path.parent) == ["out"]


def test_an_empty_folder_may_be_filled(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    put_folder(tmp_path / "out", "1")
    assert (tmp_path / "out" / "sub" / "x").read_text() == "1"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failed_folder_leaves_what_was_there(tmp_path: Path, error: type[BaseException]) -> None:
    put_folder(tmp_path / "out", "old")
    for path in (tmp_path / "out", tmp_path / "other"):
        with pytest.raises(error), atomic_folder(path, overwrite=True) as folder:
            (folder / "x").write_text("new")
            raise error
    assert names(tmp_path) == ["out"]
    assert (tmp_path / "out" / "sub" / "x").read_text() == "old"


def test_an_old_folder_comes_back_when_the_new_one_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_folder(tmp_path / "out", "old")
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if self.suffix == ".partial":
            raise OSError(errno.EIO, "the disk is ill")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OutputError, match="the disk is ill"):
        put_folder(tmp_path / "out", "new", overwrite=True)
    assert names(tmp_path) == ["out"]
    assert (tmp_path / "out" / "sub" / "x").read_text() == "old"


def test_folders_that_must_not_be_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = tmp_path / "project" / "work"
    work.mkdir(parents=True)
    (work / "x").touch()
    monkeypatch.chdir(work)
    for path in (work, tmp_path / "project"):
        with pytest.raises(OutputError, match="never replaced"):
            put_folder(path, "1", overwrite=True)
    with pytest.raises(OutputError, match="exists and is not a folder"):
        put_folder(work / "x", "1", overwrite=True)
    (tmp_path / "link").symlink_to(work, target_is_directory=True)
    with pytest.raises(OutputError, match="exists"):
        put_folder(tmp_path / "link", "1")
    assert names(work) == ["x"]


def test_a_folder_that_holds_more_is_not_replaced(tmp_path: Path) -> None:
    def write(words: str, *late: str) -> None:
        with atomic_folder(path, overwrite=True, replaceable=("a", "b")) as folder:
            begun.append(words)
            (folder / "a").write_text(words)
            for name in late:
                (path / name).touch()

    begun: list[str] = []
    path = tmp_path / "out"
    write("1")
    write("2")
    (path / "b").touch()
    write("3")
    assert names(path) == ["a"]
    with pytest.raises(OutputError, match="also holds c"):  # it came while the folder was written
        write("4", "c")
    with pytest.raises(OutputError, match="also holds c"):
        write("5")
    (path / "c").unlink()
    (path / "b").mkdir()
    with pytest.raises(OutputError, match="also holds b"):
        write("6")
    assert (path / "a").read_text() == "3" and names(tmp_path) == ["out"]
    assert begun == ["1", "2", "3", "4"]
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "c").touch()
    path = tmp_path / "link"
    path.symlink_to("real")
    write("7")  # replaces the link, not what it leads to
    assert names(path) == ["a"] and names(tmp_path / "real") == ["c"]


def test_a_folder_moved_aside_by_a_dead_run_comes_back(tmp_path: Path) -> None:
    put_folder(tmp_path / f".out.{'0' * 16}.old", "old")
    with pytest.raises(ValueError, match="stop"), atomic_folder(tmp_path / "out"):
        raise ValueError("stop")
    assert names(tmp_path) == ["out"]
    assert (tmp_path / "out" / "sub" / "x").read_text() == "old"
    with pytest.raises(OutputError, match="exists"):
        put_folder(tmp_path / "out", "new")
