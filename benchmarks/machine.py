"""On what a benchmark ran, one line for the reader of its figures; and the file that keeps them."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def describe(*packages: str) -> str:
    """Cores, CPU model, Python, the versions of ``packages``, and the commit of this repository."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count()
    versions = [f"python {platform.python_version()}", *(f"{name} {_version(name)}" for name in packages)]
    return f"{cores} cores of {_cpu()}; {', '.join(versions)}; commit {commit()}"


def write(file: Path | None, machine: str, **found: Any) -> None:
    """Keep what was ``found`` on ``machine`` as JSON, if there is a ``file`` to keep it in."""
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"machine": machine, **found}, indent=1) + "\n", encoding="utf-8")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def commit() -> str:
    """The short hash of HEAD, with ``+`` when tracked files differ from it; ``unknown`` outside git."""
    try:
        head = _git("rev-parse", "--short", "HEAD")
        return head + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, check=True, text=True)
    return done.stdout.strip()
