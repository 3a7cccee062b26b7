"""Kernels as bare machine code, which a process links in milliseconds and without importing numba.

Importing numba and having it load its first kernel takes .4 s, longer than many a merge. A kernel that takes
numbers and pointers only, and neither allocates nor raises, needs nothing of that at run time: numba compiles
it once, its object code stays in the cache folder, and later processes link that by llvmlite alone. It is
numba's own code, so results are the same bits.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

#: what code may call: all that LLVM makes of plain loops
_LIBC = ("memset", "memcpy", "memmove")
#: what only the way out of an exception needs, and these kernels raise none
_RAISING = ("llvm.", "Py", "numba_gil_")
_lock = threading.Lock()


def folder() -> Path:
    """Where machine code is kept: NUMBA_CACHE_DIR, or ours in the user's cache."""
    if given := os.environ.get("NUMBA_CACHE_DIR"):
        return Path(given)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "paring"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home()) / "paring" / "cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "paring"


class Machine:
    """A kernel: a function for numba to compile, its ``signature`` as numba writes it, and as ctypes
    ``kinds``, the result's first. A call lets go of the interpreter lock.
    """

    def __init__(self, function: Callable[..., Any], signature: str, *kinds: Any) -> None:
        self._function, self._signature, self._kinds = function, signature, kinds
        self._linked: Callable[..., Any] | None = None
        self._held: Any = None  # what the code lives in

    def __call__(self, *arguments: Any) -> Any:
        if self._linked is None:
            with _lock:
                if self._linked is None:
                    self._linked = ctypes.CFUNCTYPE(*self._kinds)(self._address())
        return self._linked(*arguments)

    def _address(self) -> int:
        try:
            file = folder() / f"{self._function.__name__}-{self._digest()}.o"
        except RuntimeError:  # a user without a home
            return self._compile(None)
        symbol, _, code = _kept(file).partition(b"\0")
        if not code:
            return self._compile(file)
        self._held = _link(code)
        return int(self._held.get_function_address(symbol.decode()))

    def _digest(self) -> str:
        """Of all that the code depends on: source, compiler (numba is bound to one llvmlite), processor."""
        import llvmlite
        import llvmlite.binding as llvm

        source = Path(self._function.__code__.co_filename).read_bytes()
        told = [llvmlite.__version__, sys.version, llvm.get_process_triple(), llvm.get_host_cpu_name()]
        told += [llvm.get_host_cpu_features().flatten(), self._signature]
        return hashlib.sha256(source + "\n".join(told).encode()).hexdigest()[:32]

    def _compile(self, file: Path | None) -> int:
        """Compile the kernel and keep its code in ``file``; without that, each process compiles anew."""
        import numba

        compiler: Any = numba.cfunc
        made = self._held = compiler(self._signature, error_model="numpy")(self._function)
        with suppress(AttributeError, OSError):  # another numba may hold its code elsewhere
            library = made._library
            named = [f.name for f in library._final_module.functions if f.is_declaration]
            if file and all(name in _LIBC or name.startswith(_RAISING) for name in named):
                _keep(file, made.native_name.encode() + b"\0" + library._get_compiled_object())
        return int(made.address)


def _link(code: bytes) -> Any:
    """An engine that holds the code."""
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    libc: Any = ctypes.cdll.msvcrt if sys.platform == "win32" else ctypes.CDLL(None)
    for name in _LIBC:
        llvm.add_symbol(name, ctypes.cast(libc[name], ctypes.c_void_p).value)
    machine = llvm.Target.from_default_triple().create_target_machine()
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    return engine


def _kept(file: Path) -> bytes:
    """What was kept, or nothing when it is damaged: such code must not run."""
    try:
        found = file.read_bytes()
    except OSError:
        return b""
    return found[32:] if hashlib.sha256(found[32:]).digest() == found[:32] else b""


def _keep(file: Path, data: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor, part = tempfile.mkstemp(dir=file.parent)
    with os.fdopen(descriptor, "wb") as opened:
        opened.write(hashlib.sha256(data).digest() + data)
    Path(part).replace(file)
