"""What stands in the report, in which order; `page` decides how it looks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import yaml

from ..results import Results
from . import tables
from .comparison import measured
from .environment import environment
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
        code: YAML, below the table.
    """

    title: str
    text: tuple[str, ...] = ()
    pictures: tuple[Picture, ...] = ()
    table: Table | None = None
    code: str | None = None


@dataclass(frozen=True)
class Report:
    """All of the report.

    Attributes:
        title: Heading.
        about: What was run, in a line.
        verdict: What came out.
        sections: The rest.
    """

    title: str
    about: str
    verdict: Verdict
    sections: tuple[Section, ...]

    @property
    def pictures(self) -> list[Picture]:
        """Every picture."""
        return [picture for section in self.sections for picture in section.pictures]


def compose(results: Results, latency: Latency | None) -> Report:
    """Puts the report of a run together.

    Args:
        results: What came out.
        latency: Of the dense and the widened model, if it was measured.
    """
    sections = (
        _arms(results),
        _curves(results),
        _costs(results),
        _blocks(results),
        _interference(results),
        _latency(latency),
        _environment(),
        _recipe(results),
    )
    title = results.recipe.get("description") or "Dense and widened, side by side"
    return Report(title, _about(results), verdict(results), sections)


def _about(results: Results) -> str:
    model = results.recipe["model"]
    name = model.get("name_or_path") or model["config"]["model_type"]
    parts = [f"{name} on {results.dataset}"]
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
        "Metrics after the last step are means ± standard deviation over the seeds, gains means of "
        "the difference to dense with the same seed ± standard error, positive where the arm is "
        "better."
        if several
        else "Metrics after the last step, of one seed: there is no spread to show. Gains are the "
        "difference to dense, positive where the arm is better."
    )
    return Section("Arms", (spread,), table=tables.arms_table(results))


def _curves(results: Results) -> Section:
    several = len(results.of_arm("dense")) > 1
    bands = (
        " Lines are means over the seeds; bands reach from the lowest to the highest seed above, "
        "and one standard error to either side below."
        if several
        else ""
    )
    pictures = []
    for metric in measured(results):
        caption = (
            f"{metric} on the evaluation examples by step, and the gain over dense of the arms "
            f"with FPE's budget (above 0 is better).{bands}"
        )
        pictures += _picture(
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
    pictures = _picture("nonzeros-by-step", caption, partial(nonzeros_figure, results))
    return Section("Cost", text, tuple(pictures), tables.costs_table(results))


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
    pictures = _picture("interference", caption, partial(interference_figure, results))
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


def _environment() -> Section:
    text = "The process that finished the run and wrote this report."
    return Section("Environment", (text,), table=tables.environment_table(environment()))


def _recipe(results: Results) -> Section:
    code = yaml.safe_dump(results.recipe, sort_keys=False, allow_unicode=True)
    return Section("Recipe", ("As it was run, defaults included.",), code=code)


def _picture(name: str, caption: str, draw: Callable[[Theme], bytes | None]) -> list[Picture]:
    """One picture for both themes, or none if there is nothing to draw."""
    light, dark = draw(LIGHT), draw(DARK)
    return [] if light is None or dark is None else [Picture(name, caption, light, dark)]
