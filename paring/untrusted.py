"""Files that others wrote: JSON that must mean one thing only, and files that are not what they seem."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any, NoReturn

from paring.errors import BadFileError

#: beginnings of files that are commonly found in place of another kind -> what to say of them
_DISGUISES: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs.github.com/spec/", "is a Git LFS pointer, not the file: run `git lfs pull`"),
    (b"PK\x03\x04", "is a zip archive, such as torch.save writes: name it .bin or .pt if it is one"),
    (b"\x80", "is a Python pickle, such as torch.save writes: name it .bin or .pt if it is one"),
    (b"GGUF", "is a GGUF file, which paring does not read: fetch the safetensors one"),
    (b"<", "is a web page or XML, not a checkpoint: download the file itself"),
    (b"{", "is JSON text, not a checkpoint: the tensors must be in another file"),
)


def disguise(head: bytes) -> str | None:
    """What a file that begins with ``head`` really is, as the rest of a sentence; None when unknown.

    Ask only about a file that already failed to be what its name says: these beginnings prove nothing alone.
    """
    head = head.lstrip()
    return next((what for start, what in _DISGUISES if head.startswith(start)), None)


def parse_json(raw: bytes, where: str) -> dict[str, Any]:
    """The JSON object in ``raw`` (strict UTF-8; no duplicate keys at any depth, no NaN, no lone surrogates).

    Raises BadFileError, beginning with ``where``, for anything else, also for nesting too deep to follow.
    """

    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
            raise BadFileError(f"{where}: the key {twice!r} is given twice")
        for key, value in pairs:
            key.encode()
            if isinstance(value, str):
                value.encode()
        return found

    def no_constant(word: str) -> NoReturn:
        raise BadFileError(f"{where}: {word} is not JSON")

    try:
        value = json.loads(raw.decode(), object_pairs_hook=no_duplicates, parse_constant=no_constant)
    except BadFileError:
        raise
    except (UnicodeDecodeError, UnicodeEncodeError) as error:
        raise BadFileError(f"{where} is not valid UTF-8 text: {error.reason}") from None
    except RecursionError:
        raise BadFileError(f"{where}: JSON nested too deeply to read") from None
    except ValueError as error:
        raise BadFileError(f"{where} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise BadFileError(f"{where} must be a JSON object, not a {type(value).__name__}")
    return value


def is_below(name: str) -> bool:
    """Whether this is the name of a file below a folder, at most one folder deep, and nowhere else."""
    steps = name.split("/")
    sound = all(step and step not in (".", "..") and not set(step) & set("\\\0:") for step in steps)
    return sound and len(steps) <= 2


def read_bounded(path: Path, limit: int, kind: str) -> bytes:
    """All bytes of the file ``path``; more than ``limit`` are too many for ``kind``. Raises BadFileError."""
    try:
        if not path.is_file():
            raise BadFileError(f"{path}: not found, or not a regular file")
        with path.open("rb") as file:
            raw = file.read(limit + 1)
    except OSError as error:
        raise BadFileError(f"{path} cannot be read: {error.strerror}") from None
    if len(raw) > limit:
        raise BadFileError(f"{path} is larger than {limit} bytes, too large for {kind}")
    return raw


def read_json(path: Path, limit: int) -> dict[str, Any]:
    """The JSON object in the file ``path``, of at most ``limit`` bytes. Raises BadFileError."""
    raw = read_bounded(path, limit, "a file of its kind")
    what = disguise(raw[:64])
    if what and not raw.lstrip().startswith(b"{"):
        raise BadFileError(f"{path} {what}")
    return parse_json(raw, str(path))


def is_text(value: object) -> bool:
    """Whether a value of a file can be a name or a path."""
    return isinstance(value, str) and "\0" not in value


def is_whole(value: object) -> bool:
    """Whether it is a whole number."""
    return type(value) is int


def is_number(value: object) -> bool:
    """Whether it is a number."""
    return isinstance(value, int | float) and not isinstance(value, bool)
