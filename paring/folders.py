"""Which file in a folder stands for its checkpoint; the same for a folder here and one on the Hub."""

from __future__ import annotations

from collections.abc import Collection
from fnmatch import fnmatchcase

from paring.errors import BadFileError

INDEX = ".index.json"
#: an adapter as PEFT saves it
WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
#: what a folder is searched for, in this order, before any single .safetensors file
_NAMES = (
    WEIGHTS,
    "model.safetensors",
    "adapter_model.safetensors.index.json",
    "model.safetensors.index.json",
)
_LATER_NAMES = (
    "adapter_model.bin",
    "pytorch_model.bin",
    "adapter_model.bin.index.json",
    "pytorch_model.bin.index.json",
)


def choose(names: Collection[str], folder: object) -> str:
    """The one of ``names`` in ``folder`` that stands for its checkpoint. Raises BadFileError for none, or for
    several that it may be.
    """
    for name in _NAMES:
        if name in names:
            return name
    for pattern in ("*.safetensors" + INDEX, "*.safetensors"):
        found = sorted(name for name in names if fnmatchcase(name, pattern))
        if len(found) > 1:
            some = ", ".join(found[:4])
            raise BadFileError(f"{folder} holds {len(found)} checkpoints ({some}): name the one you mean")
        if found:
            return found[0]
    for name in _LATER_NAMES:
        if name in names:
            return name
    raise BadFileError(
        f"{folder} holds no checkpoint: looked for {', '.join(_NAMES)}, any one .safetensors file, "
        f"{', '.join(_LATER_NAMES)}"
    )
