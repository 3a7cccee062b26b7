"""Every error that paring raises on purpose.

    ParingError
    ├── BadFileError          a file is missing, damaged, or not what it says it is
    ├── UnsupportedError      the file is sound, but holds something this command will not guess about
    ├── BadValueError         NaN or infinity in a tensor, or a tensor that makes no sense here
    ├── OptionError           an option, or a combination of options, that cannot be meant
    ├── BudgetError           the size or error asked for cannot be had; says what can
    ├── OutputError           the result cannot be written where it was asked for
    └── HubError              the Hub cannot be reached, has not what was asked for, or refuses

A message is one sentence or two: what is wrong, where (file, tensor), what to do. The command line prints it
on one line and exits with 1; a traceback is shown only with ``--debug``.
"""

from __future__ import annotations


class ParingError(Exception):
    """Base of all errors raised on purpose; ``str(error)`` is fit to show to a user."""


class BadFileError(ParingError, ValueError):
    """A file is missing, damaged, or not what it says it is."""


class UnsupportedError(ParingError, ValueError):
    """The input is sound but of a kind that this operation refuses, by name."""


class BadValueError(ParingError, ValueError):
    """A tensor holds NaN or infinity, or values that make no sense for this operation."""


class OptionError(ParingError, ValueError):
    """An option, or a combination of options, that cannot be meant."""


class BudgetError(ParingError, ValueError):
    """The size or error asked for cannot be had. The message names the best that can."""


class OutputError(ParingError, OSError):
    """The result cannot be written where it was asked for; nothing was left half written."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class HubError(ParingError, OSError):
    """The Hub cannot be reached, has not what was asked for, or refuses; says which, and what helps."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""
