"""What a widened block costs beside its dense parent, as measured: `layout="auto"` goes by it.

The tables, `costs_cpu.json` and the like, are written by `python -m benchmarks costs`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from math import log
from statistics import geometric_mean
from typing import Any

from ..config import FPEConfig
from ..discovery import MLPBlock

TOKENS = {"training": (128, 2048), "serving": (1, 16, 128, 2048)}
"""Purpose -> tokens per pass for which costs were measured."""

MODES = {"training": "train", "serving": "forward"}
"""Purpose -> what was timed."""

TILES = (1, 4, 8)
"""Numbers of tiles among which `layout="auto"` chooses."""


@dataclass(frozen=True)
class Cost:
    """The time of a pass (in training, forward and backward), in units of the dense parent's.

    Attributes:
        layout: `"element"` or `"block"`.
        tiles: Tiles of a block; 0 in the `element` layout.
        ratios: Tokens -> ratio, that of the nearest case in the table.
        measured: Whether the device's kind was measured. If not, the ratios count operations.
    """

    layout: str
    tiles: int
    ratios: dict[int, float]
    measured: bool

    @property
    def overall(self) -> float:
        """The geometric mean over all numbers of tokens."""
        return geometric_mean(self.ratios.values())

    def __str__(self) -> str:
        name = f"block, {self.tiles} tile{'s' * (self.tiles > 1)}" if self.tiles else "element"
        told = ", ".join(f"{ratio:.2f}x at {tokens}" for tokens, ratio in self.ratios.items())
        return f"{name}: {told} tokens" + ("" if self.measured else " (operations; not measured)")


def cost(layout: str, tiles: int, alpha: int, width: int, device: str, purpose: str) -> Cost:
    """What a block costs.

    Args:
        layout: `"element"` or `"block"`.
        tiles: Tiles of a block; 0 in the `element` layout.
        alpha: Children per parent.
        width: Inputs of the block.
        device: Kind of device, such as `"cpu"`.
        purpose: `"training"` or `"serving"`.
    """
    mode = MODES[purpose]
    rows = [row for row in _table(device) if (row["layout"], row["mode"]) == (layout, mode)]
    if not rows:
        ratio = 1.0 if layout == "block" else float(alpha)
        return Cost(layout, tiles, dict.fromkeys(TOKENS[purpose], ratio), measured=False)

    def distance(row: dict[str, Any], tokens: int) -> float:
        wanted = {"alpha": alpha, "width": width, "tiles": max(tiles, 1), "tokens": tokens}
        return sum(abs(log(max(row[name], 1) / value)) for name, value in wanted.items())

    nearest = {
        tokens: min(rows, key=lambda row: distance(row, tokens))["ratio"]
        for tokens in TOKENS[purpose]
    }
    return Cost(layout, tiles, nearest, measured=True)


def options(block: MLPBlock, config: FPEConfig, device: str) -> list[tuple[Cost, FPEConfig]]:
    """The layouts that `layout="auto"` may choose for a block, the cheapest first.

    Args:
        block: The block.
        config: Its configuration.
        device: Kind of device that the block is on.

    Returns:
        The cost and the configuration of each. Of equal ones the one with fewer tiles comes first.
    """
    found = [
        (
            cost(layout, tiles, config.alpha, block.in_features, device, config.purpose),
            config.with_overrides(
                layout=layout, tile_size=-(-block.parents // tiles) if tiles > 1 else None
            ),
        )
        for layout, tiles in _candidates(block.parents)
    ]
    return sorted(found, key=lambda option: option[0].overall)


def _candidates(parents: int) -> Iterator[tuple[str, int]]:
    yield from (("block", tiles) for tiles in TILES if tiles <= parents)
    yield "element", 0


@cache
def _table(device: str) -> list[dict[str, Any]]:
    """The rows of a kind of device, in float32."""
    file = files("fpe_hf.planning").joinpath(f"costs_{device}.json")
    rows = json.loads(file.read_text(encoding="utf-8"))["rows"] if file.is_file() else []
    return [row for row in rows if row["dtype"] == "fp32"]
