"""The files of a result's tokenizer: one input's as they are, or the union's, with a chat template."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from paring.checkpoint import MAX_CONFIG
from paring.merging.record import TOKENIZER
from paring.merging.vocabularies.tokenizers import CONFIG, FILE, TEMPLATE, TEMPLATES, config
from paring.merging.vocabularies.vocabulary import Vocabulary
from paring.untrusted import read_json

#: forms of a vocabulary that a new ``tokenizer.json`` makes stale
_STALE = ("vocab.*", "merges.txt", "added_tokens.json", "*.model", "*.tiktoken")


def write(vocabulary: Vocabulary, folder: Path) -> None:
    """Put the tokenizer's files into ``folder``, in place of those that are there."""
    _remove(folder, TOKENIZER)
    for found in sorted(vocabulary.chosen.folder.iterdir()):
        if any(fnmatchcase(found.name, pattern) for pattern in TOKENIZER):
            _copy(found, folder)
    if vocabulary.added:
        _remove(folder, _STALE)
        _write_json(folder / FILE, vocabulary.tokenizer.told)
        _add_tokens(vocabulary, folder)
    if vocabulary.template is not None:
        for name in TEMPLATES:
            if (found := vocabulary.template.folder / name).exists():
                _copy(found, folder)
        theirs = config(vocabulary.template.folder)
        if TEMPLATE in theirs:
            _write_json(folder / CONFIG, {**config(folder), TEMPLATE: theirs[TEMPLATE]})
    generation = folder / "generation_config.json"
    if vocabulary.generation and generation.exists():
        _write_json(generation, {**read_json(generation, MAX_CONFIG), **vocabulary.generation})


def _add_tokens(vocabulary: Vocabulary, folder: Path) -> None:
    """List new added tokens where transformers looks for them as well."""
    told = config(folder)
    listed = told.get("added_tokens_decoder")
    if not isinstance(listed, dict):
        return
    added = vocabulary.tokenizer.added
    for token in vocabulary.added:
        if token in added:
            entry = {key: value for key, value in added[token].items() if key != "id"}
            listed[str(added[token]["id"])] = entry
    _write_json(folder / CONFIG, told)


def _remove(folder: Path, patterns: tuple[str, ...]) -> None:
    for found in list(folder.iterdir()):
        if any(fnmatchcase(found.name, pattern) for pattern in patterns):
            if found.is_dir():
                shutil.rmtree(found)
            else:
                found.unlink()


def _copy(found: Path, folder: Path) -> None:
    if found.is_dir():
        shutil.copytree(found, folder / found.name, dirs_exist_ok=True)
    else:
        shutil.copyfile(found, folder / found.name)


def _write_json(path: Path, told: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(told, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
