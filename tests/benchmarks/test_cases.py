"""Presets, and parts of them."""

from __future__ import annotations

import re

import pytest

from benchmarks.blocks import SHAPES
from benchmarks.cases import gpu_presets, presets
from benchmarks.results import CHECK, COMPILED, GRAPH, MEMORY

FULL = presets()["full"]


def test_a_part_of_a_preset() -> None:
    part = FULL.only("shapes=768x3072,4096x14336 gated").only("forward=16,1").only("models=")
    assert part.shapes == (SHAPES[1], SHAPES[3])
    assert part.forward == (16, 1)
    assert part.models == ()
    assert part.alphas == FULL.alphas


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ("width=768", "nothing is called 'width'; use shapes, models, alphas"),
        ("budget=3", "nothing is called 'budget'"),
        ("train=3", "'3' is not among 128, 1600"),
        ("shapes=768", "'768' is not among 384x1536, 768x3072"),
    ],
)
def test_parts_that_are_not_there(choice: str, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        FULL.only(choice)


def test_the_table_of_the_documentation() -> None:
    table = presets()["table"]
    cases = [case for group in table.groups() for case in table.cases(group, "cpu", (1, 2))]
    timed = {(c.name, c.mode, c.tokens) for c in cases if c.mode not in (CHECK, MEMORY)}
    block = {("768x3072", "forward", n) for n in (1, 128, 1600)}
    block |= {("768x3072", "train", n) for n in (128, 1600)}
    assert timed == block | {("minilm", "forward", 8), ("clip-b32", "forward", 8)}
    assert {(c.alpha, c.threads) for c in cases if c.mode == "forward"} == {
        (2, 1), (2, 2), (4, 1), (4, 2),
    }  # fmt: skip
    assert len(set(cases)) == len(cases)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_gpu_is_measured_in_every_way(device: str) -> None:
    every = gpu_presets(device)
    groups = [(preset, group) for preset in every for group in preset.groups()]
    cases = [case for preset, group in groups for case in preset.cases(group, device, (0,))]
    assert {c.how for c in cases} == {"eager", COMPILED, GRAPH}
    assert {c.mode for c in cases} == {"forward", "train", CHECK, MEMORY}
    assert {c.dtype for c in cases} == {"bf16", "fp32"}
    if device == "cuda":
        assert {1, 8192} <= {c.tokens for c in cases if c.mode == "forward"}
        assert {c.alpha for c in cases} == {2, 4}
    kinds = {own.kind for preset in every for own in preset.contenders(next(preset.groups()))}
    assert kinds == {"masked", "block", "element"}
