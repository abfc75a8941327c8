"""Compiles the C files of this folder for this machine, each once, when it is first needed.

The libraries are kept in a folder that only the user can enter: `fpe_hf` in `$XDG_CACHE_HOME`, or
in `~/.cache`. Without a C compiler, or with `FPE_HF_NATIVE=0` in the environment, callers do the
same in plain torch.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

SOURCES = Path(__file__).parent
COMPILERS = ("cc", "gcc", "clang")
FLAGS = ("-O3", "-std=gnu11", "-fPIC", "-Wno-psabi", "-fno-math-errno", "-fno-trapping-math")
OPTIONAL_FLAGS = (("-march=native", "-fopenmp"), ("-march=native",), ())
"""Tried in this order. Linking leaves OpenMP out on purpose: its symbols are those of the library
that torch has loaded, so that torch and the kernel share one pool of threads."""

TIMEOUT = 300.0
"""Seconds that the compiler may take."""

_LONG, _POINTER = ctypes.c_int64, ctypes.c_void_p
FUNCTIONS: Mapping[str, Mapping[str, Sequence[Any]]] = {
    "packed": {
        "fpe_packed_sums": (_POINTER,),
        "fpe_packed_fill": (_POINTER,),
        "fpe_packed_take": (_POINTER,),
    },
    "few": {
        "fpe_up": (_POINTER, _POINTER, *(_LONG,) * 3, *(_POINTER,) * 4),
        "fpe_down": (_POINTER, _POINTER, *(_LONG,) * 3, *(_POINTER,) * 3),
    },
    "mlp": {
        "fpe_mlp": (_POINTER,) * 6,
        "fpe_mlp_back": (_POINTER,) * 6,
        "fpe_mlp_sizes": (_POINTER,) * 2,
    },
}
"""Name of a C file -> its functions, with the types of their arguments."""


class _UnavailableError(Exception):
    """Why there is no library, in words."""


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
            except _UnavailableError as reason:
                reasons.append(str(reason))
        raise _UnavailableError(reasons[-1])
    except _UnavailableError as reason:
        return None, str(reason)


def _compiler() -> list[str]:
    named = shlex.split(os.environ.get("CC", ""))
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
    target = folder / f"{name}-{key}.so"
    if target.exists():
        return target
    try:
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            code, whole = Path(scratch, f"{name}.o"), Path(scratch, f"{name}.so")
            _run([*compiler, *flags, "-c", str(source), "-o", str(code)])
            _run([*compiler, "-shared", str(code), "-o", str(whole)])
            os.replace(whole, target)  # at once: other processes may be doing the same
    except OSError as error:
        raise _UnavailableError(f"the compiled library cannot be kept: {error}") from error
    return target


def _run(command: list[str]) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=TIMEOUT)
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip().splitlines()
        raise _UnavailableError(
            f"{command[0]} failed: {said[0] if said else error.returncode}"
        ) from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _UnavailableError(f"{command[0]} failed: {error}") from error


def _load(name: str, path: Path) -> ctypes.CDLL:
    try:
        loaded = ctypes.CDLL(str(path))  # resolves every symbol, or fails
        for function, arguments in FUNCTIONS[name].items():
            getattr(loaded, function).argtypes = arguments
            getattr(loaded, function).restype = None
    except (OSError, AttributeError) as error:
        path.unlink(missing_ok=True)  # damaged, perhaps: another process makes it anew
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
