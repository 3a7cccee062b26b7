"""Text to train on: files, folders or a data set on the Hub, tokenised and packed into windows of one length.

Every token is used: documents follow one another, separated as the tokenizer does it or by its end-of-text
token, and where the last window would be short it begins earlier and overlaps the one before.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from paring.errors import BadFileError, OptionError, UnsupportedError
from paring.language import read_utf8

_log = logging.getLogger("paring")
PLAIN = (".txt", ".md")
LINES = (".jsonl", ".ndjson")
_READ = ", ".join((*PLAIN, *LINES))
#: characters given to a tokenizer at once; cut at white space
_PIECE = 1_000_000
Windows = npt.NDArray[np.int64]


def read(source: str | Path, *, field: str = "text") -> Iterator[tuple[str, str]]:
    """(name, text) of every document: of a file, of a folder's in order of their paths, of a Hub data set.

    ``.txt`` and ``.md`` are one document, ``.jsonl`` one a line, in the key ``field``. Local paths come
    first; otherwise ``org/name`` is downloaded with huggingface_hub. Raises BadFileError, UnsupportedError
    for files of other kinds, by name, and OptionError for what is neither.
    """
    path = Path(source)
    if path.is_file():
        yield from _file(path, path.name, field)
    elif path.is_dir():
        found, files = _inside(path), files_of(path)
        if not files:
            some = f" ({found[0].name}, ...)" if found else ""
            raise BadFileError(f"{path}: holds no {_READ} files{some}")
        for each in files:
            yield from _file(each, str(each.relative_to(path)), field)
        if left := len(found) - len(files):
            _log.warning("%s: %d files are of other kinds and were not read", path, left)
    else:
        check(source)
        for each, name in _downloaded(str(source)):
            yield from _file(each, name, field)


def files_of(source: str | Path) -> list[Path]:
    """The files here that :func:`read` reads, in order; none of a data set on the Hub."""
    path = Path(source)
    found = _inside(path) if path.is_dir() else []
    return [path] if path.is_file() else [each for each in found if each.suffix in PLAIN + LINES]


def digest(source: str | Path, *, field: str = "text") -> str:
    """What tells texts from others: of every document in its order. Raises as :func:`read` does."""
    state = hashlib.sha256()
    for _, text in read(source, field=field):
        raw = text.encode(errors="surrogatepass")  # which JSON may hold
        state.update(len(raw).to_bytes(8, "little") + raw)
    return state.hexdigest()


def check(source: str | Path) -> None:
    """Refuse, before any work, what :func:`read` will not find here and cannot be on the Hub. Raises
    OptionError.
    """
    if not Path(source).exists() and not on_hub(source):
        raise OptionError(
            f"--data {source}: there is no such file or folder, and it is no data set's org/name"
        )


def on_hub(source: str | Path) -> bool:
    """Whether a name can be that of a data set on the Hub."""
    kept = Path(source).suffix not in PLAIN + LINES
    return kept and re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)) is not None


def windows(tokenizer: Any, documents: Iterable[tuple[str, str]], length: int) -> Windows:
    """Token ids ``(windows, length)``, int64; one shorter window where that is all there is.

    Raises OptionError for a length below 2 and BadFileError where there are no two tokens.
    """
    if length < 2:
        raise OptionError(f"--length {length}: a window holds at least 2 tokens")
    ids: list[int] = []
    end = getattr(tokenizer, "eos_token_id", None)
    for _, text in documents:
        before = len(ids)
        for piece in _pieces(text):
            ids.extend(tokenizer(piece, verbose=False)["input_ids"])
        if (
            end is not None
            and len(ids) > before
            and ids[-1] not in (end, getattr(tokenizer, "sep_token_id", None))
        ):
            ids.append(end)
    if len(ids) < 2:
        raise BadFileError("--data: the text holds no two tokens")
    return pack(np.asarray(ids, np.int64), length)


def pack(ids: npt.NDArray[np.int64], length: int) -> Windows:
    """Cut ``ids (tokens,)`` into windows; the last one is full, and overlaps if it must."""
    if len(ids) <= length:
        return ids[None, :]
    starts = [*range(0, len(ids) - length, length), len(ids) - length]
    return np.stack([ids[start : start + length] for start in starts])


def batch(data: Windows, number: int, size: int, seed: int) -> Windows:
    """Micro-batch ``number`` of a run: ``size`` windows; each epoch has a permutation, keyed by ``seed``."""
    first = number * size
    rows = []
    for place in range(first, first + size):
        epoch, within = divmod(place, len(data))
        rows.append(_order(len(data), epoch, seed)[within])
    return data[rows]


@lru_cache(maxsize=8)
def _order(count: int, epoch: int, seed: int) -> npt.NDArray[np.int64]:
    return np.random.Generator(np.random.Philox([seed, epoch])).permutation(count)


def _inside(folder: Path) -> list[Path]:
    """All files below a folder, in order of their paths, but for hidden ones."""
    return sorted(each for each in folder.rglob("*") if each.is_file() and not _hidden(each, folder))


def _hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def _pieces(text: str) -> Iterator[str]:
    """Parts of a long text, cut before white space, where tokenizers cut too."""
    start = 0
    while len(text) - start > _PIECE:
        cut = max(text.rfind(" ", start + 1, start + _PIECE), text.rfind("\n", start + 1, start + _PIECE))
        cut = cut if cut > start else start + _PIECE
        yield text[start:cut]
        start = cut
    if start < len(text):
        yield text[start:]


def _file(path: Path, name: str, field: str) -> Iterator[tuple[str, str]]:
    if path.suffix not in PLAIN + LINES:
        raise UnsupportedError(f"--data {path}: only {_READ} are read; convert it to one of these")
    text = read_utf8(path)[1].replace("\r\n", "\n").replace("\r", "\n")
    if path.suffix in PLAIN:
        yield name, text
        return
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)[field]
        except (ValueError, KeyError, TypeError, IndexError):
            found = None
        if not isinstance(found, str):
            raise BadFileError(f"{path}, line {number}: no JSON object with a text under {field!r}")
        yield f"{name}:{number}", found


def _downloaded(repository: str) -> Iterator[tuple[Path, str]]:
    """The text files of a data set on the Hub, in order of their names."""
    from huggingface_hub import hf_hub_download, list_repo_files
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        names = sorted(list_repo_files(repository, repo_type="dataset"))
        files = [
            name
            for name in names
            if Path(name).suffix in (*PLAIN, *LINES) and not name.startswith(("README", "."))
        ]
        if not files:
            data = next((name for name in names if not name.startswith(("README", "."))), "nothing")
            raise UnsupportedError(
                f"--data {repository}: only {_READ} are read, and it holds {data}: convert it and give the "
                "file"
            )
        for name in files:
            yield Path(hf_hub_download(repository, name, repo_type="dataset")), name
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError) as error:
        raise BadFileError(
            f"--data {repository}: no such file or folder here, and the Hub did not give it "
            f"({type(error).__name__})"
        ) from None
