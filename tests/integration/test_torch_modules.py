"""Modules of torch itself, and look-alikes of those of other libraries."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fpe_hf import audit, find_mlps, to_dense, widen

EXACT = {"coupling": 1.0, "fan_out": "partition"}
LAYOUTS = ["element", "block"]


def encoder(activation: str, norm_first: bool) -> nn.TransformerEncoder:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(
        16, 2, 24, dropout=0.0, activation=activation, batch_first=True, norm_first=norm_first
    )
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=not norm_first)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("norm_first", [False, True])
def test_transformer_encoder_keeps_its_outputs(
    layout: str, activation: str, norm_first: bool
) -> None:
    model, x = encoder(activation, norm_first), torch.randn(2, 5, 16)
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    expected = model.train()(x)
    masked = model(x, src_key_padding_mask=padding)[~padding]
    widen(model, layout=layout, **EXACT)
    for training in (True, False):
        model.train(training)
        for grad in (torch.enable_grad, torch.no_grad, torch.inference_mode):
            with grad():
                torch.testing.assert_close(model(x), expected)
                outputs = model(x, src_key_padding_mask=padding)
                torch.testing.assert_close(outputs[~padding], masked)
    assert type(model.layers[0].self_attn) is nn.MultiheadAttention
    assert audit(model).ok
    torch.testing.assert_close(to_dense(model)(x), expected)


class Mixer(nn.Module):
    """An MLP-Mixer block: one MLP over the tokens, one over the channels."""

    def __init__(self, tokens: int = 6, width: int = 8) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.tokens = nn.Sequential(nn.Linear(tokens, 12), nn.GELU(), nn.Linear(12, tokens))
        self.channels = nn.Sequential(nn.Linear(width, 16), nn.GELU(), nn.Linear(16, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.norms[0](x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.norms[1](x))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_mixer(layout: str) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(*[Mixer() for _ in range(2)]), torch.randn(2, 6, 8)
    expected = model(x)
    blocks = find_mlps(model, (x,))
    assert [b.name for b in blocks] == ["0.tokens", "0.channels", "1.tokens", "1.channels"]
    torch.testing.assert_close(
        widen(model, example_inputs=(x,), layout=layout, **EXACT)(x), expected
    )


class Tied(nn.Module):
    """Layers of their own that share the parameters of their MLPs."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([self._mlp() for _ in range(3)])
        for mlp in self.layers[1:]:
            for own, first in zip(mlp, self.layers[0], strict=True):
                own._parameters = dict(first._parameters)

    @staticmethod
    def _mlp() -> nn.Sequential:
        return nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 8))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x)
        return x


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tied_projections_stay_tied(layout: str) -> None:
    torch.manual_seed(0)
    model, x = Tied(), torch.randn(4, 8)
    expected = model(x)
    (block,) = find_mlps(model, (x,))
    assert block.calls == 3
    assert block.shared == ("layers.1.0", "layers.2.0", "layers.1.2", "layers.2.2")
    widen(model, example_inputs=(x,), layout=layout, **EXACT)
    assert model.layers[0][0] is model.layers[1][0] is model.layers[2][0]
    torch.testing.assert_close(model(x), expected)
    assert audit(model).ok


class Attention(nn.Module):
    """Queries, keys and values by one projection, as in timm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        x = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(batch, tokens, width))


class SwiGLU(nn.Module):
    """Gate and up in one projection, a norm in the middle that is none by default."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.norm = nn.Linear(width, 2 * hidden), nn.Identity()
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.fc1(x).chunk(2, dim=-1)
        return self.fc2(self.norm(nn.functional.silu(gate) * value))


class Block(nn.Module):
    """A layer of a vision transformer with scaled branches."""

    def __init__(self, width: int, mlp: nn.Module) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn, self.mlp = Attention(width, 2), mlp
        self.scale = nn.Parameter(torch.full((width,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.scale * self.attn(self.norm1(x))
        return x + self.scale * self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    """A vision transformer as timm writes it."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, width, 4, stride=4)
        self.cls_token = nn.Parameter(torch.randn(1, 1, width))
        self.pos_embed = nn.Parameter(torch.randn(1, 17, width))
        plain = nn.Sequential(nn.Linear(width, 24), nn.GELU(), nn.Dropout(), nn.Linear(24, width))
        self.blocks = nn.Sequential(Block(width, plain), Block(width, SwiGLU(width, 24)))
        self.norm = nn.LayerNorm(width)
        self.fc_norm, self.head = nn.Identity(), nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed
        return self.head(self.fc_norm(self.norm(self.blocks(x))[:, 0]))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_vision_transformer(layout: str) -> None:
    torch.manual_seed(0)
    model, x = VisionTransformer().eval(), torch.randn(2, 3, 16, 16)
    expected = model(x)
    blocks = find_mlps(model, (x,))
    assert [(block.name, block.kind) for block in blocks] == [
        ("blocks.0.mlp", "plain"),
        ("blocks.1.mlp", "fused"),
    ]
    assert blocks.near_misses == []
    widen(model, example_inputs=(x,), layout=layout, **EXACT)
    torch.testing.assert_close(model(x), expected)
    assert audit(model).ok
    dense = to_dense(model)
    assert type(dense.blocks[0].mlp[0]) is nn.Linear
    torch.testing.assert_close(dense(x), expected)


class Parallel(nn.Module):
    """A layer whose attention and MLP read the same norm, as in GPT-J, Falcon and Cohere."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.norm, self.attn = nn.LayerNorm(width), Attention(width, 2)
        self.up, self.down = nn.Linear(width, 24), nn.Linear(24, width)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        return x + self.attn(normed) + self.down(nn.functional.gelu(self.up(normed)))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_attention_and_mlp_in_parallel(layout: str) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(Parallel(), Parallel()), torch.randn(2, 5, 16)
    expected = model(x)
    blocks = find_mlps(model, (x,))
    assert [(block.up, block.down) for block in blocks] == [
        ("0.up", "0.down"),
        ("1.up", "1.down"),
    ]
    assert blocks.near_misses == []
    widen(model, example_inputs=(x,), layout=layout, **EXACT)
    torch.testing.assert_close(model(x), expected)


class Twice(nn.Module):
    """A layer that calls its MLP twice, the second time on a part of the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mlp(x)
        return x + nn.functional.pad(self.mlp(x[:, :2]), (0, 0, 0, x.shape[1] - 2))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_block_that_is_called_twice(layout: str) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(Twice(), Twice()), torch.randn(2, 5, 8)
    expected = model(x)
    blocks = find_mlps(model, (x,))
    assert [(block.name, block.calls) for block in blocks] == [("0.mlp", 2), ("1.mlp", 2)]
    widen(model, example_inputs=(x,), layout=layout, **EXACT)
    torch.testing.assert_close(model(x), expected)
    assert audit(model).ok
