"""Pruning: weights, masks, whole parts; what a model is given, and what it loses."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paring.api import _names
from paring.errors import OptionError
from paring.hub.names import PathLike
from paring.hub.reading import located
from paring.hub.verbs import naming
from paring.outputs import SHARD_BYTES
from paring.pruning.report import Pruning
from paring.report import Shrinking

if TYPE_CHECKING:
    from paring.evaluating import Evaluation
    from paring.pruning.calibration import Calibration


@naming
def prune(
    model: PathLike,
    output: PathLike,
    *,
    method: str = "magnitude",
    sparsity: float | str | None = None,
    keep: int | None = None,
    of: int | None = None,
    scope: str | None = None,
    allocate: str = "uniform",
    lines: str | None = None,
    budgets: Mapping[str, float | str] | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    tail: str = "error",
    stats: PathLike | None = None,
    refit: bool = False,
    outliers: float = 5.0,
    spread: float = 0.08,
    save_mask: PathLike | None = None,
    shard_size: int = SHARD_BYTES,
    overwrite: bool = False,
    dry_run: bool = False,
    threads: int | None = None,
    memory: int | None = None,
    device: str = "auto",
    retrain: str | None = None,
    data: PathLike | None = None,
    length: int | None = None,
    field: str = "text",
    seed: int = 0,
    retrain_options: Mapping[str, Any] | None = None,
    eval_data: PathLike | None = None,
    eval_window: int | None = None,
    eval_stride: int | None = None,
    eval_samples: int | None = None,
    **options: Any,
) -> Pruning:
    """Set the least entries of a checkpoint to zero: ``sparsity`` of them (a decimal, taken as typed), or all
    but ``keep`` of every ``of`` neighbours along the inputs.

    ``scope`` is what shares one threshold: tensor (each matrix), row (each output) or global (the model); by
    default tensor, or row as Wanda is published. ``allocate`` shares a sparsity out over matrices: uniform,
    erk, lamp, or owl (by how many scores are ``outliers`` times their block's mean, within ``spread``).
    ``lines`` (outputs, inputs) prunes whole ones by their norms. ``budgets`` gives tensors that fit a pattern
    a sparsity, ``"2:4"`` or ``"dense"`` of their own. ``include`` and ``exclude`` are patterns over names; by
    default embeddings, heads, norms, biases and routers are left alone. ``tail`` (error, dense) says what
    becomes of inputs that ``of`` does not divide. ``stats`` is a file of ``calibrate``, from which ``refit``
    gives what stays its best values, whatever chose it. ``save_mask`` is a mask to write. ``options`` are
    those of ``method``.

    ``retrain`` names a recipe (perp, reconstruct, pst, pdp) with ``retrain_options``: the result is then
    retrained inside its mask on ``data``, a text file, a folder of them or a data set on the Hub, in windows
    of ``length`` tokens (512, or what the model allows); of lines of JSON the key ``field`` is read.
    ``output`` is a folder then.

    ``eval_data`` is a text file that is held out: the report and the card tell the perplexity on it of the
    model as it was, pruned, and retrained, by windows as :func:`evaluate` has them.

    A run that was killed is taken up by the same call. Raises OptionError, UnsupportedError, BadFileError,
    BadValueError (NaN, infinity), OutputError.
    """
    from paring import judging
    from paring.pruning import plan, run
    from paring.pruning import request as asking

    held = judging.held_out(_names.text(eval_data), eval_window, eval_stride, eval_samples)
    request = asking.Request(
        located(model), method, sparsity, keep, of, scope, allocate, lines, budgets, tuple(include),
        tuple(exclude), tail, _names.text(stats), None, shard_size, options, refit, outliers, spread,
    )  # fmt: skip
    if retrain is not None or data is not None:
        if retrain is None or data is None:
            raise OptionError("--retrain and --data go together: a recipe, and the text to retrain on")
        from paring.retraining import whole

        job = whole.Job(retrain, os.fspath(data), length, field, seed, retrain_options or {})
        return whole.prune_and_retrain(
            request, output, job, save_mask=save_mask, held=held, overwrite=overwrite, dry_run=dry_run,
            threads=threads, memory=memory, device=device,
        )  # fmt: skip
    planned = plan.plan_prune(
        request, output, save_mask=save_mask, overwrite=overwrite, threads=threads, device=device
    )
    with planned.checkpoint:
        judge = None
        if held is not None:
            where = planned.checkpoint.path
            judge = judging.judge(held, where, planned.output, device=device, threads=threads)
        return run.run(planned, dry_run=dry_run, memory=memory, judge=judge)


@naming
def apply_mask(
    mask: PathLike,
    model: PathLike,
    output: PathLike,
    *,
    shard_size: int = SHARD_BYTES,
    overwrite: bool = False,
    dry_run: bool = False,
    threads: int | None = None,
    memory: int | None = None,
) -> Pruning:
    """Set what ``mask`` does not keep to zero in ``model``, or in another of its names and shapes: a
    fine-tune, a merge. What :mod:`paring.pruning.masking` does with masks beside that, it does for Python
    users, too. Raises as :func:`prune` does, BadFileError for another model's mask.
    """
    from paring.pruning import plan, run
    from paring.pruning import request as asking

    request = asking.Request(located(model), mask=located(mask), shard_size=shard_size)
    planned = plan.plan_prune(request, output, overwrite=overwrite, threads=threads)
    with planned.checkpoint:
        return run.run(planned, dry_run=dry_run, memory=memory)


@naming
def shrink(
    model: PathLike,
    output: PathLike,
    *,
    layers: float | None = None,
    drop_layers: Sequence[int] = (),
    layers_by: str = "even",
    neurons: float | None = None,
    heads: float | None = None,
    kv_heads: float | None = None,
    experts: float | None = None,
    width: float | None = None,
    fisher: PathLike | None = None,
    shard_size: int = SHARD_BYTES,
    overwrite: bool = False,
    dry_run: bool = False,
    threads: int | None = None,
) -> Shrinking:
    """Take whole parts out of ``model`` and write what is left to the folder ``output``, with its
    configuration; layers are numbered anew. Counts are what stays: whole numbers, or shares below 1.

    ``layers_by`` (even, score) says which layers stay of a count. ``neurons`` are of each feed-forward part
    or expert, ``heads`` and ``kv_heads`` of each layer, ``width`` is the residual stream, of which one set of
    entries stays everywhere. What stays is chosen by the weights, or by ``fisher``, a checkpoint of the same
    names and shapes that scores every weight. That the result loads is checked before anything is written.

    Raises OptionError, UnsupportedError, BadFileError, BadValueError (NaN, infinity), OutputError.
    """
    from paring.shrinking import run as shrinking
    from paring.shrinking.cuts import Request as Cuts

    asked = Cuts(
        located(model), layers, tuple(drop_layers), layers_by, neurons, heads, kv_heads, experts, width,
        _names.found(fisher), shard_size,
    )  # fmt: skip
    return shrinking.shrink(asked, Path(output), overwrite=overwrite, dry_run=dry_run, threads=threads)


@naming
def calibrate(
    model: PathLike,
    data: PathLike,
    output: PathLike,
    *,
    gram: bool = False,
    samples: int = 128,
    window: int | None = None,
    sequential: bool = False,
    method: str = "wanda",
    sparsity: str | float | None = None,
    keep: int | None = None,
    of: int | None = None,
    dtype: str = "fp32",
    device: str = "auto",
    threads: int | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
    **options: Any,
) -> Calibration:
    """Measure what the matrices of the model in the folder ``model`` are given on the text file ``data``, for
    methods that ask for it; the file ``output`` is specified in docs/format.md, *Statistics*.

    ``samples`` windows of ``window`` tokens (2048, or what the model allows), evenly spaced over the text,
    are run. ``gram`` also measures products of inputs. With ``sequential`` each block is measured behind
    blocks that are pruned already, by ``method`` with its ``options``, to ``sparsity`` or to ``keep`` of each
    ``of``. The model is run by transformers in ``dtype`` (fp32, bf16, fp16).

    Raises UnsupportedError without transformers (``pip install 'paring[retrain]'``) and for models that are
    no stack of blocks, OptionError, BadFileError, BadValueError (NaN, infinity), OutputError.
    """
    from paring.pruning import calibration

    how = calibration.pruning(
        sequential, gram=gram, method=method, sparsity=sparsity, keep=keep, of=of, options=options
    )
    return calibration.calibrate(
        located(model), data, output, gram=gram, samples=samples, window=window, how=how, dtype=dtype,
        device=device, threads=threads, overwrite=overwrite, dry_run=dry_run,
    )  # fmt: skip


@naming
def evaluate(
    model: PathLike,
    data: PathLike,
    *,
    window: int | None = None,
    stride: int | None = None,
    samples: int | None = None,
    dtype: str = "fp32",
    device: str = "auto",
    threads: int | None = None,
) -> Evaluation:
    """The perplexity of the causal language model in the folder ``model`` on the text file ``data``.

    The text is read by windows of ``window`` tokens (2048, or what the model allows), one every ``stride``
    tokens (a window by default), of which the last ``stride`` are predicted; ``samples`` of them, evenly
    spaced, stand for all. Raises UnsupportedError without transformers and for other models, OptionError,
    BadFileError, BadValueError.
    """
    from paring import evaluating

    return evaluating.evaluate(
        located(model),
        data,
        window=window,
        stride=stride,
        samples=samples,
        dtype=dtype,
        device=device,
        threads=threads,
    )
