"""Merging, side by side: paring, mergekit, PEFT and the floor of the machine, as whole commands in one run.

    python -m benchmarks.merge [--no-peer] [--large] [--runs N] [--json FILE]

A base and three fine-tunes of 309 million parameters in bf16 are made under ``.bench/merge``; mergekit is
installed in a virtual environment of its own under ``.bench/peers``. The page cache is warm, start-up counts.
*Floor*: two threads read all inputs of a merge and write and sync as many bytes as its output. mergekit is
run with its defaults and with one thread, and counts with the faster. ``anon`` is the peak of anonymous
memory, sampled. ``--large`` also merges 3 fine-tunes of 4 billion parameters (24 GB of disk; hard links)
under a limit of 1.5 GiB on the process's data.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console

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


@dataclass(frozen=True, slots=True)
class Took:
    """One command: wall and CPU seconds, peak anonymous memory in bytes."""

    wall: float
    cpu: float
    anon: int
    code: int


def run(
    command: Sequence[str | Path], env: Mapping[str, str] | None = None, limit: int | None = None
) -> Took:
    """Run a command to its end, sampling its anonymous memory; ``limit`` is on its data, in bytes."""

    def limited() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    begun = time.perf_counter()
    with subprocess.Popen(
        [str(part) for part in command],
        # bytecode is kept, as after any installation, whatever this shell says
        env={**os.environ, "OMP_WAIT_POLICY": "passive", "PYTHONDONTWRITEBYTECODE": "", **(env or {})},
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, preexec_fn=limited,
    ) as process:  # fmt: skip
        anon = 0
        while process.poll() is None:
            anon = max(anon, _anonymous(process.pid))
            time.sleep(0.02)
        wall = time.perf_counter() - begun
        told = process.stderr.read().decode() if process.stderr else ""
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    if process.returncode:
        print(told[-2000:], file=sys.stderr)
    return Took(wall, cpu, anon, process.returncode)


def _anonymous(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    found = [line.split()[1] for line in status.splitlines() if line.startswith("RssAnon")]
    return int(found[0]) * 1024 if found else 0


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


def floor(inputs: Sequence[Path], nbytes: int, home: Path = HOME) -> float:
    """Seconds in which two threads read all inputs and write and sync ``nbytes``, in the folder ``home``."""
    target = home / "floor"
    half = bytes(4 << 20)

    def read(file: Path) -> None:
        buffer = bytearray(4 << 20)
        with file.open("rb", buffering=0) as opened:
            while opened.readinto(buffer):
                pass

    def write(number: int) -> None:
        with target.with_suffix(f".{number}").open("wb", buffering=0) as opened:
            for _ in range(nbytes // 2 // len(half)):
                opened.write(half)
            os.fsync(opened.fileno())

    begun = time.perf_counter()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(read, inputs))
        list(pool.map(write, range(2)))
    took = time.perf_counter() - begun
    for number in range(2):
        target.with_suffix(f".{number}").unlink()
    return took


def best(runs: int, command: Callable[[], Took]) -> Took:
    """The fastest of several runs."""
    return min((command() for _ in range(runs)), key=lambda took: took.wall)


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
        low = min(floor(inputs, 2 * parameters(MEDIUM)) for _ in range(runs))
        mine = best(runs, lambda o=options, n=needed: run(ours(models, n, HOME / "out", o)))  # type: ignore[misc]
        row: dict[str, object] = {"rule": rule, "floor": low, "paring": asdict(mine)}
        if peer is not None and theirs is not None:
            recipe = peers(models, needed, HOME / "theirs", theirs)
            command: list[str | Path] = [peer, recipe, HOME / "theirs", "--no-copy-tokenizer"]
            settings: list[Mapping[str, str]] = [{"OMP_NUM_THREADS": "1"}, {}]
            if "ties" in rule:  # one thread is twice as fast, and minutes are minutes
                settings = settings[:1]
            row["mergekit"] = asdict(min((run(command, env) for env in settings), key=lambda t: t.wall))
        rows.append(row)
        out.print(line(row))
    ours_again = next(row for row in rows if row["rule"] == "task_arithmetic")
    pcb = next(row for row in rows if row["rule"] == "pcb")
    out.print(f"pcb takes {wall(pcb) / wall(ours_again):.1f} times task_arithmetic")
    for name in ("out", "theirs"):
        shutil.rmtree(HOME / name, ignore_errors=True)
    return rows


def wall(row: Mapping[str, object], who: str = "paring") -> float:
    found = row[who]
    assert isinstance(found, dict)
    return float(found["wall"])


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
    took = best(runs, lambda: run(tiny))
    out.print(f"7,203 tiny tensors: {took.cpu:.2f} s of CPU, {took.wall:.2f} s")
    rows.append({"rule": "7203 tensors", "paring": asdict(took)})
    adapters = [ROOT / "fixtures" / "adapters" / name for name in ("rotten", "brown")]
    took = best(runs, lambda: run(ours(adapters, None, HOME / "lora", ())))
    theirs: list[str | Path] = [sys.executable, "-c", PEFT, fetch() / MODEL, HOME / "peft", *adapters]
    peft = best(runs, lambda: run(theirs))
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
