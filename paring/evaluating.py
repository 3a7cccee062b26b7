"""Perplexity of a causal language model on a text, by windows, with a standard error."""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from paring.devices import to_run
from paring.errors import BadValueError, OptionError
from paring.language import Text, begins, folder_of, load_model, read_text, spread, torch_threads, window_of
from paring.report import Jsonable

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
    nll_error: float | None
    nlls: list[float]
    windows: int
    window: int
    stride: int
    scored: int
    dtype: str
    device: str
    seconds: float


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
    text = read_text(data, home)
    with torch_threads(threads):
        loaded = load_model(home, dtype=dtype, device=device, causal=True)
        length = window_of(window, loaded.config)
        step = length if stride is None else stride
        places = windows(text, length, step, samples)
        sums, counts = np.array([_score(loaded, text, *place, device) for place in places]).T
    nll = float(sums.sum() / counts.sum())
    return Evaluation(
        inputs=[os.fspath(model)], data=text.name, perplexity=_exp(nll), nll=nll,
        nll_error=standard_error(sums / counts) if len(places) > 1 else None, nlls=(sums / counts).tolist(),
        windows=len(places), window=length, stride=step, scored=int(counts.sum()), dtype=dtype, device=device,
        seconds=time.perf_counter() - begun,
    )  # fmt: skip


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
