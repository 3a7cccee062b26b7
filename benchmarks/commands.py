"""Whole commands as a benchmark runs them: seconds, memory, and the floor of the machine beside them."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Took:
    """One command: wall and CPU seconds, peak anonymous memory in bytes."""

    wall: float
    cpu: float
    anon: int
    code: int


def run(
    command: Sequence[str | Path],
    env: Mapping[str, str] | None = None,
    limit: int | None = None,
    fresh: Path | None = None,
) -> Took:
    """Run a command to its end, sampling its anonymous memory; ``limit`` is on its data, in bytes. The folder
    ``fresh`` is removed before, as what the floor has written is."""
    if fresh is not None:
        shutil.rmtree(fresh, ignore_errors=True)

    def limited() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    begun = time.perf_counter()
    with subprocess.Popen(
        [str(part) for part in command],
        # bytecode is kept, as after any installation, whatever this shell says
        env={**os.environ, "OMP_WAIT_POLICY": "passive", "PYTHONDONTWRITEBYTECODE": "", **(env or {})},
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, preexec_fn=limited,
    ) as process:  # fmt: skip
        anon = 0
        while process.poll() is None:
            anon = max(anon, _anonymous(process.pid))
            time.sleep(0.02)
        wall = time.perf_counter() - begun
        told = process.stderr.read().decode() if process.stderr else ""
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    if process.returncode:
        print(told[-2000:], file=sys.stderr)
    return Took(wall, cpu, anon, process.returncode)


def _anonymous(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    found = [line.split()[1] for line in status.splitlines() if line.startswith("RssAnon")]
    return int(found[0]) * 1024 if found else 0


def floor(inputs: Sequence[Path], nbytes: int, home: Path) -> float:
    """Seconds in which two threads read all inputs and write and sync ``nbytes``, in the folder ``home``."""
    target = home / "floor"
    half = bytes(4 << 20)

    def read(file: Path) -> None:
        buffer = bytearray(4 << 20)
        with file.open("rb", buffering=0) as opened:
            while opened.readinto(buffer):
                pass

    def write(number: int) -> None:
        with target.with_suffix(f".{number}").open("wb", buffering=0) as opened:
            for _ in range(nbytes // 2 // len(half)):
                opened.write(half)
            os.fsync(opened.fileno())

    begun = time.perf_counter()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(read, inputs))
        list(pool.map(write, range(2)))
    took = time.perf_counter() - begun
    for number in range(2):
        target.with_suffix(f".{number}").unlink()
    return took


def best(runs: int, command: Sequence[str | Path], fresh: Path | None = None) -> Took:
    """The fastest of several runs."""
    return min((run(command, fresh=fresh) for _ in range(runs)), key=lambda took: took.wall)
