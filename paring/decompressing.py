"""Packed file in, ordinary adapter or checkpoint out; decoded, written and read again tensor by tensor."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from paring import atomic
from paring.bitmasks import Bitmasks
from paring.checkpoint import write_checked
from paring.dtypes import FLOATS, cast, itemsize, numel, parse_dtype
from paring.errors import BadFileError, OptionError, UnsupportedError
from paring.finetuned.table import holds_delta
from paring.folders import CONFIG, WEIGHTS
from paring.packed import Packed, open_source
from paring.report import Report, peak_rss_bytes


def run(
    source: str | Path, output: str | Path, *, dtype: str | None, overwrite: bool, threads: int,
    base: str | None = None,
) -> Report:  # fmt: skip
    """Decode ``source`` to ``output``: a file when that ends in .safetensors, else a folder with its
    configuration.

    ``dtype`` (fp64, fp32, fp16, bf16) is for the floating-point tensors; None keeps each one's own. A folder
    is replaced only when it holds nothing but the files that are written. Raises OptionError,
    UnsupportedError for a file that is not packed, BadFileError for damage and for tensors that are not those
    that were packed, BadValueError for a value too large for ``dtype``, OutputError.
    """
    started = time.perf_counter()
    wanted = parse_dtype(dtype)
    opened = open_source(source, threads)
    if isinstance(opened, Bitmasks) or (isinstance(opened, Packed) and "beside" in opened.facts):
        if base is not None:
            raise OptionError(f"--base: {source} is no delta of a full fine-tune, it needs none")
        from paring import densifying

        return densifying.run(opened, Path(output), dtype=wanted, overwrite=overwrite, threads=threads)
    if not isinstance(opened, Packed):
        raise UnsupportedError(f"{source} is not a packed file: there is nothing to decompress")
    target = Path(output)
    if holds_delta(opened):
        from paring.finetuned.restoring import restore

        return restore(opened, target, base, dtype=dtype, overwrite=overwrite)
    if base is not None:
        raise OptionError(f"--base: {source} is no delta of a full fine-tune, it needs none")
    atomic.refuse_same_file(target, [source, *opened.inputs])
    config = opened.config(CONFIG)
    warnings = []
    if target.suffix == ".safetensors":
        atomic.refuse_existing(target, overwrite)
        written = _write(opened, target, wanted, overwrite)
        if config is not None:
            warnings.append(f"{CONFIG} was not written: give -o the name of a folder to have it, too")
    else:
        name = _file_name(opened) if config is None else WEIGHTS
        names = (name,) if config is None else (name, CONFIG)
        atomic.check_room(target, _nbytes(opened, wanted))
        with atomic.atomic_folder(target, overwrite, replaceable=names) as folder:
            written = _write(opened, folder / name, wanted)
            if config is not None:
                text = json.dumps(config, indent=2, sort_keys=True) + "\n"
                (folder / CONFIG).write_text(text, encoding="utf-8")
    return Report(
        command="decompress",
        inputs=[str(source)],
        output=str(output),
        method=opened.facts.get("method"),
        bytes_in=opened.nbytes,
        bytes_out=written,
        error=opened.facts.get("error"),
        warnings=warnings,
        seconds=time.perf_counter() - started,
        peak_rss_bytes=peak_rss_bytes(),
        device="cpu",
    )


def _write(opened: Packed, path: Path, dtype: str | None, overwrite: bool = False) -> int:
    """Write all tensors to ``path``; returns its size. What decodes is checked before, the file after."""
    if opened.digest() != opened.digest_recorded:
        raise BadFileError(
            f"{opened.path} is damaged: it does not decode to the tensors that were packed (their digest "
            "differs): get the file again"
        )
    stream = ((name, cast(tensor, _dtype(tensor.dtype, dtype), name)) for name, tensor in opened.read_all())
    layout = [(info.name, _dtype(info.dtype, dtype), info.shape) for info in opened.tensors.values()]
    write_checked(path, stream, opened.metadata, layout=layout, overwrite=overwrite)
    return path.stat().st_size


def _nbytes(opened: Packed, dtype: str | None) -> int:
    """Bytes of all tensors as they will be written."""
    return sum(numel(info.shape) * itemsize(_dtype(info.dtype, dtype)) for info in opened.tensors.values())


def _dtype(own: str, wanted: str | None) -> str:
    return wanted if wanted and own in FLOATS else own


def _file_name(opened: Packed) -> str:
    """The name of the source, made to end in .safetensors."""
    name = Path(opened.facts.get("source", {}).get("name", WEIGHTS)).stem + ".safetensors"
    return name.replace(":", "_") if os.name == "nt" else name  # there it would name a drive or a stream
