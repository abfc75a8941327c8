from __future__ import annotations

import pytest

from fpe_hf.recipes.report import units


def test_shares_are_told_in_points() -> None:
    assert units.amount("accuracy", -0.0123) == "1.23 points"
    assert units.signed("accuracy", 0.0123, 0.004) == "+1.23 ± 0.40"
    assert units.signed("accuracy", -0.0123) == "-1.23"
    assert units.with_spread("accuracy", 0.5, 0.01) == "50.00% ± 1.00%"
    assert units.interval("accuracy", (-0.001, 0.0123)) == "-0.10 to +1.23"
    assert units.axis("accuracy") == (100.0, "accuracy (%)")


def test_losses_are_told_as_they_are() -> None:
    assert units.amount("loss", -0.0123) == "0.012"
    assert units.signed("perplexity", 0.5, 0.25) == "+0.500 ± 0.250"
    assert units.with_spread("loss", 0.5, None) == "0.500"
    assert units.axis("loss") == (1.0, "loss")


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (2610, "2.5 KiB"),
        (3 << 20, "3.0 MiB"),
        (5 << 50, "5120.0 TiB"),
    ],
)
def test_bytes(number: int, text: str) -> None:
    assert units.size(number) == text


@pytest.mark.parametrize(
    ("name", "text"),
    [("accuracy", "accuracy"), ("top5_accuracy", "top5_accuracy"), ("a/../../b c", "a-b-c")],
)
def test_slugs_are_names_of_files(name: str, text: str) -> None:
    assert units.slug(name) == text
