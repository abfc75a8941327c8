from __future__ import annotations

from pathlib import Path

from cli.running import assert_refused, fpe_hf


def test_says_what_a_valid_folder_holds(widened: Path) -> None:
    result = fpe_hf("validate", widened)
    expected = f"OK: {widened} holds a widened ViTForImageClassification "
    assert (result.code, result.out) == (0, expected + "(blocks: 2, tensors: 48, files: 1)\n")


def test_names_any_damage(damaged: tuple[Path, str]) -> None:
    folder, message = damaged
    assert_refused(fpe_hf("validate", folder), message)


def test_refuses_what_is_not_widened(dense: Path, tmp_path: Path) -> None:
    assert_refused(fpe_hf("validate", dense), "config.json does not describe a widened model")
    assert_refused(fpe_hf("validate", tmp_path), "config.json cannot be read as JSON")


def test_a_folder_that_is_not_there_is_wrong_usage(tmp_path: Path) -> None:
    assert_refused(fpe_hf("validate", tmp_path / "none"), "there is no folder", code=2)
