from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.running import contents
from fpe_hf import files
from fpe_hf.files import Lock, end_cleanly, recover, scratch, whole_folder, write_whole


def in_a_fork(run: Callable[[], object]) -> int | None:
    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    process.join(60)
    return process.exitcode


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fill(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text(name)


# -- locks -------------------------------------------------------------------------------------


def test_a_lock_is_held_by_one() -> None:
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "lock"
        with Lock(file) as lock:
            lock.sign("me")
            with pytest.raises(BlockingIOError, match="me"):
                Lock(file)
            assert in_a_fork(lambda: Lock(file)) == 1
        with Lock(file):
            pass


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    def run() -> None:
        Lock(tmp_path / "lock").sign("me")
        kill()

    assert in_a_fork(run) == -signal.SIGKILL
    assert (tmp_path / "lock").read_text() == "me"
    Lock(tmp_path / "lock").release()


def test_a_forked_child_does_not_hold_the_lock_of_its_parent(tmp_path: Path) -> None:
    lock = Lock(tmp_path / "lock")
    ready, end = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.write(ready[1], b"!")
        os.read(end[0], 1)
        os._exit(0)
    try:
        os.read(ready[0], 1)
        lock.release()
        Lock(tmp_path / "lock").release()
    finally:
        os.write(end[1], b"!")
        os.waitpid(child, 0)
        for descriptor in (*ready, *end):
            os.close(descriptor)


def test_a_shared_lock_keeps_out_who_wants_it_alone(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    first = Lock(file)
    first.share()
    second = Lock(file, shared=True)
    first.release()
    with pytest.raises(BlockingIOError):
        Lock(file)
    second.release()
    Lock(file).release()


# -- files -------------------------------------------------------------------------------------


def test_a_file_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    write_whole(file, "old")
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        write_whole(file, "new")
    assert contents(tmp_path) == {"file": b"old"}


# -- folders -----------------------------------------------------------------------------------


@pytest.mark.parametrize("exchange", [True, False], ids=["at once", "two renames"])
def test_a_folder_is_replaced_whole(
    exchange: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not exchange:
        monkeypatch.setattr(files, "_swap", lambda *_: False)
    fill(tmp_path / "out", "old")
    with whole_folder(tmp_path / "out", replace=True) as new:
        fill(new, "new")
        assert contents(tmp_path / "out") == {"old": b"old"}
    assert contents(tmp_path) == {"out/new": b"new"}


def test_what_is_there_is_replaced_on_request_only(tmp_path: Path) -> None:
    fill(tmp_path / "out", "old")
    with pytest.raises(OSError), whole_folder(tmp_path / "out") as new:
        fill(new, "new")
    assert contents(tmp_path) == {"out/old": b"old"}
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


def test_a_failed_exchange_is_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path / "out", "old")
    rename = Path.rename

    def fail_for_the_new(self: Path, target: Path) -> Path:
        if (self / "new").exists():
            raise OSError("disk on fire")
        return rename(self, target)

    monkeypatch.setattr(files, "_swap", lambda *_: False)
    monkeypatch.setattr(Path, "rename", fail_for_the_new)
    with pytest.raises(OSError, match="fire"), whole_folder(tmp_path / "out", replace=True) as new:
        fill(new, "new")
    assert contents(tmp_path) == {"out/old": b"old"}


def test_an_interrupt_between_two_renames_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path / "out", "old")
    rename = Path.rename

    def rename_and_stop(self: Path, target: Path) -> Path:
        monkeypatch.setattr(Path, "rename", rename)
        rename(self, target)
        raise KeyboardInterrupt

    monkeypatch.setattr(files, "_swap", lambda *_: False)
    with pytest.raises(KeyboardInterrupt), whole_folder(tmp_path / "out", replace=True):
        monkeypatch.setattr(Path, "rename", rename_and_stop)
    assert contents(tmp_path) == {"out/old": b"old"}


def test_a_killed_process_leaves_nothing_for_ever(tmp_path: Path) -> None:
    def run() -> None:
        with whole_folder(tmp_path / "out") as new:
            fill(new, "half")
            kill()

    assert in_a_fork(run) == -signal.SIGKILL
    assert contents(tmp_path)
    with whole_folder(tmp_path / "out") as new:
        fill(new, "whole")
    assert contents(tmp_path) == {"out/whole": b"whole"}


def test_killed_between_two_renames(tmp_path: Path) -> None:
    fill(tmp_path / "out", "old")

    def run() -> None:
        files._swap = lambda *_: False
        rename = Path.rename

        def rename_and_die(self: Path, target: Path) -> Path:
            rename(self, target)
            return kill() or target

        with whole_folder(tmp_path / "out", replace=True) as new:
            fill(new, "new")
            Path.rename = rename_and_die

    assert in_a_fork(run) == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    recover(tmp_path / "out")
    assert contents(tmp_path) == {"out/old": b"old"}


def test_sigterm_leaves_nothing(tmp_path: Path) -> None:
    def run() -> None:
        end_cleanly()
        with scratch("ours-", tmp_path), whole_folder(tmp_path / "out") as new:
            fill(new, "half")
            os.kill(os.getpid(), signal.SIGTERM)

    assert in_a_fork(run) == 128 + signal.SIGTERM
    assert not list(tmp_path.iterdir())


def test_scratch_of_killed_processes_is_removed(tmp_path: Path) -> None:
    def run() -> None:
        with scratch("ours-", tmp_path) as place:
            fill(place / "model", "weights")
            kill()

    with scratch("ours-", tmp_path) as live:
        assert in_a_fork(run) == -signal.SIGKILL
        assert len(list(tmp_path.iterdir())) == 2
        with scratch("ours-", tmp_path) as other:
            assert set(tmp_path.iterdir()) == {live, other}


def test_what_a_live_process_writes_is_left_alone(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "out") as ours:
        fill(ours, "ours")

        def run() -> None:
            with whole_folder(tmp_path / "out") as theirs:
                fill(theirs, "theirs")

        assert in_a_fork(run) == 0
        assert contents(ours) == {"ours": b"ours"}
        recover(tmp_path / "out")
        assert contents(ours) == {"ours": b"ours"}
        (tmp_path / "out" / "theirs").unlink()
    assert contents(tmp_path) == {"out/ours": b"ours"}


def test_folders_of_others_are_left_alone(tmp_path: Path) -> None:
    fill(tmp_path / "mine-theirs", "lock")
    (tmp_path / "mine-link").symlink_to(tmp_path / "mine-theirs")
    fill(tmp_path / "mine-new")  # without a lock: not ours, or not ready yet
    os.mkfifo(tmp_path / "mine-fifo")
    (tmp_path / "mine-theirs" / "lock").unlink()
    before = set(tmp_path.iterdir())
    with scratch("mine-", tmp_path) as place:
        assert place.parent == tmp_path
    assert set(tmp_path.iterdir()) == before


def test_scratch_is_private_and_vanishes(tmp_path: Path) -> None:
    with scratch("ours-", tmp_path) as place:
        assert place.stat().st_mode & 0o077 == 0
    assert not list(tmp_path.iterdir())
