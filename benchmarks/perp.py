"""What retraining recovers after pruning: PERP against full retraining, on books that none of them has seen.

SmolLM2-135M-Instruct, pruned by magnitude in every matrix of its blocks (50 %, 60 %, 2:4), is retrained on
four novels of Jane Austen and three fifths of the Brown corpus; learning rates are chosen on another novel
and another fifth (``--tune``); perplexity is reported on ``Persuasion`` and the last fifth. The control is
the dense model with the same training, so that learning the domain does not count as recovery. Every row
runs in a process of its own, for its memory and so that a run that was stopped goes on where it was.

    python -m benchmarks.perp --rows five     # the 50 % rows that fit 45 minutes of two cores
    python -m benchmarks.perp                 # all rows: for a GPU
    python -m benchmarks.perp --quick         # a few steps each, to see that it runs

Rows are kept in ``.bench/perp`` (or PARING_BENCH_DATA) until ``--fresh``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks import machine, smollm
from benchmarks.real_data import data_root
from benchmarks.repaired import PARTS, summary, table
from paring import api
from paring.plan import thread_count
from paring.report import peak_rss_bytes

F64 = npt.NDArray[np.float64]
#: tokens of a window, in training and in evaluation; the first of a window is not predicted
LENGTH = 256
TRAINING = {"steps": 40, "batch": 4}
ADAPTERS = {"rank": 4, "alpha": 8.0}
#: chosen on the validation books with --tune
RATES = {"adapters": 1e-2, "all": 1e-3, "reconstruct": 1e-3}


@dataclass(frozen=True)
class Row:
    """A model: how it is pruned (None: not at all) and how it is retrained (None: not at all)."""

    pruned: str | None
    recipe: str | None = None
    options: dict[str, Any] = field(default_factory=dict)


def perp(**more: Any) -> dict[str, Any]:
    """PERP's options here, with these changes."""
    rate = RATES["all" if more.get("train") == "all" else "adapters"]
    return {**TRAINING, **ADAPTERS, "lr": rate, **more}


def rows() -> dict[str, Row]:
    """All rows by name."""
    found = {"dense": Row(None), "dense + PERP": Row(None, "perp", perp())}
    for kind in ("50%", "60%", "2:4"):
        found[f"{kind} bare"] = Row(kind)
        for method in ("wanda", "sparsegpt", "alps"):
            found[f"{kind} {method}"] = Row(f"{kind} {method}")
        subsets = {
            "norms": {"train": "norms"},
            "MaskLoRA": {"train": "adapters"},
            "norms + MaskLoRA (PERP)": {},
            "norms + ScaleLoRA": {"adapter": "scalelora"},
            "norms + LoRA-Prune": {"adapter": "loraprune"},
            "full retraining": {"train": "all"},
            "full, APOLLO-Mini": {"train": "all", "optimizer": "apollo-mini"},
        }
        for name, options in subsets.items():
            found[f"{kind} {name}"] = Row(kind, "perp", perp(**options))
        first = {"steps": 40, "batch": 4, "samples": 128, "lr": RATES["reconstruct"]}
        found[f"{kind} reconstruction"] = Row(kind, "reconstruct", first)
        found[f"{kind} relaxed reconstruction"] = Row(kind, "reconstruct", {**first, "relax": True})
        both = {"reconstruct": 40, "reconstruct_lr": RATES["reconstruct"], "samples": 128}
        found[f"{kind} reconstruction + PERP"] = Row(kind, "perp", perp(**both))
        for method in ("sparsegpt", "alps"):
            found[f"{kind} {method} + PERP"] = Row(f"{kind} {method}", "perp", perp())
            both = {"reconstruct": 40, "reconstruct_lr": RATES["reconstruct"] / 10, "samples": 128}
            found[f"{kind} {method} + reconstruction + PERP"] = Row(f"{kind} {method}", "perp", perp(**both))
        if kind != "2:4":
            found[f"{kind} PST"] = Row(kind, "pst", {**TRAINING, "lr": RATES["adapters"]})
            found[f"{kind} PERP in 3 cycles"] = Row(kind, "perp", perp(cycles=3, steps=42))
    return found


FIVE = (
    "dense", "50% bare", "50% norms + MaskLoRA (PERP)", "50% full retraining", "dense + PERP",
    "50% reconstruction + PERP",
)  # fmt: skip


# --- data and models ---


def corpora() -> dict[str, Path]:
    """A folder of text files for each part of the split; evaluation by source."""
    home = data_root() / "perp"
    split = smollm.split()
    for part, texts in zip(split._fields, split, strict=True):
        for name, text in texts.items():
            source = "brown" if name[0].islower() else "austen"
            folder = home / part / source
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{name.replace(' ', '-')}.txt").write_text(text, encoding="utf-8")
    return {part: home / part for part in split._fields}


def pruned_folder(kind: str) -> Path:
    """SmolLM2 pruned as ``kind`` says, on first use: how much goes, and the method if it is not magnitude.

    Statistics are measured on the first half million characters of the training text.
    """
    amount, _, method = kind.partition(" ")
    home = data_root() / "perp" / f"pruned-{kind.replace(':', 'of').replace('%', '').replace(' ', '-')}"
    if home.is_dir():
        return home
    stats = data_root() / "perp" / "stats.safetensors"
    if method and not stats.exists():
        sample = stats.with_name("calibration.txt")
        sample.write_text("\n\n".join(smollm.split().train.values())[-500_000:], encoding="utf-8")
        api.calibrate(smollm.model(), sample, stats, gram=True, samples=128, window=LENGTH)
    much: dict[str, Any] = (
        {"keep": 2, "of": 4} if amount == "2:4" else {"sparsity": f"{float(amount.rstrip('%')) / 100:g}"}
    )
    how: dict[str, Any] = {"method": method, "stats": stats} if method else {}
    api.prune(smollm.model(), home, **much, **how)
    return home


def losses(folder: Path, part: str, count: int, device: str) -> dict[str, F64]:
    """By source, the mean loss of each of ``count`` windows spread evenly over its text: (windows,), nats."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from paring.retraining import text

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.eval().to(device)
    found = {}
    for source in PARTS:
        windows = text.windows(tokenizer, text.read(corpora_root() / part / source), LENGTH)
        windows = windows[np.linspace(0, len(windows) - 1, count).round().astype(int)]
        values = []
        with torch.inference_mode():
            for batch in np.array_split(windows, max(1, count // 4)):
                ids = torch.from_numpy(batch).to(device)
                logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
                lost = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
                values.extend(lost.double().mean(1).tolist())
        found[source] = np.array(values)
    return found


def corpora_root() -> Path:
    """Where :func:`corpora` has written."""
    return data_root() / "perp"


# --- rows ---


def run(row: Row, quick: bool, part: str, windows: int) -> dict[str, Any]:
    """Prune, retrain, evaluate one row, in this process."""
    import torch

    from paring.retraining.run import retrain

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(thread_count(None))
    data = corpora()["train"]
    folder = smollm.model() if row.pruned is None else pruned_folder(row.pruned)
    options = dict(row.options)
    if quick:
        options |= {name: 2 for name in ("steps", "reconstruct") if name in options}
        options |= {"samples": 8} if "samples" in options else {}
        options.pop("cycles", None)
    found: dict[str, Any] = {"device": device}
    with tempfile.TemporaryDirectory(dir=data_root()) as scratch:
        if row.recipe is not None:
            started = time.perf_counter()
            report = retrain(
                folder, Path(scratch, "out"), data=data, recipe=row.recipe, options=options,
                dense=smollm.model(), length=LENGTH, pattern=(2, 4) if row.pruned == "2:4" else None,
                device=device, threads=thread_count(None),
            )  # fmt: skip
            folder = Path(scratch, "out")
            found |= {
                "minutes": (time.perf_counter() - started) / 60,
                "trained": (report.trained or 0) / (report.parameters or 1),
                "sparsity": report.sparsity,
                "training_losses": report.losses,
                "peak_rss_bytes": peak_rss_bytes(),
            }
            if device == "cuda":
                found["peak_gpu_bytes"] = torch.cuda.max_memory_allocated()
        lost = losses(folder, part, windows, device)
    return found | {"losses": {source: list(values) for source, values in lost.items()}}


def collected(names: Sequence[str], quick: bool, fresh: bool) -> dict[str, Any]:
    """Run these rows, each in a process of its own, and return all results so far."""
    file = corpora_root() / ("quick.json" if quick else "rows.json")
    file.parent.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = json.loads(file.read_text()) if file.exists() and not fresh else {}
    for name in names:
        told = asdict(rows()[name])
        if found.get(name, {}).get("row") == told:
            continue
        command = [sys.executable, "-m", "benchmarks.perp", "--one", name, *(["--quick"] if quick else [])]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found[name] = {**json.loads(done.stdout.splitlines()[-1]), "row": told}
        file.write_text(json.dumps(found))
        print(f"{name}: {summary(found[name])}", file=sys.stderr, flush=True)
    return {name: found[name] for name in names if name in found}


def tune(names: Sequence[str], rates: Sequence[float], steps: int) -> None:
    """Print the validation perplexity of rows at several learning rates, with few steps."""
    for name in names:
        row = rows()[name]
        for rate in rates:
            tried = Row(row.pruned, row.recipe, {**row.options, "lr": rate, "steps": steps})
            print(f"{name}, lr {rate:g}: {summary(run(tried, False, 'validation', 12))}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", default="all", help="all, five, or names joined by ;")
    parser.add_argument("--quick", action="store_true", help="a few steps each")
    parser.add_argument("--fresh", action="store_true", help="forget earlier rows")
    parser.add_argument("--tune", metavar="RATE,...", help="validation perplexity of --rows at these rates")
    parser.add_argument("--steps", type=int, default=16, help="of --tune")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows to FILE as well")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(run(rows()[given.one], given.quick, "test", 4 if given.quick else 32)))
        return
    chosen = {"all": list(rows()), "five": list(FIVE)}.get(given.rows) or given.rows.split(";")
    if unknown := set(chosen) - set(rows()):
        parser.error(f"no row {sorted(unknown)[0]!r}: there are {', '.join(rows())}")
    if given.tune:
        tune(chosen, [float(rate) for rate in given.tune.split(",")], given.steps)
        return
    found = collected(chosen, given.quick, given.fresh)
    told = machine.describe("torch", "transformers")
    print(told)
    print(table(found))
    machine.write(given.json, told, rows=found)


if __name__ == "__main__":
    main()
