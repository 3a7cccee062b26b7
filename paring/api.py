"""The verbs, for pipelines: what the command line does, as functions that return reports.

    from paring.api import compress, decompress, load

    report = compress("adapter_model.safetensors", ratio=20)
    print(report.output, report.ratio, report.error)
    tensors = load(report.output)

All errors raised on purpose are :class:`paring.errors.ParingError`. Nothing here prints.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paring import registry
from paring.budget import Budget
from paring.errors import OptionError
from paring.hub.reading import located
from paring.hub.verbs import naming
from paring.loading import PathLike, chosen, load, load_into, to_torch
from paring.merging import verb
from paring.merging.planning import Request
from paring.merging.single import How
from paring.merging.weights import parse
from paring.outputs import SHARD_BYTES
from paring.plan import plan_compress, thread_count
from paring.report import (
    Conversion,
    Difference,
    Extraction,
    Inspection,
    Pruning,
    Pushed,
    Report,
    Shrinking,
    Verification,
)

if TYPE_CHECKING:
    from paring.card import Evaluation as Measured
    from paring.evaluating import Evaluation
    from paring.merging.search import Found, Space
    from paring.pruning.calibration import Calibration
    from paring.rerunning import Repeated

__all__ = [
    "apply_mask",
    "calibrate",
    "compress",
    "convert",
    "decompress",
    "diff",
    "evaluate",
    "extract",
    "inspect",
    "load",
    "load_into",
    "merge",
    "merge_recipe",
    "prune",
    "push",
    "rerun",
    "search",
    "shrink",
    "to_torch",
    "verify",
]


@naming
def compress(
    source: PathLike | Sequence[PathLike],
    output: PathLike | None = None,
    *,
    ratio: float | None = None,
    error: float | None = None,
    bits_per_param: float | None = None,
    method: str = "spectral",
    carry: str = "lossless",
    base: PathLike | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
    threads: int | None = None,
    device: str = "auto",
    **options: Any,
) -> Report:
    """Compress the adapter ``source`` to the packed file ``output`` (``NAME.paring.safetensors`` beside it).

    The budget is one of ``ratio`` (source bytes as stored over packed bytes; met or refused), ``error``
    (relative, of the updates, at most) and ``bits_per_param`` (at most); by default 16 times smaller than
    fp16. ``options`` are those of ``method``. ``carry`` says what becomes of tensors that are not factors:
    ``lossless``, ``fp16`` or ``drop``. The file is read again and measured before it takes its place.

    A full checkpoint is compressed as what it adds to its ``base``, from which :func:`decompress` makes it
    again. ``carry`` then says what becomes of norms and biases: ``lossless``, ``fp16``, ``priced`` (coded as
    matrices are) or ``drop``.

    A method that sees adapters all together (``mos``) takes several sources and writes one pool, of which
    ``FILE#NAME`` is one adapter; a pool among them is added to. It loses nothing without ``error``.

    Raises BudgetError, BadFileError, BadValueError (NaN, infinity), UnsupportedError, OptionError,
    OutputError.
    """
    from paring import compressing

    budget = Budget(ratio, error, bits_per_param)
    given = [source] if isinstance(source, str | os.PathLike) else source
    sources = [located(each) for each in given]
    base = _found(base)
    chosen = registry.load("compress", method)
    if chosen.sees == "adapters":
        if base is not None:
            raise OptionError(f"--base is for full checkpoints: method {method} takes adapters")
        from paring.pooling import plan as pooling
        from paring.pooling import pool

        piled = pooling.plan_pool(
            sources, output, budget=budget, method=chosen, options=options, carry=carry, overwrite=overwrite,
            threads=threads, device=device,
        )  # fmt: skip
        with closing(piled):
            return pool.run(piled, dry_run=dry_run)
    if len(sources) != 1:
        raise OptionError(f"method {method} takes one adapter at a time, not {len(sources)} all together")
    (source,) = sources
    if base is not None:
        from paring.finetuned import plan as finetuning

        if finetuning.is_full(source):
            return finetuning.compress(
                source, base, output, dry_run=dry_run, budget=budget, method=method, options=options,
                carry=carry, overwrite=overwrite, threads=threads, device=device,
            )  # fmt: skip
        raise OptionError(f"--base is for full checkpoints; {source} is an adapter, which needs none")
    plan = plan_compress(
        source, output, budget=budget, method=method, options=options, carry=carry, overwrite=overwrite,
        threads=threads, device=device,
    )  # fmt: skip
    with plan.source:
        return compressing.run(plan, dry_run=dry_run)


@naming
def decompress(
    source: PathLike,
    output: PathLike,
    *,
    adapter: str | None = None,
    base: PathLike | None = None,
    dtype: str | None = None,
    overwrite: bool = False,
    threads: int | None = None,
) -> Report:
    """Decode a packed file to ``output``: a file when that ends in .safetensors, else a folder that PEFT
    loads.

    ``adapter`` is one of a pool, by name or number; ``POOL#NAME`` as source says the same. ``base`` is the
    model of which a packed full fine-tune holds the changes; it must be the very one. ``dtype`` (fp64, fp32,
    fp16, bf16) casts floating-point tensors; by default each keeps the source's. Raises
    UnsupportedError, BadFileError, BadValueError (overflow), OptionError, OutputError.
    """
    from paring import decompressing

    return decompressing.run(
        Path(located(chosen(source, adapter))), Path(output), dtype=dtype, overwrite=overwrite,
        threads=thread_count(threads), base=_found(base),
    )  # fmt: skip


@naming
def convert(
    source: PathLike,
    output: PathLike,
    *,
    dialect: str,
    bases: Sequence[PathLike] = (),
    names: PathLike | None = None,
    dtype: str | None = None,
    adapter_scale: float = 1.0,
    overwrite: bool = False,
    dry_run: bool = False,
) -> Conversion:
    """Write an adapter in another ``dialect``: peft (a folder), kohya, lycoris, diffusers, diffusers-old,
    cloneofsimo.

    ``bases`` are models whose names and shapes tell what the adapter's do not, ``names`` is a JSON file of
    module -> name, or ``sd1`` for cloneofsimo's numbers. ``dtype`` is that of factors, ``adapter_scale``
    multiplies every update. Raises as :func:`paring.converting.convert` does.
    """
    from paring import converting

    request = converting.Request(
        located(source), dialect, tuple(located(base) for base in bases), _text(names), dtype,
        adapter_scale,
    )  # fmt: skip
    return converting.convert(request, Path(output), overwrite=overwrite, dry_run=dry_run)


@naming
def merge(
    models: Sequence[PathLike],
    output: PathLike,
    *,
    method: str = "linear",
    base: PathLike | None = None,
    into: PathLike | None = None,
    weights: Sequence[float | Sequence[float]] | None = None,
    scale: float = 1.0,
    dtype: str | None = None,
    missing: str = "refuse",
    rank: int | str | None = None,
    carried: str = "refuse",
    tokenizer: str | None = None,
    keep_mask: str | None = None,
    mask: PathLike | None = None,
    shard_size: int = SHARD_BYTES,
    overwrite: bool = False,
    dry_run: bool = False,
    threads: int | None = None,
    memory: int | None = None,
    device: str = "auto",
    **options: Any,
) -> Report:
    """Merge checkpoints or adapters to ``output``: a file when that ends in .safetensors, else a folder.

    ``weights`` is one number for each model, or several that are spread over the layers; ``base`` is what the
    models were tuned from (needed by methods on deltas; not by adapters), ``scale`` multiplies the merged
    delta. Adapters alone give an adapter, of as much rank as it needs or at most ``rank``; with ``into`` they
    are folded into a base. ``dtype`` (fp64, fp32, fp16, bf16) is that of the result, by default the base's or
    first model's. ``missing`` (refuse, copy) and ``carried`` (refuse, first, drop) say what becomes of
    tensors that not all models have, or that are no factors. ``tokenizer`` (base, union, or one of the
    inputs) gives the result that vocabulary, and re-indexes embeddings by token. ``keep_mask`` keeps the
    zeros of the base: ``mask`` adds updates elsewhere only, ``scale`` multiplies by the product of one
    ScaleLoRA adapter; the report is then a :class:`~paring.report.SparseMerge`. What ``mask`` does not keep
    is set to zero. ``memory`` is in bytes, half of what is free by default. ``options`` are those of
    ``method``.

    A run that was killed is taken up by the same call. Raises OptionError, UnsupportedError, BadFileError,
    BadValueError (NaN, infinity), OutputError.
    """
    weights = None if weights is None else parse(weights, len(models), 1.0)
    request = Request(
        [os.fspath(model) for model in models], _text(base), _text(into), method, weights, (), float(scale),
        dtype,
        missing, rank, carried, tokenizer, shard_size, options, keep_mask=keep_mask, mask=_text(mask),
    )  # fmt: skip
    return verb.merge(
        request, output, overwrite=overwrite, dry_run=dry_run, threads=threads, memory=memory, device=device
    )


@naming
def search(
    models: Sequence[PathLike],
    output: PathLike,
    score: Callable[[Path], float] | str,
    *,
    space: Space | None = None,
    overwrite: bool = False,
    threads: int | None = None,
    memory: int | None = None,
    **merging: Any,
) -> Found:
    """Search the weights of a merge that ``score`` best, and merge with them to ``output``.

    ``score`` is a function of the path of a merged model, or a command in which ``{}`` stands for that path
    and whose last printed number counts. ``space`` says how many trials there are and of what;
    ``merging`` are the other arguments of :func:`merge`, options of the method among them. A search that was
    stopped goes on when it is called again.

    Raises UnsupportedError without Optuna (``pip install 'paring[search]'``), BadFileError for a command that
    fails or prints no number, and what :func:`merge` raises.
    """
    from paring.merging import search as searching

    own = Request.__dataclass_fields__.keys() - {"models", "weights", "options"}
    fields: dict[str, Any] = {key: value for key, value in merging.items() if key in own}
    fields |= {key: _text(fields[key]) for key in ("base", "into", "mask") if key in fields}
    options = {key: value for key, value in merging.items() if key not in own}
    request = Request([os.fspath(model) for model in models], **fields, options=options)
    how = How(overwrite, False, threads, memory)
    return searching.search(request, Path(output), score, space or searching.Space(), how)


@naming
def merge_recipe(
    recipe: PathLike,
    output: PathLike,
    *,
    overwrite: bool = False,
    dry_run: bool = False,
    threads: int | None = None,
    memory: int | None = None,
    device: str = "auto",
) -> Report:
    """Merge as the YAML file ``recipe`` says: see docs/recipes.md, which also lists what of mergekit's YAML
    is taken. All of it is checked before any work; errors name the file and the line.

    Paths in it are looked for from the current folder, then from the recipe's. Raises as :func:`merge` does.
    """
    from paring.merging.recipes.recipe import read_recipe

    found = read_recipe(Path(recipe))
    report = verb.merge(
        found.request, output, overwrite=overwrite, dry_run=dry_run, threads=threads, memory=memory,
        device=device,
    )  # fmt: skip
    return replace(report, warnings=[*found.notes, *report.warnings])


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
    length: int = 512,
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
    of ``length`` tokens; of lines of JSON the key ``field`` is read. ``output`` is a folder then.

    ``eval_data`` is a text file that is held out: the report and the card tell the perplexity on it of the
    model as it was, pruned, and retrained, by windows as :func:`evaluate` has them.

    A run that was killed is taken up by the same call. Raises OptionError, UnsupportedError, BadFileError,
    BadValueError (NaN, infinity), OutputError.
    """
    from paring import judging
    from paring.pruning import plan, run
    from paring.pruning import request as asking

    held = judging.held_out(_text(eval_data), eval_window, eval_stride, eval_samples)
    request = asking.Request(
        located(model), method, sparsity, keep, of, scope, allocate, lines, budgets, tuple(include),
        tuple(exclude), tail, _text(stats), None, shard_size, options, refit, outliers, spread,
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
def rerun(
    made: PathLike,
    output: PathLike,
    *,
    source: PathLike | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
    threads: int | None = None,
    memory: int | None = None,
    device: str = "auto",
) -> Repeated:
    """Make ``made``, which ``merge``, ``prune`` or ``compress`` wrote, again as ``output``, from its recipe.

    Inputs are looked for under the names they had, from the current folder and then from the one ``made`` is
    in; ``source`` says where that of a packed file is. ``same`` in the report says whether all bytes of the
    tensor files are the same, a warning why they may not be. Raises BadFileError for inputs that are gone,
    UnsupportedError for a file without a recipe, and as the command does that is repeated.
    """
    from paring import rerunning

    how = How(overwrite, dry_run, threads, memory)
    where = None if source is None else Path(source)
    return rerunning.rerun(Path(located(made)), Path(output), how, source=where, device=device)


def push(
    path: PathLike | Sequence[PathLike],
    repo: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    message: str | None = None,
    evaluations: Sequence[Measured] = (),
) -> Pushed:
    """Push a folder, or files, to the repository ``repo`` of the Hub, with a card; what it has is not sent
    again.

    ``private`` says what a new repository is, ``revision`` is a branch or ``refs/pr/N``; ``create_pr`` opens
    a pull request. ``evaluations`` are measured numbers for the card. The token is that of ``HF_TOKEN`` or
    ``hf auth login``. Raises HubError, OptionError, BadFileError.
    """
    from paring.hub import pushing

    paths = [path] if isinstance(path, str | os.PathLike) else path
    wanted = pushing.Push(repo, private, revision, create_pr, message, tuple(evaluations))
    return pushing.publish([Path(each) for each in paths], pushing.ready(wanted))


def _text(path: PathLike | None) -> str | None:
    return None if path is None else os.fspath(path)


def _found(path: PathLike | None) -> str | None:
    return None if path is None else located(path)


@naming
def extract(
    tuned: PathLike,
    output: PathLike,
    *,
    base: PathLike,
    rank: int | None = None,
    energy: float | None = None,
    max_rank: int | None = None,
    modules: Sequence[str] = (),
    embeddings: bool = False,
    others: str = "report",
    missing: str = "refuse",
    dtype: str | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
    threads: int | None = None,
    device: str = "auto",
) -> Extraction:
    """Extract what ``tuned`` has learnt since ``base`` as a plain LoRA, a folder that PEFT loads (or one file
    when ``output`` ends in .safetensors).

    Of every weight matrix that changed, the ``rank`` leading components are kept, or the fewest that hold the
    share ``energy`` of its squared norm, at most ``max_rank``. ``modules`` are globs over names of modules
    (a name's last parts suffice); ``embeddings`` extracts those as well. ``others`` (report, carry) says what
    becomes of changed norms, biases and new heads, ``missing`` (refuse, skip) of tensors that only one has.
    ``dtype`` (fp32 by default) is that of the factors, whose measured error is in the report.

    Raises OptionError, UnsupportedError, BadFileError, BadValueError (NaN, infinity), OutputError.
    """
    from paring.extracting import run as extracting

    request = extracting.Request(
        located(tuned), located(base), rank, energy, max_rank, tuple(modules), embeddings, others,
        missing, dtype,
    )  # fmt: skip
    return extracting.extract(
        request, output, overwrite=overwrite, dry_run=dry_run, threads=threads, device=device
    )


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
        _found(fisher), shard_size,
    )  # fmt: skip
    return shrinking.shrink(asked, Path(output), overwrite=overwrite, dry_run=dry_run, threads=threads)


@naming
def diff(
    models: Sequence[PathLike],
    *,
    base: PathLike | None = None,
    rank: bool | None = None,
    plot: PathLike | None = None,
    overwrite: bool = False,
    threads: int | None = None,
) -> Difference:
    """How models differ from ``base``, or from the first of them, by tensor and in all; of several, how alike
    their deltas are.

    Adapters are compared by their updates, with no base. ``rank`` asks for the effective rank of every
    delta, or of none; by default of those whose smaller side is at most 1024. ``plot`` is a picture (.png,
    .svg, .pdf) to draw, which needs matplotlib.

    Raises OptionError, UnsupportedError, BadFileError, BadValueError (NaN, infinity), OutputError.
    """
    from paring.diffing import run as comparing

    paths = [located(model) for model in models]
    return comparing.diff(
        paths, base=_found(base), rank=rank, plot=plot, overwrite=overwrite, threads=threads
    )


@naming
def inspect(path: PathLike, *, plot: PathLike | None = None, overwrite: bool = False) -> Inspection:
    """What is in a file, packed or not. Of a pool ``plot`` is a picture (.png, .svg, .pdf) to draw of who
    shares what, which needs matplotlib. Raises BadFileError, UnsupportedError, OptionError, OutputError.
    """
    from paring import inspecting

    return inspecting.inspect(located(path), None if plot is None else Path(plot), overwrite)


@naming
def verify(
    path: PathLike,
    source: PathLike | None = None,
    *,
    base: PathLike | None = None,
    sparsity: float | str | None = None,
    keep: int | None = None,
    of: int | None = None,
) -> Verification:
    """Whether a file is sound, and with ``source`` whether it loses what it says; that of a full fine-tune
    needs its ``base`` for that. With ``sparsity`` whether at least that share of what prune prunes is zero,
    with ``keep`` and ``of`` whether groups of inputs hold no more. Raises BadFileError, OptionError.
    """
    from paring import inspecting
    from paring.pruning import verifying

    wanted = verifying.wanted(sparsity, keep, of)
    found = inspecting.verify(located(path), _found(source), _found(base))
    if wanted is not None:
        verifying.verify(found, Path(located(path)), *wanted)
    return found


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
