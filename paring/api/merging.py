"""Merging, and what is looked at before and taken out after."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paring.api import _names
from paring.diffing.report import Difference
from paring.hub.names import PathLike
from paring.hub.reading import located
from paring.hub.verbs import naming
from paring.merging import verb
from paring.merging.request import Request
from paring.merging.single import How
from paring.merging.weights import parse
from paring.outputs import SHARD_BYTES
from paring.report import Extraction, Report

if TYPE_CHECKING:
    from paring.merging.search import Found, Space


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
        [os.fspath(model) for model in models], _names.text(base), _names.text(into), method, weights, (),
        float(scale), dtype, missing, rank, carried, tokenizer, shard_size, options, keep_mask=keep_mask,
        mask=_names.text(mask),
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
    fields |= {key: _names.text(fields[key]) for key in ("base", "into", "mask") if key in fields}
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
        paths, base=_names.found(base), rank=rank, plot=plot, overwrite=overwrite, threads=threads
    )
