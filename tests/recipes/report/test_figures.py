from __future__ import annotations

import dataclasses
import io

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from fpe_hf.recipes.report.figures import (
    DARK,
    LIGHT,
    Theme,
    curves_figure,
    interference_figure,
    nonzeros_figure,
)
from recipes.report.runs import make_results

ARMS = {
    "dense": [0.5, 0.6],
    "fpe": [0.6, 0.7],
    "overlap": [0.55, 0.6],
    "wide-dense": [0.8, 0.9],
    "fpe-random": [0.58, 0.63],
    "narrow-dense": [0.4, 0.5],
    "dense-longer": [0.3, 0.4],
}


def pixels(png: bytes | None) -> np.ndarray:
    assert png is not None
    return (imread(io.BytesIO(png))[..., :3] * 255).round().astype(int)


def has_color(image: np.ndarray, color: str) -> bool:
    wanted = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    return bool((image == wanted).all(-1).any())


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
@pytest.mark.parametrize("metric", ["accuracy", "loss"])
def test_every_arm_is_drawn_in_its_colour(metric: str, theme: Theme) -> None:
    image = pixels(curves_figure(make_results(ARMS), metric, theme))
    assert has_color(image, theme.page)
    edges = np.concatenate([image[:, 0], image[:, -1]])
    assert len(np.unique(edges, axis=0)) == 1, "nothing is cut off, the legend included"
    for arm in ARMS:
        assert has_color(image, theme.arms[arm]), arm


def test_arms_that_were_not_run_are_not_drawn() -> None:
    arms = {arm: ARMS[arm] for arm in ("dense", "fpe")}
    image = pixels(curves_figure(make_results(arms), "accuracy", LIGHT))
    assert not has_color(image, LIGHT.arms["overlap"])
    assert not has_color(image, LIGHT.arms["wide-dense"])


def test_the_split_is_marked() -> None:
    at_start = {"widen": {"at": None}}
    marked = curves_figure(make_results(ARMS), "accuracy", LIGHT)
    assert marked != curves_figure(make_results(ARMS, recipe=at_start), "accuracy", LIGHT)
    marked = nonzeros_figure(make_results(ARMS), LIGHT)
    assert marked != nonzeros_figure(make_results(ARMS, recipe=at_start), LIGHT)


def test_nonzeros_of_every_level() -> None:
    image = pixels(nonzeros_figure(make_results(ARMS), LIGHT))
    assert has_color(image, LIGHT.arms["wide-dense"])
    assert has_color(image, LIGHT.arms["fpe"])  # drawn above those at the same level


def test_names_of_metrics_are_no_formulas() -> None:
    name = r"user/$\frac{odd$_metric"
    assert pixels(curves_figure(make_results(ARMS, name), name, LIGHT)).size


def test_no_picture_of_nothing() -> None:
    results = make_results(ARMS)
    for run in results.runs:
        run.curve.clear()
        run.interference.clear()
    assert curves_figure(results, "accuracy", LIGHT) is None
    assert nonzeros_figure(results, LIGHT) is None
    assert interference_figure(results, LIGHT) is None


def test_interference_of_both_arms() -> None:
    arms = {"dense": [0.5], "fpe": [0.6]}
    results = make_results(arms)
    results.runs[0].interference["before"][0]["feature_capacity"] = 0.9
    image = pixels(interference_figure(results, DARK))
    assert all(has_color(image, DARK.arms[arm]) for arm in arms)


def test_lines_that_coincide_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    legend = Figure.legend

    def keep(self: Figure, handles: list[object], labels: list[str], **kwargs: object) -> object:
        seen.extend(labels)
        return legend(self, handles, labels, **kwargs)

    monkeypatch.setattr(Figure, "legend", keep)
    arms = {"dense": [0.5, 0.6], "fpe": [0.5, 0.6], "overlap": [0.2, 0.3]}
    image = pixels(curves_figure(make_results(arms), "accuracy", LIGHT))
    assert seen == ["dense", "overlap", "fpe (coincides with dense)"]
    assert has_color(image, LIGHT.arms["dense"])
    assert has_color(image, LIGHT.arms["fpe"])


@pytest.mark.parametrize("value", [100.0, 1234.5, 0.5])
def test_axes_have_no_offset_and_do_not_magnify_rounding(
    value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *_, **__: figures.append(self), raising=True
    )
    curves_figure(
        make_results({"dense": [value] * 2, "fpe": [value + 1e-7] * 2}, "loss"), "loss", LIGHT
    )
    figures[0].draw_without_rendering()
    for axes in figures[0].axes:
        assert axes.yaxis.get_offset_text().get_text() == ""
        low, high = axes.get_ylim()
        assert high - low >= 0.9e-3 * value


def test_bands_do_not_press_lines_flat(monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: figures.append(self))
    curves_figure(make_results({"dense": [0.5, 0.5], "fpe": [0.5, 0.54]}), "accuracy", LIGHT)
    low, high = figures[0].axes[1].get_ylim()
    assert high - low <= 5 * 2 + 1  # the mean gain is 2 points, the interval 25 to either side


def test_the_closing_of_the_budget_is_marked() -> None:
    results = make_results(ARMS)
    before = nonzeros_figure(results, LIGHT)
    for place, run in enumerate(results.runs):
        results.runs[place] = dataclasses.replace(run, closed=30)
    assert nonzeros_figure(results, LIGHT) != before
