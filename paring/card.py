"""Model cards in the Hub's form: a YAML header that its pages, filters and trees of models go by, and text.

``base_model_relation`` is written out, because a quantised model without it is listed as a fine-tune. A base
is named only by the id of its repository. Measured evaluations go into ``model-index`` as the Hub reads it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from paring import evaluating
from paring.errors import BadFileError, OptionError
from paring.hub.names import Ref, parse
from paring.untrusted import read_bounded

if TYPE_CHECKING:
    from paring.report import Perplexities

Relation = Literal["quantized", "merge", "adapter", "finetune"]
MAX_CARD = 4_000_000  # bytes of a README.md that is read
_HEADER = re.compile(r"\A---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.S)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One measured number: ``value`` of the ``metric`` (``accuracy``) on the ``dataset`` (its id on the Hub,
    or a name), whose ``split`` and ``config`` may be told, for a ``task`` (``text-classification``);
    ``name`` may say how it was measured.
    """

    task: str
    dataset: str
    metric: str
    value: float
    split: str | None = None
    config: str | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Card:
    """What a card says. ``base`` are repositories; ``facts`` rows of a table, ``tables`` further ones with
    their heads; ``results`` measured numbers for the header alone; ``command`` what to type to make it
    again, ``loading`` fenced code.
    """

    title: str
    intro: str
    base: Sequence[str] = ()
    relation: Relation | None = None
    library: str | None = None
    tags: Sequence[str] = ()
    license: str | None = None
    command: str | None = None
    method: str = ""
    facts: Sequence[tuple[str, str]] = ()
    tables: Sequence[tuple[Sequence[str], Sequence[Sequence[str]]]] = ()
    results: Sequence[Evaluation] = ()
    loading: str = ""
    recipe: Mapping[str, Any] = field(default_factory=dict)

    def header(self) -> dict[str, Any]:
        """The YAML header, without what is not known."""
        told = {
            "library_name": self.library,
            "license": self.license,
            "base_model": list(dict.fromkeys(self.base)),
            "base_model_relation": self.relation if self.base else None,
            "tags": list(dict.fromkeys([*self.tags, "paring"])),
            "model-index": index(self.title, self.results) if self.results else None,
        }
        return {key: value for key, value in told.items() if value}


def render(card: Card) -> str:
    """The text of a card."""
    parts = [f"# {card.title}", card.intro]
    if card.facts:
        parts += ["## Size and error", _table(("", ""), card.facts)]
    parts += [_table(*table) for table in card.tables]
    if card.command or card.method:
        code = f"```bash\n{card.command}\n```" if card.command else ""
        parts += ["## How it was made", code, card.method]
    if card.loading:
        parts += ["## How to load it", card.loading]
    if card.recipe:
        text = json.dumps(card.recipe, indent=2, sort_keys=True, ensure_ascii=False)
        parts += ["## Recipe", "`paring rerun` repeats it.", f"```json\n{text}\n```"]
    return joined(card.header(), "\n\n".join(part for part in parts if part) + "\n")


def joined(header: Mapping[str, Any], body: str) -> str:
    """A card of its header and its text."""
    import yaml

    told = yaml.safe_dump(dict(header), sort_keys=False, allow_unicode=True, width=1000)
    return f"---\n{told}---\n{body}"


def split(text: str) -> tuple[dict[str, Any], str]:
    """The header and the text of a card; raises BadFileError for a header that is no YAML mapping."""
    import yaml

    match = _HEADER.match(text)
    if match is None:
        return {}, text
    try:
        found = yaml.safe_load(match[1])
    except (yaml.YAMLError, RecursionError) as error:
        raise BadFileError(f"README.md: its header is not YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(found, dict):
        raise BadFileError("README.md: its header is not a mapping of names to values")
    return found, text[match.end() :]


def license_of(folder: Path) -> str | None:
    """The licence that the card in a folder states; None where it states none, or none that can be read."""
    path = folder / "README.md"
    try:
        header, _ = split(read_bounded(path, MAX_CARD, "a card").decode(errors="replace"))
    except BadFileError:
        return None
    found = header.get("license")
    return found if isinstance(found, str) else None


def common_license(folders: Iterable[Path]) -> str | None:
    """The licence that all folders state, None unless it is one and the same."""
    found = {license_of(folder) for folder in folders}
    return found.pop() if len(found) == 1 else None


def reference(name: str) -> Ref | None:
    """The repository that an input's name is of, None for a path that is here or can only be a path."""
    return None if Path(name).exists() else parse(name)


def repositories(names: Iterable[object]) -> list[str]:
    """Those of ``names`` that are repositories on the Hub by their full commits, or plain ids of such that
    are no paths here; as ids, each once.
    """
    out: dict[str, None] = {}
    for name in names:
        ref = reference(name) if isinstance(name, str) else None
        if ref is not None and not ref.member:
            out[ref.repo] = None
    return list(out)


def evaluations(path: Path) -> list[Evaluation]:
    """Measured evaluations in a JSON file: a list of objects with ``task``, ``dataset``, ``metric``,
    ``value`` and, if wanted, ``split``, ``config`` and ``name``; or what ``paring eval --json`` prints.
    Raises OptionError for anything else.
    """
    try:
        found = json.loads(read_bounded(path, MAX_CARD, "evaluations"))
        if isinstance(found, dict) and found.get("command") == "eval":
            measured = evaluating.Evaluation(**found)
            return [perplexity_of(measured, measured.perplexity)]
        if not isinstance(found, list):
            raise TypeError("not a list")
        rows = [Evaluation(**row) for row in found]
    except BadFileError as error:
        raise OptionError(f"--evaluations {error}") from None
    except (ValueError, TypeError) as error:
        raise OptionError(
            f"--evaluations {path}: expected a list of objects with task, dataset, metric and value ({error})"
        ) from None
    for row in rows:
        if isinstance(row.value, bool) or not isinstance(row.value, int | float) or row.value != row.value:
            raise OptionError(
                f"--evaluations {path}: the value of {row.metric} on {row.dataset} is no number"
            )
    return rows


def perplexity_of(found: evaluating.Evaluation | Perplexities, value: float) -> Evaluation:
    """A perplexity as an evaluation, with the windows that it was measured by."""
    name = f"perplexity ({evaluating.spoken(found)})"
    return Evaluation("text-generation", found.data, "perplexity", value, name=name)


def index(name: str, rows: Sequence[Evaluation]) -> list[dict[str, Any]]:
    """``model-index``: the Hub's form of evaluations."""
    results = []
    for row in rows:
        dataset = {"type": row.dataset, "name": row.dataset, "config": row.config, "split": row.split}
        metric = {"type": row.metric, "value": row.value, "name": row.name}
        results.append(
            {
                "task": {"type": row.task},
                "dataset": {key: value for key, value in dataset.items() if value is not None},
                "metrics": [{key: value for key, value in metric.items() if value is not None}],
            }
        )
    return [{"name": name, "results": results}]


def completed(text: str, name: str, rows: Sequence[Evaluation] = (), licence: str | None = None) -> str:
    """A card with evaluations of the model ``name`` beside those it has, and with a licence where it states
    none.
    """
    if not rows and licence is None:
        return text
    header, body = split(text)
    if licence is not None:
        header.setdefault("license", licence)
    if rows:
        made = index(name, rows)
        made[0]["results"][:0] = [old for old in _results(header) if old not in made[0]["results"]]
        header["model-index"] = made
        cells = [(row.dataset, row.name or row.metric, f"{row.value:g}") for row in rows]
        body = (
            body.rstrip("\n") + "\n\n## Evaluation\n\n" + _table(("dataset", "metric", "value"), cells) + "\n"
        )
    return joined(header, body)


def _results(header: Mapping[str, Any]) -> list[Any]:
    """The evaluations in a header, where it has sound ones."""
    entries = header.get("model-index")
    first = entries[0] if isinstance(entries, list) and entries else None
    found = first.get("results") if isinstance(first, dict) else None
    return found if isinstance(found, list) else []


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
