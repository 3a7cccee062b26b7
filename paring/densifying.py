"""A sparse checkpoint in, an ordinary one out: every tensor dense, configuration true of that.

For packed checkpoints that hold what lay beside them, and for the bitmasks of compressed-tensors.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from paring import outputs
from paring.bitmasks import Bitmasks, cleaned, refuse_formats
from paring.checkpoint import Checkpoint
from paring.dtypes import FLOATS, TORCH, Stored, cast
from paring.errors import BadFileError
from paring.finetuned.restoring import beside
from paring.packed import Packed
from paring.report import Report, peak_rss_bytes
from paring.untrusted import parse_json

_CONFIG = "config.json"


def run(
    opened: Bitmasks | Packed, output: Path, *, dtype: str | None, overwrite: bool, threads: int
) -> Report:
    """Write ``opened`` dense to ``output``: a file when that ends in .safetensors, else a folder, in shards
    where it is large, with the files that lay beside it.

    ``dtype`` is a safetensors code for the floating-point tensors. Raises BadFileError for damage,
    BadValueError for a value too large for ``dtype``, OutputError.
    """
    started = time.perf_counter()
    files = files_beside(opened)
    if dtype and _CONFIG in files:
        config = _config(files, opened)
        config.pop("torch_dtype", None)
        files[_CONFIG] = _text(config | {"dtype": TORCH[dtype]})
    layout = [
        (info.name, dtype if dtype and info.dtype in FLOATS else info.dtype, info.shape)
        for info in opened.tensors.values()
    ]
    told = {name: own for name, own, _ in layout}
    names = [name.split("/")[0] for name in files]
    target = outputs.Output(
        output,
        layout,
        {"format": "pt", **opened.metadata},
        overwrite,
        names=names,
    )
    target.refuse([opened.path, *opened.inputs])
    if isinstance(opened, Packed) and opened.digest() != opened.digest_recorded:
        raise BadFileError(f"{opened.path} is damaged: it decodes to something else: get it again")

    def read(name: str) -> Stored:
        return cast(opened.read(name), told[name], name)

    def write_beside(folder: Path) -> None:
        for name, content in files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(content)

    mark = outputs.fingerprint(["decompress", layout], [opened])
    target.write(read, mark, threads=threads, beside=write_beside)
    warnings = []
    if target.single and files:
        warnings.append(f"{_CONFIG} and the like were not written: give -o the name of a folder to have them")
    return Report(
        command="decompress",
        inputs=[str(opened.path)],
        output=str(output),
        method=" and ".join(opened.formats) if isinstance(opened, Bitmasks) else opened.facts.get("method"),
        bytes_in=opened.nbytes,
        bytes_out=target.nbytes,
        files=[shard.name for shard in target.files] if len(target.files) > 1 else None,
        error=0.0 if dtype is None else None,
        warnings=warnings,
        seconds=time.perf_counter() - started,
        peak_rss_bytes=peak_rss_bytes(),
        device="cpu",
    )


def files_beside(opened: Checkpoint) -> dict[str, bytes]:
    """The configuration and tokenizer that lie beside a checkpoint, or lay beside what was packed; true of
    dense tensors. Raises BadFileError, UnsupportedError.
    """
    if isinstance(opened, Packed):
        return dict(opened.beside())
    files = {name: path.read_bytes() for name, path in beside(opened).items()}
    if isinstance(opened, Bitmasks) and _CONFIG in files:
        config = _config(files, opened)
        refuse_formats(config, str(opened.path))
        files[_CONFIG] = _text(cleaned(config))
    return files


def _config(files: Mapping[str, bytes], opened: Checkpoint) -> dict[str, Any]:
    return parse_json(files[_CONFIG], f"{opened.path}: {_CONFIG}")


def _text(config: Mapping[str, Any]) -> bytes:
    return (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()
