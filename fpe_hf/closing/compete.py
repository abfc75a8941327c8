"""Which weights of an open block stay alive while its budget closes.

Magnitudes of up and down compete together, as in gradual magnitude pruning (Zhu and Gupta, 2017).
An input of a parent ends with at most one child: of its siblings' weights for that input all but
the largest count for less and less, and for nothing in the end. Outgoing weights compete child by
child.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..planning.prune import keep_largest
from .block import OpenBlock


def prune(block: OpenBlock, progress: float, power: float, *, disjoint: bool = True) -> None:
    """Prunes a block down to what the schedule allows.

    Args:
        block: The block. Its masks change, and its weights where they are pruned.
        progress: How far the budget is closed, 0 to 1.
        power: Of the schedule: of the weights that must go, `(1 - progress)^power` are left.
        disjoint: Whether siblings compete for inputs; not so in a control.
    """
    for expert, final in enumerate(block.spec.final_weights):
        surplus = int((block.start - final) * (1.0 - progress) ** power)
        ups, down = block.magnitudes(expert)
        winners = (
            _winners(block, expert, ups, final - int(down.count_nonzero())) if disjoint else None
        )
        block.keep(expert, *survivors(ups, down, winners, final, surplus, (1.0 - progress) ** 2))
    for layer in block.layers:
        layer.kill()


def survivors(
    ups: list[Tensor],
    down: Tensor,
    winners: Tensor | None,
    final: int,
    surplus: int,
    handicap: float,
) -> tuple[list[Tensor], Tensor]:
    """Which weights stay.

    What could be kept in the end if the budget closed now is safe. Beside it the largest others
    stay for the time being.

    Args:
        ups: Magnitudes per up module `[sources, alpha, parents, inputs]`; zero if pruned.
        down: Magnitudes `[outputs, alpha, parents]`.
        winners: Children whose weight for an input is the largest among its siblings', bool
            `[alpha, parents, inputs]`; `None` if siblings do not compete.
        final: Weights to end with.
        surplus: Weights to keep beyond that.
        handicap: What magnitudes of the other siblings are multiplied with.

    Returns:
        Masks like `ups` and `down`.
    """
    scores = [up if winners is None else up.where(winners, up * handicap) for up in ups]
    kept_ups, kept_down = keep_largest(scores, down, 1, final + surplus)
    if winners is None:
        return kept_ups, kept_down
    safe = sum(int((kept & winners).count_nonzero()) for kept in kept_ups)
    if safe + int(kept_down.count_nonzero()) >= final:
        return kept_ups, kept_down
    kept_ups, kept_down = keep_largest([up * winners for up in ups], down, 1, final)
    others = [torch.where(kept, 0.0, own) for kept, own in zip(kept_ups, scores, strict=True)]
    more_ups, more_down = keep_largest(others, down.where(~kept_down, 0.0), 1, surplus)
    kept_ups = [kept | more for kept, more in zip(kept_ups, more_ups, strict=True)]
    return kept_ups, kept_down | more_down


def _winners(block: OpenBlock, expert: int, ups: Sequence[Tensor], needed: int) -> Tensor:
    """The child with the largest weight for each input of each parent, gate and up together: bool
    `[alpha, parents, inputs]`.

    If that would leave fewer weights than needed, as gate and up may be pruned one by one, the
    child of which more are alive wins.
    """
    sources = torch.cat(list(ups)) if len(ups) > 1 else ups[0]
    if len(sources) == 1:
        return _largest(block, expert, sources[0])
    total = sources.sum(0)
    winners = _largest(block, expert, total)
    alive = (sources > 0).sum(0)
    if int((alive * winners).sum()) < needed:
        winners = _largest(block, expert, total.where(alive == alive.amax(0), 0.0))
    return winners


def _largest(block: OpenBlock, expert: int, total: Tensor) -> Tensor:
    """Of every parent's children the one with the largest number for an input."""
    best = total.amax(0)
    winners = total == best
    winners &= best > 0
    if int(winners.count_nonzero()) > int(best.count_nonzero()):  # some are equally large
        child = torch.arange(len(total), dtype=torch.uint8, device=total.device)
        drawn = block.preferred[expert].to(total.device)
        preferred = winners & (drawn == child.view(-1, 1, 1))
        first = winners & (winners.cumsum(0) == 1)
        winners = torch.where(preferred.any(0), preferred, first)
    return winners
