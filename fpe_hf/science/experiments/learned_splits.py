"""Splits that training chooses, against dense models, the paper's way, and the ceiling."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from ...comparing import compare
from ...errors import ConfigError, MissingDataError, did_you_mean
from ...files import write_whole
from ..arms import ARMS, CLOSED, Run, train_run
from ..report import Report, Row, new_figure
from ..statistics import Mean, mean
from ..tasks import Task
from ..tasks.formulas import formulas
from ..tasks.heads import heads
from ..tasks.language import language
from ..tasks.pictures import cnn, deep, pixels, vit

TASKS: dict[str, Callable[[int], Task]] = {
    "heads": heads,
    "pixels": pixels,
    "deep-8": partial(deep, 8),
    "deep-16": partial(deep, 16),
    "cnn": cnn,
    "vit": vit,
    "language": partial(language, 1),
    "language-3x": partial(language, 3),
    "language-6x": partial(language, 6),
    "formulas": formulas,
}
"""Name -> the task of a seed."""

DENSE, LEARNED = "dense", "learned"
_EXPANDED = ("random", "random-at-once", LEARNED, "overlap", "wide-dense", "dense-longer")


def _arms(task: str, width: int, alpha: int = 4, arms: Sequence[str] = _EXPANDED) -> list[Run]:
    return [Run(task, width, DENSE, 1), *(Run(task, width, arm, alpha) for arm in arms)]


@dataclass(frozen=True)
class Part:
    """Runs that belong together.

    Attributes:
        title: What is trained.
        runs: Those of one seed.
        seeds: How many.
    """

    title: str
    runs: list[Run]
    seeds: int = 5


PARTS = {
    "heads": Part(
        "heads over frozen embeddings (384 features) of Debian's package descriptions",
        [
            *(run for width in (8, 16, 32) for run in _arms("heads", width)),
            *(Run("heads", 8, arm, 2) for arm in _EXPANDED),
            *(Run("heads", 8, LEARNED, 4, opened) for opened in (0.2, 0.5)),
            *(Run("heads", width, LEARNED, 4, closed=0.5) for width in (8, 16, 32)),
        ],
    ),
    "pixels": Part(
        "FashionMNIST, one hidden layer on pixels",
        [run for width in (8, 16, 32) for run in _arms("pixels", width)],
    ),
    "deep": Part(
        "FashionMNIST, five layers, the first and third widened",
        [run for width in (8, 16) for run in _arms(f"deep-{width}", width)],
    ),
    "cnn": Part("FashionMNIST, two convolutions and a head", _arms("cnn", 8)),
    "vit": Part("FashionMNIST, a vision transformer of width 64", _arms("vit", 16)),
    "language": Part(
        "a causal language model of characters, three layers of width 64",
        [
            *_arms("language", 64),
            Run("language", 64, LEARNED, 2),
            Run("language", 64, LEARNED, 4, closed=0.5),
        ],
    ),
    "language-longer": Part(
        "the same language model, three and six times the steps",
        [run for times in (3, 6) for run in _arms(f"language-{times}x", 64, arms=[LEARNED])],
        seeds=1,
    ),
    "formulas": Part(
        "the Boolean table: 8 clauses, 8 neurons, alpha 2",
        _arms("formulas", 8, 2, ["random", "clause", *_EXPANDED[1:]]),
        seeds=20,
    ),
}

REDUCED = {
    "heads": Part(PARTS["heads"].title, _arms("heads", 8), seeds=3),
    "pixels": Part(PARTS["pixels"].title, _arms("pixels", 8), seeds=3),
    "formulas": replace(PARTS["formulas"], seeds=6),
}


def run(full: bool, *, rows: Path | None = None, parts: Sequence[str] = ()) -> Report:
    """Trains what has not been trained, and reports on all of it.

    Args:
        full: All parts, not only the quickest.
        rows: Folder of finished trainings, one JSON file each; those that are there are not
            trained again.
        parts: Names of the parts to run; by default all.

    Raises:
        ConfigError: There is no such part.
        MissingDataError: A part that was asked for needs data that are not on this machine, or all
            parts do.
    """
    known = PARTS if full or parts else REDUCED
    for part in parts:
        if part not in known:
            raise ConfigError(
                f"{part!r} is no part; accepted: {', '.join(known)}.{did_you_mean(part, known)}"
            )
    table: list[Row] = []
    left_out: dict[str, MissingDataError] = {}
    courses: list[Row] = []
    for name in parts or known:
        try:
            found = [_result(own, rows) for own in _ordered(known[name])]
        except MissingDataError as error:
            if parts:
                raise
            left_out[name] = error
            continue
        table += _summary(found)
        courses += [row for row in found if row["seed"] == 0 and row["course"]]
    if not table:
        raise next(iter(left_out.values()))
    text = _text(table, {name: known[name].title for name in parts or known}, left_out)
    figures = {"learned-splits": _figure(table)}
    if watched := [row for row in courses if row["task"] == "heads" and row["width"] == 8]:
        figures["learned-splits-course"] = _course(watched)
    return Report("Learned splits", text, table, figures)


def _ordered(part: Part) -> Iterator[Run]:
    """All arms of one seed before the next seed."""
    runs = [replace(own, seed=seed) for seed in range(part.seeds) for own in part.runs]
    return iter(tqdm(runs, desc=part.title, unit="training", delay=2, leave=False))


def _result(own: Run, rows: Path | None) -> Row:
    """The row of a training, which is read if it is there."""
    file = rows and rows / f"{own.name}.json"
    if file and file.is_file():
        stored: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return stored
    row = train_run(own, TASKS[own.task](own.seed))
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps(row) + "\n")
    return row


def _summary(found: Sequence[Row]) -> list[Row]:
    """A row per arm: means over seeds, and the gain over dense, seed by seed."""
    fields = ("task", "width", "arm", "alpha", "opened", "closed")
    groups: dict[tuple[Any, ...], dict[int, Row]] = {}
    for row in found:
        groups.setdefault(tuple(row[name] for name in fields), {})[row["seed"]] = row
    table: list[Row] = []
    for key, by_seed in groups.items():
        one = next(iter(by_seed.values()))
        dense = groups[key[0], key[1], DENSE, 1, 0.0, CLOSED]
        score = _mean([row["score"] for row in by_seed.values()])
        seeds = [seed for seed in by_seed if seed in dense]
        gain = compare(
            [by_seed[seed]["score"] for seed in seeds],
            [dense[seed]["score"] for seed in seeds],
            lower_is_better=one["metric"] == "loss",
            scale=None if one["metric"] == "loss" else 100.0,
        )
        means = {
            name: _mean([row.get(name, float("nan")) for row in by_seed.values()]).value
            for name in ("flops", "seconds", "whole", "together", "chance")
        }
        table.append(
            {
                **dict(zip(fields, key, strict=True)),
                "metric": one["metric"],
                "score": score.value,
                "ci95": score.half_width,
                "gain": gain.gain,
                "gain ci95": math.nan if gain.half_width is None else gain.half_width,
                "beside dense": "" if key[2] == DENSE else gain.word,
                "seeds": score.count,
                "non-zeros": one["nonzeros"],
                "steps": one["steps"],
                **means,
            }
        )
    return table


def _mean(values: Sequence[float]) -> Mean:
    return mean(torch.tensor(values, dtype=torch.float64, device="cpu"))


def _text(
    table: Sequence[Row], titles: Mapping[str, str], left_out: Mapping[str, MissingDataError]
) -> str:
    lines = []
    for task, width in dict.fromkeys((row["task"], row["width"]) for row in table):
        dense, *others = [row for row in table if (row["task"], row["width"]) == (task, width)]
        gains = ", ".join(f"{_label(row)} {_told(row)}" for row in others)
        lines.append(
            f"- {task}, {width} neurons: dense {dense['score']:.{_digits(dense)}f}; {gains}"
        )
    head = (
        "All arms of a task see the same examples in the same order, with the same settings, which "
        "were chosen for dense models: Adam, a learning rate that rises for a twentieth of the "
        "training and falls as a half cosine. "
        "*random* is the paper's way: a random split after half of the training; "
        "*random-at-once* is split before it. *learned* starts with all connections and closes its "
        "budget between 10 and 70 % of the training. *overlap* "
        "is the same without disjoint inputs. These three, and *dense*, end with equally many "
        "non-zeros. *wide-dense* has alpha times the neurons, and *dense-longer* is trained for as "
        "many FLOPs as *learned*. FLOPs include those of weights that are zero.\n\nParts: "
        + "; ".join(f"*{name}*, {title}" for name, title in titles.items())
        + ".\n\nGains over dense, seed by seed: points of accuracy, or how much lower the loss is. "
        "What is worse than dense is in bold.\n\n" + "\n".join(lines)
    )
    if told := _clauses_told(table):
        head += "\n\n" + told
    if left_out:
        head += "\n\nLeft out:\n\n" + "\n".join(
            f"- {name}: {why}" for name, why in left_out.items()
        )
    return head


def _clauses_told(table: Sequence[Row]) -> str:
    rows = [row for row in table if row["chance"] == row["chance"]]  # NaN is for other tasks
    if not rows:
        return ""
    return (
        "Of the clauses whose literals the children of a parent read, so many per cent have all of "
        "them in one child (in brackets: if the same inputs were dealt at random): "
        + ", ".join(
            f"{_label(row)} {100 * row['together']:.1f} ({100 * row['chance']:.1f})" for row in rows
        )
        + "."
    )


def _label(row: Row) -> str:
    when = f", opened at {row['opened']:.0%}" if row["opened"] else ""
    when += f", closed at {row['closed']:.0%}" if row["closed"] != CLOSED else ""
    return row["arm"] if row["alpha"] == 1 else f"{row['arm']} (alpha {row['alpha']}{when})"


def _is_usual(row: Row) -> bool:
    return not row["opened"] and row["closed"] == CLOSED


def _digits(row: Row) -> int:
    return 3 if row["metric"] == "loss" else 1


def _told(row: Row) -> str:
    digits = _digits(row)
    word = f"{row['gain']:+.{digits}f}"
    if row["seeds"] > 1:
        word += f" ± {row['gain ci95']:.{digits}f}"
    return f"**{word}**" if row["beside dense"] == "worse" else word


def _figure(table: Sequence[Row]) -> object:
    metrics = list(dict.fromkeys(row["metric"] for row in table))
    figure, axes = new_figure(len(metrics), width=6.5, height=5.0)
    for ax, metric in zip(axes, metrics, strict=True):
        shown = [row for row in table if row["metric"] == metric and _is_usual(row)]
        shown = [row for row in shown if row["arm"] != DENSE]
        names = list(dict.fromkeys((r["task"], r["width"], r["alpha"]) for r in shown))
        arms = list(dict.fromkeys(row["arm"] for row in shown))
        for place, arm in enumerate(arms):
            own = [row for row in shown if row["arm"] == arm]
            heights = [
                names.index((r["task"], r["width"], r["alpha"])) + 0.12 * (place - len(arms) / 2)
                for r in own
            ]
            gains, errors = ([row[name] for row in own] for name in ("gain", "gain ci95"))
            color = f"C{ARMS.index(arm)}"
            ax.errorbar(gains, heights, xerr=errors, fmt="o", markersize=4, label=arm, color=color)
        ax.axvline(0, color="grey", linewidth=0.8)
        ax.set_yticks(range(len(names)), [f"{t} {w}, α={a}" for t, w, a in names])
        ax.invert_yaxis()
        ax.set_xlabel(
            "gain over dense (points)" if metric == "accuracy" else "lower loss than dense"
        )
    axes[0].legend(frameon=False, fontsize="small")
    return figure


def _course(rows: Sequence[Row]) -> object:
    """Non-zeros and interference along the training of one seed."""
    measures = {"nonzeros": "non-zeros", "capacity": "feature capacity", "cosine": "mean cosine"}
    figure, axes = new_figure(len(measures))
    for ax, (measure, label) in zip(axes, measures.items(), strict=True):
        for row in rows:
            if row["alpha"] in (1, 4) and row["arm"] != "dense-longer":
                points = [(point["step"], point[measure]) for point in row["course"]]
                ax.plot(*zip(*points, strict=True), label=_label(row))
        ax.set_xlabel("step")
        ax.set_ylabel(label)
    axes[0].legend(frameon=False, fontsize="x-small")
    return figure
