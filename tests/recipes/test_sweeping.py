from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from fpe_hf.errors import RecipeError
from fpe_hf.recipes import launching, sweeping
from fpe_hf.recipes.claiming import hold
from fpe_hf.recipes.parsing import parse_recipe
from fpe_hf.recipes.sweeping import grid, place, run_sweep

RECIPE = """
model:
  task: feature-classification
  config: {model_type: mlp_classifier, hidden_sizes: [4]}
data: {source: digits, max_train_samples: 64, max_eval_samples: 16}
widen: {targets: [layers]}
train: {max_steps: 2, use_cpu: true}
output: {folder: out, push: {repo_id: user/name}}
sweep:
  model.config.hidden_sizes: [[4], [6]]
  widen.alpha: [2, 4]
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, list[str]]:
    monkeypatch.setattr(launching, "_finish", lambda *_: None)  # no reports in this process
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return str(tmp_path / "recipe.yaml"), [f"output.folder={tmp_path / 'out'}"]


FEWER = "sweep={widen.alpha: [2, 4]}"


def rows(table: Path) -> list[dict[str, str]]:
    with table.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_the_grid_is_the_product() -> None:
    points = grid(parse_recipe(RECIPE))
    assert len(points) == 4
    assert points[1] == {"model.config.hidden_sizes": [4], "widen.alpha": 4}
    assert len({place(Path(), point) for point in points}) == 4
    with pytest.raises(RecipeError, match="no sweep"):
        grid(parse_recipe(RECIPE, ["sweep={}"]))


def test_every_point_is_run_once(
    recipe: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    found = rows(run_sweep(*recipe, say=said.append))
    assert len(found) == 8  # 4 points, 2 arms
    assert {row["widen.alpha"] for row in found} == {"2", "4"}
    widths = {row["model.config.hidden_sizes"]: row["nonzeros"] for row in found}
    assert widths == {"[4]": str(4 * 64 + 4 + 40 + 10), "[6]": str(6 * 64 + 6 + 60 + 10)}
    assert not any("Pushed" in line for line in said)
    monkeypatch.setattr(sweeping, "launch", lambda *_, **__: pytest.fail("run again"))
    assert rows(run_sweep(*recipe)) == found


def test_a_sweep_goes_on_where_it_failed(
    recipe: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    (name, assignments), launch, calls = recipe, sweeping.launch, []
    assignments.append(FEWER)

    def failing(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        return launch(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(sweeping, "launch", failing)
        with pytest.raises(OSError, match="No space"):
            run_sweep(name, assignments)
    calls.clear()
    monkeypatch.setattr(sweeping, "launch", lambda *a, **k: (calls.append(1), launch(*a, **k))[1])
    assert len(rows(run_sweep(name, assignments))) == 4
    assert len(calls) == 1


def test_a_point_that_another_process_runs_is_left_to_it(recipe: tuple[str, list[str]]) -> None:
    folder = Path(recipe[1][0].partition("=")[2])
    recipe[1].append(FEWER)
    theirs = place(folder, {"widen.alpha": 2})
    said: list[str] = []
    with hold(theirs):
        assert len(rows(run_sweep(*recipe, say=said.append))) == 2
    assert f"  {theirs.name} is being run by another process" in said
    assert [path.name for path in theirs.iterdir()] == [".lock"]
    assert len(rows(run_sweep(*recipe))) == 4


def test_two_processes_share_the_points(recipe: tuple[str, list[str]]) -> None:
    recipe[1].append(FEWER)
    assert len(rows(run_sweep(*recipe, jobs=2))) == 4


def test_a_point_that_cannot_be_run_stops_it_beforehand(recipe: tuple[str, list[str]]) -> None:
    with pytest.raises(RecipeError, match="alpha=1"):
        run_sweep(recipe[0], [*recipe[1], "sweep={widen.alpha: [2, 1]}"])
    assert not Path(recipe[1][0].partition("=")[2]).exists()
