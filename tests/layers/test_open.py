from __future__ import annotations

import pytest
import torch
from hypothesis import given
from torch import nn

import fpe_hf
from closing.holding import Held, held, open_cases
from fpe_hf.errors import CheckpointError
from fpe_hf.layers import OpenDown, OpenUp
from planning.cases import Case, make_case


def stock(case: Case) -> nn.Module:
    """An MLP as `Held` computes it, of the parent's weights."""
    model = Held(make_case())
    model.names, model.last = list(case.block.ups), case.block.down
    model.fused = case.block.fused
    parent = case.parent
    for name, up, bias in zip(model.names, parent.ups, parent.up_biases, strict=True):
        model.mlp.add_module(name.rpartition(".")[2], linear(rows(up, case), rows(bias, case)))
    model.mlp.add_module("down", linear(parent.down, parent.down_bias))
    return model


def rows(by_source: torch.Tensor | None, case: Case) -> torch.Tensor | None:
    if by_source is None:
        return None
    if case.block.fused == "interleaved":
        by_source = by_source.transpose(0, 1)
    return by_source.flatten(0, 1)


def linear(weight: torch.Tensor | None, bias: torch.Tensor | None) -> nn.Linear:
    assert weight is not None
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None:
            layer.bias.copy_(bias)
    return layer


@given(open_cases())
def test_a_learned_split_starts_as_its_parent(case: Case) -> None:
    x = torch.randn(5, case.spec.in_features, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(Held(case)(x), stock(case)(x), rtol=1e-4, atol=1e-5)


def test_projections_that_start_at_zero_have_siblings_that_part() -> None:
    case = make_case(split="learned", alpha=4)
    case.parent.down.zero_()
    down = Held(case).block.down
    shares = down.by_child(down.weight.detach())[:, 0]
    assert float(shares.sum(1).abs().max()) < 1e-6
    assert float(shares.std(1).min()) > 0


def siblings(model: Held) -> torch.Tensor:
    up = model.get_submodule("mlp.up")
    if isinstance(up, OpenUp):
        return up.by_child(up.weight.detach())[0, 0]
    return up.dense_weight().detach().view(3, -1, up.in_features)


def test_siblings_part_in_training() -> None:
    """They start as copies; at coupling 1 they would stay copies for ever."""
    for config, parts in (
        ({"split": "learned"}, True),
        ({"coupling": 1.0, "fan_out": "partition"}, False),
    ):
        model = Held(make_case(alpha=3, d=9, h=5, o=9, **config))
        x = torch.randn(16, 9, generator=torch.Generator().manual_seed(0))
        before = model(x).detach()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(5):
            optimizer.zero_grad()
            (model(x) - 1).square().mean().backward()
            optimizer.step()
        up = model.get_submodule("mlp.up")
        hidden = up(x).view(16, 3, 5)
        apart = float((hidden - hidden.mean(1, keepdim=True)).abs().max())
        assert (apart > 1e-3) == parts
        assert not torch.equal(model(x), before)


@pytest.mark.parametrize("fan_out", ["replicate", "partition"])
def test_every_split_can_start_open(fan_out: str) -> None:
    model = Held(make_case(open=True, alpha=3, d=9, o=9, fan_out=fan_out))
    up, down = model.get_submodule("mlp.up"), model.get_submodule("mlp.down")
    assert isinstance(up, OpenUp)
    assert isinstance(down, OpenDown)
    assert (up.by_child(up.mask).sum(2) == 1).all()
    writers = down.by_child(down.mask).sum(2)
    assert (writers == (3 if fan_out == "replicate" else 1)).all()
    assert torch.equal(up.weight != 0, up.mask)
    closed = Held(make_case(alpha=3, d=9, o=9, fan_out=fan_out)).get_submodule("mlp.up")
    kept = closed.dense_weight() != 0
    assert torch.equal(up.weight[kept], closed.dense_weight()[kept])


def test_pruned_weights_that_a_file_holds_are_refused() -> None:
    model = held()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state["mlp.up.mask"][0, 0] = False
    with pytest.raises(CheckpointError, match=r"mlp\.up\.weight.*pruned"):
        model.load_state_dict(state)


def test_audit_says_by_how_much_the_budget_is_open() -> None:
    model = held(alpha=4, d=20, h=10, o=20)
    report = fpe_hf.audit(model)
    assert report.open
    assert not report.ok
    assert "THE BUDGET IS OPEN: the blocks hold 3.79 times their parents' non-zeros" in str(report)
    with pytest.raises(fpe_hf.FPEError, match="OPEN"):
        fpe_hf.audit(model, strict=True)
    assert report.raise_for_breach(allow_open=True) is report


def test_a_smaller_budget_prunes_at_once() -> None:
    for layout in ("element", "block"):
        model = Held(make_case(budget=0.5, d=40, h=12, o=40, alpha=2, layout=layout))
        report = fpe_hf.audit(model, strict=True)
        limit = report.total.parent_nonzeros // 2
        assert 0.9 * limit < report.total.nonzeros <= limit


def test_one_child_is_sparsity_alone() -> None:
    case = make_case(alpha=1, budget=0.5, d=20, h=10, o=20)
    model = Held(case)
    weights = torch.cat([w.flatten() for w in (*case.parent.ups, case.parent.down)])
    kept = torch.cat([layer.dense_weight().flatten() for layer in model.mlp.children()])
    nonzeros = int(kept.count_nonzero())
    assert nonzeros == model.get_submodule("mlp.up").spec.limit - 30
    largest = weights.abs().sort(descending=True).values[nonzeros - 1]
    assert float(kept[kept != 0].abs().min()) >= float(largest)
