"""Whether transformers, where it is installed, loads what will be written: its own loader, on no memory."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from paring.errors import UnsupportedError

Layout = Sequence[tuple[str, str, Sequence[int]]]
_FLOAT = ("F64", "F32", "F16", "BF16")


def refuse_unloadable(
    config: Mapping[str, Any], layout: Layout, before: Mapping[str, Any], source: Layout, where: str
) -> str | None:
    """Raise UnsupportedError where the model of ``config`` and ``layout`` does not load as that of ``before``
    and ``source`` does; why that could not be found out, or None.
    """
    if find_spec("transformers") is None or find_spec("accelerate") is None:
        return (
            "transformers and accelerate are not both installed: only shapes against config.json are checked"
        )
    architecture = next(iter(before.get("architectures") or []), None)
    try:
        allowed = _troubles(before, source, architecture)
    except Exception as error:
        return (
            f"transformers does not load {where} itself ({_line(error)}): the result is not checked with it"
        )
    try:
        found = _troubles(config, layout, architecture)
    except Exception as error:
        raise UnsupportedError(f"{where}: transformers would not load what is left: {_line(error)}") from None
    if new := sorted(found - allowed):
        raise UnsupportedError(f"{where}: transformers would not load what is left: {new[0]}")
    return None


def _line(error: Exception) -> str:
    return (
        f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}" if str(error) else repr(error)
    )


def _troubles(config: Mapping[str, Any], layout: Layout, architecture: str | None) -> set[str]:
    """Keys that are missing, superfluous or of another shape, numbers left out."""
    import torch
    import transformers
    from transformers.utils import logging as told_of

    logging: Any = told_of
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(50)  # critical
    logging.disable_progress_bar()
    try:
        told = {key: value for key, value in config.items() if key not in ("dtype", "torch_dtype")}
        made: Any = transformers.AutoConfig.for_model(**told)
        kind: Any = getattr(transformers, architecture or "", None) or transformers.AutoModel
        if kind is transformers.AutoModel:
            kind = transformers.AutoModel._model_mapping[type(made)]
        state = {
            name: torch.empty(
                tuple(shape), dtype=torch.float32 if dtype in _FLOAT else torch.int64, device="meta"
            )
            for name, dtype, shape in layout
        }
        _, info = kind.from_pretrained(
            None, config=made, state_dict=state, output_loading_info=True, device_map="meta",
            ignore_mismatched_sizes=True,
        )  # fmt: skip
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
    found = {f"{_plain(key)} is missing" for key in info["missing_keys"]}
    found |= {f"{_plain(key)} is not of this model" for key in info["unexpected_keys"]}
    for key, mine, wanted in info["mismatched_keys"]:
        found.add(f"{key} is {list(mine)}, not {list(wanted)}")
    return found


def _plain(key: str) -> str:
    return re.sub(r"(?<=\.)\d+(?=\.)", "N", key)
