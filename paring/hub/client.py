"""The little that we need of ``huggingface_hub``, imported when it is needed.

Tokens are the client's business: it takes them from ``HF_TOKEN`` or from the login, and nothing here ever
sees one. The command line turns its bars and warnings off: progress is told by our own logger, trouble by our
errors; in Python they are the caller's to set.
"""

from __future__ import annotations

import importlib
import os
from functools import cache
from pathlib import Path
from typing import Any

import paring
from paring.errors import HubError

_TRUE = ("1", "on", "yes", "true")


def offline() -> bool:
    """Whether the network must not be used: ``--offline`` or ``HF_HUB_OFFLINE``."""
    return any(
        os.environ.get(name, "").lower() in _TRUE for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    )


def go_offline() -> None:
    """What ``--offline`` does, for this process and what it starts."""
    os.environ["HF_HUB_OFFLINE"] = "1"


def errors() -> tuple[type[Exception], ...]:
    """All that the client raises: its HTTP library's own errors are no OSErrors."""
    found: type[Exception] = importlib.import_module("huggingface_hub.errors").HTTPError
    return found, OSError, ValueError


@cache
def api() -> Any:
    """The client, which says who we are. Raises HubError where it is not installed."""
    try:
        import huggingface_hub
    except ImportError:
        raise HubError("the Hub needs huggingface_hub: pip install huggingface_hub") from None
    return huggingface_hub.HfApi(library_name="paring", library_version=paring.__version__)


def _utils() -> Any:
    return importlib.import_module("huggingface_hub.utils")


def cache_folder() -> Path:
    """Where the client keeps what was downloaded."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).expanduser().resolve()


def endpoint() -> str:
    """The Hub's address."""
    return str(api().endpoint)


def first_bytes(repo: str, revision: str, file: str, count: int, start: int = 0) -> bytes:
    """Bytes ``start`` to ``start + count`` of a file, or as many as it has; no more is taken even of a server
    that sends all.
    """
    api()  # which says what is wrong where the client is not there
    import huggingface_hub

    utils = _utils()
    url = huggingface_hub.hf_hub_url(repo, file, revision=revision)
    headers = utils.build_hf_headers(library_name="paring", library_version=paring.__version__)
    headers |= {"Range": f"bytes={start}-{start + count - 1}", "Accept-Encoding": "identity"}
    out = bytearray()
    with utils.get_session().stream(
        "GET", url, headers=headers, follow_redirects=True, timeout=30
    ) as response:
        if response.status_code >= 400:
            response.read()
        utils.hf_raise_for_status(response)
        skip = start if response.status_code == 200 else 0
        for block in response.iter_bytes():
            out += block
            if len(out) >= skip + count:
                break
    return bytes(out[skip : skip + count])


def download(repo: str, revision: str, files: list[str]) -> Path:
    """Have these files of a commit in the cache; returns its folder there."""
    from glob import escape

    return Path(api().snapshot_download(repo, revision=revision, allow_patterns=[escape(f) for f in files]))
