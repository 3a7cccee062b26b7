"""What the modules of an adapter are called in another dialect, and how to find their old names again."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paring import adapters
from paring.adapters import cloneofsimo, naming, stable_diffusion
from paring.adapters.bases import Base
from paring.adapters.view import Adapter, Dialect, LowRank
from paring.checkpoint import MAX_CONFIG
from paring.errors import BadFileError, OptionError, UnsupportedError
from paring.untrusted import parse_json, read_json

#: where an earlier conversion noted what the names in a file do not tell
NOTE = "paring.convert"


@dataclass(frozen=True, slots=True)
class Names:
    """Names of modules, in their order: in the result's file, and canonical. ``embeddings`` are numbers of
    modules that are embeddings, which only PEFT tells apart.
    """

    dialect: Dialect
    files: list[str]
    canonicals: list[str]
    embeddings: frozenset[int]
    warnings: list[str]

    def viewed(self) -> list[str]:
        """What a reader of the result will call the modules."""
        return [_viewed(self.dialect, name) for name in self.files]

    def renamed(self, modules: Sequence[LowRank]) -> dict[str, str]:
        """old name -> new name, of those that changed."""
        pairs = zip(modules, self.viewed(), strict=True)
        return {module.name: name for module, name in pairs if module.name != name}

    def note(self, config: Mapping[str, Any] | None) -> dict[str, str]:
        """Metadata from which a later conversion restores names, embeddings and PEFT's configuration."""
        viewed = self.viewed()
        pairs = zip(viewed, self.canonicals, strict=True)
        modules = {v: c for v, c in pairs if self.dialect.canonical(v, naming.dotted) != c}
        embeddings = [viewed[i] for i in sorted(self.embeddings)] if self.dialect.embedding is None else None
        told = {"modules": modules, "embeddings": embeddings, "config": config}
        told = {key: value for key, value in told.items() if value}
        return {NOTE: json.dumps(told, sort_keys=True, ensure_ascii=False)} if told else {}


def noted(metadata: Mapping[str, str]) -> dict[str, Any]:
    """What :meth:`Names.note` wrote, checked; empty where there is none. Raises BadFileError."""
    if NOTE not in metadata:
        return {}
    told = parse_json(metadata[NOTE].encode(), f"metadata {NOTE}")
    shapes = {"modules": dict, "embeddings": list, "config": dict}
    if any(not isinstance(told.get(key, kind()), kind) for key, kind in shapes.items()):
        raise BadFileError(f"metadata {NOTE} is damaged: remove it, or get the file again")
    names = [*told.get("modules", {}).values(), *told.get("embeddings", [])]
    if not all(isinstance(name, str) for name in names):
        raise BadFileError(f"metadata {NOTE} is damaged: names must be text")
    return told


def names_of(
    adapter: Adapter, modules: Sequence[LowRank], dialect: Dialect, base: Base, given: str | None
) -> Names:
    """The names of ``modules`` in ``dialect``: as ``given`` (a JSON file of module -> canonical name, or
    ``sd1``), as an earlier conversion noted, as ``base`` tells, or by the table of known segments.

    Raises OptionError and BadFileError for a bad mapping, UnsupportedError for two modules of one name.
    """
    told, mapping = noted(adapter.checkpoint.metadata), _mapping(given)
    source = next(one for one in adapters.dialects() if one.name == adapter.dialect)
    known = {**told.get("modules", {}), **mapping}
    found = [known.get(m.name) or source.canonical(m.name, base.dotted) for m in modules]
    canonicals = [name or module.name for name, module in zip(found, modules, strict=True)]
    wholes = set(told.get("embeddings", ()))
    embeddings = frozenset(i for i, m in enumerate(modules) if m.embedding or m.name in wholes)
    own = None
    if source.name == dialect.name and not mapping and (dialect.scale_in != "config" or adapter.config):
        own = [_own(module, dialect) for module in modules]
    kept = own is not None and None not in own
    files = [name or "" for name in own or ()] if kept else dialect.named(canonicals)
    twice = [name for name, count in Counter(files).items() if count > 1]
    if twice:
        both = [m.name for m, name in zip(modules, files, strict=True) if name == twice[0]]
        raise UnsupportedError(
            f"{adapter.checkpoint.path}: {both[0]} and {both[1]} would both be called {twice[0]} in the "
            f"dialect {dialect.name}: give other names with --names"
        )
    if set(mapping) - {module.name for module in modules} and given != "sd1":
        stranger = sorted(set(mapping) - {module.name for module in modules})[0]
        raise OptionError(f"--names {given}: {stranger!r} is not a module of {adapter.checkpoint.path}")
    unknown = [module.name for name, module in zip(found, modules, strict=True) if name is None]
    warnings = [] if kept else _warnings(dialect, canonicals, unknown)
    return Names(dialect, files, canonicals, embeddings, warnings)


def _warnings(dialect: Dialect, canonicals: Sequence[str], unknown: Sequence[str]) -> list[str]:
    out = []
    if unknown and dialect.name not in ("kohya", "lycoris"):
        out.append(
            f"{len(unknown)} modules keep their names, {unknown[0]} among them: where its dots were is not "
            "known; name the model with --base"
        )
    parts = [part or "a model" for part in naming.parts(canonicals)]
    if dialect.name == "peft" and len(parts) > 1:
        out.append(f"this holds modules of {', '.join(parts)}: PEFT loads an adapter into one model")
    if dialect.name == "cloneofsimo" and not cloneofsimo.in_order(canonicals):
        out.append(
            "modules are numbered in the order of their names; cloneofsimo's loader goes by the order in the "
            "model, which the file does not tell"
        )
    return out


def _mapping(given: str | None) -> dict[str, str]:
    """``--names``, read and checked."""
    if given is None:
        return {}
    if given == "sd1":
        return dict(stable_diffusion.NAMES)
    path = Path(given)
    if not path.is_file():
        raise OptionError(f"--names {given}: expected sd1, or a JSON file of modules and their names")
    told = read_json(path, MAX_CONFIG)
    if not all(isinstance(name, str) and name for name in told.values()):
        raise BadFileError(f"{path}: must map names of modules to names")
    return told


def _own(module: LowRank, dialect: Dialect) -> str | None:
    """What the module is called in its file, if that is how this dialect writes names."""
    forms = [dialect.plain[0], *(dialect.embedding or ())[:1]]
    ends = (form.removeprefix("{module}") for form in forms)
    return next((module.a.removesuffix(end) for end in ends if module.a.endswith(end)), None)


def _viewed(dialect: Dialect, name: str) -> str:
    found = dialect.factor.match(dialect.plain[0].format(module=name))
    return dialect.module_name(found["module"] if found else name)
