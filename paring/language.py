"""Language models that run: loaded by transformers through their own classes, and text cut into windows.

Only what needs a model's activations is here, and needs the extra ``paring[retrain]``; everything else in
paring works on files alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paring.checkpoint import Checkpoint, open_checkpoint
from paring.errors import BadFileError, OptionError, UnsupportedError
from paring.plan import thread_count
from paring.untrusted import read_bounded

if TYPE_CHECKING:
    import torch
    from torch import nn

MAX_TEXT = 1 << 30  # bytes
DTYPES = ("fp32", "bf16", "fp16")
_WINDOW = 2048  # tokens


@dataclass(frozen=True, eq=False)
class Text:
    """A text as ``tokens (n,)``, int64, with a digest of its bytes."""

    name: str
    sha256: str
    tokens: torch.Tensor


def folder_of(model: str | os.PathLike[str]) -> Path:
    """The folder of a model with its ``config.json``. Raises BadFileError, UnsupportedError."""
    with open_checkpoint(Path(model)) as checkpoint:
        home = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
    if not (home / "config.json").is_file():
        raise UnsupportedError(f"{home} holds no config.json: running a model takes its folder, as saved")
    return home


def config_of(home: Path, *, causal: bool = False) -> Any:
    """The configuration of the model in the folder ``home``, of which transformers has the class. Raises as
    :func:`load_model` does for classes; no weights are read."""
    with _transformers() as transformers:
        return _class_in(home, transformers, causal)[0]


def load_model(home: Path, *, dtype: str = "fp32", device: str = "cpu", causal: bool = False) -> nn.Module:
    """The model in the folder ``home``, through the class that its config names, ready to evaluate.

    ``dtype`` (fp32, bf16, fp16) is what it computes in. No code that comes with a model is run. Raises
    UnsupportedError for classes that transformers lacks, that lack weights in the file, or, where ``causal``
    is asked for, that do not predict the next token; BadFileError for files it cannot load."""
    refuse_dtype(dtype)
    import torch

    kinds = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    with _transformers() as transformers:
        _, kind = _class_in(home, transformers, causal)
        with open_checkpoint(home) as checkpoint:
            checkpoint.fetch()
        try:
            model, info = kind.from_pretrained(
                home, dtype=kinds[dtype], local_files_only=True, output_loading_info=True
            )
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise BadFileError(f"{home}: transformers cannot load it: {_first(error)}") from None
    if missing := sorted(info["missing_keys"]):
        raise UnsupportedError(
            f"{home}: the file lacks {missing[0]}, which {kind.__name__} needs: weights would be random"
        )
    loaded: nn.Module = model.eval().requires_grad_(False).to(device)
    loaded.config.use_cache = False  # type: ignore[union-attr]
    return loaded


def refuse_dtype(dtype: str) -> None:
    """Raise OptionError for what no model is computed in."""
    if dtype not in DTYPES:
        raise OptionError(f"--dtype {dtype}: expected {', '.join(DTYPES)}")


def _class_in(home: Path, transformers: Any, causal: bool) -> tuple[Any, Any]:
    """The configuration in a folder, and the class that it names."""
    try:
        config = transformers.AutoConfig.from_pretrained(home, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadFileError(f"{home}: transformers cannot read its config.json: {_first(error)}") from None
    name = (getattr(config, "architectures", None) or [""])[0]
    kind: Any = getattr(transformers, name, None) if name else None
    if kind is None:
        raise UnsupportedError(f"{home}: its class is {name or 'not named'}, which transformers lacks")
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedError(f"{home}: {name} has an encoder and a decoder; one stack of blocks is needed")
    if causal and not name.endswith(("CausalLM", "LMHeadModel")):
        raise UnsupportedError(f"{home}: {name} does not predict the next token, so it has no perplexity")
    return config, kind


def read_text(path: str | os.PathLike[str], home: Path) -> Text:
    """A UTF-8 text file as tokens of the tokenizer in ``home``, with the special tokens it puts around a
    text.

    Raises BadFileError, UnsupportedError without a tokenizer.
    """
    raw, text = read_utf8(Path(path))
    import torch

    tokenizer = load_tokenizer(home)
    with _transformers():
        tokens = tokenizer(text, truncation=False)["input_ids"]
    return Text(Path(path).name, sha256(raw).hexdigest(), torch.tensor(tokens, dtype=torch.long))


def read_utf8(path: Path) -> tuple[bytes, str]:
    """A text file's bytes, and the text that they are. Raises BadFileError."""
    raw = read_bounded(path, MAX_TEXT, "a text")
    try:
        return raw, raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadFileError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from None


def load_tokenizer(home: Path) -> Any:
    """The tokenizer in the folder ``home``. Raises UnsupportedError where there is none that can be read."""
    with _transformers() as transformers:
        try:
            return transformers.AutoTokenizer.from_pretrained(home, local_files_only=True)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UnsupportedError(f"{home} holds no tokenizer that can be read: {_first(error)}") from None


def positions(config: Any) -> int | None:
    """The most tokens that a model takes, None where its configuration sets no limit."""
    return getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)


def window_of(asked: int | None, config: Any, default: int = _WINDOW) -> int:
    """The length of windows in tokens: as asked, or ``default``, at most what the model's positions allow.

    Raises OptionError.
    """
    most = positions(config)
    if asked is None:
        return min(default, most or default)
    if asked < 2 or (most and asked > most):
        raise OptionError(
            f"--window {asked}: 2 tokens or more{f', at most {most} for this model' if most else ''}"
        )
    return asked


def begins(text: Text, length: int, stride: int) -> range:
    """Where the whole windows of ``length`` tokens begin. Raises OptionError for a text that has none."""
    found = range(0, len(text.tokens) - length + 1, stride)
    if not found:
        raise OptionError(
            f"{text.name} has {len(text.tokens)} tokens, fewer than one window of {length}: give more text, "
            "or a smaller --window"
        )
    return found


def spread(places: range, samples: int | None) -> list[int]:
    """``samples`` of ``places``, evenly spaced from the first on; all where there are not more. Raises
    OptionError."""
    if samples is None or samples >= len(places):
        return list(places)
    if samples < 1:
        raise OptionError(f"--samples {samples}: 1 or more")
    return [places[i * len(places) // samples] for i in range(samples)]


def stored_name(checkpoint: Checkpoint, model: nn.Module, name: str) -> str | None:
    """What ``checkpoint`` calls the parameter that ``model`` calls ``name``, or None where it lacks it:
    classes with a head put the name of their body before what files of the body have, and the other way
    round."""
    prefix = f"{getattr(model, 'base_model_prefix', '') or '-'}."
    tries = (name, name.removeprefix(prefix), prefix + name)
    return next((each for each in tries if each in checkpoint.tensors), None)


@contextmanager
def torch_threads(threads: int | None) -> Iterator[None]:
    """While in it torch uses so many threads, by default all processors. Raises OptionError below 1."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(thread_count(threads))
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _transformers() -> Iterator[Any]:
    """transformers, silent. Raises UnsupportedError where it is not installed."""
    try:
        import transformers
        from transformers.utils import logging
    except ImportError:
        raise UnsupportedError("running a model needs transformers: pip install 'paring[retrain]'") from None
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(50)  # nothing short of a crash
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield transformers
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _first(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
