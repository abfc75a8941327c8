"""What it costs to train while the budget is open, and after it has been closed: whole steps with
AdamW beside those of the dense parent and of a dense block as wide as the open one."""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fpe_hf
from fpe_hf.files import write_whole
from fpe_hf.markup import table

from .environment import environment
from .timing import interleave

RESULTS = Path(__file__).resolve().parent / "results"

SHAPES = ((384, 1536), (768, 3072))
TOKENS = (128, 1024)
ALPHAS = (2, 4)
EVERY = 12
"""Steps between changes of the masks: as in a training of 2,000 steps."""

DENSE, WIDE, OPEN, CLOSED = "dense", "wide dense", "open", "closed"


def measure_opening(threads: int, budget: float) -> Iterable[dict[str, Any]]:
    """Rows of processor time per training step, in ratios.

    Args:
        threads: Of PyTorch.
        budget: Seconds in all.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    now = time.process_time if threads == 1 else time.perf_counter
    cases = [(s, a, t) for s in SHAPES for a in ALPHAS for t in TOKENS]
    try:
        for (width, hidden), alpha, tokens in cases:
            x = torch.randn(tokens, width, dtype=torch.float32, device="cpu")
            calls = dict(_steps(width, hidden, alpha, x))
            share = budget / len(cases)
            timed = interleave(calls, every_round=(DENSE, WIDE), budget=share, now=now)
            yield {
                "width": width,
                "hidden": hidden,
                "alpha": alpha,
                "tokens": tokens,
                "threads": threads,
                "open / wide dense": timed.ratio(OPEN, WIDE).median,
                "open / dense": timed.ratio(OPEN, DENSE).median,
                "closed / dense": timed.ratio(CLOSED, DENSE).median,
            }
    finally:
        torch.set_num_threads(before)


def _steps(
    width: int, hidden: int, alpha: int, x: Tensor
) -> Iterable[tuple[str, Callable[[], None]]]:
    def mlp(size: int) -> nn.Module:
        return nn.Sequential(nn.Linear(width, size), nn.GELU(), nn.Linear(size, width))

    parent = mlp(hidden)
    yield DENSE, _step(copy.deepcopy(parent), x)
    yield WIDE, _step(mlp(alpha * hidden), x)
    settings: dict[str, Any] = {"split": "learned", "alpha": alpha, "example_inputs": (x,)}
    yield OPEN, _step(fpe_hf.widen(copy.deepcopy(parent), **settings), x, closing=True)
    closed = fpe_hf.widen(parent, **settings)
    fpe_hf.BudgetSchedule(closed, 1).close()
    yield CLOSED, _step(closed, x)


def _step(model: nn.Module, x: Tensor, closing: bool = False) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    schedule = None
    if closing:
        schedule = fpe_hf.BudgetSchedule(
            model, 10**6, optimizer=optimizer, begin=0.0, end=1.0, every=EVERY
        )

    def step() -> None:
        model(x).square().mean().backward()
        optimizer.step()
        if schedule is not None:
            schedule.step()
        optimizer.zero_grad()

    return step


def page(figures: dict[str, Any]) -> str:
    """The results in Markdown."""
    about, rows = figures["environment"], figures["rows"]
    cells = [
        [f"{own:.2f}" if isinstance(own, float) else str(own) for own in row.values()]
        for row in rows
    ]
    lines = [
        "# Training while the budget is open",
        "",
        "Time of whole training steps with AdamW in float32, in ratios: medians of one",
        "interleaved run (on one thread of processor time). While the budget is open, masks",
        f"change every {EVERY} steps, which is part of the time. *Closed* is the `element` layout.",
        "",
        f"`{figures['command']}`; {about['processor']}; PyTorch {about['torch']}; {about['date']}.",
        "",
        table(list(rows[0]), cells, texts=0),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--budget", type=float, default=120.0, help="seconds in all")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.manual_seed(0)
    command = f"python -m benchmarks.opening --threads {options.threads}"
    figures: dict[str, Any] = {
        "command": command,
        "environment": environment(torch.device("cpu")),
        "rows": list(measure_opening(options.threads, options.budget)),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    write_whole(options.out / "opening.json", json.dumps(figures, indent=1) + "\n")
    write_whole(options.out / "opening.md", page(figures))
    print(page(figures))


if __name__ == "__main__":
    main()
