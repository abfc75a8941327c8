"""Widened mixtures of experts: exact start, training under the budget, files, dense export."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

import fpe_hf
from tiny_moe import MIXTURES, forward, labels, logits, tiny_mixture

LAYOUTS = ("element", "block")


@pytest.mark.parametrize("family", MIXTURES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_mixture_goes_all_the_way(family: str, layout: str, tmp_path: Path) -> None:
    model = tiny_mixture(family)
    exact = fpe_hf.widen(copy.deepcopy(model), coupling=1.0, fan_out="partition", layout=layout)
    torch.testing.assert_close(logits(exact), logits(model), rtol=0, atol=1e-5)

    wide = fpe_hf.widen(model, layout=layout)
    fpe_hf.audit(wide, strict=True)
    optimizer = torch.optim.AdamW(wide.parameters(), lr=1e-3)
    wide.train()
    losses = []
    for _ in range(20):
        loss = forward(wide, labels=labels()).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    fpe_hf.audit(wide, strict=True)

    wide.save_pretrained(tmp_path / "wide")
    loaded = type(wide).from_pretrained(tmp_path / "wide")
    assert torch.equal(logits(loaded), logits(wide))

    dense = fpe_hf.to_dense(loaded)
    torch.testing.assert_close(logits(dense), logits(wide), rtol=0, atol=1e-5)
    dense.save_pretrained(tmp_path / "dense")
    stock = type(wide).from_pretrained(tmp_path / "dense")
    assert not any("fpe_" in name for name in stock.state_dict())
    assert all(torch.equal(dense.state_dict()[n], t) for n, t in stock.state_dict().items())
    # Products may depend on where in memory their operands begin.
    torch.testing.assert_close(logits(stock), logits(dense), rtol=0, atol=1e-5)


@pytest.mark.parametrize("implementation", ["eager", "batched_mm", "grouped_mm"])
def test_every_implementation_of_the_experts_runs_widened(implementation: str) -> None:
    model = tiny_mixture("gpt_oss")
    model.set_experts_implementation(implementation)
    before = logits(model)
    wide = fpe_hf.widen(model, coupling=1.0, fan_out="partition")
    torch.testing.assert_close(logits(wide), before, rtol=0, atol=1e-5)


def test_routers_are_untouched() -> None:
    model = tiny_mixture("qwen2_moe")
    before = {name: p.clone() for name, p in model.named_parameters() if ".gate." in name}
    after = dict(fpe_hf.widen(model).named_parameters())
    assert before
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_to_dense_pads_experts_that_were_excluded() -> None:
    model = tiny_mixture("mixtral")
    wide = fpe_hf.widen(model, exclude=["model.layers.1"])
    torch.testing.assert_close(logits(fpe_hf.to_dense(wide)), logits(wide), rtol=0, atol=1e-5)


def test_stock_transformers_refuses_the_packed_parameters(tmp_path: Path) -> None:
    wide = fpe_hf.widen(tiny_mixture("mixtral"))
    packed = wide.state_dict()
    stock = tiny_mixture("mixtral")
    with pytest.raises(RuntimeError, match="size mismatch"):
        stock.load_state_dict(packed, strict=False)
