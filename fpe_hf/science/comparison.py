"""Dense networks against expanded ones on Boolean tasks, the same for all experiments."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from ..splits import Split
from .boolean import DNF, random_dnf, sample
from .networks import Networks, init_networks
from .splitting import clause_split
from .training import Training
from .trials import RANDOM, Arm, Outcome, Trials

CLAUSE = "clause"
BEFORE, AFTER = Training(epochs=25, lr=5e-3, seed=100), Training(epochs=25, lr=5e-3, seed=101)


@dataclass(frozen=True)
class BooleanTask:
    """A family of Boolean problems; every seed draws a formula and its examples.

    The paper states 8 clauses, 8 neurons, binary cross-entropy, and a split after 25 of 50 epochs;
    the other values are ours (see `docs/reproduction.md`).

    Attributes:
        inputs: Variables, those in no clause included.
        clauses: Clauses.
        literals: Literals per clause.
        disjoint: Whether no two clauses share a variable.
        hard: Share of hard ones among the false examples.
        density: Probability that a variable of the background is true.
        single: Whether only one clause is true in a true example.
        examples: Training examples.
        test_examples: Test examples.
        neurons: Neurons of the dense parent.
        first_seed: Seed of the first problem. The settings were chosen on seeds below 100.
    """

    inputs: int = 160
    clauses: int = 8
    literals: int = 2
    disjoint: bool = True
    hard: float = 1.0
    density: float = 0.25
    single: bool = True
    examples: int = 10_000
    test_examples: int = 2_000
    neurons: int = 8
    first_seed: int = 100

    def draw(self, seeds: int) -> Problems:
        """The problems of as many seeds, from `first_seed` on."""
        numbers = range(self.first_seed, self.first_seed + seeds)
        formulas = [
            random_dnf(self.inputs, self.clauses, self.literals, disjoint=self.disjoint, seed=seed)
            for seed in numbers
        ]

        def draw(count: int, offset: int) -> tuple[Tensor, Tensor]:
            sets = [
                sample(
                    formula,
                    count,
                    hard=self.hard,
                    density=self.density,
                    single=self.single,
                    seed=2 * seed + offset,
                )
                for seed, formula in zip(numbers, formulas, strict=True)
            ]
            return torch.stack([s.x for s in sets]), torch.stack([s.y for s in sets])

        return Problems(*draw(self.examples, 0), *draw(self.test_examples, 1), formulas)


@dataclass(frozen=True)
class Problems(Trials):
    """One Boolean problem per model, inputs and labels as bools.

    Attributes:
        formulas: One per model.
    """

    formulas: list[DNF]

    def splits(self, name: str, models: int) -> list[str | Split]:
        """What divides the inputs of each model under a name; `clause` differs from one to the
        next."""
        if name == CLAUSE:
            return [clause_split(formula.variables) for formula in self.formulas]
        return super().splits(name, models)


def warm_up(task: BooleanTask, problems: Problems, how: Training) -> Networks:
    """Dense networks trained up to the split."""
    sizes = [task.inputs, task.neurons, 1]
    return problems.train(init_networks(len(problems.formulas), sizes, seed=how.seed), how)


def compare(
    task: BooleanTask,
    splits: Iterable[str] = (RANDOM, CLAUSE),
    *,
    alphas: Iterable[int] = (2,),
    seeds: int = 20,
    before: Training = BEFORE,
    after: Training = AFTER,
) -> Mapping[Arm, Outcome]:
    """Trains dense networks and expanded ones from the same warm-up.

    Args:
        task: The task.
        splits: Names of splits (see `fpe_hf.science.splitting`).
        alphas: Expansion factors.
        seeds: Problems, each with one network per arm.
        before: Training before the split.
        after: Training after the split, also of the dense networks.

    Returns:
        Outcomes by split and expansion factor; `("dense", 1)` is the baseline.
    """
    problems = task.draw(seeds)
    warm = warm_up(task, problems, before)
    return problems.compare(warm, product(splits, alphas), after)
