"""What `fpe-hf inspect` tells of the time that widened blocks take, and of how they compute."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

from ..config import PURPOSES
from .tables import print_table

if TYPE_CHECKING:
    from ..planning import BlockSpec
    from ..planning.costs import Cost


def costs(specs: Iterable[BlockSpec], purpose: str) -> list[tuple[int, Cost]]:
    """How many blocks there are of each kind, and what one costs on this machine's device.

    Args:
        specs: The blocks.
        purpose: `"training"` or `"serving"`.
    """
    import torch

    from ..planning.costs import cost

    device = "cuda" if torch.cuda.is_available() else "cpu"
    kinds: dict[tuple[str, int, int, int], int] = {}
    for spec in specs:
        tiles = spec.tile_count // spec.experts if spec.layout == "block" else 0
        kind = spec.layout, tiles, spec.alpha, spec.in_features
        kinds[kind] = kinds.get(kind, 0) + 1
    return [(count, cost(*kind, device, purpose)) for kind, count in kinds.items()]


def costs_as_json(specs: Iterable[BlockSpec]) -> list[dict[str, Any]]:
    """`costs` as JSON values, for both purposes."""
    known = list(specs)
    return [
        {"purpose": purpose, "blocks": count, **asdict(cost)}
        for purpose in PURPOSES
        for count, cost in costs(known, purpose)
    ]


def print_speed(specs: Iterable[BlockSpec]) -> None:
    """Prints a table of costs, and how blocks are computed here."""
    from ..kernels.dispatch import explain

    known = list(specs)
    training, serving = (costs(known, purpose) for purpose in PURPOSES)
    header = ["blocks", "layout", "tiles"]
    header += [f"{n} token" + "s" * (n > 1) for n in serving[0][1].ratios]
    header += [f"trained on {n}" for n in training[0][1].ratios]
    rows = [
        [
            str(count),
            cost.layout,
            str(cost.tiles or ""),
            *(f"{ratio:.2f}" for ratio in (*cost.ratios.values(), *trained.ratios.values())),
            "the nearest case measured" if cost.measured else "counting operations; not measured",
        ]
        for (count, cost), (_, trained) in zip(serving, training, strict=True)
    ]
    typer.echo("Time of a pass, as a multiple of the dense parent's:\n")
    print_table([*header, "by"], rows, left=2)
    for layout in sorted({cost.layout for _, cost in serving}):
        typer.echo(explain(layout))
    typer.echo()
