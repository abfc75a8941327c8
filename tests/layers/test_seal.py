"""Averages of models and of state dicts leave indices alone."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_ema_multi_avg_fn
from transformers import BertConfig, BertModel

import fpe_hf
from fpe_hf.errors import BudgetError, CheckpointError, OverwrittenError
from fpe_hf.layers import FPELayer
from planning.cases import make_case
from tiny_models import tiny_inputs, tiny_model
from tiny_moe import tiny_mixture

WIDTH = 300  # so that indices are int32
COMBINATIONS = list(product(["element", "block"], ["replicate", "partition"]))
AVERAGES: dict[str, dict[str, Any]] = {
    "swa": {},
    "ema": {"multi_avg_fn": get_ema_multi_avg_fn(0.99999)},
    "ema, one by one": {"avg_fn": get_ema_avg_fn(0.9999)},
}


def widened(layout: str, fan_out: str = "replicate", seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    parent = nn.Sequential(nn.Linear(WIDTH, 20), nn.GELU(), nn.Linear(20, WIDTH))
    x = torch.randn(1, WIDTH)
    return fpe_hf.widen(parent, example_inputs=(x,), layout=layout, fan_out=fan_out)


def indices(model: nn.Module) -> list[Tensor]:
    return [
        buffer.clone()
        for module in model.modules()
        if isinstance(module, FPELayer)
        for buffer in module.index_buffers().values()
    ]


def train(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.9)


@pytest.mark.parametrize("use_buffers", [True, False])
@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize(("layout", "fan_out"), COMBINATIONS)
def test_averaged_models_keep_their_indices(
    layout: str, fan_out: str, average: str, use_buffers: bool
) -> None:
    model = widened(layout, fan_out)
    ema = AveragedModel(model, use_buffers=use_buffers, **AVERAGES[average])
    expected = indices(model)
    for _ in range(20):
        ema.update_parameters(model)
    x = torch.randn(4, WIDTH)
    torch.testing.assert_close(ema(x), model(x))
    assert all(map(torch.equal, indices(ema), expected))
    assert all(map(torch.equal, indices(model), expected))
    fpe_hf.audit(ema, strict=True)
    fresh = widened(layout, fan_out)
    fresh.load_state_dict(ema.module.state_dict())
    torch.testing.assert_close(fresh(x), model(x))


@pytest.mark.parametrize("layout", ["element", "block"])
@pytest.mark.parametrize("family", ["bert", "gpt2", "t5_gated", "phi3", "mixtral"])
def test_averages_of_every_kind_of_block(family: str, layout: str) -> None:
    model = tiny_mixture(family) if family == "mixtral" else tiny_model(family)
    fpe_hf.widen(model, layout=layout)
    ema = AveragedModel(model, use_buffers=True, multi_avg_fn=get_ema_multi_avg_fn(0.9999))
    for _ in range(3):
        ema.update_parameters(model)
    inputs = tiny_inputs(model)
    torch.testing.assert_close(ema(**inputs)[0], model(**inputs)[0])
    assert all(map(torch.equal, indices(ema), indices(model)))
    mean = {n: (t + ema.module.state_dict()[n]) / 2 for n, t in model.state_dict().items()}
    expected = model(**inputs)[0]
    model.load_state_dict(mean)
    torch.testing.assert_close(model(**inputs)[0], expected)


@pytest.mark.parametrize("layout", ["element", "block"])
@pytest.mark.parametrize(
    "move",
    [
        lambda model: model.bfloat16().float(),
        lambda model: copy.deepcopy(copy.deepcopy(model)),
        lambda model: pickle.loads(pickle.dumps(model)),
    ],
    ids=["cast", "copied", "pickled"],
)
def test_also_after_a_move(layout: str, move: Callable[[nn.Module], nn.Module]) -> None:
    model = move(widened(layout))
    ema = AveragedModel(model, use_buffers=True, multi_avg_fn=get_ema_multi_avg_fn(0.9999))
    ema.module = move(ema.module)
    for _ in range(20):
        ema.update_parameters(model)
    assert all(map(torch.equal, indices(ema), indices(model)))


@pytest.mark.parametrize("layout", ["element", "block"])
def test_an_average_written_into_the_only_copy_is_an_error(layout: str) -> None:
    model, other = widened(layout), widened(layout)
    for buffer, its in zip(model.buffers(), other.buffers(), strict=True):
        buffer.copy_(buffer * 0.9999 + its * (1 - 0.9999))
    assert not fpe_hf.audit(model).ok
    for use in (lambda: model(torch.randn(1, WIDTH)), model.state_dict):
        with pytest.raises(OverwrittenError, match="deepcopy"):
            use()
    model.load_state_dict(other.state_dict())
    assert all(map(torch.equal, indices(model), indices(other)))


def written_behind_autograd(model: nn.Module) -> nn.Module:
    """With two indices exchanged through `.data`, which counts no version."""
    layer = next(module for module in model.modules() if isinstance(module, FPELayer))
    buffer = next(iter(layer.index_buffers().values()))
    buffer.data.copy_(buffer.flip(-1))
    return model


USES: dict[str, Callable[[nn.Module], object]] = {
    "state_dict": lambda model: model.state_dict(),
    "audit": lambda model: fpe_hf.audit(model, strict=True),
    "to_dense": fpe_hf.to_dense,
    "copy": lambda model: copy.deepcopy(model).state_dict(),
    "pickle": lambda model: pickle.loads(pickle.dumps(model)).state_dict(),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize(("layout", "fan_out"), COMBINATIONS)
def test_what_is_written_behind_autograd_is_noticed_when_it_matters(
    layout: str, fan_out: str, use: str
) -> None:
    model, x = widened(layout, fan_out), torch.randn(4, WIDTH)
    state, expected = copy.deepcopy(model.state_dict()), model(x)
    written_behind_autograd(model)
    with pytest.raises((OverwrittenError, BudgetError), match="was overwritten"):
        USES[use](model)
    model.load_state_dict(state)
    torch.testing.assert_close(model(x), expected)
    USES[use](model)


@pytest.mark.parametrize(("layout", "fan_out"), COMBINATIONS)
def test_loading_weights_alone_never_takes_wrong_indices_for_right(
    layout: str, fan_out: str
) -> None:
    model, x = widened(layout, fan_out), torch.randn(4, WIDTH)
    expected = model(x)
    written_behind_autograd(model)
    with suppress(OverwrittenError):
        model.load_state_dict(dict(model.named_parameters()), strict=False)
        torch.testing.assert_close(model(x), expected)  # the index followed from the seed


@pytest.mark.parametrize("layout", ["element", "block"])
@pytest.mark.parametrize("family", ["bert", "gpt2", "phi3", "mixtral"])
def test_what_is_written_behind_autograd_is_never_saved(
    family: str, layout: str, tmp_path: Path
) -> None:
    model = tiny_mixture(family) if family == "mixtral" else tiny_model(family)
    fpe_hf.widen(model, layout=layout)
    model(**tiny_inputs(model))
    model.save_pretrained(tmp_path)
    written_behind_autograd(model)
    with pytest.raises(OverwrittenError, match="was overwritten"):
        model.save_pretrained(tmp_path)
    type(model).from_pretrained(tmp_path)


@settings(deadline=None)
@given(
    st.sampled_from(COMBINATIONS), st.integers(2, 5), st.sampled_from([1, 80]), st.booleans(),
    st.integers(0, 3), st.integers(-(2**31), 2**31 - 1),
)  # fmt: skip
def test_no_index_makes_a_kernel_leave_its_memory(
    combination: tuple[str, str], alpha: int, tokens: int, trained: bool, which: int, value: int
) -> None:
    """Kernels and torch refuse an index out of range themselves; any other is one of the layer."""
    layers = make_case(
        d=280, h=4, o=5, layout=combination[0], fan_out=combination[1], alpha=alpha
    ).layers()  # fmt: skip
    layer = layers[which % 2]
    buffers = list(layer.index_buffers().values())
    if not buffers:
        return
    buffer = buffers[which // 2 % len(buffers)]
    limits = torch.iinfo(buffer.dtype)
    value = value % 256 if buffer.dtype == torch.uint8 else value
    x = torch.randn(tokens, layer.in_features)
    with torch.set_grad_enabled(trained):
        made = layer(x)  # takes note of the version
        buffer.data.view(-1)[-1] = min(value, limits.max)
        shape = made.shape
        with suppress(CheckpointError, RuntimeError):
            made = layer(x)
            assert made.shape == shape
            if trained:
                made.sum().backward()


@given(st.integers(0, 2**16), st.floats(0, 1), st.sampled_from(["element", "block"]))
def test_averaged_buffers_put_in_place_are_mended(seed: int, decay: float, layout: str) -> None:
    layer = make_case(d=280, h=4, o=5, seed=seed % 100, layout=layout).layers()[0]
    expected = {name: tensor.clone() for name, tensor in layer.index_buffers().items()}
    averaged = copy.deepcopy(layer)
    for name, tensor in expected.items():
        average = tensor * decay + tensor * (1 - decay)
        averaged._buffers[name] = average.to(tensor.dtype)
    assert all(torch.equal(averaged.index_buffers()[name], t) for name, t in expected.items())


MEANS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mean": lambda a, b: (a + b) / 2,
    "mean, in the same dtype": lambda a, b: ((a + b) / 2).to(a.dtype),
    "mean of floats": lambda a, b: torch.stack([a, b]).double().mean(0).to(a.dtype),
    "ema": lambda a, b: (0.3 * a + 0.7 * b).to(a.dtype),
}


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize(("layout", "fan_out"), COMBINATIONS)
def test_averaged_state_dicts_load(layout: str, fan_out: str, mean: str, assign: bool) -> None:
    model, other = widened(layout, fan_out), widened(layout, fan_out)
    train(other)
    states = model.state_dict(), other.state_dict()
    state = {name: MEANS[mean](tensor, states[1][name]) for name, tensor in states[0].items()}
    kept = {name: tensor for name, tensor in state.items() if not name.endswith("checksum")}
    for given_state in (state, kept):
        target = widened(layout, fan_out)
        target.load_state_dict(given_state, assign=assign)
        assert all(map(torch.equal, indices(target), indices(model)))
        assert {buffer.dtype for buffer in indices(target)} == {t.dtype for t in indices(model)}
        weights = zip(target.parameters(), model.parameters(), other.parameters(), strict=True)
        for weight, one, two in weights:
            torch.testing.assert_close(weight, MEANS[mean](one, two))


@pytest.mark.parametrize("layout", ["element", "block"])
def test_averages_of_another_plan_are_refused(layout: str) -> None:
    states = [widened(layout, seed=seed).state_dict() for seed in (0, 1)]
    state = {name: (tensor + states[1].get(name, tensor)) / 2 for name, tensor in states[0].items()
             if tensor.shape == states[1][name].shape}  # fmt: skip
    with pytest.raises(CheckpointError):
        fpe_hf.widen(
            nn.Sequential(nn.Linear(WIDTH, 20), nn.GELU(), nn.Linear(20, WIDTH)),
            example_inputs=(torch.randn(1, WIDTH),), layout=layout, seed=5,
        ).load_state_dict(state, strict=False)  # fmt: skip


@pytest.mark.parametrize(("layout", "fan_out"), COMBINATIONS)
def test_averages_on_file_are_loaded_by_a_model_of_the_plan(
    layout: str, fan_out: str, tmp_path: Path
) -> None:
    config = BertConfig(
        vocab_size=96, hidden_size=272, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=4,
    )  # fmt: skip
    model = fpe_hf.widen(BertModel(config), layout=layout, fan_out=fan_out)
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    one = load_file(file)
    train(model)
    two = model.state_dict()
    mean = {name: ((tensor + two[name]) / 2).to(tensor.dtype) for name, tensor in one.items()}
    save_file(mean, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"load_state_dict|keeps"):
        BertModel.from_pretrained(tmp_path)
    model.load_state_dict(load_file(file))
    model.save_pretrained(tmp_path)
    loaded = BertModel.from_pretrained(tmp_path).eval()
    inputs = tiny_inputs(model)
    torch.testing.assert_close(loaded(**inputs)[0], model.eval()(**inputs)[0])
