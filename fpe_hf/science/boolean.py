"""Boolean code problems: random DNF formulas, and assignments labelled by whether they satisfy one.

The task of the paper's first experiments (arXiv 2510.04500): a formula in disjunctive normal form
is true if at least one of its clauses has all of its literals true.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import comb
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..draws import Draws
from ..errors import ConfigError
from ..extras import need

if TYPE_CHECKING:
    from datasets import Dataset

_ATTEMPTS = 1000


@dataclass(frozen=True)
class DNF:
    """A formula in disjunctive normal form, `OR_i AND_j literal_ij`.

    Attributes:
        inputs: Number of variables `n`.
        variables: Variable of each literal, int64 `[clauses, literals]`.
        positive: Whether each literal is its variable rather than the negation, bool, same shape.
    """

    inputs: int
    variables: Tensor
    positive: Tensor

    def literals(self, x: Tensor) -> Tensor:
        """Value of every literal: bool `[..., inputs]` -> bool `[..., clauses, literals]`."""
        return x[..., self.variables] == self.positive

    def clauses(self, x: Tensor) -> Tensor:
        """Value of every clause: bool `[..., inputs]` -> bool `[..., clauses]`."""
        return self.literals(x).all(-1)

    def __call__(self, x: Tensor) -> Tensor:
        """Value of the formula: bool `[..., inputs]` -> bool `[...]`."""
        return self.clauses(x).any(-1)

    def __str__(self) -> str:
        signs = {True: "", False: "~"}
        return " | ".join(
            "(" + " & ".join(f"{signs[p]}x{v}" for v, p in zip(vs, ps, strict=True)) + ")"
            for vs, ps in zip(self.variables.tolist(), self.positive.tolist(), strict=True)
        )


def random_dnf(
    inputs: int,
    clauses: int,
    literals: int,
    *,
    disjoint: bool = True,
    negations: bool = False,
    seed: int = 0,
) -> DNF:
    """Draws a formula.

    Args:
        inputs: Variables `n`.
        clauses: Clauses `m`.
        literals: Literals per clause `k`.
        disjoint: No two clauses share a variable; needs `m * k <= n`. Otherwise each clause draws
            its `k` variables on its own, and no two clauses are alike.
        negations: Negate each literal with probability 1/2.
        seed: Seed.

    Raises:
        ConfigError: There are too few variables.
    """
    needed = clauses * literals if disjoint else literals
    if min(inputs, clauses, literals) < 1 or needed > inputs:
        raise ConfigError(
            f"inputs={inputs}, clauses={clauses}, literals={literals}: "
            f"{'disjoint' if disjoint else 'overlapping'} clauses need at least {needed} inputs "
            "and one of each; raise inputs" + (" or set disjoint=False." if disjoint else ".")
        )
    draws = Draws(seed)
    if disjoint:
        order = draws.order(inputs)
        variables = order[: clauses * literals].view(clauses, literals)
    else:
        variables = _distinct_rows(inputs, clauses, literals, draws)
    positive = torch.ones(clauses, literals, dtype=torch.bool, device="cpu")
    if negations:
        positive = draws.uniform(clauses, literals) < 0.5
    return DNF(inputs, variables, positive)


def _distinct_rows(inputs: int, rows: int, size: int, draws: Draws) -> Tensor:
    found: set[tuple[int, ...]] = set()
    if rows > comb(inputs, size):
        raise ConfigError(
            f"clauses={rows} of {size} out of {inputs} variables cannot all differ: raise inputs."
        )
    while len(found) < rows:
        row = draws.order(inputs)[:size].sort().values
        found.add(tuple(row.tolist()))
    return torch.tensor(sorted(found), dtype=torch.int64, device="cpu")


@dataclass(frozen=True)
class Examples:
    """Labelled assignments.

    Attributes:
        x: Assignments, bool `[examples, inputs]`.
        y: Labels, bool `[examples]`.
    """

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)

    def to_dataset(self) -> Dataset:
        """As a `datasets.Dataset` with the columns `x` (0/1 lists) and `label`."""
        need("recipes", "Examples.to_dataset")
        from datasets import ClassLabel, Dataset, Features, Sequence, Value

        features = Features(
            {
                "x": Sequence(Value("int8"), length=self.x.shape[1]),
                "label": ClassLabel(names=["false", "true"]),
            }
        )
        columns = {"x": self.x.to(torch.int8).numpy(), "label": self.y.to(torch.int64).numpy()}
        return Dataset.from_dict(columns, features=features)


def sample(
    formula: DNF,
    examples: int,
    *,
    hard: float = 0.5,
    density: float = 0.5,
    single: bool = False,
    seed: int = 0,
) -> Examples:
    """Draws labelled assignments, half of them true (rounded down), in random order.

    All start as *backgrounds*, in which each variable is true with probability `density`. In a
    true example one clause, drawn uniformly, has been made true. In a false one every true clause
    has had one of its literals, drawn uniformly, turned false. A *hard* false one started with a
    clause made true but for one literal, and still has it so.

    Args:
        formula: The formula.
        examples: How many.
        hard: Share of the false examples that are hard, 0 to 1.
        density: Probability that a variable of the background is true, 0 to 1.
        single: Whether no other clause may be true in a true example; those that are, are made
            false as in a false example.
        seed: Seed.

    Raises:
        ConfigError: `hard` or `density` is out of range, or the formula has no such examples.
    """
    for name, share in (("hard", hard), ("density", density)):
        if not 0.0 <= share <= 1.0:
            raise ConfigError(f"{name}={share!r} is out of range: it must be from 0.0 to 1.0.")
    source = _Source(formula, density, Draws(seed))
    trues = examples // 2
    hards = round(hard * (examples - trues))
    parts = [
        source.collect(source.true_singles if single else source.trues, trues, "true"),
        source.collect(source.hard, hards, "hard false"),
        source.collect(source.false, examples - trues - hards, "false"),
    ]
    order = source.draws.order(examples)
    x = torch.cat(parts)[order]
    return Examples(x, formula(x))


@dataclass(frozen=True)
class _Source:
    """Draws the kinds of examples of a formula. Methods that draw may return fewer than asked."""

    formula: DNF
    density: float
    draws: Draws

    def collect(self, draw: Callable[[int], Tensor], count: int, what: str) -> Tensor:
        """Draws until there are enough."""
        found = torch.empty(0, self.formula.inputs, dtype=torch.bool, device="cpu")
        for _ in range(_ATTEMPTS):
            if len(found) >= count:
                return found[:count]
            found = torch.cat([found, draw(count)])
        raise ConfigError(
            f"The formula {self.formula} has too few {what} examples: use other clauses."
        )

    def trues(self, count: int) -> Tensor:
        return self._satisfy(self._backgrounds(count), self._choose(count))

    def true_singles(self, count: int) -> Tensor:
        clause = self._choose(count)
        x = self._falsify(self._satisfy(self._backgrounds(count), clause), spared=clause)
        return x[self.formula.clauses(x).sum(1) == 1]

    def false(self, count: int) -> Tensor:
        x = self._falsify(self._backgrounds(count))
        return x[~self.formula(x)]

    def hard(self, count: int) -> Tensor:
        clause = self._choose(count)
        x = self._satisfy(self._backgrounds(count), clause)
        x = self._falsify(self._break(x, clause))
        chosen = self.formula.literals(x)[torch.arange(count, device="cpu"), clause]
        one_short = chosen.sum(1) == self.formula.variables.shape[1] - 1
        return x[one_short & ~self.formula(x)]

    def _backgrounds(self, count: int) -> Tensor:
        return self.draws.uniform(count, self.formula.inputs) < self.density

    def _choose(self, count: int) -> Tensor:
        return self.draws.below(len(self.formula.variables), count)

    def _satisfy(self, x: Tensor, clause: Tensor) -> Tensor:
        """Makes one clause of each assignment true."""
        return x.scatter(1, self.formula.variables[clause], self.formula.positive[clause])

    def _break(self, x: Tensor, clause: Tensor) -> Tensor:
        """Makes one literal of one clause of each assignment false."""
        literals = self.formula.variables.shape[1]
        place = self.draws.below(literals, len(x), 1)
        variable = self.formula.variables[clause].gather(1, place)
        return x.scatter(1, variable, ~self.formula.positive[clause].gather(1, place))

    def _falsify(self, x: Tensor, spared: Tensor | None = None) -> Tensor:
        """Breaks true clauses one after the other, save the `spared` one of each assignment. Where
        clauses share variables this may not end, so what is true after a few rounds is left so."""
        for clause in torch.arange(len(self.formula.variables), device="cpu").repeat(2):
            broken = self.formula.clauses(x)[:, clause]
            if spared is not None:
                broken &= clause != spared
            rows = broken.nonzero().squeeze(1)
            x[rows] = self._break(x[rows], clause.expand(len(rows)))
        return x
