"""Devices: ``cpu`` and ``cuda``, others are refused by name; and how much memory there is.

What ``auto`` is depends on the work alone: :func:`pick` is for what reads tensors and writes them,
:func:`to_run` for everything that runs a model.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from paring.errors import OptionError, UnsupportedError


def pick(device: str) -> str:
    """The device to compute on: ``"cpu"`` or ``"cuda"`` (``"cuda:1"``).

    ``auto`` is the CPU: the reductions here are bound by memory, and sending an adapter takes longer than
    counting it. torch is imported only when CUDA is asked for. Raises OptionError for an unknown device and
    UnsupportedError where there is none of that kind.
    """
    if device in ("auto", "cpu"):
        return "cpu"
    if not re.fullmatch(r"cuda(:\d+)?", device):
        raise OptionError(f"--device {device}: expected auto, cpu or cuda")
    import torch

    if not torch.cuda.is_available():
        raise UnsupportedError(f"--device {device}: this machine has no CUDA device that torch can use")
    return device


def to_run(device: str) -> str:
    """The device to run a model on, to train, calibrate or evaluate it: as :func:`pick`, but ``auto`` is CUDA
    where torch can use one. Raises as :func:`pick` does.
    """
    if device == "auto":
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"
    return pick(device)


def free_memory() -> int:
    """Bytes of memory that a process may still take: what the system says is available, within its cgroup's
    limit; 4 GiB where nothing tells.
    """
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        try:
            free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
        except (ValueError, OSError, AttributeError):
            return 4 << 30
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii"))
        used = int(Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii"))
    except (OSError, ValueError):  # no limit is the word "max"
        return free
    return max(0, min(free, limit - used))
