"""A small language model and texts for it, as files: SmolLM2-135M, Austen, the Brown corpus.

    python -m benchmarks.smollm        # fetches and prepares all of them, and says where they are

The model comes as GGUF with four bits a weight, so its linear weights are 4-bit values dequantised, at most
16 levels in every 32 neighbours; it is written as bf16 safetensors. Reading it takes the package ``gguf``.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.real_data import AUSTEN, BROWN, PACKAGES, SMOLLM, brown_words, data_root, fetch
from paring.errors import BadFileError

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_DIGESTS = {"austen.txt": "9f61ff3b20bf3ad3", "brown.txt": "84c61202b367d62a"}


class Split(NamedTuple):
    """Texts by name: to train on, to choose by, to report on."""

    train: dict[str, str]
    validation: dict[str, str]
    test: dict[str, str]


def model() -> Path:
    """The folder of the model with its tokenizer; made on first use."""
    home = data_root() / "smollm2-135m"
    if not home.is_dir():
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

        source = fetch([SMOLLM]) / SMOLLM.home
        read: Any = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF, dtype=torch.float32)
        del read.config.quantization_config  # with it no model is saved; its weights are dense by now
        made: Any = LlamaForCausalLM(read.config)
        made = made.to(torch.bfloat16)
        made.load_state_dict(read.state_dict())
        with tempfile.TemporaryDirectory(dir=home.parent, prefix=".smollm-") as scratch:
            whole = Path(scratch, "model")
            made.save_pretrained(whole)
            AutoTokenizer.from_pretrained(source, gguf_file=GGUF).save_pretrained(whole)
            whole.rename(home)
    return home


def austen() -> Path:
    """Six novels, 4 MB of text: what perplexity is measured on."""
    return _text("austen.txt", lambda: "\n\n".join(novels().values()))


def novels() -> dict[str, str]:
    """The six novels by title, in capitals."""
    books = _austen((fetch([AUSTEN]) / AUSTEN.home / "Rdata.rdb").read_bytes())
    return {book.strip().split("\n")[0].upper(): book for book in books}


def brown() -> Path:
    """The Brown corpus, 6 MB of American prose of many kinds: what models are calibrated on."""

    return _text("brown.txt", lambda: "\n\n".join(documents().values()))


def documents() -> dict[str, str]:
    """Brown's 500 documents by name."""
    folder = fetch([each for each in PACKAGES if each.home == BROWN]) / BROWN
    files = sorted(folder.glob("c[a-r][0-9][0-9]"))
    return {file.name: " ".join(brown_words(file.read_text(encoding="latin-1"))) for file in files}


def split() -> Split:
    """By book: four novels and three fifths of Brown's documents to train on; ``NORTHANGER ABBEY`` and a
    fifth to choose by; ``PERSUASION`` and a fifth to report on.
    """
    parts = Split({}, {}, {})
    for title, text in novels().items():
        home = {"NORTHANGER ABBEY": parts.validation, "PERSUASION": parts.test}.get(title, parts.train)
        home[title] = text
    for name, text in documents().items():
        home = {0: parts.test, 1: parts.validation}.get(int(name[2:]) % 5, parts.train)
        home[name] = text
    return parts


def _text(name: str, read: Callable[[], str]) -> Path:
    path = data_root() / name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(read(), encoding="utf-8")
    found = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    if found != _DIGESTS[name]:
        raise BadFileError(f"{path}: the text has digest {found}, expected {_DIGESTS[name]}")
    return path


def _austen(raw: bytes) -> list[str]:
    """The texts in an R database: records of four bytes of length and a zlib stream, each one vector of
    strings.

    In R's own format a vector of strings is its type, its length, and its strings; a string is four bytes of
    type (9), four of length, and its bytes. Lines of a paragraph are joined.
    """
    books = []
    while len(raw) > 4:
        stream = zlib.decompressobj()
        record = stream.decompress(raw[4:])
        raw = stream.unused_data
        start = record.find(b"\0\0\0\x10")
        if start < 0:
            continue
        place, lines = start + 8, []
        for _ in range(int.from_bytes(record[start + 4 : place], "big")):
            length = int.from_bytes(record[place + 4 : place + 8], "big", signed=True)
            lines.append(record[place + 8 : place + 8 + max(0, length)].decode())
            place += 8 + max(0, length)
        books.append(re.sub(r"(?<!\n)\n(?!\n)", " ", "\n".join(lines)))
    return books


def main() -> None:
    for path in (model(), austen(), brown()):
        print(path)


if __name__ == "__main__":
    main()
