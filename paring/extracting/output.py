"""An extracted adapter on disk: factors, what is carried whole beside them, and PEFT's configuration."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paring import atomic, describing
from paring.adapters.peft_config import exact, is_end
from paring.checkpoint import write_checked
from paring.dtypes import Stored
from paring.extracting.plan import Piece, Sorted
from paring.folders import CONFIG, WEIGHTS
from paring.merging import record
from paring.merging.inputs import Model
from paring.plan import refuse_sealed
from paring.report import LeftOut, ModuleReport

_OURS = (WEIGHTS, CONFIG, "README.md")
_PREFIX = "base_model.model."
#: task type -> the heads that PEFT then replaces by full tensors, whatever else the configuration says
_HEADS = {"SEQ_CLS": ("classifier", "score"), "TOKEN_CLS": ("classifier", "score"),
          "QUESTION_ANS": ("qa_outputs",)}  # fmt: skip
_TASKS = {"ForCausalLM": "CAUSAL_LM", "LMHeadModel": "CAUSAL_LM", "ForSequenceClassification": "SEQ_CLS",
          "ForTokenClassification": "TOKEN_CLS", "ForQuestionAnswering": "QUESTION_ANS"}  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Extracted:
    """One module's factors as they will be written; squared norms of its delta and of what was lost."""

    piece: Piece
    tensors: dict[str, Stored]
    rank: int
    lost: float
    energy: float

    def report(self) -> ModuleReport:
        rows, columns = self.piece.shape
        if self.piece.turned or self.piece.kind == "embedding":
            rows, columns = columns, rows
        error = (self.lost / self.energy) ** 0.5
        return ModuleReport(self.piece.module, (rows, columns), self.rank, error=error)


@dataclass(slots=True)
class Carriage:
    """Tensors written whole: PEFT's name -> the name in the tuned checkpoint; how PEFT is told of them."""

    tensors: dict[str, str] = field(default_factory=dict)
    modules: list[str] = field(default_factory=list)
    bias: str = "none"

    def listed(self, tuned: Model) -> Iterator[tuple[str, int, str]]:
        for name, stored in self.tensors.items():
            why = "a bias, whole" if name.endswith(".bias") else "a full tensor (modules_to_save)"
            yield name, tuned.checkpoint.tensors[stored].nbytes, why


def carriage(
    found: Sorted, modules: Sequence[Extracted], left: Sequence[LeftOut], carry: bool
) -> tuple[Carriage, list[LeftOut]]:
    """What of ``left`` is carried whole, if ``carry``, and what stays out."""
    out = Carriage()
    if not carry:
        return out, list(left)
    full = {rest.name for rest in found.rest if rest.full}
    lowrank = {module.piece.module for module in modules}
    known = _modules_of(found.tuned)
    for item in left:
        module, _, leaf = item.name.rpartition(".")
        fits = item.name in full and leaf != "bias" and module not in lowrank
        if fits and not _mistaken(module, known):
            out.modules.append(module)
            members = (name for name in found.tuned if name.rpartition(".")[0] == module)
            out.tensors |= {_PREFIX + name: found.tuned[name] for name in members}
    for item in left:
        module, _, leaf = item.name.rpartition(".")
        if leaf == "bias" and item.name in full and module not in out.modules and item.name in found.base:
            place = f"{module}.base_layer.bias" if module in lowrank else item.name
            out.bias = "lora_only" if module in lowrank and out.bias != "all" else "all"
            out.tensors[_PREFIX + place] = found.tuned[item.name]
    out.modules = list(dict.fromkeys(out.modules))
    held = set(out.tensors.values())
    return out, [item for item in left if found.tuned.get(item.name) not in held]


def _modules_of(names: Iterable[str]) -> set[str]:
    """The modules that own tensors, and those that these are in."""
    out: set[str] = set()
    for name in names:
        while "." in name:
            name = name.rpartition(".")[0]
            out.add(name)
    return out


def _mistaken(module: str, known: Iterable[str]) -> bool:
    """Whether PEFT, asked to save ``module`` whole, would take others as well: it goes by how names end."""
    inside = re.compile(rf"(^|.*\.){module}\..+")
    return not module or any(
        other != module and (other.endswith(module) or inside.match(other)) for other in known
    )


@dataclass(frozen=True, slots=True)
class Output:
    """Where an extracted adapter goes, and what is told of it."""

    path: Path
    overwrite: bool
    recipe: Mapping[str, Any]
    base_name: str
    tuned: Model
    base: Model
    found: Sorted

    @property
    def single(self) -> bool:
        return self.path.suffix == ".safetensors"

    def refuse(self) -> None:
        """Raise OutputError now for what writing would refuse later."""
        inputs = [path for m in (self.tuned, self.base) for path in (m.path, *m.checkpoint.inputs)]
        atomic.refuse_same_file(self.path, inputs)
        if self.single:
            atomic.refuse_existing(self.path, self.overwrite)
        else:
            atomic.refuse_folder(atomic.target_of(self.path), self.overwrite, _OURS)
        refuse_sealed(self.path)

    def nbytes(self) -> int:
        return (self.path if self.single else self.path / WEIGHTS).stat().st_size

    def warnings(self, modules: Sequence[Extracted]) -> list[str]:
        out = []
        if self.single and any(module.piece.turned for module in modules):
            out.append("a single file has no adapter_config.json: set fan_in_fan_out where you load it")
        tied = self._tied(modules)
        heads = {name.removesuffix(".weight") for name in self.found.tied}
        if tied and (tied.endswith("shared") or not heads <= {"lm_head"}):
            out.append(f"{tied} is shared: PEFT uses its factors there alone, until they are merged")
        if tied:
            out.append(f"{tied} is tied: PEFT's merge_and_unload adds its update twice; use it unmerged")
        return out

    def write(self, modules: Sequence[Extracted], carried: Carriage) -> None:
        """Write the adapter, whole or not at all, and read it again."""
        factors = {name: tensor for module in modules for name, tensor in module.tensors.items()}
        read = self.tuned.checkpoint.read

        def contents() -> Iterator[tuple[str, Stored]]:
            yield from factors.items()
            for name, stored in carried.tensors.items():
                yield name, read(stored)

        infos = self.tuned.checkpoint.tensors
        layout = [(name, tensor.dtype, tensor.shape) for name, tensor in factors.items()]
        layout += [(name, infos[own].dtype, infos[own].shape) for name, own in carried.tensors.items()]
        told = record.metadata({}, self.recipe)
        if self.single:
            write_checked(self.path, contents(), told, layout=layout, overwrite=self.overwrite)
            return
        with atomic.atomic_folder(self.path, self.overwrite, _OURS) as folder:
            write_checked(folder / WEIGHTS, contents(), told, layout=layout)
            text = json.dumps(self.config(modules, carried), indent=2, sort_keys=True) + "\n"
            (folder / CONFIG).write_text(text, encoding="utf-8")
            text = self._card(modules, (folder / WEIGHTS).stat().st_size)
            (folder / "README.md").write_text(text, encoding="utf-8")

    def config(self, modules: Sequence[Extracted], carried: Carriage) -> dict[str, Any]:
        """``adapter_config.json``: alpha equals the rank everywhere, so that the scale is 1."""
        ranks = {module.piece.module: module.rank for module in modules}
        common = Counter(ranks.values()).most_common(1)[0][0]
        known = _modules_of(self.found.tuned)
        pattern = {exact(name, known): rank for name, rank in sorted(ranks.items()) if rank != common}
        config: dict[str, Any] = {
            "peft_type": "LORA", "base_model_name_or_path": self.base_name, "inference_mode": True,
            "r": common, "lora_alpha": common, "rank_pattern": pattern, "alpha_pattern": dict(pattern),
            "target_modules": _targets(ranks, known), "modules_to_save": carried.modules or None,
            "bias": carried.bias, "fan_in_fan_out": any(module.piece.turned for module in modules),
            "lora_dropout": 0.0, "init_lora_weights": True, "use_dora": False, "use_rslora": False,
            "task_type": self._task(carried, known),
        }  # fmt: skip
        if tied := self._tied(modules):
            # PEFT gives the head the embedding's factors, if it sees one of the two names that it knows
            config["ensure_weight_tying"] = True
            if isinstance(config["target_modules"], list) and not tied.endswith("embed_tokens"):
                config["target_modules"] = sorted({*config["target_modules"], "lm_head"})
        return config

    def _tied(self, modules: Sequence[Extracted]) -> str | None:
        """The extracted embedding that is the head as well, or None."""
        some = (module for module in modules if module.piece.kind == "embedding" and self._is_tied(module))
        return next((module.piece.module for module in some), None)

    def _config(self) -> dict[str, Any]:
        """That of the model: the tuned one's, or its base's."""
        own = self.tuned.checkpoint.config("config.json")
        return own or self.base.checkpoint.config("config.json") or {}

    def _is_tied(self, module: Extracted) -> bool:
        """Whether a head shares this embedding: it has none of its own, or one of the same bits."""
        name = module.piece.target.name
        if name in self.found.tied.values():
            return True
        config = self._config()
        heads = any(name.rpartition(".")[0].endswith(("lm_head", "embed_out")) for name in self.found.tuned)
        writes = _task(config) in ("CAUSAL_LM", "SEQ_2_SEQ_LM")
        rows = config.get("vocab_size")
        vocabulary = (
            rows == module.piece.target.shape[0] if rows else name.endswith(("tokens.weight", "wte.weight"))
        )
        return writes and vocabulary and not heads and config.get("tie_word_embeddings") is not False

    def _task(self, carried: Carriage, known: set[str]) -> str | None:
        task = _task(self._config())
        if task not in _HEADS:
            return task
        heads = [name for name in _HEADS[task] if any(other.endswith(name) for other in known)]
        return task if heads and all(head in carried.modules for head in heads) else None

    def _card(self, modules: Sequence[Extracted], nbytes: int) -> str:
        ranks = [module.rank for module in modules]
        lost, total = sum(m.lost for m in modules), sum(m.energy for m in modules)
        facts = [
            ("modules", f"{len(ranks):,}"),
            ("ranks", f"{min(ranks)} to {max(ranks)}"),
            ("size", f"{nbytes:,} bytes"),
            ("relative error of what these modules had learnt", f"{(lost / total) ** 0.5:.4f}"),
        ]
        reports = [module.report() for module in modules]
        folders = [self.tuned.folder, self.base.folder]
        return describing.extracted(
            self.recipe, base=self.base_name, facts=facts, modules=reports, folders=folders
        )


def _targets(ranks: Mapping[str, int], known: set[str]) -> list[str] | str:
    """``target_modules``: the names, or a pattern where another module's name ends like one of them."""
    if any(is_end(name, known - ranks.keys()) for name in ranks):
        return "|".join(re.escape(name) for name in sorted(ranks))
    return sorted(ranks)


def _task(config: Mapping[str, Any]) -> str | None:
    """The task that the architecture's name says, or None."""
    named = config.get("architectures")
    name = named[0] if isinstance(named, list) and named and isinstance(named[0], str) else ""
    if name.endswith("ForConditionalGeneration") and config.get("is_encoder_decoder"):
        return "SEQ_2_SEQ_LM"
    return next((task for ending, task in _TASKS.items() if name.endswith(ending)), None)
