"""The floor does the parent's products and activates `alpha` times the elements."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import floor
from benchmarks.blocks import Shape, make_parent, make_tokens, projections
from benchmarks.floor import Floor, chunks

CPU = torch.device("cpu")


@given(st.integers(1, 10**7), st.integers(1, 10**5))
def test_chunks_cover_the_elements_with_less_than_one_spare_each(
    elements: int, largest: int
) -> None:
    number, length = chunks(elements, largest)
    assert length <= largest
    assert 0 <= number * length - elements < number


def test_few_elements_are_one_chunk() -> None:
    assert chunks(6144, 2**17) == (1, 6144)


@pytest.mark.parametrize("gated", [False, True])
def test_products_are_the_parents(gated: bool) -> None:
    shape = Shape(8, 12, gated)
    parent = make_parent(shape, torch.float64, CPU)
    x = make_tokens(shape, 3, torch.float64, CPU).requires_grad_()
    ups, down = projections(parent)
    y = Floor(parent, 4)(x)
    torch.testing.assert_close(y, down(ups[0](x)))
    y.sum().backward()
    # The gradient of the hidden neurons reaches every up projection: all products take place.
    hidden = down.weight.sum(0)
    torch.testing.assert_close(x.grad[0, 0], sum(up.weight.t() @ hidden for up in ups))
    assert all(p.grad is not None for p in parent.parameters())


def test_it_activates_alpha_times_the_elements(monkeypatch: pytest.MonkeyPatch) -> None:
    shape, tokens, alpha = Shape(8, 12), 5, 4
    seen: list[int] = []

    class Counted(torch.nn.GELU):
        def forward(self, z: torch.Tensor) -> torch.Tensor:
            seen.append(z.numel())
            return super().forward(z)

    monkeypatch.setitem(floor.CHUNK, "cpu", 50)
    parent = make_parent(shape, torch.float32, CPU)
    parent[0].activation_fn = Counted()
    block = Floor(parent, alpha)
    x = make_tokens(shape, tokens, torch.float32, CPU)
    with torch.no_grad():
        block(x)
        seen.clear()
        block(x)
    assert sum(seen) == alpha * tokens * shape.hidden
    assert max(seen) <= 50
