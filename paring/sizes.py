"""Sizes in bytes, as people write them."""

from __future__ import annotations

import re

_UNITS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def parse_size(text: str) -> int | None:
    """``5GB``, ``300MiB`` or ``2e9`` in bytes; None for what is no size."""
    found = re.fullmatch(r"([\d.]+(?:e\d+)?)\s*([kmgt]?)(i?)b?", text.strip().lower())
    try:
        number = float(found[1]) if found else 0.0
    except ValueError:
        return None
    if found is None or not 0 < number < 1e18:
        return None
    return int(number * (1024 if found[3] else 1000) ** _UNITS[found[2]])
