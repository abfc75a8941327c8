from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fpe_hf.planning import importance
from fpe_hf.planning.importance import Measure, mean_square, norm, of_inputs, of_outputs


def normal(*shape: int, dtype: torch.dtype, turned: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    numbers = torch.randn(shape, generator=generator).to(dtype)
    return numbers.mT.contiguous().mT if turned else numbers


@pytest.mark.parametrize("measure", [norm, mean_square])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("inputs", [1, 63, 64, 193, 321])
def test_pieces_give_what_the_whole_gives_to_the_last_bit(
    inputs: int,
    dtype: torch.dtype,
    turned: bool,
    measure: Measure,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ups = [normal(sources, 150, inputs, dtype=dtype, turned=turned) for sources in (1, 1)]
    down = normal(inputs, 150, dtype=dtype, turned=turned)
    expected = measure(torch.cat(ups).float(), (0, 1)), measure(down.float().clone(), 1)
    monkeypatch.setattr(importance, "_PIECE", 1)
    assert torch.equal(of_inputs(ups, measure), expected[0])
    assert torch.equal(of_outputs(down, measure), expected[1])


def test_measures() -> None:
    weight = torch.tensor([[[3.0, 0.0], [4.0, 1.0]], [[0.0, 2.0], [0.0, 2.0]]])
    assert of_inputs([weight], norm).tolist() == [5.0, 3.0]
    assert of_inputs([weight[:1], weight[1:]], mean_square).tolist() == [6.25, 2.25]
    assert of_outputs(weight[0], norm).tolist() == [3.0, pytest.approx(17**0.5)]


def test_pieces_are_of_bounded_size_and_cover_everything() -> None:
    pieces = list(importance._pieces(16384, 53248))
    assert [index for piece in pieces for index in range(16384)[piece]] == list(range(16384))
    assert max(piece.stop - piece.start for piece in pieces) == 64
    assert len(list(importance._pieces(16384, 16))) == 1
