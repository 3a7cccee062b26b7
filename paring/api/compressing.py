"""Compressing, and what undoes it; other dialects."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from paring import registry
from paring.api import _names
from paring.budget import Budget
from paring.errors import OptionError
from paring.hub.names import PathLike
from paring.hub.reading import located
from paring.hub.verbs import naming
from paring.loading import chosen
from paring.plan import plan_compress, thread_count
from paring.report import Conversion, Report


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
    base = _names.found(base)
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
        from paring.finetuned import run as finetuning
        from paring.finetuned.plan import is_full

        if is_full(source):
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
        threads=thread_count(threads), base=_names.found(base),
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
        located(source), dialect, tuple(located(base) for base in bases), _names.text(names), dtype,
        adapter_scale,
    )  # fmt: skip
    return converting.convert(request, Path(output), overwrite=overwrite, dry_run=dry_run)
