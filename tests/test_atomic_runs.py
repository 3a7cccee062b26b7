"""Output when runs meet, die, or find no room."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from paring.atomic import atomic_file, atomic_folder, check_room, refuse_same_file
from paring.errors import OutputError
from tests.helpers import names, put, put_folder


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for 64 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(disk)]
    try:
        done = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except OSError:
        done = False
    if not done:
        pytest.skip("mounting a small file system is not permitted here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


# --- two runs, and dead ones

WRITER = """
import sys, time
from paring.atomic import atomic_file
with atomic_file(sys.argv[1], overwrite=True) as file:
    file.write(b"new" * 100_000)
    file.flush()
    print("writing", flush=True)
    time.sleep(60)
"""


def start_writer(path: Path) -> subprocess.Popen[bytes]:
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    assert writer.stdout.readline() == b"writing\n"
    return writer


def test_a_killed_run_leaves_the_old_file_and_blocks_nobody(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_bytes(b"old")
    neighbour = tmp_path / f".out.more.{'0' * 16}.partial"  # of another target, "out.more"
    neighbour.touch()
    with start_writer(path) as writer:
        with pytest.raises(OutputError, match=r"another run is writing .*out: wait"):
            put(path, b"mine", overwrite=True)
        assert path.read_bytes() == b"old"
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    assert path.read_bytes() == b"old"
    assert len(names(tmp_path)) == 4  # the dead run's lock and partial remain ...
    put(path, b"mine", overwrite=True)
    assert path.read_bytes() == b"mine"
    assert names(tmp_path) == [neighbour.name, "out"]  # ... until the next one


def test_an_interrupted_run_leaves_nothing(tmp_path: Path) -> None:
    with start_writer(tmp_path / "out") as writer:
        writer.send_signal(signal.SIGINT)
        writer.wait()
    assert names(tmp_path) == []


def test_one_of_many_threads_writes(tmp_path: Path) -> None:
    inside, refused = [], []
    barrier = threading.Barrier(8)

    def write(number: int) -> None:
        barrier.wait()
        try:
            with atomic_file(tmp_path / "out", overwrite=True) as file:
                inside.append(number)
                assert len(inside) == 1
                file.write(str(number).encode() * 10_000)
                inside.remove(number)
        except OutputError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    content = (tmp_path / "out").read_bytes()
    assert content == content[:1] * 10_000
    assert all("another run is writing" in text for text in refused)
    assert names(tmp_path) == ["out"]


def test_a_lock_that_was_removed_meanwhile_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After we open the lock file its holder removes it, and another run locks a new one."""
    fcntl = pytest.importorskip("fcntl")
    lock, flock, others = tmp_path / ".out.lock", fcntl.flock, []

    def late(held: int, how: int) -> None:
        if not others:
            lock.unlink()
            others.append(lock.open("w"))
            flock(others[0], fcntl.LOCK_EX)
        flock(held, how)

    monkeypatch.setattr("fcntl.flock", late)
    with pytest.raises(OutputError, match="another run is writing"):
        put(tmp_path / "out", b"1")
    others[0].close()


def test_file_systems_without_locks_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    dead = tmp_path / f".out.{'0' * 16}.partial"
    dead.touch()
    monkeypatch.setattr("fcntl.flock", flock)
    put(tmp_path / "out", b"1")
    assert names(tmp_path) == [dead.name, "out"]


# --- room and permission


def test_a_full_disk_is_named(small_disk: Path) -> None:
    (small_disk / "out").write_bytes(b"old")
    with pytest.raises(OutputError, match=r"no room for .*out"):
        put(small_disk / "out", bytes(100_000), overwrite=True)
    with pytest.raises(OutputError, match=r"no room for .*out"):
        put(
            small_disk / "out", bytes(64 * 1024 - 4096 + 1), overwrite=True
        )  # fails in the buffer's last flush
    with (
        pytest.raises(OutputError, match=r"no room for .*folder"),
        atomic_folder(small_disk / "folder") as folder,
    ):
        (folder / "x").write_bytes(bytes(100_000))
    assert names(small_disk) == ["out"]
    assert (small_disk / "out").read_bytes() == b"old"
    with pytest.raises(
        OutputError, match=r"no room for .*/a/b: it needs 65537 bytes, \d+ are free in .*disk"
    ):
        check_room(small_disk / "a" / "b", 65537)
    check_room(small_disk / "a" / "b", 30_000)


def test_a_read_only_folder_is_named(small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for write in (put, put_folder):
        with pytest.raises(OutputError, match=r"cannot write .*: .*disk is read-only"):
            write(small_disk / "out", b"1")  # type: ignore[operator]


def test_a_limit_on_file_sizes_is_named(tmp_path: Path) -> None:
    code = (
        "import resource, sys; from paring.atomic import atomic_file; from paring.errors import OutputError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))\n"
        "try:\n"
        "    with atomic_file(sys.argv[1]) as file: file.write(bytes(20_000))\n"
        "except OutputError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "out")], capture_output=True, check=True
    )
    assert done.stdout.startswith(b"no room for ")
    assert names(tmp_path) == []


def test_room_is_checked_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="it needs 1152921504606846976 bytes"):
        check_room(tmp_path / "not" / "yet" / "there", 1 << 60)
    check_room("relative", 1)


def test_an_output_must_not_be_an_input(tmp_path: Path) -> None:
    source, folder = tmp_path / "in" / "x", tmp_path / "in"
    folder.mkdir()
    source.touch()
    (tmp_path / "soft").symlink_to(source)
    os.link(source, tmp_path / "hard")
    for output in (source, tmp_path / "soft", tmp_path / "hard", tmp_path / "in" / ".." / "in" / "x"):
        with pytest.raises(OutputError, match="is an input, and inputs are never changed"):
            refuse_same_file(output, [tmp_path / "gone", source])
    for output in (folder, tmp_path):
        with pytest.raises(OutputError, match="holds the input"):
            refuse_same_file(output, [source])
    refuse_same_file(tmp_path / "new", [source, folder])
    refuse_same_file(tmp_path / "in" / "new", [source, folder])
