"""Results pushed to the Hub: everything, the card among it, from one folder in one upload.

What can be refused is refused by :func:`ready` before hours of work. Files are staged as links beside a card
that is made or completed for the repository; what was there is skipped, so that a push that was cut off goes
on when it is run again.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from logging import getLogger
from pathlib import Path
from typing import Any

import paring
from paring import card, describing, snippets
from paring.card import Evaluation
from paring.errors import BadFileError, HubError, OptionError
from paring.hub import client
from paring.hub.errors import reporting, status_of
from paring.hub.names import is_repository
from paring.report import Pushed
from paring.untrusted import read_bounded

_log = getLogger("paring")
_CARD = "README.md"
_LATER = "refs/pr/"


@dataclass(frozen=True, slots=True)
class Push:
    """What is asked for: the repository ``repo`` (``name`` alone is one's own), a branch or pull request
    ``revision``, or a new pull request. ``private`` is for a repository that is made; None leaves it to the
    account's settings.
    """

    repo: str
    private: bool | None = None
    revision: str | None = None
    create_pr: bool = False
    message: str | None = None
    evaluations: Sequence[Evaluation] = ()

    def check(self) -> None:
        """Raise OptionError for what cannot be meant."""
        if not is_repository(self.repo):
            raise OptionError(f"{self.repo} is not the id of a repository: expected ORG/NAME, or NAME")
        if self.create_pr and self.revision is not None:
            raise OptionError(
                "--create-pr opens a pull request against main, --revision names a branch: one of"
            )
        if self.revision is not None and (self.revision.startswith(("/", "-")) or ".." in self.revision):
            raise OptionError(f"--revision {self.revision}: not the name of a branch")


def ready(push: Push) -> Push:
    """Check before the work what can be: the id, the network, the token and its rights; returns ``push`` with
    the full id of its repository.

    Raises OptionError, HubError.
    """
    push.check()
    if client.offline():
        raise HubError(f"{push.repo}: pushing needs the Hub, which --offline or HF_HUB_OFFLINE forbids")
    api = client.api()
    with reporting(push.repo):
        me = api.whoami()
    user, role = str(me.get("name")), ((me.get("auth") or {}).get("accessToken") or {}).get("role")
    repo = push.repo if "/" in push.repo else f"{user}/{push.repo}"
    own = (user, *(str(org.get("name")) for org in me.get("orgs") or ()))
    if role == "read":
        raise HubError(
            f"{repo}: your token may only read: use one that may write, `hf auth login` or HF_TOKEN"
        )
    if push.create_pr or (push.revision or "").startswith(_LATER):
        with reporting(repo):
            api.model_info(repo)  # which must be there, and may be another's
    elif role == "write" and repo.partition("/")[0] not in own:
        raise HubError(f"{repo}: {user} may not write there (but to {', '.join(own)}): --create-pr asks to")
    return replace(push, repo=repo)


def publish(paths: Sequence[Path], push: Push) -> Pushed:
    """Push a folder, or files, with a card; ``push`` is as :func:`ready` returns it.

    Raises HubError, BadFileError for what is not there.
    """
    found = dict(_files(paths))
    api = client.api()
    again = f"; `paring push {paths[0]} {push.repo}` goes on with it"
    with tempfile.TemporaryDirectory(prefix="paring-push-") as folder:
        stage = Path(folder)
        for name, path in found.items():
            _link(path, stage / name)
        text = _card(paths, found, push)
        (stage / _CARD).unlink(missing_ok=True)
        (stage / _CARD).write_bytes(text.encode())  # line ends as they are
        with reporting(push.repo, hint=again):
            revision, url = _place(api, push)
        if revision is not None and revision.startswith(_LATER):
            again = f"; --revision {revision} goes on with the pull request that was opened"
        message = push.message or f"Pushed by paring {paring.__version__}"
        _log.info("pushing %d files to %s", len(found), push.repo)
        with reporting(push.repo + (f"@{revision}" if revision else ""), hint=again):
            done = api.upload_folder(
                repo_id=push.repo, folder_path=stage, revision=revision, commit_message=message
            )
    return Pushed(
        repo=push.repo, url=url, revision=revision, commit=str(done.oid), files=sorted({*found, _CARD})
    )


def _place(api: Any, push: Push) -> tuple[str | None, str]:
    """Make the repository, branch or pull request where it is lacking; returns the revision to push to, None
    for main, and the address to show.
    """
    home = f"{client.endpoint()}/{push.repo}"
    if push.create_pr:
        title = push.message or f"Pushed by paring {paring.__version__}"
        made = api.create_pull_request(push.repo, title=title)
        return str(made.git_reference), f"{home}/discussions/{made.num}"
    if push.revision is not None and push.revision.startswith(_LATER):
        return push.revision, f"{home}/discussions/{push.revision.removeprefix(_LATER)}"
    _create(api, push)
    if push.revision in (None, "main"):
        return push.revision, home
    _unless(409, lambda: api.create_branch(push.repo, branch=push.revision))
    return push.revision, f"{home}/tree/{push.revision}"


def _create(api: Any, push: Push) -> None:
    """Make the repository; one that is there will do, also with a token that may not make any."""
    try:
        _unless(409, lambda: api.create_repo(push.repo, private=push.private))
    except client.errors() as error:
        if status_of(error) != 403:
            raise
        try:
            api.model_info(push.repo)
        except client.errors():
            raise error from None


def _unless(status: int, call: Callable[[], object]) -> None:
    try:
        call()
    except client.errors() as error:
        if status_of(error) != status:
            raise


def _files(paths: Sequence[Path]) -> Iterator[tuple[str, Path]]:
    """What goes up, by its name in the repository: nothing that is hidden. Raises BadFileError,
    OptionError for files of one name.
    """
    if len(paths) == 1 and paths[0].is_dir():
        inside = [(path.relative_to(paths[0]), path) for path in sorted(paths[0].rglob("*"))]
        some = [(str(name.as_posix()), path) for name, path in inside if path.is_file() and not _hidden(name)]
        if not some:
            raise BadFileError(f"{paths[0]} holds no files to push")
        yield from some
        return
    names = set()
    for path in paths:
        if path.is_dir():
            raise OptionError(f"{path} is a folder: push it by itself, or files")
        if not path.is_file():
            raise BadFileError(f"{path} does not exist: there is nothing to push")
        if path.name in names:
            raise OptionError(f"{path}: another of the files to push is called {path.name}, too")
        names.add(path.name)
        yield path.name, path


def _hidden(name: Path) -> bool:
    return any(part.startswith(".") for part in name.parts)


def _link(path: Path, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        place.symlink_to(path.resolve())
    except OSError:  # a system that lets not everybody make links
        with suppress(OSError):
            os.link(path, place)
            return
        shutil.copyfile(path, place)


def _card(paths: Sequence[Path], found: dict[str, Path], push: Push) -> str:
    """The card: that in the folder, or one made for what is there; completed by what only the Hub knows."""
    if _CARD in found:
        text = _read(found[_CARD])
    elif len(paths) > 1:
        text = describing.of_files(paths, push.repo)
    else:
        text = describing.of_file(paths[0], push.repo)
    text = text.replace(snippets.HERE, push.repo)
    header, _ = card.split(text)
    base = header.get("base_model") or []
    licence = None if "license" in header else _licence([base] if isinstance(base, str) else base)
    return card.completed(text, push.repo.rpartition("/")[2], push.evaluations, licence)


def _read(path: Path) -> str:
    try:
        return read_bounded(path, card.MAX_CARD, "a card").decode()
    except UnicodeDecodeError:
        raise BadFileError(f"{path} is not text in UTF-8, and no card") from None


def _licence(repos: Sequence[str]) -> str | None:
    """The licence that all these repositories state; None where they differ, or one cannot be asked."""
    told = set()
    for repo in repos:
        try:
            data = client.api().model_info(str(repo)).card_data
        except client.errors():
            return None
        told.add(getattr(data, "license", None))
    found = told.pop() if len(told) == 1 else None
    return found if isinstance(found, str) else None
