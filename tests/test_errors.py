from __future__ import annotations

from fpe_hf import errors


def test_did_you_mean_names_the_nearest_word() -> None:
    assert errors.did_you_mean("blok", ["element", "block"]) == " Did you mean 'block'?"


def test_did_you_mean_says_nothing_about_a_word_unlike_all() -> None:
    assert errors.did_you_mean("xyz", ["element", "block"]) == ""
