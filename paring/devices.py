"""Devices: ``cpu`` and ``cuda``; others are refused by name."""

from __future__ import annotations

import re

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
