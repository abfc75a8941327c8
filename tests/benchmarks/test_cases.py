from __future__ import annotations

import re

import pytest

from benchmarks.blocks import SHAPES
from benchmarks.cases import presets

FULL = presets("cpu")["full"]


def test_a_part_of_a_preset() -> None:
    part = FULL.only("shapes=768x3072,4096x14336 gated").only("tokens=16,1").only("models=")
    assert part.shapes == (SHAPES[1], SHAPES[3])
    assert part.tokens == (16, 1)
    assert part.models == ()
    assert part.alphas == FULL.alphas
    assert part.budget == FULL.budget


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ("width=768", "nothing is called 'width'; use shapes, alphas"),
        ("budget=3", "nothing is called 'budget'"),
        ("tokens=3", "'3' is not among 1, 16, 128, 2048"),
        ("shapes=768", "'768' is not among 384x1536, 768x3072"),
    ],
)
def test_parts_that_are_not_there(choice: str, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        FULL.only(choice)
