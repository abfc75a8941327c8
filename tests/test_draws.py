from __future__ import annotations

import torch

from fpe_hf.draws import Draws


def test_a_seed_gives_the_same_draws_whatever_the_defaults() -> None:
    def drawn() -> list[torch.Tensor]:
        draws = Draws(3)
        return [draws.uniform(2, 3), draws.normal(4), draws.below(5, 6), draws.order(7)]

    expected = drawn()
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    try:
        found = drawn()
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    assert all(map(torch.equal, found, expected))
    assert [tuple(tensor.shape) for tensor in found] == [(2, 3), (4,), (6,), (7,)]
    assert sorted(found[-1].tolist()) == list(range(7))
