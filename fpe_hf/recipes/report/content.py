"""What stands in the report, in which order; `page` decides how it looks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import yaml

from ..results import Results, model_folder
from . import tables
from .curves import close_step, split_step
from .figures import (
    DARK,
    LIGHT,
    Picture,
    Theme,
    curves_figure,
    interference_figure,
    nonzeros_figure,
)
from .latency import Latency
from .siblings import siblings_line
from .tables import Table
from .units import slug
from .words import Verdict, verdict


@dataclass(frozen=True)
class Section:
    """A section of the report.

    Attributes:
        title: Heading.
        text: Paragraphs.
        pictures: Pictures, below the text.
        table: Table, below the pictures.
        code: Below the table.
        language: Of the code.
    """

    title: str
    text: tuple[str, ...] = ()
    pictures: tuple[Picture, ...] = ()
    table: Table | None = None
    code: str | None = None
    language: str = "yaml"


@dataclass(frozen=True)
class Report:
    """All of the report.

    Attributes:
        title: Heading.
        about: What was run, a paragraph each.
        verdict: What came out, of a run.
        sections: The rest.
    """

    title: str
    about: tuple[str, ...]
    verdict: Verdict | None
    sections: tuple[Section, ...]

    @property
    def pictures(self) -> list[Picture]:
        """Every picture."""
        return [picture for section in self.sections for picture in section.pictures]


def compose(results: Results, latency: Latency | None, made_with: Mapping[str, str]) -> Report:
    """Puts the report of a run together.

    Args:
        results: What came out.
        latency: Of the dense and the widened model, if it was measured.
        made_with: The environment of the run.
    """
    sections = (
        _arms(results),
        _curves(results),
        _costs(results),
        *_classes(results),
        _blocks(results),
        _interference(results),
        _latency(latency),
        _loading(results),
        _environment(made_with),
        _recipe(results),
    )
    about = (_about(results), _what_fpe_is(results))
    return Report(_title(results), about, verdict(results), sections)


def _title(results: Results) -> str:
    others = [arm for arm in results.arms if arm not in ("dense", "fpe")]
    beside = f" and {len(others)} other{'s' if len(others) > 1 else ''}" if others else ""
    return f"{_model(results)} on {results.dataset}: FPE beside dense{beside}"


def _model(results: Results) -> str:
    model = results.recipe["model"]
    config = model.get("config") or {}
    name = model.get("name_or_path") or config["model_type"]
    sizes = config.get("hidden_sizes")
    return f"{name} ({', '.join(map(str, sizes))} neurons)" if sizes else str(name)


def _what_fpe_is(results: Results) -> str:
    """Which split, expansion factor and layout `fpe` has, and when its budget closed."""
    widen = results.recipe.get("widen") or {}
    split = widen.get("split", "random")
    kind = "a learned split" if split == "learned" else f"the split {split!r}"
    audit = next((run.audit for run in results.of_arm("fpe") if run.audit), None)
    layouts = sorted({block["layout"] for block in audit["blocks"]}) if audit else []
    parts = [f"fpe is {kind} with alpha {widen.get('alpha', 2)}"]
    if layouts:
        parts.append(f"layout {' and '.join(layouts)}")
    if widen.get("fan_out", "replicate") != "replicate":
        parts.append(f"fan-out {widen['fan_out']}")
    if widen.get("coupling"):
        parts.append(f"coupling {widen['coupling']}")
    split_at, closed = split_step(results), close_step(results)
    verb = "opened" if closed else "split"
    parts.append(f"{verb} after {split_at:,} steps" if split_at else f"{verb} before training")
    if closed:
        parts.append(f"its budget closed at step {closed:,}")
    return ", ".join(parts) + "."


def _about(results: Results) -> str:
    parts = [results.recipe["description"]] if results.recipe.get("description") else []
    if any(results.examples):
        train, held = results.examples
        parts.append(f"{train:,} training and {held:,} evaluation examples")
    if results.classes:
        parts.append(f"{results.classes} classes")
    seeds = len({run.seed for run in results.runs})
    parts.append(f"{len(results.arms)} arms, {seeds} {'seed' if seeds == 1 else 'seeds'} each")
    return " · ".join(parts)


def _arms(results: Results) -> Section:
    several = len(results.of_arm("dense")) > 1
    spread = (
        "Metrics after the last step are means ± standard deviation over the seeds. Gains are "
        "means of the difference to dense with the same seed ± half of their 95 % interval; they "
        "are positive where the arm is better."
        if several
        else "Metrics after the last step, of one seed: there is no spread to show. Gains are the "
        "difference to dense ± half of the 95 % interval that the evaluation examples imply, "
        "positive where the arm is better."
    )
    return Section("Arms", (spread,), table=tables.arms_table(results))


def _curves(results: Results) -> Section:
    several = len(results.of_arm("dense")) > 1
    bands = (
        " Lines are means over the seeds; bands reach from the lowest to the highest seed above, "
        "and are 95 % intervals over seeds below."
        if several
        else ""
    )
    pictures = []
    for metric in results.measured:
        caption = (
            f"{metric} on the evaluation examples by step, and the gain over dense of the arms "
            f"with FPE's budget (above 0 is better).{bands}"
        )
        pictures += picture(
            f"{slug(metric)}-by-step", caption, partial(curves_figure, results, metric)
        )
    text = () if pictures else ("The arms were not evaluated while they trained.",)
    return Section("By step", text, tuple(pictures))


def _costs(results: Results) -> Section:
    text = (
        "Training FLOPs are an estimate. The products of a forward pass are counted as they are "
        "computed, two operations per weight: where a whole matrix is multiplied, its zeros count. "
        "Backward takes twice as many. From the split on an arm is counted as it starts (also "
        "after an open budget has closed, since whole matrices are multiplied then, too), before "
        "the split as dense.",
        "Seconds are the wall time of the training, evaluations in its course included. Peak "
        "trainable parameters are the most there were at any time, masked ones included; non-zeros "
        "and bytes on disk are those of the trained model. Controls are stored as they were "
        "trained, zeros included.",
    )
    caption = "Non-zeros of every arm by step, at each evaluation, means over seeds."
    pictures = picture("nonzeros-by-step", caption, partial(nonzeros_figure, results))
    return Section("Cost", text, tuple(pictures), tables.costs_table(results))


def _classes(results: Results) -> list[Section]:
    table = tables.classes_table(results)
    if table is None:
        return []
    known = sum(1 for _, examples in _first_counts(results) if examples)
    ends = f" Of {known} classes, the ten at either end." if known > len(table.rows) else ""
    text = (
        "Accuracy on the evaluation examples of each class, means over seeds, sorted by the "
        f"difference in points.{ends} Single classes have few examples, so these differences are "
        "no verdicts."
    )
    return [Section("By class", (text,), table=table)]


def _first_counts(results: Results) -> list[list[int]]:
    outcomes = results.of_arm("fpe")[0].outcomes
    return outcomes.by_class if outcomes else []


def _blocks(results: Results) -> Section:
    table = tables.blocks_table(results)
    if table is None:
        return Section("Widened blocks", ("The blocks were not counted: the model was in parts.",))
    text = "Counted by fpe_hf.audit in the trained FPE model of the first seed, beside its parent."
    return Section("Widened blocks", (text,), table=table)


def _interference(results: Results) -> Section:
    title, table = "Interference", tables.interference_table(results)
    if table is None:
        return Section(title, ("Not measured for this model.",))
    arms = {row[1] for row in table.rows}
    text = [
        "How much inputs share neurons in the projections that feed the hidden neurons, before and "
        "after the arm's training (from the split on), means over seeds. Less interference is a "
        "higher feature capacity, a mean cosine nearer 0 and a lower off-diagonal energy. FPE is "
        'already split in "before".'
    ]
    text += siblings_line(results)
    missing = [arm for arm in tables.COMPARED if arm not in arms]
    if missing:
        text.append(f"Not measured: {', '.join(missing)}.")
    caption = "Interference before and after the training, means over projections and seeds."
    pictures = picture("interference", caption, partial(interference_figure, results))
    return Section(title, tuple(text), tuple(pictures), table)


def _latency(latency: Latency | None) -> Section:
    title = "Latency"
    if latency is None:
        return Section(title, ("Not measured.",))
    text = (
        f"A forward pass of the saved dense and FPE models of the first seed on {latency.device}, "
        f"{latency.dtype}, {latency.threads} {'thread' if latency.threads == 1 else 'threads'}, "
        "side by side in one process, in turns; medians over the rounds."
    )
    return Section(title, (text,), table=tables.latency_table(latency))


def _loading(results: Results) -> Section:
    best = results.best()
    folder = model_folder(Path(), best.arm, best.seed).as_posix()
    text = (
        "From the folder of this report; the model is that of the best seed, the others lie beside "
        "it. Importing fpe_hf is what lets transformers read it."
    )
    code = f'import fpe_hf\n\nmodel = fpe_hf.from_pretrained("{folder}")'
    return Section("How to load the model", (text,), code=code, language="python")


def _environment(made_with: Mapping[str, str]) -> Section:
    text = "The process that finished the run."
    return Section("Environment", (text,), table=tables.environment_table(made_with))


def _recipe(results: Results) -> Section:
    code = yaml.safe_dump(results.recipe, sort_keys=False, allow_unicode=True)
    return Section("Recipe", ("As it was run, defaults included.",), code=code)


def picture(name: str, caption: str, draw: Callable[[Theme], bytes | None]) -> list[Picture]:
    """One picture for both themes, or none if there is nothing to draw.

    Args:
        name: Part of a file name.
        caption: What it shows.
        draw: Makes it for a theme.
    """
    light, dark = draw(LIGHT), draw(DARK)
    return [] if light is None or dark is None else [Picture(name, caption, light, dark)]
