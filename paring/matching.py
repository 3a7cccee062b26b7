"""Which tensor of one checkpoint is which of another: names may differ by a prefix of the wrapping class."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

_WRAPPERS = re.compile(r"^(module\.|_orig_mod\.)+")


def prefixes(first: Collection[str], second: Collection[str]) -> tuple[str, str]:
    """``(p, q)`` such that ``p + name`` of the first and ``q + name`` of the second are the same names; at
    most one is not empty. ``gpt2`` on the Hub says ``h.0``, a fine-tune of it ``transformer.h.0``.
    """
    best, most = ("", ""), len(set(first) & set(second))
    for longer, shorter, turn in ((set(second), first, False), (set(first), second, True)):
        for prefix in sorted(_heads(longer)):
            hits = sum(prefix + name in longer for name in shorter)
            if hits > most:
                best, most = (("", prefix) if turn else (prefix, "")), hits
    return best


def _heads(names: Iterable[str]) -> set[str]:
    return {name.split(".", 1)[0] + "." for name in names if "." in name}


def unwrapped(name: str) -> str:
    """A name without what training wrappers put before it."""
    return _WRAPPERS.sub("", name)
