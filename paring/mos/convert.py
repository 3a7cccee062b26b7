"""Between the compact file and an ordinary LoRA in PEFT's form, which every runtime loads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from paring import adapters
from paring.adapters.naming import natural
from paring.adapters.view import Adapter
from paring.atomic import atomic_folder, refuse_same_file
from paring.checkpoint import open_checkpoint, write_checked
from paring.dtypes import Stored, cast
from paring.errors import OptionError, UnsupportedError
from paring.folders import CONFIG, WEIGHTS
from paring.mos.file import open_mos, peft_config, write_mos
from paring.mos.pools import Layout, fold, projections
from paring.mos.routing import FACTORS, Factor, Sizes

_FOLDER = (CONFIG, WEIGHTS, "README.md")


def expand_file(
    source: str | Path, output: str | Path, *, dtype: str | None = None, overwrite: bool = False
) -> None:
    """Write the compact file ``source`` as the LoRA that it stands for: the folder ``output``, in PEFT's
    form, of rank r (the active one) and the same alpha.

    Factors keep the dtype of their pools, or are rounded to ``dtype`` (a safetensors code). One module is in
    memory at a time, beside the pools. Raises BadFileError, OutputError.
    """
    container = open_checkpoint(source)
    refuse_same_file(output, container.files)
    with open_mos(container) as opened, atomic_folder(output, overwrite, _FOLDER) as folder:
        layout = [(name, dtype or info.dtype, info.shape) for name, info in opened.tensors.items()]
        stream = ((name, cast(opened.read(name), to, name)) for name, to, _ in layout)
        write_checked(folder / WEIGHTS, stream, {"format": "pt"}, layout=layout)
        text = json.dumps(peft_config(opened.layout, opened.base), indent=2, sort_keys=True) + "\n"
        (folder / CONFIG).write_text(text, encoding="utf-8")


def fold_file(
    source: str | Path,
    output: str | Path,
    sizes: Sizes,
    *,
    seed: int | None = None,
    indices: Mapping[tuple[str, Factor], npt.NDArray[np.integer]] | None = None,
    overwrite: bool = False,
) -> Layout:
    """Fold an expanded adapter back into a compact file, exactly: the inverse of :func:`expand_file`.

    ``seed``, or ``indices (layers, r * shards)`` by projection type and factor, must be those that it was
    trained with; ones drawn elsewhere, by the published code for instance, are given as indices. Shards that
    no module draws are lost in an expanded adapter and become zero. Raises BadValueError when the factors do
    not fit the indices, UnsupportedError for adapters that are no LoRA of one rank and scale, OptionError,
    OutputError.
    """
    with open_checkpoint(source) as checkpoint:
        refuse_same_file(output, checkpoint.inputs)
        adapter = adapters.read(checkpoint)
        alpha = _alpha(adapter, sizes)
        names = {module.name: (module.a, module.b) for module in adapter.modules}
        shapes = {module.name: (module.n_out, module.n_in) for module in adapter.modules}
        types = projections((name, shapes[name]) for name in sorted(names, key=natural))
        layout = Layout(sizes, alpha, types, seed, indices)
        pools: dict[tuple[str, Factor], Stored] = {}
        for each in types:
            for turn, factor in enumerate(FACTORS):
                stored = [checkpoint.read(names[module][turn]) for module in each.modules]
                vectors = [np.ascontiguousarray(one.data if turn == 0 else one.data.T) for one in stored]
                routes = [layout.route(each, layer, factor) for layer in range(each.layers)]
                pool, _ = fold(vectors, routes, sizes.shards, sizes.pool(each.layers))
                pools[each.name, factor] = Stored(stored[0].dtype, pool)
        write_mos(output, layout, pools, base=adapter.base, overwrite=overwrite)
    return layout


def _alpha(adapter: Adapter, sizes: Sizes) -> float:
    """The one alpha of an adapter that could be an expanded MoS; everything else is refused."""
    adapter.refuse_problems()
    where = adapter.checkpoint.path
    if not adapter.modules or adapter.carried or adapter.vectors:
        odd = next((tensor.name for tensor in adapter.carried), "no pair of factors")
        raise UnsupportedError(f"{where} holds {odd}: only plain LoRA factors fold into MoS")
    infos = adapter.checkpoint.tensors
    for module in adapter.modules:
        if any(name not in infos or len(infos[name].shape) != 2 for name in (module.a, module.b)):
            raise UnsupportedError(f"{where}: module {module.name} is no plain LoRA of a linear layer")
    dtypes = {(infos[module.a].dtype, infos[module.b].dtype) for module in adapter.modules}
    scales = {module.scale for module in adapter.modules}
    if len(dtypes) > 1 or len(scales) > 1:
        raise UnsupportedError(f"{where}: modules of several dtypes or scales are no MoS adapter")
    for module in adapter.modules:
        if module.rank != sizes.r:
            raise OptionError(f"{where}: module {module.name} has rank {module.rank}, not r = {sizes.r}")
    scale = scales.pop()
    stated = (adapter.config or {}).get("lora_alpha")
    # as stated, where that is what it means: a product of a quotient may be off by a rounding
    if isinstance(stated, int | float) and stated / sizes.r == scale:
        return stated
    return scale * sizes.r
