from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fpe_hf.kernels import native

SMALL = "".join(f"void {name}(void) {{}}\n" for name in native.FUNCTIONS["packed"])


@pytest.fixture(autouse=True)
def _fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty cache, a source that compiles at once, and no memory of earlier attempts."""
    source = tmp_path / "packed.c"
    source.write_text(SMALL)
    monkeypatch.setattr(native, "SOURCES", tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("FPE_HF_NATIVE", raising=False)
    monkeypatch.delenv("CC", raising=False)
    forget()
    yield
    forget()


def forget() -> None:
    for remembered in (native._attempt, native._asked_compiler, native._warn):
        remembered.cache_clear()


def again() -> str | None:
    native._attempt.cache_clear()
    native._asked_compiler.cache_clear()
    return native.unavailable("packed")


def libraries(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "fpe_hf").iterdir())


needs_compiler = pytest.mark.skipif(
    not any(map(native.shutil.which, native.COMPILERS)), reason="no C compiler"
)


@needs_compiler
def test_it_is_compiled_once_and_kept_in_a_private_folder(tmp_path: Path) -> None:
    assert native.unavailable("packed") is None
    assert native.library("packed") is not None
    [library] = libraries(tmp_path)
    assert library.suffix == ".so"
    assert stat.S_IMODE(library.parent.stat().st_mode) == 0o700
    made = library.stat().st_mtime_ns
    assert again() is None
    assert libraries(tmp_path) == [library]
    assert library.stat().st_mtime_ns == made


@needs_compiler
def test_another_source_is_compiled_anew(tmp_path: Path) -> None:
    assert native.unavailable("packed") is None
    native.SOURCES.joinpath("packed.c").write_text(SMALL + "int more;\n")
    assert again() is None
    assert len(libraries(tmp_path)) == 2


def test_it_can_be_switched_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FPE_HF_NATIVE", "0")
    assert native.library("packed") is None
    assert native.unavailable("packed") == "FPE_HF_NATIVE=0 is set"
    assert not (tmp_path / "cache").exists()


def test_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert native.library("packed") is None
    assert str(native.unavailable("packed")).startswith("no C compiler found (cc, gcc, clang)")
    monkeypatch.setenv("CC", "/nowhere/cc -m32")
    assert str(again()).startswith("no C compiler found (/nowhere/cc)")


@needs_compiler
def test_a_source_that_does_not_compile(tmp_path: Path) -> None:
    native.SOURCES.joinpath("packed.c").write_text("void fpe_packed_rows( {}")
    assert native.library("packed") is None
    assert "error" in str(native.unavailable("packed"))
    assert libraries(tmp_path) == []


@needs_compiler
def test_a_compiler_that_knows_no_optional_flag(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = tmp_path / "plain-cc"
    compiler.write_text(
        '#!/bin/sh\ncase "$*" in *-march*|*-fopenmp*) echo no >&2; exit 1;; esac\nexec cc "$@"\n'
    )
    compiler.chmod(0o700)
    monkeypatch.setenv("CC", str(compiler))
    assert native.unavailable("packed") is None


def cut(whole: bytes) -> bytes:
    return whole[: len(whole) // 2]


def flipped(whole: bytes) -> bytes:
    middle = len(whole) // 2
    return whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]


def empty(whole: bytes) -> bytes:
    return b""


@needs_compiler
@pytest.mark.parametrize("damage", [cut, flipped, empty])
def test_a_damaged_library_is_never_loaded_and_made_anew(
    damage: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    assert native.unavailable("packed") is None
    [library] = libraries(tmp_path)
    whole = library.read_bytes()
    library.unlink()  # it is mapped into this process
    library.write_bytes(damage(whole))
    assert again() is None
    assert [kept.read_bytes() for kept in libraries(tmp_path)] == [whole]


def replaced_by_fifo(library: Path) -> None:
    os.mkfifo(library)


def replaced_by_device(library: Path) -> None:
    library.symlink_to("/dev/zero")


@needs_compiler
@pytest.mark.parametrize("replace", [replaced_by_fifo, replaced_by_device])
def test_what_can_be_read_for_ever_in_the_place_of_a_library_is_not_read(
    replace: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert native.unavailable("packed") is None
    [library] = libraries(tmp_path)
    whole = library.read_bytes()
    library.unlink()
    replace(library)
    read = Path.read_bytes

    def refuse(path: Path) -> bytes:
        assert path.is_file()
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert again() is None
    assert [kept.read_bytes() for kept in libraries(tmp_path)] == [whole]


@needs_compiler
def test_a_damaged_library_that_cannot_be_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a cache that is read-only, also for one who may write everywhere."""
    assert native.unavailable("packed") is None
    [library] = libraries(tmp_path)
    library.unlink()
    library.write_bytes(b"not a library")

    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(native.Path, "unlink", refuse)
    monkeypatch.setattr(native.tempfile, "TemporaryDirectory", refuse)
    said: list[object] = []
    # Not caplog: other tests of this process may have libraries silence loggers.
    monkeypatch.setattr(native.logger, "warning", lambda *what: said.append(what))
    for _ in range(2):
        assert "cannot be kept" in str(again())
    assert len(said) == 1


@pytest.mark.parametrize("command", ['"', "cc '", "\\"])
def test_a_compiler_that_cannot_be_read(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", command)
    assert native.library("packed") is None
    assert str(native.unavailable("packed")).startswith(f"CC={command!r} cannot be read")


@needs_compiler
def test_a_compiler_that_hangs_on_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler, asked = tmp_path / "hangs", tmp_path / "asked"
    compiler.write_text(
        f'#!/bin/sh\ncase "$*" in *syntax-only*) exit;; esac\necho >> {asked}\nsleep 1000\n'
    )
    compiler.chmod(0o700)
    monkeypatch.setenv("CC", str(compiler))
    monkeypatch.setattr(native, "TIMEOUT", 1.0)
    assert "timed out" in str(native.unavailable("packed"))
    assert asked.read_text() == "\n", "it was asked again with other flags"


@pytest.mark.parametrize("body", ["sleep 1000", "cat; sleep 1000 & wait"])
def test_a_compiler_that_hangs_is_asked_once(
    body: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler, asked = tmp_path / "hangs", tmp_path / "asked"
    compiler.write_text(f"#!/bin/sh\necho >> {asked}\n{body}\n")
    compiler.chmod(0o700)
    monkeypatch.setenv("CC", str(compiler))
    monkeypatch.setattr(native, "ANSWER_TIMEOUT", 1.0)
    for name in ("packed", "few", "mlp"):
        assert "timed out" in str(native.unavailable(name))
    assert asked.read_text() == "\n"


@pytest.mark.parametrize("mode", [0o777, 0o750, 0o701])
def test_a_folder_that_others_can_enter_is_not_used(tmp_path: Path, mode: int) -> None:
    folder = tmp_path / "cache" / "fpe_hf"
    folder.mkdir(parents=True)
    folder.chmod(mode)
    assert native.library("packed") is None
    if any(map(native.shutil.which, native.COMPILERS)):
        assert str(native.unavailable("packed")).startswith(f"others can enter {folder}")
    assert list(folder.iterdir()) == []


@needs_compiler
def test_a_cache_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert native.library("packed") is None
    assert "set XDG_CACHE_HOME" in str(native.unavailable("packed"))


@needs_compiler
def test_many_at_once_agree_on_one_library(tmp_path: Path) -> None:
    compiler, folder = native._compiler(), native._cache()
    found: list[Path] = []
    threads = [
        threading.Thread(
            target=lambda: found.append(native._compiled("packed", compiler, (), folder))
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == libraries(tmp_path) * 4


def test_importing_compiles_nothing(tmp_path: Path) -> None:
    cache = tmp_path / "elsewhere"
    code = "import fpe_hf.layers, fpe_hf.kernels.packed"
    subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        env={**os.environ, "XDG_CACHE_HOME": str(cache)},
    )
    assert not (cache / "fpe_hf").exists()
