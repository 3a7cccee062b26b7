"""A real encoder with linear heads on real tasks: how much of an adapter's gain does a lossy copy keep?

``Bench`` holds all-MiniLM-L6-v2, the heads and the tokenised test rows; ``evaluate`` scores one set of weight
updates on one task; ``kept`` turns scores into the share of the gain that is left, with a standard error.

    bench = Bench.open(("rotten", "brown"))
    base = bench.evaluate("rotten", {})
    dense = bench.evaluate("rotten", dense_deltas(ADAPTERS / "rotten"))
    print(base.correct.mean(), dense.correct.mean())
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file

from benchmarks.real_data import MODEL, fetch, load_task
from paring.errors import BadValueError

if TYPE_CHECKING:
    import torch

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
#: module name -> update (out, in) that is added to the module's weight
Deltas = Mapping[str, F32]

ADAPTERS = Path(__file__).resolve().parent.parent / "fixtures" / "adapters"
#: rows a batch; sorted by length, so that few hold any padding
BATCH = 64


class Scores(NamedTuple):
    """By test row, in the task's order: was the class right, and the cross-entropy in nats, both (rows,)."""

    correct: npt.NDArray[np.bool_]
    nll: F64


class Batch(NamedTuple):
    """Rows of about one length: places (batch,), ids and mask (batch, time); no mask without padding."""

    places: npt.NDArray[np.int64]
    ids: torch.Tensor
    mask: torch.Tensor | None


class Exam(NamedTuple):
    """One task: test rows, answers (rows,), and the head's weight (classes, hidden) and bias (classes,)."""

    batches: list[Batch]
    answers: npt.NDArray[np.int64]
    weight: torch.Tensor
    bias: torch.Tensor


@dataclass(frozen=True)
class Bench:
    """The encoder in fp32 and the exams, by task."""

    model: Any
    exams: dict[str, Exam]

    @classmethod
    def open(cls, tasks: Sequence[str], rows: int | None = None, threads: int = 2) -> Bench:
        """Load all that evaluations share; ``rows`` keeps that many test rows of each task, None all."""
        # transformers reads these when it is imported: the model is local, and its progress is no news
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        import torch
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils import logging

        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        torch.set_num_threads(threads)
        root = fetch()
        tokenizer = AutoTokenizer.from_pretrained(root / MODEL)
        model = AutoModel.from_pretrained(root / MODEL, dtype=torch.float32, add_pooling_layer=False).eval()
        return cls(model, {task: _exam(task, root, tokenizer, rows) for task in tasks})

    def evaluate(self, task: str, deltas: Deltas) -> Scores:
        """Score the encoder with ``deltas`` added, under the task's head. The encoder is not changed."""
        import torch

        exam = self.exams[task]
        logits = np.empty((len(exam.answers), len(exam.bias)), np.float32)
        with torch.inference_mode():
            weights = {
                f"{name}.weight": self.model.get_submodule(name).weight + torch.from_numpy(np.float32(delta))
                for name, delta in deltas.items()
            }
            for batch in exam.batches:
                inputs = {"input_ids": batch.ids, "attention_mask": batch.mask}
                states = torch.func.functional_call(self.model, weights, (), inputs).last_hidden_state
                features = _mean_pool(states, batch.mask)
                logits[batch.places] = torch.nn.functional.linear(features, exam.weight, exam.bias).numpy()
        return score(logits, exam.answers)


def _exam(task: str, root: Path, tokenizer: Any, rows: int | None) -> Exam:
    import torch

    facts = json.loads((ADAPTERS / task / "task.json").read_text())
    head = load_file(ADAPTERS / task / "head.safetensors")
    test = load_task(task, root, facts["seed"]).test[:rows]
    ids = tokenizer([text for text, _ in test], truncation=True, max_length=facts["max_len"])["input_ids"]
    answers = np.array([answer for _, answer in test], np.int64)
    weight, bias = (torch.from_numpy(head[name]) for name in ("weight", "bias"))
    return Exam(list(batches(ids, BATCH)), answers, weight, bias)


def batches(rows: list[list[int]], size: int) -> Iterator[Batch]:
    """``rows`` of token ids in order of length, ``size`` at a time, padded to the longest of their batch."""
    import torch

    order = np.argsort([len(row) for row in rows], kind="stable")
    for places in np.split(order, range(size, len(order), size)):
        lengths = [len(rows[place]) for place in places]
        ids = np.zeros((len(places), max(lengths)), np.int64)
        for line, place in zip(ids, places, strict=True):
            line[: len(rows[place])] = rows[place]
        mask = torch.from_numpy((np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64))
        yield Batch(places, torch.from_numpy(ids), None if mask.all() else mask)


def _mean_pool(states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    if mask is None:
        return states.mean(1)
    shares = mask / mask.sum(1, keepdim=True)
    return (shares[:, None] @ states)[:, 0]


def score(logits: F32, answers: npt.NDArray[np.int64]) -> Scores:
    """Scores of ``logits`` (rows, classes) against ``answers`` (rows,); cross-entropy in fp64."""
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    right = np.take_along_axis(shifted, answers[:, None], 1)[:, 0]
    return Scores(logits.argmax(1) == answers, np.log(np.exp(shifted).sum(1)) - right)


def factors(adapter: Path) -> dict[str, tuple[F32, F32]]:
    """By module, A (rank, in) and scale * B (out, rank), in fp32, of the PEFT adapter in a folder."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    scale = np.float32(config["lora_alpha"] / config["r"])
    tensors = load_file(adapter / "adapter_model.safetensors")
    prefix, suffix = "base_model.model.", ".lora_A.weight"
    names = [name.removeprefix(prefix).removesuffix(suffix) for name in tensors if name.endswith(suffix)]
    return {
        name: (tensors[prefix + name + suffix], scale * tensors[f"{prefix}{name}.lora_B.weight"])
        for name in names
    }


def dense_deltas(adapter: Path) -> dict[str, F32]:
    """By module, the update scale * B @ A (out, in), in fp32, of the PEFT adapter in a folder."""
    return {name: B @ A for name, (A, B) in factors(adapter).items()}


class Kept(NamedTuple):
    """The share of the adapters' gain that is left, in accuracy and cross-entropy, with standard errors."""

    accuracy: float
    accuracy_se: float
    nll: float
    nll_se: float


def kept(
    method: Mapping[str, Scores],
    base: Mapping[str, Scores],
    dense: Mapping[str, Scores],
    resamples: int = 2000,
    seed: int = 0,
) -> Kept:
    """Gain of ``method`` over ``base`` as a share of the gain of ``dense``; all three map tasks to scores.

    A gain is the change of a task's mean, summed over tasks before dividing. The standard errors come from a
    paired bootstrap: rows are drawn anew within each task, the same rows for all three. Raises BadValueError
    when the adapters gain nothing, for then there is no share to speak of.
    """
    rng = np.random.default_rng(seed)
    whole = np.zeros((2, 2))
    drawn = np.zeros((resamples, 2, 2))
    for task in method:
        gains = np.array([_gains(scores[task], base[task]) for scores in (method, dense)])
        rows = gains.shape[-1]
        whole += gains.mean(-1)
        drawn += np.tensordot(_draws(rows, resamples, rng), gains, (1, 2)) / rows
    if (whole[1] <= 0).any():
        raise BadValueError(
            f"nothing to keep: gains of {whole[1, 0]:.4g} accuracy and {whole[1, 1]:.4g} nats"
        )
    with np.errstate(divide="ignore", invalid="ignore"):  # a drawn gain of 0 leaves the standard error NaN
        errors = (drawn[:, 0] / drawn[:, 1]).std(0, ddof=1)
    accuracy, nll = whole[0] / whole[1]
    return Kept(float(accuracy), float(errors[0]), float(nll), float(errors[1]))


def _gains(scores: Scores, base: Scores) -> F64:
    """What each row gains over the base, in accuracy and in cross-entropy: (2, rows)."""
    return np.array([scores.correct.astype(np.float64) - base.correct, base.nll - scores.nll])


def _draws(rows: int, resamples: int, rng: np.random.Generator) -> F64:
    """How often each row is drawn in each resample of ``rows`` rows: (resamples, rows)."""
    picks = rng.integers(rows, size=(resamples, rows)) + rows * np.arange(resamples)[:, None]
    return np.bincount(picks.ravel(), minlength=resamples * rows).reshape(resamples, rows).astype(np.float64)
