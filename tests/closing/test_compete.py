from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from closing.holding import Held, held, open_cases, shake
from fpe_hf.closing.compete import prune, survivors
from fpe_hf.planning.draw import draw_up_children
from fpe_hf.planning.prune import keep_largest
from planning.cases import Case


def dense_of(model: Held) -> list[Tensor]:
    return [model.get_submodule(name).dense_weight() for name in (*model.names, model.last)]


@given(open_cases(), st.sampled_from([1.0, 0.5]))
def test_closing_at_once_is_pruning_the_same_start(case: Case, budget: float) -> None:
    """Copies are equally large: the random split decides, and the smallest go, as in `widen`."""
    model = Held(case)
    block = model.block
    down = block.down.by_child(block.down.weight.detach())[:, 0].clone()
    kept_ups, kept_down = keep_largest(list(case.parent.ups), down, 1, case.spec.final_weights[0])
    child = torch.arange(case.spec.alpha)[:, None, None]
    owned = draw_up_children(case.spec) == child
    expected = []
    for layer, kept in zip(block.ups, kept_ups, strict=True):
        weight = layer.weight.detach().clone()
        layer.by_child(weight)[:, 0].mul_(kept[:, None] & owned)
        expected.append(weight)
    weight = block.down.weight.detach().clone()
    block.down.by_child(weight)[:, 0].mul_(kept_down)
    expected.append(weight)
    prune(block, 1.0, 3)
    for found, wanted in zip(dense_of(model), expected, strict=True):
        torch.testing.assert_close(found.detach(), wanted, rtol=0, atol=0)


@given(open_cases(), st.integers(0, 2**16), st.integers(1, 6))
def test_masks_only_shrink_and_end_disjoint_at_the_budget(
    case: Case, seed: int, events: int
) -> None:
    model = Held(case)
    block = model.block
    before = [layer.mask.clone() for layer in block.layers]
    for event in range(1, events + 1):
        shake(model, seed + event)
        for layer in block.layers:
            layer.kill()
        prune(block, event / events, 3)
        for layer, mask in zip(block.layers, before, strict=True):
            assert not (layer.mask & ~mask).any()
            assert torch.equal(layer.weight != 0, layer.mask)
        before = [layer.mask.clone() for layer in block.layers]
    (final,) = case.spec.final_weights
    assert sum(int(mask.sum()) for mask in before) == final
    readers = torch.cat([up.by_child(up.mask) for up in block.ups]).any(0)
    assert int(readers.sum(1).max()) <= 1


@pytest.mark.parametrize("kind", ["plain", "gated", "interleaved"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38, 1e-45])
def test_training_that_diverged_ends_disjoint_at_the_budget(kind: str, value: float) -> None:
    for seed in range(4):
        model = held(kind, d=8, o=6, weights=seed)
        block = model.block
        shake(model, seed)
        for layer in block.layers:
            places = torch.rand(layer.weight.shape, generator=torch.Generator().manual_seed(seed))
            with torch.no_grad():
                layer.weight.masked_fill_(places < 0.4, value)
        for progress in (0.3, 0.6, 1.0):
            prune(block, progress, 3)
        alive = sum(int(layer.mask.sum()) for layer in block.layers)
        assert alive == block.spec.final_weights[0]
        readers = torch.cat([up.by_child(up.mask) for up in block.ups]).any(0)
        assert int(readers.sum(1).max()) == 1


def test_weights_go_on_a_cubic_schedule() -> None:
    block = held(d=20, h=10, o=8).block
    (final,) = block.spec.final_weights
    for progress in (0.0, 0.2, 0.5, 0.9):
        prune(block, progress, 3)
        alive = sum(int(layer.mask.sum()) for layer in block.layers)
        assert alive == final + int((block.start - final) * (1 - progress) ** 3)


def test_the_largest_sibling_stays_whatever_the_others_weigh() -> None:
    """Where an input is read by siblings alone that lose, it would end with none of them."""
    up = torch.tensor([[9.0, 1.0], [8.0, 2.0]]).view(1, 2, 1, 2)  # children, then inputs
    winners = (up == up.amax(1, keepdim=True))[0]
    none = torch.zeros(1, 2, 1)
    (kept,), _ = survivors([up], none, winners, 2, 1, 1.0)
    assert kept[0, :, 0].tolist() == [[True, False], [True, True]]
    (kept,), _ = survivors([up], none, winners, 2, 0, 0.0)
    assert kept[0, :, 0].tolist() == [[True, False], [False, True]]


def test_siblings_may_share_inputs_in_a_control() -> None:
    model = held(d=20, h=10, o=8)
    shake(model, 0, 3.0)
    prune(model.block, 1.0, 3, disjoint=False)
    (up,) = model.block.ups
    assert int(up.by_child(up.mask).sum(2).max()) > 1
    assert sum(layer.nonzeros() for layer in model.block.layers) == model.block.spec.limit


def test_gate_and_up_of_a_child_read_the_same_inputs() -> None:
    for kind in ("gated", "halves", "interleaved"):
        model = held(kind)
        shake(model, 1, 2.0)
        prune(model.block, 1.0, 3)
        gate_and_up = torch.cat([up.by_child(up.mask) for up in model.block.ups])
        assert int(gate_and_up.any(0).sum(1).max()) == 1
