"""What goes wrong with the Hub, in one sentence each: what, where, and what to do.

The client raises errors of its own HTTP library, OSErrors and ValueErrors; a table says what they mean. No
message quotes an address with its query or a header, where a secret might be.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from paring.errors import HubError, ParingError
from paring.hub import client

_LOGIN = "run `hf auth login`, or set HF_TOKEN"
Sentence = Callable[[Any, str], str]


@contextmanager
def reporting(what: str, *, hint: str = "") -> Iterator[None]:
    """Turn what the client raises while it works on ``what`` into HubError; ``hint`` goes at the end."""
    try:
        yield
    except ParingError:
        raise
    except RuntimeError as error:  # what an upload in a thread of its own wraps its error in
        if not isinstance(error.__cause__, client.errors()):
            raise
        raise HubError(sentence(error.__cause__, what) + hint) from error
    except client.errors() as error:
        raise HubError(sentence(error, what) + hint) from error


def sentence(error: BaseException, what: str) -> str:
    """What ``error`` means, said of ``what`` (``org/name``, ``org/name@revision``)."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    for name, told in _BY_KIND.items():
        if name in kinds:
            return told(error, what)
    status = status_of(error)
    if status is not None:
        return _BY_STATUS.get(status, _other)(error, what)
    if "HTTPError" in kinds or isinstance(error, TimeoutError):
        return _down(error, what)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"no room for {what}: the disk of the Hub's cache is full (HF_HOME says where it is)"
    if isinstance(error, ValueError):
        return _value(error, what)
    return f"{what}: the Hub's client failed ({type(error).__name__}: {_one_line(error)})"


def status_of(error: BaseException) -> int | None:
    """The HTTP status in an error of the client; xet's errors tell theirs only in their text."""
    response = getattr(error, "response", None)
    if response is not None:
        return int(response.status_code)
    match = re.search(r"\b([45]\d\d)\b", str(error)) if _is_xet(error) else None
    return int(match[1]) if match else None


def _is_xet(error: BaseException) -> bool:
    text = str(error)
    return isinstance(error, ConnectionError | PermissionError) and ("xet" in text or "http" in text.lower())


def _is_storage(error: BaseException) -> bool:
    """Whether the storage refused, not the Hub: its address is another, or its error is no answer."""
    response = getattr(error, "response", None)
    return response is not None and not str(response.url).startswith(client.endpoint())


def _server(error: Any) -> str:
    """What the server itself said."""
    text = getattr(error, "server_message", None) or ""
    return " ".join(str(text).split())[:300]


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or "no reason given"
    return re.sub(r"\?\S+", "", text)[:300]


def _missing(error: Any, what: str) -> str:
    return (
        f"{what} is not on the Hub, or is private and your token may not see it: check the name, or {_LOGIN}"
    )


def _gated(error: Any, what: str) -> str:
    repo = what.partition("@")[0].partition(":")[0]
    return (
        f"{what} is gated: ask for access on its page ({_page(repo)}) and use that account's token: {_LOGIN}"
    )


def _revision(error: Any, what: str) -> str:
    repo, _, revision = what.partition("@")
    return f"{repo} has no branch, tag or commit {revision.partition(':')[0] or 'main'}: check its name"


def _entry(error: Any, what: str) -> str:
    response = getattr(error, "response", None)
    path = "" if response is None else str(response.url).partition("?")[0].rpartition("/")[2]
    return f"{what} has no file {path}: it was renamed or removed"


def _no_token(error: Any, what: str) -> str:
    return f"{what}: the Hub needs a token, and there is none: {_LOGIN}"


def _bad_token(error: Any, what: str) -> str:
    return f"{what}: the Hub does not take the token (wrong, or expired): {_LOGIN}"


def _forbidden(error: Any, what: str) -> str:
    said = _server(error)
    if _is_storage(error):
        return f"{what}: the storage refused the bytes ({said or 'HTTP 403'}): try again, the Hub may be full"
    told = f" ({said})" if said else ""
    return f"{what}: your token has no right to do this{told}: use one that may write there, {_LOGIN}"


def _not_found(error: Any, what: str) -> str:
    if _is_xet(error):
        return f"{what}: this Hub has no xet storage: set HF_HUB_DISABLE_XET=1 and run the command again"
    return _missing(error, what)


def _conflict(error: Any, what: str) -> str:
    said = _server(error)
    return (
        f"{what}: there is one already, or it is being changed ({said or 'conflict'}): run the command again"
    )


def _moved(error: Any, what: str) -> str:
    return f"{what} was changed while this was pushed: run the command again"


def _rate(error: Any, what: str) -> str:
    response = getattr(error, "response", None)
    seconds = "" if response is None else response.headers.get("Retry-After", "")
    wait = f"in {seconds} seconds" if seconds.isdecimal() else "later"
    return f"{what}: the Hub's rate limit is reached: try again {wait}"


def _bad_request(error: Any, what: str) -> str:
    return f"{what}: the Hub refuses this: {_server(error) or _one_line(error)}"


def _down(error: Any, what: str) -> str:
    return (
        f"{what}: the Hub at {client.endpoint()} cannot be reached: check the network; "
        "--offline uses what was downloaded before"
    )


def _offline(error: Any, what: str) -> str:
    return (
        f"{what}: this needs the Hub, and --offline or HF_HUB_OFFLINE forbids it: leave it out, or unset it"
    )


def _value(error: Any, what: str) -> str:
    return f"{what}: {_one_line(error)}"


def _other(error: Any, what: str) -> str:
    status = status_of(error)
    if status is not None and status >= 500:
        where = "storage" if _is_storage(error) else "Hub"
        return f"{what}: the {where} has trouble (HTTP {status}): try again later"
    return f"{what}: the Hub refuses this (HTTP {status}): {_server(error) or _one_line(error)}"


def _page(repo: str) -> str:
    return f"{client.endpoint()}/{repo}"


#: the client's classes, the special before the general
_BY_KIND: dict[str, Sentence] = {
    "OfflineModeIsEnabled": _offline,
    "GatedRepoError": _gated,
    "RepositoryNotFoundError": _missing,
    "RevisionNotFoundError": _revision,
    "RemoteEntryNotFoundError": _entry,
    "LocalTokenNotFoundError": _no_token,
    "LocalEntryNotFoundError": _down,
    "HFValidationError": _value,
    "HfUriError": _bad_token,  # of 2.4: create_repo after a refusal, on a Hub that is not the public one
    "BadRequestError": _bad_request,
}
_BY_STATUS: dict[int, Sentence] = {
    400: _bad_request, 401: _bad_token, 403: _forbidden, 404: _not_found, 409: _conflict, 412: _moved,
    429: _rate,
}  # fmt: skip
