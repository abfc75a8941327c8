from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fpe_hf.errors import CheckpointError
from fpe_hf.hub.results import Evaluation, read_results


def test_without_a_file_there_are_none(tmp_path: Path) -> None:
    assert read_results(tmp_path) == ()


def test_every_arm_is_read(tmp_path: Path) -> None:
    arms = {
        "dense": {"mean": 1, "std": 0.5, "values": [0.5, 1.5], "nonzeros": 7},
        "fpe": {"mean": 2},
    }
    content = {"dataset": "d", "metric": "m", "arms": arms, "more": 1}
    (tmp_path / "results.json").write_text(json.dumps(content))
    assert read_results(tmp_path) == (
        Evaluation("dense", "m", 1.0, "d", seeds=2, spread=0.5, nonzeros=7),
        Evaluation("fpe", "m", 2.0, "d"),
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[" * 100_000, "cannot be read as JSON"),
        ([], "must be a JSON object, not list"),
        ({"metric": "m", "arms": {}}, "dataset=None in .* must be a text"),
        ({"dataset": "d", "metric": 3, "arms": {}}, "metric=3 in .* must be a text"),
        ({"dataset": "d", "metric": "m"}, "'arms' in .* must be a JSON object, not NoneType"),
        ({"dataset": "d", "metric": "m", "arms": {"a": 1}}, "arm 'a' in .* must be a JSON object"),
        ({"dataset": "d", "metric": "m", "arms": {"a": {}}}, "arm 'a' in .* has no 'mean'"),
        (
            {"dataset": "d", "metric": "m", "arms": {"a": {"mean": "1"}}},
            "mean='1' of arm 'a' in .* must be a number",
        ),
        ('{"dataset": "d", "metric": "m", "arms": {"a": {"mean": NaN}}}', "mean=nan of arm 'a'"),
    ],
)
def test_anything_else_is_an_error(content: Any, message: str, tmp_path: Path) -> None:
    text = content if isinstance(content, str) else json.dumps(content)
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        read_results(tmp_path)
