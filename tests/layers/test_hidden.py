"""Blocks that run as one operation equal those that run projection by projection."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor, nn
from torch.nn import functional

from fpe_hf.errors import StaleError
from fpe_hf.kernels import chunked
from fpe_hf.layers import FPELayer, block
from fpe_hf.layers.hidden import Hidden, eager_hidden
from layers.running import run
from planning.cases import KINDS, Case, cases, make_case

Between = Callable[..., Tensor]


@pytest.fixture(autouse=True)
def _small_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny blocks wait, too, and run in several chunks and parts."""
    monkeypatch.setattr(block, "FEWEST_PRODUCTS", 0)
    monkeypatch.setattr(block, "FEWEST_TOKENS", 1)
    monkeypatch.setattr(chunked, "CHUNK_TOKENS", 4)
    monkeypatch.setattr(chunked, "PART_BYTES", 1)


class MLP(nn.Module):
    """The layers of a case as a model has them."""

    def __init__(self, case: Case, between: Between | None = None) -> None:
        super().__init__()
        *ups, self.down = case.layers()
        self.layers = nn.ModuleList(ups)
        self.between = between or BETWEEN[case.block.fused or case.block.kind]
        self.seen: Any = None

    @property
    def ups(self) -> list[Any]:
        return list(self.layers)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.between(*(up(x) for up in self.ups))
        self.seen = hidden
        made: Tensor = self.down(hidden)
        return made


def gated(gate: Tensor, up: Tensor) -> Tensor:
    return functional.silu(gate) * up


def halves(both: Tensor) -> Tensor:
    gate, up = both.chunk(2, dim=-1)
    return functional.silu(gate) * up


def interleaved(both: Tensor) -> Tensor:
    gate, up = both[..., ::2], both[..., 1::2]
    return gate.clamp(max=1.0) * torch.sigmoid(gate * 1.7) * (up + 1)


BETWEEN: dict[str, Between] = {
    "plain": functional.gelu,
    "gated": gated,
    "halves": halves,
    "interleaved": interleaved,
}


def assert_same(model: MLP, x: Tensor) -> None:
    """Both ways make the same, forward and backward."""
    found = list(run(model, x))
    assert isinstance(model.seen, Hidden)
    assert model.seen.numbers is None, "the block did not run as one operation"
    with eager_hidden():
        expected = list(run(model, x))
    assert not isinstance(model.seen, Hidden)
    torch.testing.assert_close(found, expected)
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected[0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("fan_out", ["replicate", "partition"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"coupling": 0.3, "bias": "child"},
        {"coupling": 1.0},
        {"coupling": 1.0, "bias": "child"},
        {"coupling": 0.9, "learn_coupling": True},
    ],
    ids=str,
)
def test_forward_and_gradients(
    kind: str, recompute: bool, fan_out: str, options: dict[str, Any]
) -> None:
    case = make_case(
        kind, 12, 7, 9, layout="block", tile_size=3, alpha=3, fan_out=fan_out,
        dtype=torch.float64, **options,
    )  # fmt: skip
    model = MLP(case)
    for up in model.ups:
        up.recompute = recompute
    assert_same(model, torch.randn(3, 3, 12, dtype=torch.float64))


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cases(layout="block", dtype=torch.float64))
def test_forward_and_gradients_of_any_shape(case: Case) -> None:
    assert_same(MLP(case), torch.randn(7, case.spec.in_features, dtype=torch.float64))


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)], ids=str
)
def test_precisions(dtype: torch.dtype, tolerance: float) -> None:
    case = make_case("gated", 12, 7, 9, layout="block", alpha=3, dtype=dtype)
    model = MLP(case)
    x = torch.randn(9, 12).to(dtype)
    found = list(run(model, x))
    expected = list(run(model.double(), x.double()))
    for own, wanted in zip(found, expected, strict=True):
        error = (own.double() - wanted).abs().max() / wanted.abs().max()
        assert error < tolerance


def plain_case(**more: Any) -> Case:
    return make_case(d=12, h=7, o=9, layout="block", alpha=3, dtype=torch.float64, **more)


X = torch.randn(2, 5, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def new_gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1.0 + torch.tanh(0.8 * (x + 0.044715 * torch.pow(x, 3.0))))


@pytest.mark.parametrize(
    "between",
    [
        new_gelu,
        nn.ReLU(),
        lambda h: torch.square(functional.relu(h)),
        lambda h: 1 - h / 2 + (-h) ** 3,
        lambda h: functional.dropout(functional.gelu(h), 0.5, training=False),
        lambda h: functional.gelu(h).contiguous(),
        lambda h: h,
    ],
)
def test_elementwise_functions_wait(between: Between) -> None:
    assert_same(MLP(plain_case(), between), X)


@pytest.mark.parametrize(
    "between",
    [
        lambda h: functional.layer_norm(h, h.shape[-1:]),
        lambda h: h.softmax(-1),
        lambda h: h.view(-1, h.shape[-1]).view_as(h),
        lambda h: functional.gelu(h) * torch.linspace(0, 1, h.shape[-1], dtype=h.dtype),
        lambda h: torch.where(h > 0, h, 0.1 * h),
        lambda h: torch.stack([functional.gelu(h), h]).sum(0),
        lambda h: functional.gelu(h).mul_(2),
        lambda h: _in_place(h),
        lambda h: _autograd_function(h),
        nn.ReLU(inplace=True),
    ],
)
def test_anything_else_gets_the_numbers(between: Between) -> None:
    model = MLP(plain_case(), between)
    found = list(run(model, X))
    with eager_hidden():
        expected = list(run(model, X))
    torch.testing.assert_close(found, expected)
    with torch.no_grad():
        torch.testing.assert_close(model(X), expected[0])


def _in_place(h: Tensor) -> Tensor:
    before = functional.gelu(h)
    h = h * 1.0
    h.add_(1)  # what it returns is not used
    h[..., 0] = 0
    return before + h


class _Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * 2


def _autograd_function(h: Tensor) -> Tensor:
    doubled: Tensor = _Double.apply(functional.gelu(h))
    return doubled


def test_writing_to_it_changes_what_is_read() -> None:
    model = MLP(plain_case(), lambda h: h)
    with torch.no_grad():
        hidden = model.ups[0](X)
        assert isinstance(hidden, Hidden)
        earlier = functional.gelu(hidden)
        hidden.zero_()
        assert not hidden.any()
        assert earlier.any()
        bias = model.down.bias
        assert bias is not None
        torch.testing.assert_close(model.down(hidden), bias.expand(2, 5, -1))


def test_what_it_reads_may_be_overwritten() -> None:
    model = MLP(plain_case())
    with torch.no_grad():
        expected = model(X)
        x = X.clone()
        hidden = functional.gelu(model.ups[0](x))
        x.zero_()
        torch.testing.assert_close(model.down(hidden), expected)


@pytest.mark.parametrize("way", ["step", "cast", "load"])
def test_stale_hidden_activations_are_refused(way: str) -> None:
    model = MLP(plain_case())
    with torch.no_grad():
        hidden = model.ups[0](X)
        if way == "step":
            model.ups[0].weight.add_(1)
        elif way == "cast":
            model.float()
        else:
            model.load_state_dict({k: v.clone() for k, v in model.state_dict().items()})
        with pytest.raises(StaleError, match="'mlp': the weights were changed"):
            print(hidden)
        with pytest.raises(StaleError):
            model.down(hidden)


def test_looking_at_it_without_gradients_costs_no_gradient() -> None:
    model = MLP(plain_case())
    expected = list(run(model, X))

    def look(module: nn.Module, args: tuple[Tensor]) -> None:
        with torch.no_grad():
            assert float(args[0].norm()) > 0

    model.down.register_forward_pre_hook(look)
    torch.testing.assert_close(list(run(model, X)), expected)


def test_it_is_a_tensor_to_whoever_looks() -> None:
    model = MLP(plain_case())
    hidden = model.ups[0](X)
    assert isinstance(hidden, Tensor)
    assert (hidden.shape, hidden.dtype, hidden.dim()) == ((2, 5, 21), torch.float64, 3)
    assert hidden.requires_grad
    assert not hidden.is_leaf
    assert hidden.numbers is None
    with eager_hidden():
        expected = model.ups[0](X)
    assert torch.equal(hidden + 0, expected)
    assert repr(hidden) == repr(hidden.made())
    assert torch.equal(hidden[0, :2], expected[0, :2])
    assert torch.equal(hidden.detach().clone(), expected)


@pytest.mark.parametrize("way", ["hook", "compile", "vmap", "meta"])
def test_nothing_waits_where_it_could_be_noticed(way: str) -> None:
    up, _ = plain_case().layers()
    seen: list[Any] = []
    if way == "hook":
        up.register_forward_hook(lambda module, args, output: seen.append(output))
        up(X)
    elif way == "compile":
        torch.compile(up, backend="eager", fullgraph=True)(X)
        seen.append(torch.compile(up, backend="eager", fullgraph=True)(X))
    elif way == "vmap":
        seen.append(torch.vmap(up)(X))
    else:
        seen.append(up.to("meta")(X.to("meta")))
    assert not isinstance(seen[0], Hidden)


def test_small_products_do_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block, "FEWEST_PRODUCTS", 20_000_000)
    assert not isinstance(plain_case().layers()[0](X), Hidden)


@pytest.mark.parametrize(("training", "dtype"), list(product([False, True], [torch.bfloat16])))
def test_autocast(training: bool, dtype: torch.dtype) -> None:
    case = make_case("gated", 12, 7, 9, layout="block", alpha=3)
    model, x = MLP(case, lambda g, u: new_gelu(g) * u), X.float()
    with torch.autocast("cpu", dtype=dtype), torch.set_grad_enabled(training):
        found = model(x)
        assert isinstance(model.seen, Hidden)
        with eager_hidden():
            expected = model(x)
    assert found.dtype == expected.dtype == dtype
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05 * expected.abs().max().item())
    if not training:
        return
    found.float().sum().backward()
    grads = [parameter.grad for parameter in model.parameters()]
    model.zero_grad()
    expected.float().sum().backward()
    for grad, parameter in zip(grads, model.parameters(), strict=True):
        assert grad is not None
        assert parameter.grad is not None
        error = (grad - parameter.grad).abs().max() / parameter.grad.abs().max()
        assert error < 0.05


def test_frozen_parameters_get_no_gradient() -> None:
    model = MLP(plain_case())
    model.down.weight.requires_grad_(False)
    for name, parameter in model.ups[0].named_parameters():
        parameter.requires_grad_(name == "bias")
    model(X).sum().backward()
    grads = {name: p.grad is not None for name, p in model.named_parameters()}
    assert grads == {
        "down.weight": False,
        "down.bias": True,
        "layers.0.weight": False,
        "layers.0.bias": True,
    }


def kept_bytes(model: MLP, x: Tensor) -> int:
    """Bytes that a forward pass keeps for the backward pass, parameters aside."""
    own = {parameter.data_ptr() for parameter in model.parameters()}
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if not isinstance(tensor, Hidden) and storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = model(x)
        assert result.grad_fn is not None
    return sum(storages.values())


def test_recomputation_keeps_no_hidden_activations() -> None:
    case = make_case(d=12, h=70, o=9, layout="block", alpha=3, dtype=torch.float64)
    model, x = MLP(case), torch.randn(64, 12, dtype=torch.float64)
    hidden = 64 * 3 * 70 * 8
    assert kept_bytes(model, x) > hidden
    model.ups[0].recompute = True
    assert kept_bytes(model, x) < hidden / 10


def test_hidden_activations_of_another_block_are_just_numbers() -> None:
    case, other = plain_case(), plain_case(seed=1)
    up, down = case.layers()[0], other.layers()[1]
    assert isinstance(up, FPELayer)
    with torch.no_grad():
        found = down(up(X))
        with eager_hidden():
            torch.testing.assert_close(found, down(up(X)))
