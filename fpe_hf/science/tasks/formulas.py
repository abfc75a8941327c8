"""The Boolean table's formulas, and whether the literals of a clause end in one child."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from math import comb

import torch
from torch import Tensor, nn

from ...layers import UpLayer
from ...metrics import clause_coverage, whole_clauses
from ..comparison import AFTER, BEFORE, BooleanTask
from ..data import Labelled
from ..splitting import clause_split
from . import Task, mlp

TASK = BooleanTask()


def formulas(seed: int) -> Task:
    """The formula of a seed, its examples, and networks of one hidden layer."""
    problems = replace(TASK, first_seed=TASK.first_seed + seed).draw(1)
    variables = problems.formulas[0].variables
    x, y, test_x, test_y = problems.x, problems.y, problems.test_x, problems.test_y
    return Task(
        Labelled(x[0], y[0], test_x[0], test_y[0], ("false", "true")),
        lambda width: mlp(TASK.inputs, [width], 1),
        (BEFORE.epochs + AFTER.epochs) * (TASK.examples // BEFORE.batch_size),
        BEFORE.batch_size,
        BEFORE.lr,
        first="0",
        clauses=clause_split(variables),
        measure=partial(_clause_figures, variables),
    )


def _clause_figures(variables: Tensor, model: nn.Module) -> dict[str, float]:
    layer = model.get_submodule("0")
    if not isinstance(layer, UpLayer):
        return {}
    return clause_figures(layer.dense_weight()[layer.children_places()] != 0, variables)


def clause_figures(mask: Tensor, clauses: Tensor) -> dict[str, float]:
    """Which children read which clauses.

    Args:
        mask: Inputs that children read, bool `[alpha, parents, inputs]`.
        clauses: Variables of each clause, int64 `[clauses, literals]`.

    Returns:
        `whole`: share of clauses that some child reads whole. `together`: of the pairs of a parent
        and a clause whose literals its children all read, the share whose literals are in one
        child. `chance`: what that would be if the inputs that a parent's children read were dealt
        to them at random, as many to each; NaN where siblings share inputs.
    """
    literals = clauses.shape[1]
    pairs = whole_clauses(mask.any(0), clauses)
    together = whole_clauses(mask, clauses).any(0)
    read = mask.sum(-1).tolist()
    chances = [
        sum(comb(count, literals) for count in own) / max(comb(int(total), literals), 1)
        for own, total in zip(zip(*read, strict=True), mask.any(0).sum(-1).tolist(), strict=True)
    ]
    chance = torch.tensor(chances, dtype=torch.float32, device="cpu")[:, None].expand(pairs.shape)
    count = max(int(pairs.sum()), 1)
    disjoint = int(mask.sum(0).max()) <= 1
    return {
        "whole": float(clause_coverage(mask.flatten(0, 1), clauses)),
        "together": int((together & pairs).sum()) / count,
        "chance": float((chance * pairs).sum()) / count if disjoint else float("nan"),
    }
