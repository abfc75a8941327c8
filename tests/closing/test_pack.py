from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from closing.holding import OPEN, Held, held, open_cases, shake
from fpe_hf import audit
from fpe_hf.closing import pack
from fpe_hf.closing.compete import prune
from fpe_hf.errors import BudgetError
from fpe_hf.layers import ElementDown, ElementUp
from planning.cases import Case, cases


def anything_open() -> st.SearchStrategy[Case]:
    """Also other splits, a fan-out that is divided, smaller budgets and one child."""
    budgets = st.sampled_from([1.0, 0.7])
    fixed = budgets.flatmap(lambda budget: cases(**OPEN, open=True, budget=budget))
    return open_cases() | open_cases(budget=0.6) | open_cases(alpha=1, budget=0.5) | fixed


@given(anything_open(), st.integers(0, 2**16))
def test_packed_layers_compute_what_the_open_ones_did(case: Case, seed: int) -> None:
    model = Held(case)
    shake(model, seed)
    block = model.block
    for layer in block.layers:
        layer.kill()
    prune(block, 1.0, 3)
    x = torch.randn(4, case.spec.in_features, generator=torch.Generator().manual_seed(seed))
    expected = model(x).detach()
    moments = [torch.rand_like(layer.weight) for layer in block.layers]
    dense = [moment * layer.mask for moment, layer in zip(moments, block.layers, strict=True)]
    biases = [layer.bias for layer in block.layers]
    packed = pack(model, block)
    layers = [model.get_submodule(name) for name in (*model.names, model.last)]
    assert [type(layer) for layer in layers] == [ElementUp] * len(model.names) + [ElementDown]
    torch.testing.assert_close(model(x), expected)
    report = audit(model, strict=True)
    assert report.total.nonzeros == min(
        case.spec.limit, sum(block.spec.final_weights) + case.spec.bias_numbers
    )
    assert all(layer.bias is bias for layer, bias in zip(layers, biases, strict=True))
    for layer, own, moment, wanted in zip(layers, packed, moments, dense, strict=True):
        assert own.new is layer.weight
        with torch.no_grad():
            layer.weight.copy_(own.take(moment))
        torch.testing.assert_close(layer.dense_weight(), wanted, rtol=0, atol=0)


def test_siblings_that_share_inputs_cannot_be_packed() -> None:
    model = held()
    with pytest.raises(BudgetError, match="share inputs"):
        pack(model, model.block)


def test_what_the_random_split_has_decided_is_not_stored() -> None:
    """As after closing at once; the file then holds no child of any input."""
    model = held()
    prune(model.block, 1.0, 3)
    pack(model, model.block)
    assert model.get_submodule("mlp.up").spec.assignment == "hash"
    assert "mlp.up.codes" not in model.state_dict()
    model = held()
    shake(model, 0, 2.0)
    prune(model.block, 1.0, 3)
    pack(model, model.block)
    assert model.get_submodule("mlp.up").spec.assignment == "kept"
    assert "mlp.up.codes" in model.state_dict()


@pytest.mark.parametrize("kind", ["plain", "gated", "halves"])
def test_a_file_takes_at_most_a_fifth_more_than_the_parents(kind: str) -> None:
    model = held(kind, d=96, h=128, o=96, alpha=4, dtype=torch.bfloat16)
    shake(model, 0, 1.0)
    prune(model.block, 1.0, 3)
    pack(model, model.block)
    total = audit(model, strict=True).total
    assert total.disk_bytes <= 1.2 * total.parent_bytes
