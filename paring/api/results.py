"""What is done with any result: look, check, make again, publish."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from paring.api import _names
from paring.hub.names import PathLike
from paring.hub.reading import located
from paring.hub.verbs import naming
from paring.merging.single import How
from paring.report import Inspection, Pushed, Verification

if TYPE_CHECKING:
    from paring.card import Evaluation as Measured
    from paring.rerunning import Repeated


@naming
def inspect(path: PathLike, *, plot: PathLike | None = None, overwrite: bool = False) -> Inspection:
    """What is in a file, packed or not. Of a pool ``plot`` is a picture (.png, .svg, .pdf) to draw of who
    shares what, which needs matplotlib. Raises BadFileError, UnsupportedError, OptionError, OutputError.
    """
    from paring import inspecting

    return inspecting.inspect(located(path), None if plot is None else Path(plot), overwrite)


@naming
def verify(
    path: PathLike,
    source: PathLike | None = None,
    *,
    base: PathLike | None = None,
    sparsity: float | str | None = None,
    keep: int | None = None,
    of: int | None = None,
) -> Verification:
    """Whether a file is sound, and with ``source`` whether it loses what it says; that of a full fine-tune
    needs its ``base`` for that. With ``sparsity`` whether at least that share of what prune prunes is zero,
    with ``keep`` and ``of`` whether groups of inputs hold no more. Raises BadFileError, OptionError.
    """
    from paring import inspecting
    from paring.pruning import verifying

    wanted = verifying.wanted(sparsity, keep, of)
    found = inspecting.verify(located(path), _names.found(source), _names.found(base))
    if wanted is not None:
        verifying.verify(found, Path(located(path)), *wanted)
    return found


@naming
def rerun(
    made: PathLike,
    output: PathLike,
    *,
    source: PathLike | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
    threads: int | None = None,
    memory: int | None = None,
    device: str = "auto",
) -> Repeated:
    """Make ``made``, which ``merge``, ``prune`` or ``compress`` wrote, again as ``output``, from its recipe.

    Inputs are looked for under the names they had, from the current folder and then from the one ``made`` is
    in; ``source`` says where that of a packed file is. ``same`` in the report says whether all bytes of the
    tensor files are the same, a warning why they may not be. Raises BadFileError for inputs that are gone,
    UnsupportedError for a file without a recipe, and as the command does that is repeated.
    """
    from paring import rerunning

    how = How(overwrite, dry_run, threads, memory)
    where = None if source is None else Path(source)
    return rerunning.rerun(Path(located(made)), Path(output), how, source=where, device=device)


def push(
    path: PathLike | Sequence[PathLike],
    repo: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    message: str | None = None,
    evaluations: Sequence[Measured] = (),
) -> Pushed:
    """Push a folder, or files, to the repository ``repo`` of the Hub, with a card; what it has is not sent
    again.

    ``private`` says what a new repository is, ``revision`` is a branch or ``refs/pr/N``; ``create_pr`` opens
    a pull request. ``evaluations`` are measured numbers for the card. The token is that of ``HF_TOKEN`` or
    ``hf auth login``. Raises HubError, OptionError, BadFileError.
    """
    from paring.hub import pushing

    paths = [path] if isinstance(path, str | os.PathLike) else path
    wanted = pushing.Push(repo, private, revision, create_pr, message, tuple(evaluations))
    return pushing.publish([Path(each) for each in paths], pushing.ready(wanted))
