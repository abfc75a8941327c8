"""Modules with another forward are still what their class says, to all who look it up."""

from __future__ import annotations

import copy
import pickle
from abc import ABC
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from accelerate.utils.dataclasses import get_module_class_from_name
from torch import Tensor, nn
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy
from transformers import BertConfig, BertModel

import fpe_hf
from fpe_hf.layers.subclass import give, is_given, own_class, take_back
from tiny_moe import tiny_mixture


def halved(module: nn.Module, stock: Callable[..., Tensor], x: Tensor) -> Tensor:
    return stock(module, x) / 2


class Plain(nn.Linear):
    pass


class WithState(nn.Linear):
    """Keeps something that cannot be copied."""

    def __init__(self) -> None:
        super().__init__(3, 3)
        self.lock: Any = (i for i in range(3))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({**state, "restored": True})


def rebuilt(weight: Tensor, bias: Tensor) -> WithReduce:
    made = WithReduce()
    made.load_state_dict({"weight": weight, "bias": bias})
    return made


class WithReduce(WithState):
    def __reduce__(self) -> Any:
        return rebuilt, (self.weight.data, self.bias.data)


class WithClassReduce(WithState):
    def __reduce_ex__(self, protocol: Any) -> Any:
        return type(self), (), self.__getstate__()


class WithMetaclass(nn.Linear, ABC):
    pass


def linear(kind: type[nn.Module]) -> Any:
    return kind() if issubclass(kind, WithState) else kind(3, 3)  # type: ignore[call-arg]


WAYS: dict[str, Callable[[Any], Any]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    **{
        f"pickle {n}": lambda module, n=n: pickle.loads(pickle.dumps(module, n))
        for n in range(pickle.HIGHEST_PROTOCOL + 1)
    },
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", [Plain, WithState, WithReduce, WithClassReduce, WithMetaclass])
def test_copies_and_pickles_are_made_as_the_class_says(kind: type[nn.Module], way: str) -> None:
    module = linear(kind)
    twin = WAYS[way](module)
    give(module, halved)
    made = WAYS[way](module)
    x = torch.randn(2, 3)
    assert is_given(made)
    assert torch.equal(made(x), module(x))
    assert own_class(made) is kind
    assert vars(made).keys() == vars(twin).keys()
    take_back(made, halved)
    assert type(made) is kind
    assert torch.equal(made(x), 2 * module(x))


@pytest.mark.parametrize("kind", [Plain, WithState, WithMetaclass])
def test_all_modules_of_a_class_are_instances_of_what_any_of_them_is(
    kind: type[nn.Module],
) -> None:
    given, other, foreign = linear(kind), linear(kind), nn.Linear(3, 3)
    give(given, halved)
    for sought in (kind, type(given)):
        assert isinstance(given, sought)
        assert isinstance(other, sought)
        assert not isinstance(foreign, sought)
    below = type("Below", (type(given),), {})
    assert not isinstance(given, below)
    assert isinstance(below(*(() if kind is WithState else (3, 3))), below)


def bert(*targets: str, layout: str) -> nn.Module:
    model = BertModel(
        BertConfig(
            vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=3,
            num_attention_heads=4,
        )
    )  # fmt: skip
    return fpe_hf.widen(model, layout=layout, targets=list(targets) or None)


@pytest.mark.parametrize("layout", ["element", "block"])
@pytest.mark.parametrize("targets", [(), ("encoder.layer.0*",), ("encoder.layer.1*",)])
def test_sharding_by_the_name_of_a_class_finds_every_layer(
    targets: tuple[str, ...], layout: str
) -> None:
    model = bert(*targets, layout=layout)
    found = get_module_class_from_name(model, "BertLayer")
    policy = partial(transformer_auto_wrap_policy, recurse=False, nonwrapped_numel=0)
    wrapped = [n for n, m in model.named_modules() if policy(m, transformer_layer_cls={found})]
    assert wrapped == [f"encoder.layer.{i}" for i in range(3)]


@pytest.mark.parametrize("layout", ["element", "block"])
def test_sharding_by_the_name_of_a_class_finds_every_mixture(layout: str) -> None:
    model = tiny_mixture("mixtral")
    fpe_hf.widen(model, layout=layout, targets=["*layers.0.*"])
    found = get_module_class_from_name(model, "MixtralExperts")
    experts = [m for n, m in model.named_modules() if n.endswith("experts")]
    assert len(experts) > 1
    assert all(isinstance(module, found) for module in experts)
