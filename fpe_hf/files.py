"""Files and folders that are written whole or not at all, and locks that end with their process."""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_LOCK, _UNREADY, _NEW, _OLD = "lock", "unready", "new", "old"
_held: set[int] = set()


def _let_go() -> None:
    """A forked child does not hold what its parent holds."""
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_let_go)


def end_cleanly() -> None:
    """Has SIGTERM end this process as an exception does: what it was writing is cleaned up."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))


class Lock:
    """A lock on a file, which is made if need be. It is free again when its process ends, however.

    Args:
        file: The file.
        shared: Hold it together with others who share it.

    Raises:
        BlockingIOError: Another holds it; the message is what that one has signed with.
        OSError: The file cannot be made, or the file system has no locks.
    """

    def __init__(self, file: Path, *, shared: bool = False) -> None:
        self._descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        _held.add(self._descriptor)
        try:
            self._flock(fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        except BlockingIOError as error:
            holder = os.read(self._descriptor, 1000).decode(errors="replace")
            self.release()
            raise BlockingIOError(holder or "another process") from error
        except OSError:
            self.release()
            raise

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def sign(self, holder: str) -> None:
        """Writes into the file who holds it."""
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, holder.encode(), 0)

    def share(self) -> None:
        """Lets others share it."""
        self._flock(fcntl.LOCK_SH)

    def release(self) -> None:
        """Frees it. The file stays."""
        if self._descriptor in _held:
            _held.remove(self._descriptor)
            os.close(self._descriptor)

    def _flock(self, how: int) -> None:
        fcntl.flock(self._descriptor, how | fcntl.LOCK_NB)


def write_whole(file: Path, content: str | bytes) -> None:
    """Writes a file to a temporary name and renames it: an earlier one stays if anything fails."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        with temporary.open("wb") as stream:
            stream.write(content.encode() if isinstance(content, str) else content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def remove_parts(folder: Path) -> None:
    """Removes, in a folder and below, what `write_whole` left when it was killed.

    Nobody may be writing there.
    """
    for part in folder.rglob(".*.part"):
        part.unlink(missing_ok=True)


@contextmanager
def whole_folder(target: Path, *, replace: bool = False) -> Iterator[Path]:
    """A folder to write to that takes its place when all went well, and vanishes otherwise.

    Args:
        target: Where it will be. Its parent must exist.
        replace: Take the place of a folder that is there.

    Yields:
        An empty folder.

    Raises:
        OSError: Something is at `target`.
    """
    recover(target)
    with scratch(_prefix(target), target.parent) as place:
        new = place / _NEW
        new.mkdir()
        yield new
        if not replace or not target.exists():
            new.rename(target)  # fails if something has been put there in the meantime
        elif not _swap(new, target):
            try:
                target.rename(place / _OLD)
                new.rename(target)
            except BaseException:  # a signal, too, at any moment
                _put_back(place, target)
                raise


def recover(target: Path) -> None:
    """Removes what killed processes left of writing a folder, and puts back what they moved."""
    for place in _stale(_prefix(target), target.parent):
        _put_back(place, target)
        shutil.rmtree(place, ignore_errors=True)


def _put_back(place: Path, target: Path) -> None:
    if (place / _OLD).exists() and not target.exists():
        (place / _OLD).rename(target)


@contextmanager
def scratch(prefix: str, parent: Path | None = None) -> Iterator[Path]:
    """A folder that nobody else reads and that vanishes at the end.

    Those of processes that were killed are removed first.

    Args:
        prefix: Start of its name, the same every time.
        parent: Where; by default where temporary files go.
    """
    parent = parent or Path(tempfile.gettempdir())
    for place in _stale(prefix, parent):
        shutil.rmtree(place, ignore_errors=True)
    place = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    lock = None
    try:
        with suppress(OSError):  # a file system without locks: nobody else will remove it
            lock = Lock(place / _UNREADY)
            (place / _UNREADY).rename(place / _LOCK)
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)
        if lock is not None:
            lock.release()


def _prefix(target: Path) -> str:
    return f".{target.name}.fpe_hf-"


def _stale(prefix: str, parent: Path) -> Iterator[Path]:
    """Scratch folders of processes that have ended."""
    if not parent.is_dir():
        return
    for place in list(parent.iterdir()):
        lock = place / _LOCK
        if place.name.startswith(prefix) and not place.is_symlink() and lock.is_file():
            with suppress(OSError), Lock(lock):
                yield place


def _swap(one: Path, other: Path) -> bool:
    """Exchanges two folders at once, where the system can."""
    try:
        rename = ctypes.CDLL(None).renameat2
    except AttributeError:
        return False
    here, exchange = -100, 2
    return bool(rename(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0)
