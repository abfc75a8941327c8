"""`fpe-hf push` as far as it goes without a Hub; `tests/hub` has the rest."""

from __future__ import annotations

from pathlib import Path

from cli.damage import CONFIG, WEIGHTS
from cli.running import assert_refused, contents, fpe_hf

NAME = "user/name"


def test_a_dry_run_shows_the_card_and_the_files(widened: Path) -> None:
    before = contents(widened)
    options = ("--base-model", "org/vit", "--license", "mit", "--revision", "v1")
    result = fpe_hf("push", widened, NAME, "--dry-run", *options)
    assert result.code == 0, result
    for text in (
        "license: mit",
        "This is [org/vit]",
        f'fpe_hf.from_pretrained("{NAME}", revision="v1")',
        "Files: LICENSE, README.md, audit.json, chat_template.jinja, config.json, model.safet",
    ):
        assert text in result.out
    assert "Left out: tokenizer.py\n" in result.out
    assert contents(widened) == before


def test_a_dry_run_of_the_stock_variant(widened: Path) -> None:
    result = fpe_hf("push", widened, NAME, "--dry-run", "--dense")
    assert "This is the stock variant" in result.out
    assert "AutoModelForImageClassification.from_pretrained" in result.out


def test_offline_it_says_so(widened: Path) -> None:
    assert_refused(fpe_hf("push", widened, NAME), "pushing to 'user/name' failed: offline mode")


def test_names_any_damage(damaged: tuple[Path, str]) -> None:
    folder, message = damaged
    assert_refused(fpe_hf("push", folder, NAME), message)


def test_refuses_what_makes_no_sense(widened: Path, dense: Path, tmp_path: Path) -> None:
    assert_refused(fpe_hf("push", dense, NAME), f"{CONFIG} does not describe a widened model")
    assert_refused(fpe_hf("push", widened, "no name"), "Repo id must use alphanumeric")
    both = ("--revision", "v1", "--create-pr", "--dry-run")
    assert_refused(fpe_hf("push", widened, NAME, *both), "create_pr=True cannot be combined")
    assert_refused(fpe_hf("push", tmp_path / "none", NAME), "does not exist", code=2)
    assert_refused(fpe_hf("push", widened / WEIGHTS, NAME), "is a file", code=2)
