"""One BLAS thread: modules run in parallel threads of their own, as under the command line.

And a Hub of our own. The client reads where the Hub is when it is imported, so that is said here, before any
test file is: no test ever reaches the real one.
"""

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

for _library in ("OPENBLAS", "MKL", "VECLIB"):
    os.environ.setdefault(f"{_library}_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as nohup has it: what tests start is to hear Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)
from tests.hub_server import Account, HubServer  # noqa: E402

TOKENS = {
    "hf_owner": Account("me", orgs=("lab",)),
    "hf_reader": Account("me", "read"),
    "hf_other": Account("other"),
}
_PLACE = Path(tempfile.mkdtemp(prefix="paring-hub-"))
_HUB = HubServer(_PLACE / "hub", TOKENS)

for _name in [name for name in os.environ if name.startswith("HF_") or name == "TRANSFORMERS_OFFLINE"]:
    del os.environ[_name]
os.environ |= {
    "HF_ENDPOINT": _HUB.url, "HF_HOME": str(_PLACE / "home"), "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}  # fmt: skip
_HUB.__enter__()


def pytest_unconfigure() -> None:
    _HUB.__exit__()
    shutil.rmtree(_PLACE, ignore_errors=True)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """The Hub, whole and without repositories; this process may write to it as ``me``."""
    from paring.hub import names, reading

    monkeypatch.setenv("HF_TOKEN", "hf_owner")
    _HUB.store.repos.clear()
    _HUB.heal()
    _HUB.log.clear()
    reading._found.clear()
    names._HOMES.clear()
    yield _HUB
    _HUB.heal()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Folders of tiny models of transformers, by their types."""
    from tests.shrinking import made_in

    return made_in(tmp_path_factory.mktemp("models"))


@pytest.fixture(params=["xet", "lfs"])
def transport(request: pytest.FixtureRequest, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> str:
    """How bytes travel: xet or LFS; for this process and those it starts."""
    if request.param != "xet":
        import huggingface_hub.constants

        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    return str(request.param)
