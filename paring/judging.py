"""Perplexity of a model on its way: as it was, pruned, retrained, all on the same windows of one text."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path

from paring.card import Evaluation, perplexity_of
from paring.devices import to_run
from paring.errors import OptionError
from paring.evaluating import HeldOut, Reading, perplexity, read, spoken
from paring.language import folder_of, torch_threads
from paring.report import Perplexities, PerplexityReport
from paring.retraining.text import LINES

_DTYPE = "fp32"


def held_out(
    data: str | None, window: int | None = None, stride: int | None = None, samples: int | None = None
) -> HeldOut | None:
    """What ``--eval-data`` and the options beside it ask for. Raises OptionError for those alone."""
    if data is not None:
        if Path(data).suffix in LINES:
            raise OptionError(f"--eval-data {data}: perplexity is of plain text, and this is lines of JSON")
        return HeldOut(data, window, stride, samples)
    for name, value in (("window", window), ("stride", stride), ("samples", samples)):
        if value is not None:
            raise OptionError(f"--eval-{name} goes with --eval-data, the text to measure perplexity on")
    return None


@dataclass(eq=False)
class Judge:
    """Measures folders of one model on one text, and tells what it has found so far."""

    reading: Reading
    device: str
    threads: int | None
    found: dict[str, PerplexityReport] = field(default_factory=dict)

    def measure(self, stage: str, folder: Path) -> None:
        """Perplexity of the model in ``folder``, as ``stage``: dense, pruned or retrained. An adapter that is
        in ``folder/adapter`` counts."""
        with torch_threads(self.threads):
            self.found[stage] = perplexity(folder, self.reading, _DTYPE, self.device)

    def report(self) -> Perplexities:
        """All that was measured; the dense and the pruned model must be among it."""
        text = self.reading.text
        return Perplexities(
            data=text.name, sha256=text.sha256, windows=len(self.reading.places), window=self.reading.window,
            stride=self.reading.stride, scored=self.reading.scored, dtype=_DTYPE, device=self.device,
            **self.found,
        )  # fmt: skip


def judge(
    asked: HeldOut, model: Path, output: Path, *, device: str = "auto", threads: int | None = None
) -> Judge:
    """A judge of the model in the folder ``model`` and what it becomes in the folder ``output``; the text is
    read and checked, no weights are. Raises OptionError, UnsupportedError, BadFileError.
    """
    if not model.is_dir() or output.suffix == ".safetensors":
        which = f"MODEL {model}" if not model.is_dir() else f"-o {output}"
        raise OptionError(f"{which}: --eval-data runs models, which takes folders, with their tokenizer")
    try:
        reading = read(folder_of(model), asked, _DTYPE)
    except OptionError as error:  # by the names that the options have here
        raise OptionError(re.sub(r"--(?=window|stride|samples)", "--eval-", str(error))) from None
    return Judge(reading, to_run(device), threads)


def stages(found: Perplexities) -> list[tuple[str, float]]:
    """The perplexities that were measured, in order, and what of."""
    parts = [("dense", found.dense), ("pruned", found.pruned), ("retrained", found.retrained)]
    return [(name, part.perplexity) for name, part in parts if part is not None]


def table(found: Perplexities) -> tuple[list[str], list[list[str]]]:
    """They as a table on a card."""
    told = stages(found)
    head = [f"perplexity on `{found.data}`", *(name for name, _ in told)]
    return head, [[spoken(found), *(f"{value:.4f}" for _, value in told)]]


def measured(found: Perplexities) -> list[Evaluation]:
    """That of the result, as the Hub reads it; nothing for infinity."""
    _, value = stages(found)[-1]
    return [perplexity_of(found, value)] if math.isfinite(value) else []
