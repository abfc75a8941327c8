from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch
import transformers as hf
from torch import Tensor, nn
from torch.nn import functional

from fpe_hf import widen
from fpe_hf.discovery import MLPBlocks, find_mlps
from tiny_moe import EXPERTS, HIDDEN, MIXTURES, WIDTH, tiny_mixture

E, D, H = 3, 6, 5


class Experts(nn.Module):
    def __init__(self, body: Callable[[Experts, Tensor], Tensor]) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(E, H, D))
        self.gate = nn.Parameter(torch.randn(E, H, D))
        self.gate_up = nn.Parameter(torch.randn(E, 2 * H, D))
        self.down = nn.Parameter(torch.randn(E, D, H))
        self.turned = nn.Parameter(torch.randn(E, H, D))
        self.bias = nn.Parameter(torch.randn(E, H))
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, x)


class Model(nn.Module):
    def __init__(self, body: Callable[[Experts, Tensor], Tensor]) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Experts(body)])

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers[0](x)


def find(body: Callable[[Experts, Tensor], Tensor]) -> MLPBlocks:
    return find_mlps(Model(body), (torch.zeros(E, 4, D),))


@pytest.mark.parametrize("family", MIXTURES)
def test_finds_exactly_the_blocks_of_a_family(family: str) -> None:
    model = tiny_mixture(family)
    blocks = find_mlps(model)
    assert Counter(block.kind for block in blocks) == MIXTURES[family].kinds
    for block in blocks:
        assert not any(word in block.name for word in ("router", "self_attn", "lm_head"))
        if block.kind == "experts":
            shape = (block.in_features, block.parents, block.out_features, block.experts)
            assert shape == (HIDDEN, WIDTH, HIDDEN, EXPERTS)


def test_the_forms_of_gpt_oss_are_seen() -> None:
    block = find_mlps(tiny_mixture("gpt_oss"))[0]
    assert block.fused == "interleaved"
    assert block.transposed == (True, True)
    assert [name and name.rpartition(".")[2] for name in block.bias_names] == [
        "gate_up_proj_bias",
        "down_proj_bias",
    ]


def test_the_implementation_of_the_experts_is_left_as_it_was() -> None:
    model = tiny_mixture("mixtral")
    model.set_experts_implementation("eager")
    assert len(find_mlps(model)) == 2
    assert model.config._experts_implementation == "eager"


def test_experts_of_a_module_list_that_no_token_chose_are_found() -> None:
    names = {block.name for block in find_mlps(tiny_mixture("switch"))}
    for expert in range(EXPERTS):
        assert f"encoder.block.1.layer.1.mlp.experts.expert_{expert}" in names


def test_separate_gate_and_up_by_batched_products() -> None:
    def body(own: Experts, x: Tensor) -> Tensor:
        gate, up = x @ own.gate.mT, x @ own.up.mT
        return functional.silu(gate) * up @ own.down.mT

    (block,) = find(body)
    assert block.gate == "layers.0.gate"
    assert (block.up, block.down) == ("layers.0.up", "layers.0.down")
    assert block.transposed == (False, False, False)


def test_a_loop_over_experts_with_biases_and_both_orientations() -> None:
    def body(own: Experts, x: Tensor) -> Tensor:
        made = [
            functional.linear(x[e], own.up[e], own.bias[e]).relu() @ own.turned[e] for e in range(E)
        ]
        return torch.stack(made)

    (block,) = find(body)
    assert block.transposed == (False, True)
    assert block.bias_names == ("layers.0.bias", None)


def test_einsum_is_understood() -> None:
    def body(own: Experts, x: Tensor) -> Tensor:
        hidden = torch.einsum("etd,ehd->eth", x, own.up).relu()
        return torch.einsum("eth,edh->etd", hidden, own.down)

    assert len(find(body)) == 1


class PerStep(nn.Module):
    """One matrix for each step of a sequence, as in the depth decoder of Moshi."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(E, out_features, in_features))

    def forward(self, x: Tensor) -> Tensor:
        return (x[:, :, None] @ self.weight.transpose(1, 2)[None]).squeeze(2)


class GatedPerStep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = PerStep(D, 2 * H), PerStep(H, D)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.fc1(x).view(*x.shape[:2], 2, -1).unbind(2)
        return x + self.fc2(functional.silu(gate) * up)


@pytest.mark.parametrize("layout", ["element", "block"])
def test_stacks_in_modules_of_their_own(layout: str) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(GatedPerStep(), GatedPerStep()), torch.randn(2, E, D)
    expected = model(x)
    block = find_mlps(model, (x,))[0]
    assert (block.name, block.up, block.down) == ("0", "0.fc1.weight", "0.fc2.weight")
    assert (block.experts, block.fused, block.parents) == (E, "halves", H)
    widen(model, example_inputs=(x,), layout=layout, coupling=1.0, fan_out="partition")
    torch.testing.assert_close(model(x), expected)


def test_stacks_cut_where_the_code_says_are_refused() -> None:
    def body(own: Experts, x: Tensor) -> Tensor:
        pieces = own.up.reshape(E * H, D).view(E, H, D)
        return (x @ pieces.mT).relu() @ own.down.mT

    assert not find(body)


class Outsider(nn.Module):
    """Reads the experts' weights itself, so that nothing could stand in for them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Experts(lambda own, x: x)])

    def forward(self, x: Tensor) -> Tensor:
        own = self.layers[0]
        return x + (own(x) @ own.up.mT).relu() @ own.down.mT


def test_weights_used_outside_of_their_module_are_refused() -> None:
    found = find_mlps(Outsider(), (torch.zeros(E, 4, D),))
    assert not found
    assert "outside of its module's forward" in found.near_misses[0].reason


def test_experts_tied_between_towers_are_refused() -> None:
    body = Model(lambda own, x: (x @ own.up.mT).relu() @ own.down.mT)
    twin = Model(lambda own, x: (x @ own.up.mT).relu() @ own.down.mT)
    for name in ("up", "down"):
        setattr(twin.layers[0], name, getattr(body.layers[0], name))
    found = find_mlps(nn.Sequential(body, twin), (torch.zeros(E, 4, D),))
    assert not found
    assert [miss.reason for miss in found.near_misses] == [
        "0.layers.0.up is tied to another parameter; untie it first"
    ]


def test_experts_without_activation_are_no_block() -> None:
    assert not find(lambda own, x: x @ own.up.mT @ own.down.mT)


def test_a_parameter_that_is_used_for_something_else_is_refused() -> None:
    def body(own: Experts, x: Tensor) -> Tensor:
        return (x @ own.up.mT).relu() @ own.down.mT + own.down.sum()

    found = find(body)
    assert not found
    assert "also used by Experts" in found.near_misses[0].reason


def test_a_part_of_the_rows_is_refused() -> None:
    def body(own: Experts, x: Tensor) -> Tensor:
        return (x @ own.gate_up.mT)[..., :H].relu() @ own.down.mT

    found = find(body)
    assert not found
    assert "only 5 of the 10 rows" in found.near_misses[0].reason


def test_dbrx_is_refused_because_its_code_cuts_at_fixed_places() -> None:
    config = hf.DbrxConfig(
        d_model=HIDDEN,
        n_heads=4,
        n_layers=2,
        max_seq_len=64,
        vocab_size=96,
        attn_config={"kv_n_heads": 2, "clip_qkv": 8.0},
        ffn_config={
            "ffn_hidden_size": WIDTH,
            "moe_num_experts": EXPERTS,
            "moe_top_k": 2,
            "hidden_size": HIDDEN,
        },
        pad_token_id=0,
    )
    config.attn_config.rope_theta = 1e4  # transformers 5.23 forgets to set it
    found = find_mlps(hf.DbrxForCausalLM(config))
    assert not found
    assert len(found.near_misses) == 2
    assert "fixed in the code" in found.near_misses[0].reason


def test_a_model_without_values_is_searched_too() -> None:
    entry = MIXTURES["qwen3_moe"]
    config = getattr(hf, entry.config)(**{**entry.options, "num_experts": 128})
    with torch.device("meta"):
        model = getattr(hf, entry.model)(config)
    blocks = find_mlps(model)
    assert [block.experts for block in blocks] == [128, 128]
