"""A state dict is not trusted: no way of loading one brings in indices that no one has checked."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from transformers.trainer_utils import load_sharded_checkpoint

import fpe_hf
from fpe_hf.errors import CheckpointError
from fpe_hf.layers import UpLayer
from fpe_hf.layers.base import INDEX_BUFFERS, are_apart
from fpe_hf.modules import fpe_layers
from layers.test_experts import Model as Experts
from layers.test_experts import inputs as expert_inputs
from tiny_models import tiny_model

State = dict[str, Tensor]
WAYS: dict[str, dict[str, Any]] = {
    f"{layout}-{fan_out}": {"layout": layout, "fan_out": fan_out, "alpha": 3, "split": "feature"}
    for layout, fan_out in product(("element", "block"), ("replicate", "partition"))
}
MODELS: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "bert": (lambda: tiny_model("bert_classifier"), None),
    "gated": (lambda: tiny_model("llama"), None),
    "conv1d": (lambda: tiny_model("gpt2"), None),
    "experts": (lambda: Experts("halves", False, True), (expert_inputs(),)),
}
EVERYWHERE = pytest.mark.parametrize(("way", "kind"), list(product(WAYS, MODELS)))


@cache
def original(way: str, kind: str) -> nn.Module:
    make, inputs = MODELS[kind]
    return fpe_hf.widen(make().eval(), example_inputs=inputs, **WAYS[way])


def widened(way: str, kind: str) -> nn.Module:
    return copy.deepcopy(original(way, kind))


def index_keys(model: nn.Module) -> list[str]:
    return [
        layer.key(name, own)
        for name, layer in fpe_layers(model)
        for own in layer.stored()
        if own in INDEX_BUFFERS
    ]


def out_of_range(tensor: Tensor) -> None:
    """Every byte is 127: indices far beyond any width here, masks with too many bits."""
    tensor.view(torch.uint8).fill_(127)


def repeated(tensor: Tensor) -> None:
    tensor.copy_(tensor.view(-1)[0].expand_as(tensor))


@EVERYWHERE
@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("damage", [out_of_range, repeated])
def test_load_state_dict_checks_every_index(
    way: str, kind: str, damage: Callable[[Tensor], None], assign: bool
) -> None:
    model = widened(way, kind)
    state = copy.deepcopy(model.state_dict())
    keys = index_keys(model)
    for key in keys[:2] + keys[-1:]:
        for strict in (False, True):  # with and without its checksum
            broken = {name: tensor.clone() for name, tensor in state.items()}
            damage(broken[key])
            if not strict:
                del broken[key.rpartition(".")[0] + ".checksum"]
            if damage is repeated and "element" in way and not strict:
                continue  # any code names a child: only the checksum tells
            with pytest.raises(CheckpointError, match=key.rpartition(".")[0].replace(".", r"\.")):
                model.load_state_dict(broken, strict=strict, assign=assign)
    for key in keys:
        assert torch.equal(model.state_dict()[key], state[key]), "nothing of the layer was changed"


@EVERYWHERE
@pytest.mark.parametrize("assign", [False, True])
def test_load_state_dict_checks_the_checksum(way: str, kind: str, assign: bool) -> None:
    model = widened(way, kind)
    name, layer = next(fpe_layers(model))
    key, checksum = layer.key(name, "weight"), layer.key(name, "checksum")
    state = copy.deepcopy(model.state_dict())
    state[key].view(-1)[0] += 1000
    with pytest.raises(CheckpointError, match="do not match their checksum"):
        model.load_state_dict(state, assign=assign)
    del state[checksum]  # changed on purpose
    model.load_state_dict(state, assign=assign)
    assert model.get_parameter(key).view(-1)[0] > 500
    state = model.state_dict()
    state[checksum] = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(CheckpointError, match="zeroed"):
        model.load_state_dict(state, assign=assign)


@pytest.mark.parametrize("way", WAYS)
@given(data=st.data())
def test_whatever_index_is_given_is_in_range_or_refused(way: str, data: st.DataObject) -> None:
    model = widened(way, "bert")
    keys = index_keys(model)
    if not keys:
        return
    state = copy.deepcopy(model.state_dict())
    key = data.draw(st.sampled_from(keys))
    raw = state[key].view(-1).view(torch.uint8)
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    del state[key.rpartition(".")[0] + ".checksum"]
    try:
        model.load_state_dict(state, assign=data.draw(st.booleans()))
    except CheckpointError:
        return
    for name, layer in fpe_layers(model):
        layer.check(name)
        if isinstance(layer, UpLayer):
            assert are_apart([layer])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.complex64], ids=str)
def test_indices_of_another_kind_of_dtype(way: str, dtype: torch.dtype) -> None:
    model = widened(way, "bert")
    for key in index_keys(model)[:1]:
        state = {**model.state_dict(), key: model.state_dict()[key].to(dtype)}
        with pytest.raises(CheckpointError, match=r"has dtype .*; accepted: integers"):
            model.load_state_dict(state, assign=True)


@pytest.mark.parametrize("way", WAYS)
def test_indices_of_another_width_are_taken_in_their_own(way: str) -> None:
    model = widened(way, "bert")
    before = {key: model.state_dict()[key].clone() for key in index_keys(model)}
    wide = {key: tensor.long() for key, tensor in before.items()}
    model.load_state_dict({**model.state_dict(), **wide}, assign=True)
    for key, tensor in before.items():
        assert model.get_buffer(key).dtype == tensor.dtype
        assert torch.equal(model.get_buffer(key), tensor)
    for key, tensor in wide.items():
        with pytest.raises(CheckpointError, match="cannot hold"):
            model.load_state_dict({**model.state_dict(), key: tensor + 2**40})


def test_weights_that_are_no_floats() -> None:
    model = widened("element-replicate", "bert")
    name, layer = next(fpe_layers(model))
    key = layer.key(name, "weight")
    state = {**model.state_dict(), key: torch.ones_like(layer.weight, dtype=torch.int64)}
    with pytest.raises(CheckpointError, match=r"has dtype torch.int64; accepted: floating"):
        model.load_state_dict(state)


@pytest.mark.parametrize("way", WAYS)
def test_a_distributed_checkpoint_is_checked_when_it_is_loaded(way: str, tmp_path: Path) -> None:
    model = widened(way, "bert")
    state = copy.deepcopy(model.state_dict())
    dcp.save(state, checkpoint_id=tmp_path / "whole")
    for key in [next(fpe_layers(model))[0] + ".weight", *index_keys(model)[-1:]]:
        broken = {**state, key: torch.full_like(state[key], 3)}
        dcp.save(broken, checkpoint_id=tmp_path / key)
        read = model.state_dict()
        dcp.load(read, checkpoint_id=tmp_path / key)
        with pytest.raises(CheckpointError):
            model.load_state_dict(read)
    read = model.state_dict()
    dcp.load(read, checkpoint_id=tmp_path / "whole")
    model.load_state_dict(read)
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())


def test_an_average_of_weights_is_saved_and_loaded() -> None:
    model = widened("block-replicate", "bert")
    average = AveragedModel(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1
    average.update_parameters(model)
    model.load_state_dict(average.module.state_dict())
    broken = average.state_dict()
    key = "module." + index_keys(model)[0]
    broken[key] = broken[key] + 100
    with pytest.raises(CheckpointError, match="out of range"):
        average.load_state_dict(broken)


@pytest.mark.parametrize("way", WAYS)
def test_layers_cut_in_pieces_by_shards(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gc.collect", lambda *_: 0)  # transformers does so after every file
    model, other = widened(way, "bert"), widened(way, "bert")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1
    model.save_pretrained(tmp_path, max_shard_size="8KB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    layers = [{index[key] for key in index if key.startswith(n)} for n, _ in fpe_layers(model)]
    assert any(len(files) > 1 for files in layers)
    load_sharded_checkpoint(other, str(tmp_path), strict=False)
    for (name, tensor), loaded in zip(
        model.state_dict().items(), other.state_dict().values(), strict=True
    ):
        assert torch.equal(tensor, loaded), name
