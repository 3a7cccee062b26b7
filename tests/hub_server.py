"""A Hugging Face Hub of our own on the loopback address, for tests with the real client.

    with HubServer(folder, {"hf_owner": Account("me")}) as hub:
        ...  # HF_ENDPOINT=hub.url, HF_TOKEN=hf_owner, set before huggingface_hub is imported
        hub.fail("POST", "/commit/", 503, times=1)
        assert hub.requests("POST", "/commit/")[-1].status == 200

It speaks what huggingface_hub 1.x and 2.x send for models: repositories, commits, pull requests, downloads,
uploads over xet and over LFS. docs/hub.md describes it. It speaks HTTP/1.0 on purpose: with connections kept
alive a hub that is down would still answer over the old ones.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.hub_store import Repo, Store

_ANONYMOUS = "Access to this repository needs a token"
_CODES = {401: "RepoNotFound", 404: "RepoNotFound"}


@dataclass(frozen=True, slots=True)
class Account:
    """Whose a token is and what it may: ``role`` is read, write or fineGrained."""

    user: str
    role: str = "write"
    orgs: tuple[str, ...] = ()


@dataclass(slots=True)
class Request:
    """One request as it came, and how it was answered."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    query: dict[str, list[str]]
    status: int = 0

    @property
    def to_storage(self) -> bool:
        """Whether it went to the storage host rather than to the hub."""
        return self.headers.get("Host", "").startswith("localhost")

    @property
    def token(self) -> str | None:
        scheme, _, token = self.headers.get("Authorization", "").partition(" ")
        return token if scheme == "Bearer" else None

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(slots=True)
class Answer:
    """What is sent back."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, value: Any, status: int = 200, **headers: str) -> Answer:
        return cls(status, json.dumps(value).encode(), {"Content-Type": "application/json", **headers})


class Refused(Exception):  # noqa: N818 - an answer like any other
    """An error that is the answer; ``code`` is what the client goes by."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


@dataclass(slots=True)
class _Fault:
    method: str
    part: str
    answer: Answer | None
    left: int
    hold: Hold | None = None


class Hold:
    """Requests that wait: ``arrived`` is set when the first is there, all go on after ``release()``."""

    def __init__(self) -> None:
        self.arrived, self._released = threading.Event(), threading.Event()
        self.release = self._released.set

    def wait(self) -> None:
        self.arrived.set()
        self._released.wait(60)


class HubServer:
    """The hub. ``accounts`` are by token. ``part_size`` makes LFS uploads go in parts of so many bytes;
    without ``xet`` it has no xet.
    """

    def __init__(self, folder: Path, accounts: Mapping[str, Account]) -> None:
        from tests import hub_files, hub_lfs, hub_routes

        self.accounts = dict(accounts)
        self.store = Store(folder)
        self.log: list[Request] = []
        self.part_size: int | None = None
        self.xet = True
        self._faults: list[_Fault] = []
        routes = [*hub_routes.ROUTES, *hub_files.ROUTES, *hub_lfs.ROUTES]
        self._routes = [(m, re.compile(path), f) for m, path, f in routes]
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    url = property(lambda self: f"http://127.0.0.1:{self.port}")
    #: another origin than the hub's, as the real storage is
    storage = property(lambda self: f"http://localhost:{self.port}/storage")

    def __enter__(self) -> HubServer:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def fail(
        self, method: str, part: str, status: int = 0, *, times: int = 1, message: str = "", code: str = "",
        **headers: str,
    ) -> None:  # fmt: skip
        """Answer the next ``times`` requests whose path holds ``part`` with an error; with status 0 hang up
        on them after they were read. ``Retry_After="1"`` is a header.
        """
        told = {key.replace("_", "-"): value for key, value in headers.items()}
        answer = _error(Refused(status, message, code)) if status else None
        if answer is not None:
            answer.headers.update(told)
        self._faults.append(_Fault(method, part, answer, times))

    def hold(self, method: str, part: str) -> Hold:
        """Let requests whose path holds ``part`` wait, to look, or to kill who sent them."""
        hold = Hold()
        self._faults.append(_Fault(method, part, None, 1 << 30, hold))
        return hold

    def heal(self) -> None:
        """No faults from now on, and defaults again."""
        for fault in self._faults:
            if fault.hold is not None:
                fault.hold.release()
        self._faults.clear()
        self.part_size, self.xet = None, True

    def requests(self, method: str = "", part: str = "", since: int = 0) -> list[Request]:
        """What came, from number ``since`` of the log on."""
        return [r for r in self.log[since:] if method in ("", r.method) and part in r.path]

    def answer(self, request: Request) -> Answer | None:
        """What to send back; None to hang up."""
        fault = self._fault(request)
        if fault is not None and fault.hold is None:
            request.status = fault.answer.status if fault.answer is not None else 0
            return fault.answer
        if fault is not None and fault.hold is not None:
            fault.hold.wait()
        for method, path, route in self._routes:
            if method == request.method and (match := path.fullmatch(request.path)):
                try:
                    found: Answer = route(self, request, *map(unquote, match.groups("")))
                    return found
                except Refused as refused:
                    return _error(refused)
        return _error(Refused(404, f"the test hub has no {request.method} {request.path}", "Unknown"))

    def _fault(self, request: Request) -> _Fault | None:
        """Write a request down; what is to be done to it."""
        with self.store.lock:
            self.log.append(request)
            for fault in self._faults:
                if fault.left and fault.method == request.method and fault.part in request.path:
                    fault.left -= 1
                    return fault
        return None

    # what routes ask

    def account(self, request: Request) -> Account | None:
        """Who asks. Raises Refused for a token that nobody has."""
        if request.token is None:
            return None
        if request.token not in self.accounts:
            raise Refused(401, "Invalid credentials in Authorization header", "Unauthorized")
        return self.accounts[request.token]

    def repo(self, request: Request, name: str, *, write: bool = False, files: bool = False) -> Repo:
        """A repository that the asker may see, or ``write`` to, or read ``files`` of."""
        account, repo = self.account(request), self.store.repos.get(name)
        mine = account is not None and _owns(account, name)
        if repo is None or (repo.private and not mine):
            raise Refused(404 if account else 401, "Repository not found", "RepoNotFound")
        user = account.user if account else ""
        if files and repo.granted is not None and not mine and user not in repo.granted:
            raise Refused(403 if account else 401, f"Access to {name} is restricted", "GatedRepo")
        if write:
            if account is None:
                raise Refused(401, _ANONYMOUS, "RepoNotFound")
            self.refuse_writing(account, name)
        return repo

    def refuse_writing(self, account: Account, name: str) -> None:
        if account.role == "read":
            raise Refused(403, "You must use write token to upload to a repository")
        if not _owns(account, name):
            raise Refused(403, f"You don't have the rights to write to {name}")


def _owns(account: Account, name: str) -> bool:
    return name.partition("/")[0] in (account.user, *account.orgs)


def _error(refused: Refused) -> Answer:
    headers = {"X-Error-Message": refused.message} if refused.message else {}
    code = refused.code if refused.code is not None else _CODES.get(refused.status)
    if code:
        headers["X-Error-Code"] = code
    return Answer.of({"error": refused.message}, refused.status, **headers)


def _handler(hub: HubServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do(self) -> None:
            parts = urlsplit(self.path)
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Transfer-Encoding") == "chunked":
                body = b"".join(iter(self._chunk, b""))
            headers = {name.title(): value for name, value in self.headers.items()}
            query = parse_qs(parts.query, keep_blank_values=True)
            request = Request(self.command, parts.path, headers, body, query)
            answer = hub.answer(request)
            if answer is None:
                self.close_connection = True
                return
            request.status = answer.status
            self.send_response(answer.status)
            for name, value in {"Content-Length": str(len(answer.body)), **answer.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                with suppress(BrokenPipeError, ConnectionResetError):  # who asked may have left
                    self.wfile.write(answer.body)

        def _chunk(self) -> bytes:
            size = int(self.rfile.readline().split(b";")[0], 16)
            data = self.rfile.read(size)
            self.rfile.readline()
            return data

        do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler
