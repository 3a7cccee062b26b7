"""Names of files and repositories as the verbs take them."""

from __future__ import annotations

import os

from paring.hub.names import PathLike
from paring.hub.reading import located


def text(path: PathLike | None) -> str | None:
    """The name as it was given."""
    return None if path is None else os.fspath(path)


def found(path: PathLike | None) -> str | None:
    """Where that is: see :func:`paring.hub.reading.located`, which raises HubError and OptionError."""
    return None if path is None else located(path)
