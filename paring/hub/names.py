"""What a source on the Hub is called: ``org/name[@revision][:subfolder][#member]``, or ``hf://...``.

A name is a path first: only what is not there is looked for on the Hub. ``hf://`` insists on the Hub; behind
it the subfolder may also stand after a slash, as in ``hf://org/name@revision/subfolder``. ``#member`` is one
adapter of a pool. What was found is written down with the full commit, as ``org/name@commit:subfolder``.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path, PurePath

from paring.errors import OptionError

PathLike = str | os.PathLike[str]

_REPO = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
_PLAIN = re.compile(rf"(?P<repo>{_REPO}/{_REPO})(?:@(?P<revision>[^:#]+))?(?::(?P<inside>[^#]+))?")
#: revisions with slashes that a slash behind does not end
_SPECIAL = r"refs/[a-z]+/[^/:]+|[^/:]+"
_INSISTED = re.compile(
    rf"(?P<repo>{_REPO}/{_REPO}|{_REPO})(?:@(?:(?P<long>[^:]+)(?=:)|(?P<revision>{_SPECIAL})))?"
    r"(?:[/:](?P<inside>.+))?"
)
_FILES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".yaml", ".yml", ".json", ".git")
_KINDS = ("datasets", "spaces", "buckets", "kernels")
_CACHED = re.compile(r"models--(.+)")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class Ref:
    """A name, in parts; ``inside`` is a folder or file of the repository, ``member`` one of a pool."""

    repo: str
    revision: str | None = None
    inside: str = ""
    member: str = ""

    def at(self, revision: str | None) -> Ref:
        return replace(self, revision=revision)

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        inside = f":{self.inside}" if self.inside else ""
        return f"{self.repo}{revision}{inside}" + (f"#{self.member}" if self.member else "")


def parse(name: PathLike) -> Ref | None:
    """The parts of a name on the Hub; None for what can only be a path. Raises OptionError for ``hf://`` with
    something behind it that is no model repository.
    """
    text = os.fspath(name)
    insists = re.match(r"hf:/{1,2}", text)  # pathlib makes one slash of two
    if insists is None:
        match = _PLAIN.fullmatch(text.partition("#")[0])
        if match is None or (match["repo"].endswith(_FILES) or not _sound(match["repo"])):
            return None
        found = match.groupdict()
    else:
        rest = text[insists.end() :].partition("#")[0]
        kind, _, after = rest.partition("/")
        if kind in _KINDS:
            raise OptionError(f"{text}: a source is a model repository, hf://ORG/NAME, not one of {kind}")
        rest = after if kind == "models" else rest
        match = _INSISTED.fullmatch(rest)
        if match is None or not _sound(match["repo"]):
            raise OptionError(f"{text}: expected hf://ORG/NAME[@REVISION][:SUBFOLDER]")
        found = match.groupdict()
        found["revision"] = found["revision"] or found["long"]
    inside = (found["inside"] or "").strip("/")
    if ".." in PurePath(inside).parts or "\0" in text:
        raise OptionError(f"{text}: {inside} leaves the repository")
    return Ref(found["repo"], found["revision"], inside, text.partition("#")[2])


def is_commit(revision: str | None) -> bool:
    """Whether this is the full id of a commit, which never moves."""
    return revision is not None and _COMMIT.fullmatch(revision) is not None


def ref_of(path: PathLike) -> Ref | None:
    """What a path in the client's cache is of: its repository and commit; None for any other path."""
    text = os.fspath(path)
    parts = Path(text.partition("#")[0]).parts
    for i in range(len(parts) - 2):
        if parts[i + 1] == "snapshots" and is_commit(parts[i + 2]) and (m := _CACHED.fullmatch(parts[i])):
            repo = m[1].replace("--", "/", 1)
            return Ref(repo, parts[i + 2], "/".join(parts[i + 3 :]), text.partition("#")[2])
    return None


def told(path: PathLike) -> str:
    """A source as it is written down: by its name on the Hub with the full commit, or its path."""
    found = ref_of(path)
    return os.fspath(path) if found is None else str(found)


def title(path: PathLike) -> str | None:
    """What a source from the Hub is called in short: the last part of its name; None for a path."""
    found = ref_of(path)
    if found is None:
        return None
    return PurePath(found.inside).stem if found.inside else found.repo.rpartition("/")[2]


#: folders of the cache that were used by this process -> what users call them
_HOMES: dict[str, str] = {}


def remember(home: Path, ref: Ref) -> None:
    """From now on messages call the folder ``home`` by the name of the repository it is of."""
    _HOMES[str(home)] = f"{ref.repo}@{(ref.revision or '')[:10]}"


def readable(text: str) -> str:
    """A message with the Hub's names in place of paths in the client's cache."""
    for home, name in _HOMES.items():
        text = text.replace(home, name)
    return text


def is_repository(text: str) -> bool:
    """Whether this is the id of a repository: ``org/name``, or the name alone of one's own."""
    return re.fullmatch(rf"(?:{_REPO}/)?{_REPO}", text) is not None and _sound(text)


def _sound(repo: str) -> bool:
    """What the Hub itself asks of names."""
    return len(repo) <= 96 and not re.search(r"--|\.\.|[.-](/|$)", repo)
