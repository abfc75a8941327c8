"""Plots of the ratios to the dense parent, as SVG."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fpe_hf.science.report import new_figure, write_figure

from .blocks import PLAIN
from .results import BLOCK, Row

_COLORS = ("#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#999999")
_MARKERS = "osD^vP*X"
_LINEAR = 3.0
"""Up to which ratio an axis is linear."""
_MODES = {"forward": "forward", "train": "forward+backward"}
_WIDTHS = {shape.name: shape.inputs for shape in PLAIN}


class Slice(NamedTuple):
    """What stays the same in a plot.

    Attributes:
        name: Of the block's shape.
        dtype: Of the weights.
        tokens: Tokens in the batch.
        alpha: Children per parent.
    """

    name: str
    dtype: str
    tokens: int
    alpha: int

    def holds(self, row: Row, varied: str) -> bool:
        """Whether a row is in the slice, but for one field."""
        return all(getattr(row, f) == getattr(self, f) for f in self._fields if f != varied)


def write_plots(rows: Sequence[Row], stem: Path) -> list[Path]:
    """Writes the plots for which there is enough to see.

    Args:
        rows: What was measured.
        stem: Path of the files; `-alpha.svg` and the like are added.

    Returns:
        The files.
    """
    measured = [row for row in rows if row.kind == BLOCK and row.ratio is not None]
    if not measured:
        return []
    middle = middle_slice(measured)
    replicate = [row for row in measured if row.way in ("", "replicate")]
    figures = {
        "alpha": _lines(replicate, middle, "alpha", "children per parent", lambda r: r.alpha),
        "tokens": _lines(replicate, middle, "tokens", "tokens", lambda r: r.tokens),
        "width": _lines(
            [row for row in replicate if row.name in _WIDTHS],
            middle,
            "name",
            "inputs of the block",
            lambda r: _WIDTHS[r.name],
        ),
        "tiles": _lines(
            [row for row in measured if row.tiles],
            middle,
            "tiles",
            "tiles",
            lambda r: r.tiles,
            lambda r: f"{r.layout} {r.way}",
        ),
        "contenders": _bars(measured, middle),
    }
    written = []
    for name, figure in figures.items():
        if figure is not None:
            path = stem.with_name(f"{stem.name}-{name}.svg")
            scratch = path.with_name(f".{path.name}")
            write_figure(figure, scratch)
            os.replace(scratch, path)
            written.append(path)
    return written


def middle_slice(rows: Sequence[Row]) -> Slice:
    """What is held fixed in the plots: a usual width, some tokens, alpha 4, float32 if there is."""

    def choose(field: str, wish: object) -> Any:
        found = list(dict.fromkeys(getattr(row, field) for row in rows))
        return wish if wish in found else found[-1]

    return Slice(
        choose("name", PLAIN[1].name),
        choose("dtype", "fp32"),
        choose("tokens", 128),
        choose("alpha", 4),
    )


def _lines(
    rows: Sequence[Row],
    middle: Slice,
    varied: str,
    label: str,
    x: Callable[[Row], float],
    line: Callable[[Row], str] = lambda row: row.contender,
) -> Any:
    """Ratios against one quantity, a line per contender; `None` if it has one value only."""
    rows = [row for row in rows if middle.holds(row, varied) and row.layout != "dense"]
    ticks = sorted({x(row) for row in rows})
    if len(ticks) < 2:
        return None
    modes = [mode for mode in _MODES if any(row.mode == mode for row in rows)]
    figure, axes = new_figure(len(modes), width=4.8, height=4.2)
    names = list(dict.fromkeys(line(row) for row in rows))
    for ax, mode in zip(axes, modes, strict=True):
        for number, name in enumerate(names):
            own = sorted(
                (row for row in rows if line(row) == name and row.mode == mode), key=lambda r: x(r)
            )
            ax.plot(
                [x(row) for row in own],
                [row.ratio for row in own],
                label=name,
                color=_COLORS[number % len(_COLORS)],
                marker=_MARKERS[(number + number // len(_COLORS)) % len(_MARKERS)],
                markersize=4,
                linestyle="--" if name == "floor" else "-",
            )
        ax.axhline(1.0, color=_COLORS[7], linewidth=0.8)
        if max(row.ratio or 0.0 for row in rows) > _LINEAR:
            ax.set_yscale("log", base=2)
            ax.yaxis.set_major_formatter(lambda value, position: f"{value:g}")
        ax.grid(axis="y", alpha=0.3)
        ax.set_xscale("log", base=2)
        ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        ax.set_xlabel(label)
        ax.set_title(f"{_MODES[mode]}\n{_caption(middle, varied)}", fontsize=9)
    axes[0].set_ylabel("time, multiple of the dense parent's")
    handles = axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return figure


def _bars(rows: Sequence[Row], middle: Slice) -> Any:
    """All contenders in one case."""
    rows = [row for row in rows if middle.holds(row, "") and row.layout != "dense"]
    modes = [mode for mode in _MODES if any(row.mode == mode for row in rows)]
    if not modes:
        return None
    names = list(dict.fromkeys(row.contender for row in rows))
    figure, axes = new_figure(len(modes), width=4.8, height=1.2 + 0.24 * len(names))
    for ax, mode in zip(axes, modes, strict=True):
        ratios = {row.contender: row.ratio for row in rows if row.mode == mode}
        colors = [_COLORS[1] if " " in name else _COLORS[7] for name in names]
        places = range(len(names))
        ax.barh(places, [ratios.get(name, 0.0) for name in names], color=colors)
        for place, name in zip(places, names, strict=True):
            if name in ratios:
                ax.text(ratios[name], place, f" {ratios[name]:.2f}", va="center", fontsize=8)
        ax.axvline(1.0, color=_COLORS[0], linewidth=0.8)
        ax.set_yticks(places, names if ax is axes[0] else [""] * len(names), fontsize=8)
        ax.invert_yaxis()
        ax.margins(x=0.15)
        ax.set_xlabel("time, multiple of the dense parent's")
        ax.set_title(f"{_MODES[mode]}\n{_caption(middle, '')}", fontsize=9)
    return figure


def _caption(middle: Slice, varied: str) -> str:
    words = {
        "name": middle.name,
        "dtype": middle.dtype,
        "tokens": f"{middle.tokens} tokens",
        "alpha": f"alpha {middle.alpha}",
    }
    return ", ".join(text for field, text in words.items() if field != varied)
