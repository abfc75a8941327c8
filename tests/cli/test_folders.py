from __future__ import annotations

import os
from pathlib import Path

import pytest
import typer

from cli.running import contents, fpe_hf
from fpe_hf.cli.folders import check_place, new_folder


def fill(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text(name)


def test_appears_when_all_went_well(tmp_path: Path) -> None:
    out = tmp_path / "a" / "b"
    with new_folder(out, overwrite=False) as folder:
        fill(folder, "config.json")
        assert not out.exists()
        assert folder.parent.parent == out.parent
    assert contents(tmp_path) == {"a/b/config.json": b"config.json"}


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with new_folder(out, overwrite=False) as folder:
        fill(folder, "config.json")
    assert contents(tmp_path) == {"out/config.json": b"config.json"}


def fail_while_filling(out: Path, error: type[BaseException]) -> None:
    with new_folder(out, overwrite=False) as folder:
        fill(folder, "config.json")
        raise error


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_nothing_is_left_of_a_failure(error: type[BaseException], tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(error):
        fail_while_filling(tmp_path / "there" / "a" / "b", error)
    assert list(tmp_path.rglob("*")) == [tmp_path / "there"]


def test_a_link_is_followed(tmp_path: Path) -> None:
    fill(tmp_path / "real", "config.json", "old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with new_folder(tmp_path / "link", overwrite=True) as folder:
        fill(folder, "config.json")
    assert (tmp_path / "link").is_symlink()
    assert [path.name for path in (tmp_path / "real").iterdir()] == ["config.json"]


def test_overwriting_is_for_saved_models_only(tmp_path: Path) -> None:
    fill(tmp_path / "home", "diary.txt")
    fill(tmp_path / "run", "config.json")
    fill(tmp_path / "run" / "checkpoint-100", "config.json")
    before = contents(tmp_path)
    for name in ("home", "run"):
        with (
            pytest.raises(FileExistsError, match="would lose more"),
            new_folder(tmp_path / name, overwrite=True),
        ):
            pass
    with (
        pytest.raises(FileExistsError, match="is not a folder"),
        new_folder(tmp_path / "home" / "diary.txt", overwrite=True),
    ):
        pass
    assert contents(tmp_path) == before


def test_what_appeared_meanwhile_is_not_lost(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(OSError), new_folder(out, overwrite=False):
        fill(out, "theirs")
    assert contents(tmp_path) == {"out/theirs": b"theirs"}


def test_a_model_that_a_killed_process_had_moved_is_not_lost(tmp_path: Path) -> None:
    hidden = tmp_path / ".out.fpe_hf-1234"
    fill(hidden / "old", "config.json")
    fill(hidden / "new", "config.json", "new")
    fill(hidden, "lock")
    with (
        pytest.raises(FileExistsError, match="--overwrite replaces it"),
        new_folder(tmp_path / "out", overwrite=False),
    ):
        pass
    assert contents(tmp_path) == {"out/config.json": b"config.json"}


def test_a_place_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    fill(tmp_path, "file")
    with (
        pytest.raises(OSError, match=r"file/out cannot be made: Not a directory\."),
        new_folder(tmp_path / "file" / "out", overwrite=False),
    ):
        pass


def test_overwriting_loses_no_more_than_a_model_and_its_modules(tmp_path: Path) -> None:
    out = tmp_path / "out"
    fill(out, "config.json")
    fill(out / "1_Pooling", "config.json")
    (out / "modules.json").write_text('[{"path": ""}, {"path": "1_Pooling"}]')
    with new_folder(out, overwrite=True) as new:
        fill(new, "new")
    assert contents(out) == {"new": b"new"}


def test_check_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("gpt2", "someone/model", str(tmp_path), "."):
        assert check_place(name) == name
    for name in ("./gpt2", "../model", "/no/such/folder", "~/model", "a/b/c"):
        with pytest.raises(typer.BadParameter, match="there is no folder"):
            check_place(name)


@pytest.mark.parametrize("command", ["inspect", "validate", "widen", "export"])
def test_what_can_be_read_for_ever_is_not_opened(command: str, tmp_path: Path) -> None:
    fill(tmp_path / "model", "model.safetensors")
    os.mkfifo(tmp_path / "model" / "config.json")
    words = ["-o", tmp_path / "out"] if command in ("widen", "export") else []
    result = fpe_hf(command, tmp_path / "model", *words)
    assert result.code != 0
    assert "is no regular file" in " ".join(result.err.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("model", ["nowhere", "some/where"])
@pytest.mark.parametrize("command", ["inspect", "validate", "widen"])
def test_what_may_be_a_folder_or_a_hub_id_is_named_as_both(
    command: str, model: str, tmp_path: Path
) -> None:
    words = ["-o", tmp_path / "out"] if command == "widen" else []
    result = fpe_hf(command, model, *words)
    assert result.code == 1
    assert f"There is no folder {model!r} here: it was looked for on the Hub." in result.err
    assert "Error: " in result.err
    assert not (tmp_path / "out").exists()
