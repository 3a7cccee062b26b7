"""Which library loads a result, and the code that does, for its card."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from paring.folders import CONFIG

#: how code on a card calls the folder that the card is in, until it is pushed
HERE = "PATH/TO/THIS/FOLDER"
_AUTO = (
    ("ForCausalLM", "AutoModelForCausalLM"), ("LMHeadModel", "AutoModelForCausalLM"),
    ("ForSequenceClassification", "AutoModelForSequenceClassification"),
    ("ForTokenClassification", "AutoModelForTokenClassification"),
    ("ForQuestionAnswering", "AutoModelForQuestionAnswering"),
    ("ForConditionalGeneration", "AutoModelForSeq2SeqLM"), ("ForMaskedLM", "AutoModelForMaskedLM"),
)  # fmt: skip


def library_of(folder: Path) -> str | None:
    """Which library loads what is in a folder: by its configuration."""
    if (folder / CONFIG).exists():
        return "peft"
    if (folder / "modules.json").exists():
        return "sentence-transformers"
    return "transformers" if (folder / "config.json").exists() else None


def config_in(folder: Path) -> dict[str, Any] | None:
    """``config.json`` of a folder that we have just written."""
    path = folder / "config.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def loading_code(
    library: str | None, base: str | None, config: Mapping[str, Any] | None, *, adapter: bool = False
) -> str:
    """Code that loads a result, and the ``adapter`` that lies in its folder of that name."""
    if library == "peft":
        lines = [
            "from peft import PeftModel", "from transformers import AutoModel", "",
            f'base = AutoModel.from_pretrained("{base or "BASE"}")',
            f'model = PeftModel.from_pretrained(base, "{HERE}")',
        ]  # fmt: skip
    elif library == "sentence-transformers":
        lines = [
            "from sentence_transformers import SentenceTransformer", "",
            f'model = SentenceTransformer("{HERE}")',
        ]  # fmt: skip
    elif library == "transformers":
        told = " ".join(map(str, (config or {}).get("architectures") or ()))
        kind = next((auto for ending, auto in _AUTO if ending in told), "AutoModel")
        lines = [f"from transformers import {kind}", "", f'model = {kind}.from_pretrained("{HERE}")']
        if adapter:
            lines.insert(0, "from peft import PeftModel")
            lines.append(f'model = PeftModel.from_pretrained(model, "{HERE}", subfolder="adapter")')
    else:
        return ""
    return "```python\n" + "\n".join(lines) + "\n```"
