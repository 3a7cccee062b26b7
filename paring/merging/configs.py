"""What ``config.json`` and ``generation_config.json`` say of a vocabulary: its size, special tokens."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

#: where the configuration of a text model stands among others
_SECTIONS = ("text_config", "llm_config", "language_config")
_SIZE = "vocab_size"
_ID = re.compile(r"_token_ids?$|_token_index$")

Config = Mapping[str, Any]


def sections(config: Config) -> Iterator[tuple[str | None, Config]]:
    """The configuration itself, under None, and those of text models inside it, by key."""
    yield None, config
    yield from ((key, config[key]) for key in _SECTIONS if isinstance(config.get(key), dict))


def sizes(config: Config) -> list[int]:
    """The sizes of vocabularies that a configuration names, the outermost first."""
    found = [section.get(_SIZE) for _, section in sections(config)]
    return [size for size in found if type(size) is int and size > 0]


def distinct(config: Config, size: int) -> bool:
    """Whether no other number of a configuration equals ``size``: a shape that has it has tokens."""
    return not any(
        value == size
        for _, section in sections(config)
        for key, value in section.items()
        if type(value) is int and key != _SIZE and not _ID.search(key)
    )


def resized(config: Config, before: int, after: int) -> dict[str, Any]:
    """Changes that make a vocabulary of ``before`` tokens one of ``after``."""
    return _changes(
        {
            key: {_SIZE: after}
            for key, section in sections(config)
            if section.get(_SIZE) == before and before != after
        }
    )


def special(
    config: Config, rival: Config, ids: Mapping[str, int], chosen: Mapping[str, int]
) -> tuple[dict[str, Any], list[str]]:
    """Changes after which the ids of special tokens in ``config``, made for the tokens ``ids``, are those of
    ``chosen``: as the chosen tokenizer's model has them in ``rival``, else the same tokens; and the keys of
    which neither could be had, which are None now.
    """
    tokens = {number: token for token, number in ids.items()}
    rivals = dict(sections(rival))
    lost: list[str] = []
    found: dict[str | None, dict[str, Any]] = {}
    for key, section in sections(config):
        its = rivals.get(key) or rival
        changed = {name: value for name, value in its.items() if _ID.search(name) and _is_id(value)}
        changed = {name: value for name, value in changed.items() if key is None or name in section}
        for name, value in section.items():
            if not _ID.search(name) or not _is_id(value) or name in changed:
                continue
            listed = value if isinstance(value, list) else [value]
            moved = [chosen.get(tokens.get(number, ""), -1) for number in listed]
            if -1 in moved:
                lost.append(name)
                changed[name] = None
            else:
                changed[name] = moved if isinstance(value, list) else moved[0]
        found[key] = {name: value for name, value in changed.items() if section.get(name) != value}
    return _changes(found), lost


def _is_id(value: Any) -> bool:
    return type(value) is int or (
        isinstance(value, list) and bool(value) and all(type(item) is int for item in value)
    )


def _changes(found: Mapping[str | None, Mapping[str, Any]]) -> dict[str, Any]:
    out: dict[str, Any] = dict(found.get(None, {}))
    return out | {key: dict(changed) for key, changed in found.items() if key is not None and changed}


def joined(first: Config, second: Config) -> dict[str, Any]:
    """Two sets of changes in one, section by section."""
    out = dict(first)
    for key, value in second.items():
        before = out.get(key)
        out[key] = {**before, **value} if isinstance(value, dict) and isinstance(before, dict) else value
    return out
