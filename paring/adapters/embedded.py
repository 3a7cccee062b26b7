"""PEFT's configuration inside a file: what diffusers writes beside factors that have PEFT's names.

The metadata ``lora_adapter_metadata`` is a JSON object of PEFT's fields, of one model, or with the part of a
pipeline before each (``unet.lora_alpha``). Files without it state no alpha at all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from paring.checkpoint import Checkpoint
from paring.folders import CONFIG
from paring.untrusted import parse_json

KEY = "lora_adapter_metadata"
Config = Mapping[str, Any]


def configs(checkpoint: Checkpoint) -> Callable[[str], Config | None]:
    """module, as the view names it -> its configuration: adapter_config.json, or what the metadata say.

    Raises BadFileError for a file or metadata that are no sound JSON object.
    """
    config = checkpoint.config(CONFIG)
    if config is not None or KEY not in checkpoint.metadata:
        return lambda module: config
    told = parse_json(checkpoint.metadata[KEY].encode(), f"{checkpoint.path}: metadata {KEY}")
    found = parts(told)
    return lambda module: found.get(module.partition(".")[0], found.get(""))


def parts(told: Config) -> dict[str, dict[str, Any]]:
    """The fields of each part of a pipeline, ``""`` for a single model."""
    out: dict[str, dict[str, Any]] = {}
    for name, value in told.items():
        part, _, field = name.rpartition(".")
        out.setdefault(part, {})[field] = value
    return out
