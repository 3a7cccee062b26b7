"""What a result tells of itself beside tensors: metadata with its recipe, configuration, tokenizer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from paring.bitmasks import cleaned

#: the files of a tokenizer
TOKENIZER = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.tiktoken",
    "spiece.model", "sentencepiece*.model", "chat_template*", "additional_chat_templates",
)  # fmt: skip
#: files beside a checkpoint that go with its configuration; anything else stays behind
BESIDE = (
    "config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json",
    *TOKENIZER, "modules.json", "sentence_bert_config.json", "config_sentence_transformers.json", "1_Pooling",
)  # fmt: skip
RECIPE = "paring"


def metadata(donor: Mapping[str, str], recipe: Mapping[str, Any]) -> dict[str, str]:
    """``__metadata__`` of a result: the donor's, and the recipe as JSON under ``paring``."""
    told = {key: value for key, value in donor.items() if key != RECIPE}
    return {"format": "pt", **told, RECIPE: json.dumps(recipe, sort_keys=True, ensure_ascii=False)}


def beside(folder: Path) -> list[Path]:
    """What lies in the checkpoint folder ``folder`` and goes with its configuration, by name."""
    return [
        found
        for found in sorted(folder.iterdir())
        if any(fnmatchcase(found.name, pattern) for pattern in BESIDE)
    ]


def copy_beside(
    donor: Path, folder: Path, dtype: str | None, changes: Mapping[str, Any] | None = None
) -> list[str]:
    """Copy configuration and tokenizer files of the checkpoint folder ``donor``; returns their names.

    With ``dtype`` (``bfloat16``) the configuration says so; ``changes`` are made in it, mappings key by key.
    """
    names = []
    for found in beside(donor):
        if found.is_dir():
            shutil.copytree(found, folder / found.name, dirs_exist_ok=True)  # a run taken up again
        else:
            shutil.copyfile(found, folder / found.name)
        names.append(found.name)
    config = folder / "config.json"
    if config.exists():
        before = json.loads(config.read_text(encoding="utf-8"))
        told = cleaned(before)
        if told == before and not dtype and not changes:
            return names
        if dtype:
            told.pop("torch_dtype", None)
            told["dtype"] = dtype
        for key, value in (changes or {}).items():
            told[key] = {**told[key], **value} if isinstance(value, dict) else value
        config.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    return names


def replaceable(output: Path, single: bool) -> list[str] | None:
    """What a folder may hold to be replaced: a result's own files, of whatever number of shards."""
    if single or not output.is_dir():
        return None
    ours = (*BESIDE, "model*.safetensors", "model.safetensors.index.json", "README.md")
    found = (path for path in output.iterdir() if any(fnmatchcase(path.name, some) for some in ours))
    return [path.name + "/" * path.is_dir() for path in found]
