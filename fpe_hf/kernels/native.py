"""Compiles the C files of this folder for this machine, each once, when it is first needed.

The libraries are kept in a folder that only the user can enter: `fpe_hf` in `$XDG_CACHE_HOME`, or
in `~/.cache`. Their names say what they are made of and what they hold, and what is damaged is not
loaded. Without a C compiler, after any failure, or with `FPE_HF_NATIVE=0` in the environment,
callers do the same in plain torch.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import signal
import stat
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

logger = logging.getLogger("fpe_hf")

SOURCES = Path(__file__).parent
COMPILERS = ("cc", "gcc", "clang")
FLAGS = ("-O3", "-std=gnu11", "-fPIC", "-Wno-psabi", "-fno-math-errno", "-fno-trapping-math")
OPTIONAL_FLAGS = (("-march=native", "-fopenmp"), ("-march=native",), ())
"""Tried in this order. Linking leaves OpenMP out on purpose: its symbols are those of the library
that torch has loaded, so that torch and the kernel share one pool of threads."""

TIMEOUT, ANSWER_TIMEOUT = 120.0, 10.0
"""Seconds that the compiler may take for a file, and to compile nothing at all."""

_LONG, _POINTER = ctypes.c_int64, ctypes.c_void_p
FUNCTIONS: Mapping[str, Mapping[str, Sequence[Any]]] = {
    "packed": {
        "fpe_packed_sums": (_POINTER,),
        "fpe_packed_fill": (_POINTER,),
        "fpe_packed_take": (_POINTER,),
    },
}
"""Name of a C file -> its functions, with the types of their arguments."""


class _UnavailableError(Exception):
    """Why there is no library, in words."""


class _HangingError(_UnavailableError):
    """The compiler took too long: it is not asked again with other flags."""


def library(name: str) -> ctypes.CDLL | None:
    """A compiled library, or `None` if there is none; `unavailable` says why.

    Args:
        name: A key of `FUNCTIONS`.
    """
    return _attempt(name)[0]


def unavailable(name: str) -> str | None:
    """Why there is no library, in words; `None` if there is one."""
    return _attempt(name)[1]


@cache
def _attempt(name: str) -> tuple[ctypes.CDLL | None, str | None]:
    if os.environ.get("FPE_HF_NATIVE") == "0":
        return None, "FPE_HF_NATIVE=0 is set"
    try:
        compiler, folder = _compiler(), _cache()
        reasons = []
        for flags in OPTIONAL_FLAGS:
            try:
                return _load(name, _compiled(name, compiler, (*FLAGS, *flags), folder)), None
            except _HangingError:
                raise
            except _UnavailableError as reason:
                reasons.append(str(reason))
        raise _UnavailableError(reasons[-1])
    except _UnavailableError as reason:
        _warn(str(reason))
        return None, str(reason)


@cache
def _warn(reason: str) -> None:
    logger.warning("Plain torch takes the place of C kernels: %s.", reason)


def _compiler() -> list[str]:
    """The command that compiles.

    Raises:
        _UnavailableError: There is none, or it does not answer.
    """
    found = _asked_compiler()
    if isinstance(found, _UnavailableError):
        raise found
    return found


@cache
def _asked_compiler() -> list[str] | _UnavailableError:
    """The same, but asked once: one that hangs is not waited for again."""
    try:
        found = _find_compiler()
        _run([*found, "-x", "c", "-fsyntax-only", os.devnull], ANSWER_TIMEOUT)
    except _UnavailableError as reason:
        return reason
    return found


def _find_compiler() -> list[str]:
    try:
        named = shlex.split(os.environ.get("CC", ""))
    except ValueError as error:
        raise _UnavailableError(
            f"CC={os.environ['CC']!r} cannot be read ({error}): set CC to a command"
        ) from error
    for command in (named,) if named else ([name] for name in COMPILERS):
        path = shutil.which(command[0])
        if path is not None:
            return [path, *command[1:]]
    wanted = named[0] if named else ", ".join(COMPILERS)
    raise _UnavailableError(f"no C compiler found ({wanted}): install one, or set CC")


def _cache() -> Path:
    """The folder of compiled libraries, created if need be; nobody else can write there."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    try:
        folder = (Path(root) if os.path.isabs(root) else Path.home() / ".cache") / "fpe_hf"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        about = folder.stat()
    except (OSError, RuntimeError) as error:
        raise _UnavailableError(
            f"there is no place for the library ({error}): set XDG_CACHE_HOME to a folder of yours"
        ) from error
    if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.getuid() or about.st_mode & 0o077:
        raise _UnavailableError(
            f"others can enter {folder}: remove it, make it yours alone (chmod 700), or set "
            "XDG_CACHE_HOME to a folder of yours"
        )
    return folder


def _compiled(name: str, compiler: list[str], flags: tuple[str, ...], folder: Path) -> Path:
    """Compiles a source, unless that has been done."""
    source = SOURCES / f"{name}.c"
    headers = [header.read_text() for header in sorted(SOURCES.glob("*.h"))]
    about = (source.read_text(), *headers, *compiler, *flags, _cpu())
    key = hashlib.sha256("\0".join(about).encode()).hexdigest()[:32]
    kept = sorted(folder.glob(f"{name}-{key}-*.so"))
    for library in kept:
        if library.stem.rpartition("-")[2] == _digest(library):
            return library
        with suppress(OSError):
            library.unlink()
    try:
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            code, whole = Path(scratch, f"{name}.o"), Path(scratch, f"{name}.so")
            _run([*compiler, *flags, "-c", str(source), "-o", str(code)])
            _run([*compiler, "-shared", str(code), "-o", str(whole)])
            with whole.open("rb+") as written:
                os.fsync(written.fileno())
            target = folder / f"{name}-{key}-{_digest(whole)}.so"
            os.replace(whole, target)  # at once: other processes may be doing the same
    except OSError as error:
        raise _UnavailableError(f"the compiled library cannot be kept: {error}") from error
    return target


def _digest(library: Path) -> str:
    """What a library holds; nothing of what is no file, such as a pipe, which may be read for
    ever."""
    try:
        if not library.is_file():
            return ""
        return hashlib.sha256(library.read_bytes()).hexdigest()[:32]
    except OSError:
        return ""


def _run(command: list[str], timeout: float | None = None) -> None:
    process = None
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        said = process.communicate(timeout=TIMEOUT if timeout is None else timeout)[1]
    except (OSError, subprocess.TimeoutExpired) as error:
        if process is not None:  # and whatever it has started
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        late = isinstance(error, subprocess.TimeoutExpired)
        kind = _HangingError if late else _UnavailableError
        raise kind(f"{command[0]} failed: {error}") from error
    if process.returncode:
        lines = said.decode(errors="replace").strip().splitlines()
        raise _UnavailableError(f"{command[0]} failed: {lines[0] if lines else process.returncode}")


def _load(name: str, path: Path) -> ctypes.CDLL:
    try:
        loaded = ctypes.CDLL(str(path))  # resolves every symbol, or fails
        for function, arguments in FUNCTIONS[name].items():
            getattr(loaded, function).argtypes = arguments
            getattr(loaded, function).restype = None
    except (OSError, AttributeError) as error:
        raise _UnavailableError(f"the compiled library cannot be loaded: {error}") from error
    return loaded


def _cpu() -> str:
    """What `-march=native` depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    features = [line for line in lines if line.startswith(("flags", "Features"))]
    return f"{platform.machine()} {platform.processor()} {features[0] if features else ''}"
