"""What a reproduction hands in: a table, figures and a text, written as one folder."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..files import recover, whole_folder
from ..markup import table

_TABLE = "table.csv"

Row = Mapping[str, Any]


@dataclass
class Report:
    """Results of one reproduction.

    Attributes:
        title: Heading.
        text: What was done, what agrees with the paper and what does not (Markdown).
        rows: The table, a mapping from column to value per row; all rows have the same columns.
        figures: matplotlib figures by file name without suffix.
        seconds: Run time.
        cpu_seconds: Processor time, which does not depend on what else the machine does.
    """

    title: str
    text: str
    rows: Sequence[Row]
    figures: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    cpu_seconds: float = 0.0

    def markdown(self) -> str:
        """The page: text, figures and table."""
        return f"# {self.title}\n\n" + self.body("")

    def body(self, figures: str) -> str:
        """What is below the heading.

        Args:
            figures: What comes before the names of the figures' files in links.
        """
        images = [f"![{self.title}]({figures}{name}.svg)" for name in self.figures]
        took = (
            f"Run time: {self.seconds:.0f} s, {self.cpu_seconds:.0f} s of processor time. "
            "Intervals (ci95 is half of one) are 95 % confidence intervals over seeds."
        )
        parts = [self.text, *images, self._markdown_table(), took]
        return "\n\n".join(parts) + "\n"

    def _markdown_table(self) -> str:
        """Numbers are rounded to 4 significant digits, NaN is left empty."""
        header = list(self.rows[0])
        rows = ([_cell(row[name]) for name in header] for row in self.rows)
        return table(header, rows, texts=len(header))

    def write(self, folder: Path) -> None:
        """Writes `README.md`, `table.csv` and the figures (SVG), all or nothing.

        Args:
            folder: Where; an earlier report there is replaced.

        Raises:
            FileExistsError: Something else is there.
        """
        folder = folder.resolve()
        recover(folder)
        if folder.exists() and not _holds_report(folder):
            raise FileExistsError(f"{folder} holds something else than a report: choose another.")
        folder.parent.mkdir(parents=True, exist_ok=True)
        with whole_folder(folder, replace=True) as new:
            self._write_files(new)

    def _write_files(self, folder: Path) -> None:
        (folder / "README.md").write_text(self.markdown(), encoding="utf-8")
        with (folder / _TABLE).open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(self.rows[0]))
            writer.writeheader()
            writer.writerows(self.rows)
        for name, figure in self.figures.items():
            write_figure(figure, folder / f"{name}.svg")


def write_figure(figure: Any, path: Path) -> None:
    """Writes an SVG that depends on nothing but what is drawn."""
    from matplotlib import rc_context

    with rc_context({"svg.hashsalt": "fpe_hf"}):
        figure.savefig(path, bbox_inches="tight", metadata={"Date": None})


def _holds_report(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    entries = list(folder.iterdir())
    return not entries or (folder / _TABLE in entries and all(map(Path.is_file, entries)))


def _cell(value: object) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.4g}"
    return str(value)


def new_figure(columns: int = 1, *, width: float = 4.5, height: float = 3.4) -> tuple[Any, Any]:
    """A figure and its axes, drawn without a display.

    Args:
        columns: How many axes, side by side.
        width: Of each, in inches.
        height: Of the figure, in inches.

    Returns:
        The figure, and its axes, always as a sequence.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height), layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False)[0]
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
    return figure, axes
