"""Blocks that a model reaches only now and then: in training, in decoding, by one modality."""

from __future__ import annotations

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

from fpe_hf import find_mlps, widen
from fpe_hf.errors import DiscoveryError

D, H = 8, 12


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(D, H), nn.ReLU(), nn.Linear(H, D))


class Body(nn.Module):
    """Layers of which the second is used in training only, the third for single tokens only."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([mlp() for _ in range(3)])

    def forward(self, hidden_states: Tensor) -> Tensor:
        hidden_states = hidden_states + self.layers[0](hidden_states)
        if self.training:
            hidden_states = hidden_states + self.layers[1](hidden_states)
        if hidden_states.shape[1] == 1:
            hidden_states = hidden_states + self.layers[2](hidden_states)
        return hidden_states


class Pretrained(hf.PreTrainedModel):
    config_class = hf.BertConfig

    def __init__(self) -> None:
        super().__init__(hf.BertConfig(hidden_size=D))
        self.body = Body()

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.body(hidden_states)


ALL = ["layers.0", "layers.1", "layers.2"]


def test_a_transformers_model_is_searched_whole() -> None:
    found = find_mlps(Pretrained(), {"hidden_states": torch.zeros(2, 5, D)})
    assert [block.name for block in found] == [f"body.{name}" for name in ALL]
    assert found.near_misses == []


@pytest.mark.parametrize("layout", ["element", "block"])
@pytest.mark.parametrize(("training", "tokens"), [(True, 5), (False, 1), (True, 1)])
@torch.no_grad()
def test_what_was_found_alone_is_widened_right(layout: str, training: bool, tokens: int) -> None:
    torch.manual_seed(0)
    model, x = Pretrained().train(training), torch.randn(2, tokens, D)
    expected = model(x)
    widen(model, layout=layout, coupling=1.0, fan_out="partition")
    torch.testing.assert_close(model(x), expected)


def test_other_modules_say_what_was_not_reached() -> None:
    found = find_mlps(Body(), (torch.zeros(2, 5, D),))
    assert [block.name for block in found] == ["layers.0"]
    assert [(miss.up, miss.down) for miss in found.near_misses] == [
        (("layers.1",), None),
        (("layers.2",), None),
    ]
    assert all("pass example_inputs" in miss.reason for miss in found.near_misses)


def test_inputs_that_reach_more_find_more() -> None:
    found = find_mlps(Body(), (torch.zeros(2, 1, D),))
    assert [block.name for block in found] == ["layers.0", "layers.2"]


class TwoSides(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image, self.text = nn.Sequential(mlp(), mlp()), nn.Sequential(mlp(), mlp())

    def forward(self, text: Tensor | None = None, image: Tensor | None = None) -> Tensor:
        return self.text(text) if text is not None else self.image(image)


def test_a_tower_of_another_modality_is_named_once() -> None:
    (miss,) = find_mlps(TwoSides(), {"image": torch.zeros(2, D)}).near_misses
    assert (miss.up, miss.down, miss.block) == (("text",), None, None)


class Mixed(nn.Module):
    """A layer that sends no token to its second expert, and may do without its attention."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList([mlp(), mlp()])
        self.attention = nn.Sequential(nn.Linear(D, D), nn.Linear(D, D))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.experts[0](x)


def test_experts_of_a_layer_are_named_but_not_all_its_parts() -> None:
    model = nn.ModuleDict({"layers": nn.ModuleList([Mixed()])})
    model.forward = lambda x: model["layers"][0](x)  # type: ignore[method-assign]
    found = find_mlps(model, (torch.zeros(2, D),))
    assert [block.name for block in found] == ["layers.0.experts.0"]
    assert [miss.up for miss in found.near_misses] == [("layers.0.experts.1",)]


def test_an_error_names_what_was_not_reached() -> None:
    class Idle(TwoSides):
        def forward(self, x: Tensor) -> Tensor:
            return x + 1

    with pytest.raises(DiscoveryError, match=r"Near-misses: image: no inputs reached it"):
        widen(Idle(), example_inputs=(torch.zeros(2, D),))
