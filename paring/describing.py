"""What a result says of itself on its card: a merged model from its recipe, a packed file from its manifest.

Everything here is in the result, so that a card can be made when it is written or whenever it is pushed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paring import card, judging, registry
from paring.card import Card
from paring.checkpoint import open_checkpoint
from paring.errors import BadFileError, OptionError, UnsupportedError
from paring.merging.record import RECIPE
from paring.retyping import command_of
from paring.snippets import config_in, library_of, loading_code
from paring.untrusted import parse_json

if TYPE_CHECKING:
    from paring.pruning.report import Retraining
    from paring.report import Inspection, ModuleReport, Perplexities

_ROWS = 8  # modules on a card: those that lost most
#: what was done, by command
_PAST = {"prune": "Pruned", "retrain": "Pruned and retrained", "shrink": "Shrunk"}
#: how that is tagged
_TAGS = {"prune": ["prune"], "retrain": ["prune", "retrained"], "shrink": ["shrink", "pruning"]}
#: what a packed file tells of itself -> digits behind the point
_FIGURES = (("ratio", 1), ("error", 4))


def merged(
    recipe: Mapping[str, Any],
    *,
    library: str | None,
    facts: Sequence[tuple[str, str]],
    modules: Sequence[ModuleReport] = (),
    base: str | None = None,
    config: Mapping[str, Any] | None = None,
    folders: Sequence[Path] = (),
) -> str:
    """The card of a merged model. ``base`` is what merged adapters are for, ``config`` the configuration that
    the result has, ``folders`` those of the inputs, whose cards state licences.
    """
    models = [str(model) for model in recipe.get("models", ())]
    named = recipe.get("base") or recipe.get("into")
    adapter = library == "peft"
    found = card.repositories([base] if adapter else [*([named] if named else []), *models])
    sources = "\n".join(f"- {_told(name)}" for name in dict.fromkeys([*([named] if named else []), *models]))
    return card.render(
        Card(
            title=" + ".join(_short(model) for model in models),
            intro=f"Merged by paring from\n\n{sources}",
            base=found,
            relation="adapter" if adapter else "merge",
            library=library,
            tags=["merge", "lora"] if adapter else ["merge"],
            license=card.common_license(folders),
            command=command_of(recipe, "OUT"),
            method=_method("merge", recipe.get("method")),
            facts=facts,
            tables=_modules(modules),
            loading=loading_code(library, base, config),
            recipe=recipe,
        )
    )


def extracted(
    recipe: Mapping[str, Any], *, base: str, facts: Sequence[tuple[str, str]],
    modules: Sequence[ModuleReport], folders: Sequence[Path],
) -> str:  # fmt: skip
    """The card of an adapter that was extracted from a fine-tune of ``base``."""
    tuned, named = str(recipe["tuned"]), str(recipe["base"])
    return card.render(
        Card(
            title=f"{_short(tuned)}, as a LoRA",
            intro=f"Extracted by paring from {_told(tuned)}, a fine-tune of {_told(named)}.",
            base=card.repositories([named]),
            relation="adapter",
            library="peft",
            tags=["lora"],
            license=card.common_license(folders),
            command=command_of(recipe, "OUT"),
            facts=facts,
            tables=_modules(modules),
            loading=loading_code("peft", base, None),
            recipe=recipe,
        )
    )


def pared(
    recipe: Mapping[str, Any], place: Path, facts: Sequence[tuple[str, str]], donor: Path | None = None,
    found: Perplexities | None = None,
) -> str:  # fmt: skip
    """The card of a model that was pruned, retrained or shrunk, in ``place``, a folder or one file; ``donor``
    is the folder of the model that it was, whose card states a licence; ``found`` what all that did to it.
    """
    command, before = str(recipe.get("command")), recipe.get("pruning") or recipe
    model = next(str(before[key]) for key in ("model", "dense", "pruned") if before.get(key))
    steps = [before, *([recipe] if before is not recipe else [])]
    methods = [_method("prune", step["method"]) for step in steps if "method" in step and "mask" not in step]
    return card.render(
        Card(
            title=_short(model),
            intro=f"{_PAST[command]} by paring from {_told(model)}",
            base=card.repositories([model]),
            relation="finetune",
            library=library_of(place),
            tags=_TAGS[command],
            license=card.common_license([donor]) if donor is not None else None,
            command=command_of(recipe, "OUT"),
            method="\n\n".join(methods),
            facts=facts,
            tables=[] if found is None else [judging.table(found)],
            results=[] if found is None else judging.measured(found),
            loading=loading_code(
                library_of(place), None, config_in(place), adapter=(place / "adapter").is_dir()
            ),
            recipe=recipe,
        )
    )


def retrained(report: Retraining) -> list[tuple[str, str]]:
    """What retraining did, in rows of names and what they are."""
    recipe = report.recipe or {}
    text = f"{report.method} on {report.tokens or 0:,} tokens of {Path(str(recipe.get('data'))).name}"
    found = [("retraining", f"{text}, on {report.device}")]
    for name, count, how in (
        ("trained", report.trained, ""), ("reconstructed", report.reconstructed, " block by block")
    ):  # fmt: skip
        if count is not None:
            share = f"{count / (report.parameters or 1):.2%}"
            found.append((name, f"{count:,} of {report.parameters or 0:,} parameters{how}, {share}"))
    if report.losses:
        found.append(("loss", f"{report.losses[0]:.4f} at first, {report.losses[-1]:.4f} at last"))
    if errors := report.block_errors:
        before, after = (sum(each) / len(errors) for each in zip(*errors, strict=True))
        told = f"relative error {before:.4f} before, {after:.4f} after, on average"
        found.append(("blocks", told))
    found.append(("as written", f"{report.sparsity or 0:.2%} zeros in the pruned tensors, read back"))
    return found


def of_file(path: Path, repo: str) -> str:
    """The card of a file that is to be the repository ``repo``: packed, merged with a recipe in it, or any.

    Raises what :func:`paring.inspecting.inspect` does.
    """
    from paring.inspecting import inspect

    found = inspect(path)
    if found.packed is not None:
        return card.render(_packed(found, path, repo))
    recipe = _recipe_in(path)
    facts = [("file", f"{found.bytes_in:,} bytes"), ("tensors", f"{sum(found.dtypes.values()):,}")]
    if recipe is not None and recipe.get("command") == "merge":
        library = "peft" if found.dialect == "peft" else "diffusers" if found.modules else None
        return merged(recipe, library=library, facts=facts, base=found.base)
    if recipe is not None and recipe.get("command") in _PAST:
        return pared(recipe, path, facts)
    return card.render(
        Card(
            title=repo.rpartition("/")[2],
            intro=f"A {found.kind} checkpoint.",
            base=card.repositories([found.base]),
            relation="adapter" if found.modules else None,
            library="peft" if found.dialect == "peft" else None,
            tags=["lora"] if found.modules else [],
            facts=facts,
            recipe=recipe or {},
        )
    )


def of_files(paths: Sequence[Path], repo: str) -> str:
    """The card of several packed files in one repository."""
    from paring.inspecting import inspect

    rows, base = [], []
    for path in paths:
        found = inspect(path)
        told = found.packed or {}
        recipe = told.get("recipe") or {}
        base += card.repositories([recipe.get("source")]) or card.repositories([found.base])
        numbers = [f"{told[key]:.{digits}f}" if key in told else "-" for key, digits in _FIGURES]
        rows.append([f"`{path.name}`", f"{found.bytes_in:,}", *numbers])
    return card.render(
        Card(
            title=repo.rpartition("/")[2],
            intro=f"{len(paths)} adapters, compressed by paring.",
            base=base,
            relation="quantized",
            library="paring",
            tags=["compression", "lora"],
            tables=[(["file", "bytes", "times smaller", "error of the update"], rows)],
            loading=f"```bash\npip install paring\nparing decompress {repo}:FILE -o adapter/\n```",
        )
    )


def _packed(found: Inspection, path: Path, repo: str) -> Card:
    told = found.packed or {}
    recipe = dict(told.get("recipe") or {})
    sources = recipe.get("sources") or [recipe.get("source")]
    own = card.repositories(sources)
    base = own or card.repositories([recipe.get("base"), found.base])
    delta = found.kind.startswith("delta")
    facts = [("packed file", f"{found.bytes_in:,} bytes")]
    if nbytes := (told.get("source") or {}).get("bytes"):
        facts.append(("source", f"{nbytes:,} bytes"))
    for key, what in (("ratio", "times smaller on disk"), ("ratio_fp16", "times smaller than fp16")):
        if told.get(key):
            facts.append((what, f"{told[key]:.1f}"))
    if told.get("bits_per_param"):
        facts.append(("bits a parameter", f"{told['bits_per_param']:.2f}"))
    if "error" in told:
        facts.append(("relative error of the update, measured", f"{told['error']:.4f}"))
    get_back = f"paring decompress {repo} -o {path.name.partition('.')[0]}/"
    loading = f"```bash\npip install paring\n{get_back}{' --base BASE' if delta else ''}\n```"
    if found.dialect == "peft":
        loading += (
            "\n\nor straight into a `PeftModel`:\n\n```python\nfrom paring.api import load_into\n\n"
            f'load_into(peft_model, "{repo}", "mine")\n```'
        )
    return Card(
        title=repo.rpartition("/")[2],
        intro=f"{found.kind}, compressed by paring.",
        base=base,
        relation="quantized" if own else "finetune" if delta else "adapter",
        library="paring",
        tags=["compression", *([] if delta else ["lora"])],
        command=command_of({**recipe, "command": "compress", "method": told.get("method")}, path.name),
        method=_method("compress", told.get("method")),
        facts=facts,
        tables=_modules(found.modules),
        loading=loading,
        recipe={key: value for key, value in recipe.items() if value is not None},
    )


def _method(kind: registry.Kind, name: object) -> str:
    """What a method is, and where it was published."""
    try:
        found = registry.load(kind, str(name))
    except OptionError:
        return f"Method `{name}`."
    return f"Method `{found.name}`: {found.summary}\n\nReference: {found.reference}"


def _modules(modules: Sequence[ModuleReport]) -> list[tuple[Sequence[str], Sequence[Sequence[str]]]]:
    """The modules that lost most."""
    told = [module for module in modules if module.error is not None]
    if not told:
        return []
    worst = sorted(told, key=lambda module: -(module.error or 0))[:_ROWS]
    many = f" (the {len(worst)} of {len(told)} with the largest error)" if len(told) > len(worst) else ""
    rows = [
        [f"`{m.name}`", f"{m.shape[0]} x {m.shape[1]}", str(m.rank or "-"), f"{m.error:.3g}"] for m in worst
    ]
    return [(["module" + many, "shape", "rank", "error"], rows)]


def _recipe_in(path: Path) -> dict[str, Any] | None:
    """The recipe in the metadata of a file, if there is a sound one."""
    try:
        with open_checkpoint(path) as opened:
            text = opened.metadata.get(RECIPE)
        return None if text is None else parse_json(text.encode(), str(path))
    except (BadFileError, UnsupportedError):
        return None


def _short(model: str) -> str:
    """What an input is called in a title."""
    ref = card.reference(model)
    return Path(model).name if ref is None else ref.repo.rpartition("/")[2]


def _told(model: str) -> str:
    """What an input is called in a list: a repository with a link to its commit."""
    ref = card.reference(model)
    if ref is None:
        return f"`{Path(model).name}`"
    at = f"/tree/{ref.revision}" if ref.revision else ""
    return f"[{ref.repo}](https://huggingface.co/{ref.repo}{at})"
