"""From results to documentation: pictures, and tables put where README.md and docs/ have marks for them.

A mark is ``<!-- figures: NAME -->``, and what stands up to ``<!-- /figures -->`` is rendered by the function
of that name here, from ``benchmarks/results``. Nothing between marks is written by hand.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import repaired
from benchmarks.machine import ROOT
from benchmarks.plots import gain_and_error, mean

RESULTS = ROOT / "benchmarks" / "results"
_MARK = re.compile(r"(<!-- figures: (\w+) -->\n).*?(<!-- /figures -->)", re.S)

Found = Mapping[str, Any]


def pages(root: Path) -> list[Path]:
    """Where marks may be."""
    return [root / "README.md", *sorted((root / "docs").rglob("*.md"))]


def render(root: Path) -> Iterator[Path]:
    """Fill the marked blocks of all pages; yields those that have changed."""
    for file in pages(root):
        text = file.read_text(encoding="utf-8")
        if (made := filled(text)) != text:
            file.write_text(made, encoding="utf-8")
            yield file


def filled(text: str) -> str:
    """``text`` with its marked blocks rendered anew, but those whose results are not there. Raises KeyError
    for a name that no function here has.
    """

    def block(match: re.Match[str]) -> str:
        result, function = BLOCKS[match[2]]
        file = RESULTS / f"{result}.json"
        if not file.exists():
            return match[0]
        found = json.loads(file.read_text(encoding="utf-8"))
        return f"{match[1]}{function(found)}\n\n*{found['machine']}*\n{match[3]}"

    return _MARK.sub(block, text)


def grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table: the first column to the left, the others to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def codec(found: Found) -> str:
    head = ["density", "bytes / entropy", "decode / memcpy", "on two threads", "encode", "decode", "memcpy"]
    rows = [
        [f"{row['density']:.0%}", f"{row['size']:.4f}", f"{row['decode'] / row['copy']:.2f}",
         f"{row['decode 2'] / row['copy']:.2f}", f"{row['encode']:.2f}", f"{row['decode']:.2f}",
         f"{row['copy']:.2f}"]
        for row in found["rows"]
    ]  # fmt: skip
    gain = f"Two threads do {found['threads_gain']:.2f} times the arithmetic of one on this machine."
    return f"{grid(head, rows)}\n\nThe last three are in 1e9 parameters a second. {gain}"


#: rows of benchmarks.adapters as a reader knows them: on the first page, on that of compress, of compeft
_METHODS = {
    "spectral": "**`spectral`** (default)", "ternary": "`compeft`, fitted",
    "ComPEFT as published": "ComPEFT as published",
}  # fmt: skip
_PLAIN = {name: name for name in ("int4", "int2", "rank 2 in fp16", "rank 1 in fp16")}
_SPECTRAL = {
    "spectral": "**default**", "spectral --norm 0": "`--norm 0`",
    "truncate": "`--method truncate --store fp16`", "fp16 through xz": "fp16 through xz", **_PLAIN,
}  # fmt: skip
_TERNARY = {
    "ternary": "**default**", "ternary --basis svd": "`--basis svd`",
    "ternary by tensor": "`--basis trained --scope tensor`", "ComPEFT as published": "`--paper`", **_PLAIN,
}  # fmt: skip


def adapters(found: Found, named: Mapping[str, str] = _SPECTRAL) -> str:
    """Rows of these methods; where more bytes do not help one, once."""
    head = ["method", "ratio", "error", "kept accuracy", "kept nll", "over the bound"]
    rows = {}
    for row in found["rows"]:
        if row["method"] not in named:
            continue
        kept, bound = row["kept"], mean(row["over_bound"])
        cells = [
            named[row["method"]], f"{mean(row['ratio_fp16']):.1f}", f"{mean(row['error']):.3f}",
            _share(kept, "accuracy"), _share(kept, "nll"), f"{bound:.2f}" if bound else "",
        ]  # fmt: skip
        rows[tuple(cells[:3])] = cells
    return grid(head, list(rows.values()))


def ternary(found: Found) -> str:
    return adapters(found, _TERNARY)


def kept(found: Found) -> str:
    ratios = (16, 20, 32, 64)
    at = {(row["method"], row["asked"]): row["kept"] for row in found["rows"]}

    def share(method: str, ratio: float) -> str:
        return _share(at[method, ratio], "accuracy", 2) if (method, ratio) in at else ""

    rows = [[told, *(share(method, ratio) for ratio in ratios)] for method, told in _METHODS.items()]
    return grid(["", *(f"{ratio} times smaller" for ratio in ratios)], rows)


def finetune(found: Found) -> str:
    """Both dtypes have the same lines, but for the ranks that their sizes give."""
    rows = []
    for single, half in zip(found["fp32"], found["fp16"], strict=True):
        rank = re.search(r"rank (\d+)", half["what"])
        what = re.sub(r"rank \d+", rf"\g<0> or {rank[1]}", single["what"]) if rank else single["what"]
        figures = ((f"{row['ratio']:.1f}", f"{row['error']:.3f}") for row in (single, half))
        rows.append([what, *(cell for pair in figures for cell in pair)])
    return grid(["what is stored", "fp32: ratio", "error", "fp16: ratio", "error"], rows)


def merge(found: Found) -> str:
    head = ["rule", "times faster than mergekit", "floors", "paring", "memory", "mergekit", "memory"]
    rows = []
    for row in found["rows"]:
        if "floor" not in row:
            continue
        mine, theirs = row["paring"], row.get("mergekit")
        there = ["", ""]
        if theirs:
            there = [f"{theirs['wall']:.1f} s", _mib(theirs["anon"])]
        rows.append(
            [f"`{row['rule']}`", f"{theirs['wall'] / mine['wall']:.1f}" if theirs else "",
             f"{mine['wall'] / row['floor']:.1f}", f"{mine['wall']:.2f} s", _mib(mine["anon"]), *there]
        )  # fmt: skip
    by_rule = {row["rule"]: row["paring"] for row in found["rows"] if "paring" in row}
    turns = next(row["ratio"] for row in found["rows"] if "ratio" in row)
    small = next(row for row in found["rows"] if row["rule"] == "two adapters")
    told = [
        f"In turns, `pcb` takes {turns:.1f} times as long as `task_arithmetic`.",
        f"7,203 tiny tensors take {by_rule['7203 tensors']['cpu']:.1f} s of CPU.",
        f"Two adapters merge in {small['paring']['wall']:.2f} s from start to end; PEFT, which loads the"
        f" model they are for, takes {small['peft']['wall']:.1f} s.",
    ]
    large = [f"`{rule.split()[1]}` {_mib(took['anon'])}" for rule, took in by_rule.items() if "large" in rule]
    if large:
        told.append(f"Memory for models of 4 billion parameters: {', '.join(large)}.")
    return f"{grid(head, rows)}\n\n{' '.join(told)}"


def merge_quality(found: Found) -> str:
    rows = []
    for row in sorted(found["rows"], key=lambda row: row["closed"], reverse=True):
        typed = ((key, "" if value is True else f" {value:g}" if isinstance(value, float) else f" {value}")
                 for key, value in row["options"].items())  # fmt: skip
        options = "".join(f" --{key}{value}" for key, value in typed)
        scale = "" if row["scale"] is None else f"{row['scale']:g}"
        rule = row["rule"] if row["scale"] is None else f"`{row['rule']}{options}`"
        rows.append(
            [rule, scale, f"{mean(row['accuracy']):.3f}", f"{row['closed']:.2f} ± {row['error']:.2f}"]
        )
    return grid(["rule", "scale", "accuracy", "closed"], rows)


def prune(found: Found) -> str:
    head = ["half of it goes", "floors", "times faster than torch", "paring", "memory", "torch", "memory"]
    rows = []
    for row in found["rows"]:
        mine, theirs = row["paring"], row.get("torch")
        there = [f"{theirs['wall']:.1f} s", _mib(theirs["anon"])] if theirs else ["", ""]
        faster = f"{theirs['wall'] / mine['wall']:.0f}" if theirs else ""
        rows.append(
            [row["mode"], f"{mine['wall'] / row['floor']:.1f}", faster, f"{mine['wall']:.2f} s",
             _mib(mine["anon"]), *there]
        )  # fmt: skip
    return grid(head, rows)


def prune_quality(found: Found) -> str:
    dense, *others = found["rows"]
    rows = [["dense", *[f"{dense['perplexity']:.1f}", ""] * 2]]
    by_case: dict[str, dict[str, Found]] = {}
    for row in others:
        by_case.setdefault(row["case"], {})[row["amount"]] = row
    for case, by_amount in by_case.items():
        cells = [f"`{case}`".replace(" (sequential)`", "`, sequential")]
        for amount in ("50 %", "2:4"):
            there = by_amount.get(amount)
            cells += (
                [f"{there['perplexity']:.1f}", f"{there['loss']:.3f} ± {there['error']:.3f}"]
                if there
                else ["", ""]
            )
        rows.append(cells)
    return grid(["", "50 %: perplexity", "loses", "2 of 4: perplexity", "loses"], rows)


def perp(found: Found) -> str:
    return repaired.table(found["rows"])


def gpu(found: Found) -> str:
    sides = ("cpu", "device")
    merges = [
        [f"`{row['rule']}`", *(f"{row[key]:.2f} s" for key in ("floor", *sides))] for row in found["merges"]
    ]
    roof = found["kernels"][0]
    kernels = [
        [
            f"`{row['kernel']}`",
            *(f"{row[key]:,.3g}" for key in sides),
            f"{row['device'] / roof['device']:.2f}",
        ]
        for row in found["kernels"]
    ]
    spectra, eight = found["spectra"], found["eight"]
    told = [
        f"PCB over {eight['models']} models of {eight['parameters'] / 1e9:.2g} billion parameters:"
        f" {eight['device']:.1f} s on the GPU, {eight['cpu']:.1f} s on the CPU; to read and write alone"
        f" takes {eight['floor']:.1f} s.",
        f"The singular components of a LoRA of {spectra['layers']} layers of LLaMA-7B, rank 64:"
        f" {spectra['device']:.1f} s on the GPU, {spectra['cpu']:.1f} s on the CPU.",
    ]
    return "\n\n".join(
        [
            grid(["rule", "floor", "CPU", "GPU"], merges),
            grid(["kernel, GB/s", "one thread of the CPU", "GPU", "of the GPU's copy"], kernels),
            " ".join(told),
        ]
    )


BLOCKS: Mapping[str, tuple[str, Callable[[Found], str]]] = {
    "codec": ("codec", codec), "adapters": ("adapters", adapters), "ternary": ("adapters", ternary),
    "kept": ("adapters", kept),
    "finetune": ("finetune", finetune), "merge": ("merge", merge),
    "merge_quality": ("merge_quality", merge_quality), "prune": ("prune", prune),
    "prune_quality": ("prune_quality", prune_quality), "perp": ("perp", perp), "gpu": ("gpu", gpu),
}  # fmt: skip


#: pictures, of which results, and what draws them
PICTURES: Mapping[str, tuple[str, Callable[[Found, Path], None]]] = {
    "docs/compressing.png": ("adapters", gain_and_error), "docs/perp.png": ("perp", repaired.plot),
}  # fmt: skip


def draw(root: Path, names: Collection[str]) -> Iterator[Path]:
    """Draw the pictures of these results; yields those that were drawn."""
    for place, (result, function) in PICTURES.items():
        file = RESULTS / f"{result}.json"
        if result in names and file.exists():
            function(json.loads(file.read_text(encoding="utf-8")), root / place)
            yield root / place


def _share(kept: Mapping[str, float], of: str, digits: int = 3) -> str:
    return f"{kept[of]:.{digits}f} ± {kept[f'{of}_se']:.{digits}f}"


def _mib(nbytes: int) -> str:
    return f"{nbytes / 2**20:,.0f} MiB"
