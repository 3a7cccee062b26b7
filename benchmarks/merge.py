"""Merging, side by side: paring, mergekit, PEFT and the floor of the machine, as whole commands in one run.

    python -m benchmarks.merge [--no-peer] [--large] [--runs N] [--json FILE]

A base and three fine-tunes of 309 million parameters in bf16 are made under ``.bench/merge``; mergekit is
installed in a virtual environment of its own under ``.bench/peers``. The page cache is warm, start-up counts.
*Floor*: two threads read all inputs of a merge and write and sync as many bytes as its output. mergekit is
run with its defaults and with one thread, and counts with the faster. ``anon`` is the peak of anonymous
memory, sampled. Outputs are removed before each run, untimed. ``--large`` also merges 3 fine-tunes of 4
billion parameters (24 GB of disk; hard links) under a limit of 1.5 GiB on the process's data.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from benchmarks.commands import best, floor, run
from benchmarks.machine import describe, write
from benchmarks.real_data import MODEL, fetch
from benchmarks.synthetic import LARGE, MEDIUM, Size, files_of, link, make, many_tensors, parameters

ROOT = Path(__file__).resolve().parent.parent
BENCH = ROOT / ".bench"
HOME = BENCH / "merge"
PEER = BENCH / "peers" / "mergekit"
GIB = 1 << 30

#: name -> our options, and what mergekit calls the same, if it has it
RULES: Mapping[str, tuple[Sequence[str], Mapping[str, object] | None]] = {
    "linear": (("--method", "linear"), {"merge_method": "linear"}),
    "task_arithmetic": (("--method", "task_arithmetic"), {"merge_method": "task_arithmetic"}),
    "ties by tensor": (("--method", "ties", "--trim", "tensor"), {"merge_method": "ties"}),
    "ties": (("--method", "ties"), {"merge_method": "ties"}),
    "dare_ties": (
        ("--method", "dare", "--density", ".2", "--combine", "ties"), {"merge_method": "dare_ties"},
    ),
    "pcb": (("--method", "pcb"), None),
}  # fmt: skip


#: two adapters by PEFT, exact as ours are: the model, the adapters on it, their factors side by side
PEFT = """
import sys
from peft import PeftModel
from transformers import AutoModel
base, out, first, second = sys.argv[1:]
model = PeftModel.from_pretrained(AutoModel.from_pretrained(base), first, adapter_name="first")
model.load_adapter(second, adapter_name="second")
model.add_weighted_adapter(["first", "second"], [0.5, 0.5], "merged", combination_type="cat")
model.save_pretrained(out, selected_adapters=["merged"])
"""


def ours(models: Sequence[Path], base: Path | None, out: Path, options: Sequence[str]) -> list[str | Path]:
    merge = Path(sys.executable).with_name("merge")
    named: list[str | Path] = ["--base", base] if base else []
    return [merge, *models, *named, *options, "-o", out, "--overwrite", "-q"]


def peers(models: Sequence[Path], base: Path | None, out: Path, rule: Mapping[str, object]) -> Path:
    """mergekit's recipe for the same merge."""
    density = {"density": 0.2} if "ties" in str(rule["merge_method"]) else {}
    told = {
        **rule,
        "models": [{"model": str(model), "parameters": {"weight": 1.0, **density}} for model in models],
        "dtype": "bfloat16",
        "parameters": {"normalize": rule["merge_method"] == "linear"},
    }
    if base is not None:
        told["base_model"] = str(base)
    path = out.with_suffix(".yaml")
    path.write_text(json.dumps(told))  # JSON is YAML
    return path


def install_peer() -> Path:
    """mergekit's command, installed on first use."""
    command = PEER / "bin" / "mergekit-yaml"
    if not command.exists():
        subprocess.run([sys.executable, "-m", "venv", PEER], check=True)
        pip = [str(PEER / "bin" / "pip"), "install", "-q"]
        subprocess.run([*pip, "-c", str(ROOT / "constraints.txt"), "torch"], check=True)
        subprocess.run([*pip, "mergekit==0.1.5"], check=True)
    return command


def medium(runs: int, peer: Path | None, out: Console) -> list[dict[str, object]]:
    """Base and three fine-tunes of 309 million parameters, by every rule."""
    names = ["base", "m1", "m2", "m3"]
    for seed, name in enumerate(names):
        make(HOME / name, MEDIUM, seed)
    base, *models = (HOME / name for name in names)
    rows: list[dict[str, object]] = []
    for rule, (options, theirs) in RULES.items():
        needed = None if rule == "linear" else base
        inputs = files_of([*models, *([base] if needed else [])])
        low = min(floor(inputs, 2 * parameters(MEDIUM), HOME) for _ in range(runs))
        mine = best(runs, ours(models, needed, HOME / "out", options), HOME / "out")
        row: dict[str, object] = {"rule": rule, "floor": low, "paring": asdict(mine)}
        if peer is not None and theirs is not None:
            recipe = peers(models, needed, HOME / "theirs", theirs)
            command: list[str | Path] = [peer, recipe, HOME / "theirs", "--no-copy-tokenizer"]
            settings: list[Mapping[str, str]] = [{"OMP_NUM_THREADS": "1"}, {}]
            if "ties" in rule:  # one thread is twice as fast, and minutes are minutes
                settings = settings[:1]
            tried = (run(command, env, fresh=HOME / "theirs") for env in settings)
            row["mergekit"] = asdict(min(tried, key=lambda t: t.wall))
        rows.append(row)
        out.print(line(row))
    ratio = in_turns(models, base, ("pcb", "task_arithmetic"), 2 * runs)
    rows.append({"rule": "pcb over task_arithmetic", "ratio": ratio})
    out.print(f"pcb takes {ratio:.1f} times task_arithmetic")
    for name in ("out", "theirs"):
        shutil.rmtree(HOME / name, ignore_errors=True)
    return rows


def in_turns(models: Sequence[Path], base: Path, rules: tuple[str, str], runs: int) -> float:
    """The median of how many times as long the first rule takes as the second one right after it."""
    ratios = []
    for _ in range(runs):
        first, second = (
            run(ours(models, base, HOME / "out", RULES[rule][0]), fresh=HOME / "out").wall for rule in rules
        )
        ratios.append(first / second)
    return statistics.median(ratios)


def line(row: Mapping[str, object]) -> str:
    """A row as text."""
    mine, low = row["paring"], float(str(row["floor"]))
    assert isinstance(mine, dict)
    text = (
        f"{row['rule']:16} floor {low:5.2f} s   paring {mine['wall']:6.2f} s"
        f" ({mine['wall'] / low:4.1f} floors)"
        f"  cpu {mine['cpu']:6.2f} s  anon {mine['anon'] / 2**20:5.0f} MiB"
    )
    if isinstance(theirs := row.get("mergekit"), dict):
        text += (
            f"   mergekit {theirs['wall']:6.1f} s (cpu {theirs['cpu']:5.1f} s,"
            f" {theirs['anon'] / 2**20:5.0f} MiB)  {theirs['wall'] / mine['wall']:5.1f} times faster"
        )
    return text


def small(runs: int, out: Console) -> list[dict[str, object]]:
    """Many tiny tensors, and two adapters."""
    rows: list[dict[str, object]] = []
    folders = [HOME / f"tiny{i}" for i in range(3)]
    for seed, folder in enumerate(folders):
        many_tensors(folder, 7203, seed)
    tiny = ours(folders[1:], folders[0], HOME / "out", ("--method", "task_arithmetic"))
    took = best(runs, tiny)
    out.print(f"7,203 tiny tensors: {took.cpu:.2f} s of CPU, {took.wall:.2f} s")
    rows.append({"rule": "7203 tensors", "paring": asdict(took)})
    adapters = [ROOT / "fixtures" / "adapters" / name for name in ("rotten", "brown")]
    took = best(runs, ours(adapters, None, HOME / "lora", ()))
    theirs: list[str | Path] = [sys.executable, "-c", PEFT, fetch() / MODEL, HOME / "peft", *adapters]
    peft = best(runs, theirs)
    out.print(f"two adapters: {took.wall:.2f} s start to end, PEFT {peft.wall:.2f} s")
    rows.append({"rule": "two adapters", "paring": asdict(took), "peft": asdict(peft)})
    for name in ("out", "lora", "peft"):
        shutil.rmtree(HOME / name, ignore_errors=True)
    return rows


def large(out: Console, size: Size = LARGE) -> list[dict[str, object]]:
    """Three fine-tunes of 4 billion parameters and their base, under a limit on memory."""
    make(HOME / "large-base", size, 0)
    make(HOME / "large-1", size, 1)
    for number in (2, 3):
        link(HOME / "large-1", HOME / f"large-{number}")
    models = [HOME / f"large-{number}" for number in (1, 2, 3)]
    rows: list[dict[str, object]] = []
    for rule in ("task_arithmetic", "ties", "pcb"):
        command = ours(models, HOME / "large-base", HOME / "large-out", ("--method", rule))
        took = run(command, limit=3 * GIB // 2)
        told = "done" if took.code == 0 else f"FAILED with {took.code}"
        out.print(
            f"{parameters(size) / 1e9:.1f} billion parameters, {rule}: {told} in {took.wall:.0f} s, "
            f"anon {took.anon / 2**20:.0f} MiB of 1536"
        )
        rows.append({"rule": f"large {rule}", "paring": asdict(took)})
        shutil.rmtree(HOME / "large-out", ignore_errors=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--no-peer", action="store_true")
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    out = Console(width=220, highlight=False)
    machine = describe()
    out.print(machine)
    HOME.mkdir(parents=True, exist_ok=True)
    rows = small(asked.runs, out)
    rows += medium(asked.runs, None if asked.no_peer else install_peer(), out)
    if asked.large:
        rows += large(out)
    write(asked.json, machine, rows=rows)


if __name__ == "__main__":
    main()
