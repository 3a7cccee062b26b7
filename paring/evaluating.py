"""Perplexity of a causal language model on a text, by windows, with a standard error."""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from paring.devices import to_run
from paring.errors import BadValueError, OptionError
from paring.language import (
    Text,
    begins,
    config_of,
    folder_of,
    load_model,
    read_text,
    refuse_dtype,
    spread,
    torch_threads,
    window_of,
)
from paring.report import Jsonable, Perplexities, PerplexityReport

if TYPE_CHECKING:
    import torch
    from torch import nn

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation(Jsonable):
    """``perplexity`` is exp of ``nll``, the mean over tokens in nats; ``nll_error`` is its standard error
    over windows, None for one. ``nlls`` are the means of the windows, ``scored`` is how many tokens were
    predicted."""

    command: str = "eval"
    inputs: list[str]
    data: str
    perplexity: float
    nll: float
    nll_error: float | None = None
    nlls: list[float]
    windows: int
    window: int
    stride: int
    scored: int
    dtype: str
    device: str
    seconds: float


@dataclass(frozen=True, slots=True)
class HeldOut:
    """A text to measure perplexity on, and the windows as asked for: None is what :func:`evaluate` says."""

    data: str | os.PathLike[str]
    window: int | None = None
    stride: int | None = None
    samples: int | None = None


@dataclass(frozen=True, eq=False)
class Reading:
    """A text, and where its windows are: ``(begin, stop, scored)`` each."""

    text: Text
    places: Sequence[tuple[int, int, int]]
    window: int
    stride: int

    @property
    def scored(self) -> int:
        """How many tokens are predicted."""
        return sum(scored for _, _, scored in self.places)


def evaluate(
    model: str | os.PathLike[str],
    data: str | os.PathLike[str],
    *,
    window: int | None = None,
    stride: int | None = None,
    samples: int | None = None,
    dtype: str = "fp32",
    device: str = "auto",
    threads: int | None = None,
) -> Evaluation:
    """The perplexity of the causal language model in the folder ``model`` on the UTF-8 text file ``data``.

    The whole text is tokenized at once, with the special tokens that the model's tokenizer puts around a
    text, and read by windows of ``window`` tokens (2048 by default, or what the model allows) that begin
    every ``stride`` tokens (by default one after the other). A window predicts its last ``stride`` tokens,
    the first window all but its first token; what is left of the text after the last whole window is not
    read. ``samples`` windows, evenly spaced, stand for all of them.

    Raises OptionError, UnsupportedError, BadFileError, BadValueError for a model that predicts NaN.
    """
    begun = time.perf_counter()
    device = to_run(device)
    home = folder_of(model)
    reading = read(home, HeldOut(data, window, stride, samples), dtype)
    with torch_threads(threads):
        nll, error, nlls = _nlls(load_model(home, dtype=dtype, device=device, causal=True), reading, device)
    return Evaluation(
        inputs=[os.fspath(model)], data=reading.text.name, perplexity=_exp(nll), nll=nll, nll_error=error,
        nlls=nlls, windows=len(reading.places), window=reading.window, stride=reading.stride,
        scored=reading.scored, dtype=dtype, device=device, seconds=time.perf_counter() - begun,
    )  # fmt: skip


def read(home: Path, asked: HeldOut, dtype: str = "fp32") -> Reading:
    """The text that is asked for, as the model in the folder ``home`` reads it; no weights are loaded.

    Raises OptionError, UnsupportedError, BadFileError.
    """
    refuse_dtype(dtype)
    length = window_of(asked.window, config_of(home, causal=True))
    step = length if asked.stride is None else asked.stride
    text = read_text(asked.data, home)
    return Reading(text, windows(text, length, step, asked.samples), length, step)


def perplexity(home: Path, reading: Reading, dtype: str, device: str) -> PerplexityReport:
    """The perplexity of the model in the folder ``home`` on a text, with the PEFT adapter that is in
    ``home/adapter``, if any. Raises as :func:`evaluate` does.
    """
    model: nn.Module = load_model(home, dtype=dtype, device=device, causal=True)
    if (home / "adapter").is_dir():
        from peft import PeftModel

        with warnings.catch_warnings():  # of what one library thinks of the other
            warnings.simplefilter("ignore", FutureWarning)
            model = PeftModel.from_pretrained(model, home / "adapter").eval()
    nll, error, _ = _nlls(model, reading, device)
    return PerplexityReport(_exp(nll), nll, error)


def spoken(found: Evaluation | Perplexities) -> str:
    """By which windows a text was read, in words."""
    return (
        f"{found.windows:,} windows of {found.window:,} tokens, one every {found.stride:,}; "
        f"{found.scored:,} tokens predicted"
    )


def windows(text: Text, length: int, stride: int, samples: int | None) -> list[tuple[int, int, int]]:
    """Windows of ``length`` tokens as ``(begin, stop, scored)``: how many of their last tokens count.

    Raises OptionError, also for a text that is shorter than one window.
    """
    if not 1 <= stride <= length:
        raise OptionError(f"--stride {stride}: 1 token or more, and at most a window, {length}")
    return [
        (begin, begin + length, length - 1 if begin == 0 else min(stride, length - 1))
        for begin in spread(begins(text, length, stride), samples)
    ]


def standard_error(values: F64) -> float:
    """Of the mean of ``values (n,)``, n at least 2, taken as independent."""
    return float(values.std(ddof=1) / math.sqrt(len(values)))


def _nlls(model: nn.Module, reading: Reading, device: str) -> tuple[float, float | None, list[float]]:
    """The mean negative log likelihood of all tokens, its standard error, and the means of the windows."""
    found = [_score(model, reading.text, *place, device) for place in reading.places]
    sums, counts = np.array(found).T
    error = standard_error(sums / counts) if len(found) > 1 else None
    return float(sums.sum() / counts.sum()), error, (sums / counts).tolist()


def _score(
    model: nn.Module, text: Text, begin: int, stop: int, scored: int, device: str
) -> tuple[float, int]:
    """The negative log likelihood of the last ``scored`` tokens of a window, in nats, and their number."""
    import torch

    ids = text.tokens[begin:stop].to(device)
    with torch.inference_mode():
        logits: torch.Tensor = model(input_ids=ids[None]).logits[0, -scored - 1 : -1].float()
        found = torch.nn.functional.cross_entropy(logits, ids[-scored:], reduction="sum").item()
    if not math.isfinite(found):
        raise BadValueError("the model predicts NaN or infinity: is it sound? in fp16, try --dtype fp32")
    return found, scored


def _exp(nll: float) -> float:
    return math.exp(nll) if nll < 700 else math.inf
