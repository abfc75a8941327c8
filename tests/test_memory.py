from __future__ import annotations

import pytest
import torch

import fpe_hf
from fpe_hf.kernels import dispatch
from fpe_hf.layers import BlockUp
from tiny_models import tiny_model


def test_recompute_hidden_sets_every_up_projection() -> None:
    model = fpe_hf.widen(tiny_model("llama"), layout="block")
    ups = [module for module in model.modules() if isinstance(module, BlockUp)]
    assert len(ups) == 4
    assert fpe_hf.recompute_hidden(model) == 4
    assert all(up.recompute for up in ups)
    fpe_hf.recompute_hidden(model, enabled=False)
    assert not any(up.recompute for up in ups)


def test_recompute_hidden_changes_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "FEWEST_PRODUCTS", 0)
    model = fpe_hf.widen(tiny_model("llama"), layout="block").train()
    tokens = torch.randint(model.config.vocab_size, (2, 12))
    grads = []
    for enabled in (False, True):
        fpe_hf.recompute_hidden(model, enabled)
        model.zero_grad()
        model(tokens, labels=tokens).loss.backward()
        grads.append([parameter.grad for parameter in model.parameters()])
    torch.testing.assert_close(grads[0], grads[1])


@pytest.mark.parametrize("layout", ["element", None])
def test_a_model_without_such_blocks_is_refused(layout: str | None) -> None:
    model = tiny_model("bert")
    if layout:
        fpe_hf.widen(model, layout=layout)
    with pytest.raises(fpe_hf.FPEError, match="gradient_checkpointing_enable"):
        fpe_hf.recompute_hidden(model)
