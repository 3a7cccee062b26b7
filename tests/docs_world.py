"""A folder that holds what the pages name, small; and their commands, run in it."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from paring import cli
from paring.checkpoint import write_safetensors
from paring.dtypes import from_f32
from tests import running
from tests.documents import ROOT, Block, Command, commands, figures, skeleton, tool

#: LoRAs of ``model/``, by their names in the pages
LORAS = ("maths", "code", "chat", "law", "french", "lora-a", "lora-b", "lora", "adapter", "new")
_CONFIG = {
    "peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"],
    "base_model_name_or_path": "model", "task_type": "CAUSAL_LM", "bias": "none",
}  # fmt: skip
_EVALUATION = {"task": "text-generation", "dataset": "some", "metric": "accuracy", "value": 0.5}


def make(folder: Path) -> Path:
    """The folder, with models of two blocks, LoRAs of them, a text, and ``fixtures``."""
    folder.mkdir()
    (folder / "fixtures").symlink_to(ROOT / "fixtures")
    running.put(folder / "model")
    for number, name in enumerate(("base", "a", "b", "c", "tuned")):
        tuned(folder / "model", folder / name, number)
    for number, name in enumerate(LORAS):
        lora(folder / name, number)
        lora(folder / "adapters" / name, number)
    (folder / "text.txt").write_text(running.TEXT * 3)
    (folder / "evaluations.json").write_text(json.dumps([_EVALUATION]))
    (folder / "score.py").write_text("import sys\nprint(len(sys.argv[1]))\n")
    recipe = "method: ties\nbase: base\nmodels: [a, {model: b, weight: .5}]\noptions: {density: .3}\n"
    (folder / "recipe.yaml").write_text(recipe)
    return folder


def tuned(model: Path, folder: Path, seed: int) -> None:
    """A copy of a model with its weights moved a little; not at all for seed 0."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(model, folder)
    torch.manual_seed(seed)
    file = folder / "model.safetensors"
    moved = {name: t + 0.02 * seed * torch.randn_like(t) for name, t in load_file(file).items()}
    save_file(moved, file, {"format": "pt"})


def with_zeros(model: Path) -> None:
    """Make one row of one matrix zero."""
    from safetensors.torch import load_file, save_file

    file = model / "model.safetensors"
    tensors = load_file(file)
    next(t for name, t in tensors.items() if "q_proj" in name)[0] = 0
    save_file(tensors, file, {"format": "pt"})


def lora(folder: Path, seed: int) -> None:
    """A LoRA of the model of ``running.put``: q (16, 16) and v (8, 16) of two layers, rank 2."""
    folder.mkdir(parents=True)
    rng, tensors = np.random.default_rng(seed), {}
    for layer in range(2):
        for name, out in (("q_proj", 16), ("v_proj", 8)):
            module = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            for side, shape in (("A", (2, 16)), ("B", (out, 2))):
                values = rng.normal(0, 0.05, shape).astype(np.float32)
                tensors[f"{module}.lora_{side}.weight"] = from_f32(values, "F32", module)
    write_safetensors(folder / "adapter_model.safetensors", tensors, {"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(_CONFIG))


def minilm(folder: Path) -> None:
    """A model of the shapes that the adapters in ``fixtures`` are for; its weights are random."""
    import transformers

    config = transformers.BertConfig(
        vocab_size=50, hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536,
        max_position_embeddings=64,
    )  # fmt: skip
    transformers.BertModel(config).save_pretrained(folder)


def run(words: Sequence[str]) -> tuple[int, str]:
    """A command of ours in this process, as a shell would call it: its exit code, and all it printed."""
    expanded = [words[0]]
    for word in words[1:]:
        found = sorted(map(str, Path().glob(word))) if "*" in word and not word.startswith("-") else []
        expanded += found or [word]
    function = {"paring": cli.main, "compress": cli.compress_main, "merge": cli.merge_main,
                "prune": cli.prune_main}[tool(tuple(words))]  # fmt: skip
    printed = io.StringIO()
    before = sys.argv
    sys.argv = expanded
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            function()
    except SystemExit as done:
        return int(done.code or 0), printed.getvalue()
    finally:
        sys.argv = before
    raise AssertionError("a command ends by SystemExit")


Runner = Callable[[tuple[str, ...]], tuple[int, str]]


def follow(block: Block, *, fails: bool = False, by: Runner = run) -> None:
    """Run the commands of a block one after another."""
    for command in commands(block):
        follow_one(block, command, fails=fails, by=by)


def follow_one(block: Block, command: Command, *, fails: bool = False, by: Runner = run) -> None:
    """Run a command; what the page shows of its output must be printed, and where that is about real
    adapters with its figures, but those of time and memory.
    """
    real = any(word.startswith("fixtures/") for word in command.words)
    code, printed = by(command.words)
    shown = " ".join(command.words)
    assert (code != 0) == fails, f"{block}: {shown}: exit code {code}\n{printed}"
    lines = iter(printed.splitlines())
    for line in filter(str.strip, command.output):
        if line.strip() != "...":
            wanted = skeleton(line)
            same = (each for each in lines if wanted == skeleton(each))
            found = any(
                not real or figures(each) == pytest.approx(figures(line), rel=0.01, abs=0.01) for each in same
            )
            assert found, f"{block}: {shown}: no {line!r} in\n{printed}"


@contextlib.contextmanager
def inside(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Work in ``folder``; programs of this environment are found first."""
    with monkeypatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("PATH", str(Path(sys.executable).parent), prepend=":")
        yield
