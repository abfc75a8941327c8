"""Arms of the comparison of learned splits: one model, trained in one way, as one row.

All arms of a task and seed start from weights of one seed and see the same examples in the same
order, with the same settings.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ..config import FPEConfig
from ..conversion import widen
from ..metrics import interference
from ..modules import nonzeros
from ..schedule import BudgetSchedule
from ..splits import LEARNED, register_split
from .tasks import Task

ARMS = (
    *("dense", "random", "random-at-once", "clause", "learned", "overlap"),
    *("wide-dense", "dense-longer"),
)
CLOSED = 0.7  # part of the training at which budgets are closed, unless it is said
_WARM_UP = 0.05  # of the training, for the learning rate
_POINTS = 20  # of the course of training that are looked at


@dataclass(frozen=True)
class Run:
    """What is trained.

    Attributes:
        task: Name of a task.
        width: MLP width of the dense parent.
        arm: One of `ARMS`. `random` is split after half of the training, as in the paper; so is
            `clause`. `random-at-once` is split before the training. `overlap` is `learned` without
            disjoint inputs, `wide-dense` has `alpha` times the neurons, and `dense-longer` is
            trained for as many FLOPs as `learned`, counted as if that were wide to the end.
        alpha: Expansion factor.
        opened: Part of the training before the split of a learned arm.
        seed: Seed of the weights, of the order of examples, and of the split.
        closed: Part of what is left of the training when the budget of a learned arm is closed.
    """

    task: str
    width: int
    arm: str
    alpha: int
    opened: float = 0.0
    seed: int = 0
    closed: float = CLOSED

    @property
    def name(self) -> str:
        """Of its file."""
        when = f"-at{self.opened:g}" if self.opened else ""
        when += f"-to{self.closed:g}" if self.closed != CLOSED else ""
        return f"{self.task}-{self.width}-{self.arm}-a{self.alpha}{when}-s{self.seed}"


def train_run(run: Run, task: Task) -> dict[str, Any]:
    """Trains and tests.

    Args:
        run: Width, arm and seed.
        task: What its task is.

    Returns:
        The run's fields, and: `score`, `metric`, `nonzeros` (all trainable values of the model),
        `steps`, `flops` (of the training, those of masked weights included), `seconds` (of
        processor time), `course` (step, non-zeros and interference along the training), and what
        the task measures.
    """
    seed, arm = run.seed, run.arm
    torch.manual_seed(seed)
    model = task.build(run.width * (run.alpha if arm == "wide-dense" else 1))
    narrow, wide = (flops_per_step(task, run.width * times) for times in (1, run.alpha))
    steps = round(task.steps * wide / narrow) if arm == "dense-longer" else task.steps
    split_at = _split_at(run, steps)
    adam = torch.optim.Adam(model.parameters(), lr=task.lr)
    schedule = None
    course: list[dict[str, float]] = []
    start = time.process_time()
    looking = 0.0
    for step, (x, y) in zip(range(steps), task.batches(seed), strict=False):
        if step == split_at:
            model = _split(model, run, task)
            adam = torch.optim.Adam(model.parameters(), lr=task.lr)
            if arm in ("learned", "overlap"):
                left, disjoint = steps - step, arm == "learned"
                schedule = BudgetSchedule(
                    model, left, optimizer=adam, end=run.closed, disjoint=disjoint
                )
        for group in adam.param_groups:
            group["lr"] = task.lr * _share(step, steps)
        adam.zero_grad()
        task.loss(model, x, y).backward()
        adam.step()
        if schedule is not None:
            schedule.step()
        if (step + 1) % max(steps // _POINTS, 1) == 0:
            began = time.process_time()
            course.append({"step": step + 1, **_look(model, task)})
            looking += time.process_time() - began
    seconds = time.process_time() - start - looking
    first = steps if split_at is None else split_at
    return {
        **asdict(run),
        "score": task.score(model),
        "metric": task.metric,
        "nonzeros": nonzeros(model),
        "steps": steps,
        "flops": wide * steps if arm == "wide-dense" else narrow * first + wide * (steps - first),
        "seconds": round(seconds, 2),
        "course": course,
        **(task.measure(model) if task.measure else {}),
    }


def _share(step: int, steps: int) -> float:
    """Of the learning rate: it rises for `_WARM_UP` of the steps, and falls as a half cosine."""
    rise = max(_WARM_UP * steps, 1.0)
    return min((step + 1) / rise, 1.0) * 0.5 * (1 + math.cos(math.pi * step / steps))


def flops_per_step(task: Task, width: int) -> int:
    """FLOPs of one step of a dense model, forward and backward."""
    with torch.random.fork_rng(devices=[]):
        model = task.build(width)
    x, y = next(task.batches(0))
    with FlopCounterMode(display=False) as counter:
        task.loss(model, x, y).backward()
    return int(counter.get_total_flops())


def _split_at(run: Run, steps: int) -> int | None:
    if run.arm in ("random", "clause"):
        return steps // 2
    if run.arm == "random-at-once":
        return 0
    return round(run.opened * steps) if run.arm in ("learned", "overlap") else None


def _split(model: nn.Module, run: Run, task: Task) -> nn.Module:
    split = "random"
    if run.arm in ("learned", "overlap"):
        split = LEARNED
    elif run.arm == "clause":
        assert task.clauses is not None
        split = f"clauses-{run.name}"
        register_split(split, task.clauses)
    config = FPEConfig(run.alpha, split, layout="element", bias="child", seed=run.seed)
    return widen(model, config, example_inputs=task.example_inputs)


def _look(model: nn.Module, task: Task) -> Mapping[str, float]:
    found: dict[str, float] = {"nonzeros": nonzeros(model)}
    if task.first is not None:
        (first,) = interference(model, [task.first])
        found |= {"capacity": first.feature_capacity, "cosine": first.mean_cosine}
    return found
