"""A block whose parameters transformers ties, between layers or towers, stays one all the way."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

from fpe_hf import audit, find_mlps, to_dense, widen


@pytest.mark.parametrize("layout", ["element", "block"])
@torch.no_grad()
def test_zamba(layout: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = hf.ZambaConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=2,
        attention_head_dim=16,
        n_mamba_heads=2,
        mamba_dt_rank=4,
        layers_block_type=["mamba", "hybrid", "mamba", "hybrid"],
    )
    model = hf.ZambaForCausalLM(config).eval()
    ids = torch.arange(3, 11).view(2, 4)
    expected = model(input_ids=ids).logits
    (block,) = find_mlps(model)
    assert block.calls == 2
    assert "model.layers.3.shared_transf.feed_forward.down_proj" in block.shared

    widen(model, layout=layout, coupling=1.0, fan_out="partition")
    outputs = model(input_ids=ids).logits
    torch.testing.assert_close(outputs, expected)
    assert audit(model).ok

    model.save_pretrained(tmp_path / "wide")
    loaded = hf.ZambaForCausalLM.from_pretrained(tmp_path / "wide")
    assert torch.equal(loaded(input_ids=ids).logits, outputs)
    first, second = (loaded.model.layers[i].shared_transf.feed_forward for i in (1, 3))
    assert first.up_proj is second.up_proj

    to_dense(loaded).save_pretrained(tmp_path / "dense")
    dense = hf.ZambaForCausalLM.from_pretrained(tmp_path / "dense")
    torch.testing.assert_close(dense(input_ids=ids).logits, expected)


class Tower(nn.Module):
    """Layers that add to a stream."""

    def __init__(self, config: hf.BertConfig) -> None:
        super().__init__()
        width, hidden = config.hidden_size, config.intermediate_size
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.Linear(width, hidden, bias=False),
                nn.GELU(),
                nn.Linear(hidden, width, bias=False),
            )
            for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x)
        return x


class TwoTowers(hf.PreTrainedModel):
    """Towers that share all weights by name, of which files hold the second's (DiffusionGemma)."""

    config_class = hf.BertConfig
    _tied_weights_keys = {  # noqa: RUF012
        r"encoder.layers\.(?:[^.]+\.)*weight": r"decoder.layers\.(?:[^.]+\.)*weight"
    }

    def __init__(self, config: hf.BertConfig) -> None:
        super().__init__(config)
        self.encoder, self.decoder = Tower(config), Tower(config)
        self.post_init()

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.decoder(self.encoder(hidden_states).tanh())


@pytest.mark.parametrize("layout", ["element", "block"])
@torch.no_grad()
def test_towers_tied_by_name(layout: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = hf.BertConfig(hidden_size=16, intermediate_size=24, tie_word_embeddings=True)
    model, x = TwoTowers(config).eval(), torch.randn(2, 5, 16)
    expected = model(x)
    blocks = find_mlps(model)
    assert [block.name for block in blocks] == ["encoder.layers.0", "encoder.layers.1"]
    assert {block.calls for block in blocks} == {2}

    widen(model, layout=layout, coupling=1.0, fan_out="partition")
    outputs = model(x)
    torch.testing.assert_close(outputs, expected)
    assert audit(model).ok

    model.save_pretrained(tmp_path / "wide")
    loaded = TwoTowers.from_pretrained(tmp_path / "wide")
    assert torch.equal(loaded(x), outputs)
    assert loaded.encoder.layers[1][0] is loaded.decoder.layers[1][0]

    to_dense(loaded).save_pretrained(tmp_path / "dense")
    torch.testing.assert_close(TwoTowers.from_pretrained(tmp_path / "dense")(x), expected)
