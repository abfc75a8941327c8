"""Uses that look behind a module's outputs: widened models do what stock ones do.

Every use runs on a widened model and on its dense reference (`to_dense`), a stock model that
computes the same, and must give the same; or, where stock would not notice, raise a typed error.
"""

from __future__ import annotations

import copy
import gc
import os
import pickle
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.module import register_module_forward_hook
from torch.profiler import profile
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import fpe_hf
from fpe_hf.errors import FusingError
from fpe_hf.fusing import unfuse, unfused, whole
from fpe_hf.kernels import dispatch
from fpe_hf.kernels.fused import fused
from fpe_hf.layers import FPELayer
from tiny_models import tiny_inputs, tiny_model
from tiny_moe import tiny_mixture

FAMILIES = ("mlp", "llama", "bert", "gpt2", "phi3", "mixtral")
"""Plain, gated, side by side in a larger module, Conv1D, fused gate and up, stacked experts."""

LAYOUTS = ("element", "block", "learned")
"""Those of `FPEConfig`, and what a learned split closes to."""

Use = Callable[[nn.Module, dict[str, Tensor]], Any]


@pytest.fixture(autouse=True)
def _small_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny blocks are fused, too."""
    monkeypatch.setattr(dispatch, "FEWEST_TOKENS", 1)
    monkeypatch.setattr(dispatch, "FEWEST_PRODUCTS", 0)


class Sequence(nn.Module):
    """A chain of MLPs that takes a named argument, as transformers models do."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 16)) for _ in range(2)
        )

    def forward(self, x: Tensor) -> tuple[Tensor]:
        for layer in self.layers:
            x = x + layer(x)
        return (x,)


@cache
def made(family: str, layout: str) -> tuple[nn.Module, nn.Module, dict[str, Tensor]]:
    """A widened model in float64, a stock model that computes the same, and inputs."""
    options: dict[str, Any] = {}
    if family == "mlp":
        model: nn.Module = Sequence()
        inputs = {"x": torch.randn(2, 5, 16).double()}
        options["example_inputs"] = {"x": torch.randn(1, 16)}
    else:
        model = tiny_mixture(family) if family == "mixtral" else tiny_model(family)
        inputs = tiny_inputs(model)
        model.config._experts_implementation = "eager"  # others take no float64
    options |= {"split": "learned"} if layout == "learned" else {"layout": layout}
    fpe_hf.widen(model, **options)
    if layout == "learned":
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        fpe_hf.BudgetSchedule(model, 1).close()
    model = model.double().eval()
    return model, fpe_hf.to_dense(model).eval(), inputs


def out(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    result: Tensor = model(**inputs)[0]
    return result


def trained(model: nn.Module) -> tuple[str, Tensor]:
    """A parameter before the last blocks that widened and stock models share, with its name."""
    shared = [
        (name, parameter)
        for name, parameter in model.named_parameters()
        if (parameter.dim() == 1 and "norm" in name.lower()) or "ln_" in name
    ]
    return shared[0] if shared else next(iter(model.named_parameters()))


def with_start(model: nn.Module, inputs: dict[str, Tensor], start: Tensor) -> Tensor:
    """The outputs as a function of two numbers that are added to what blocks read."""
    if "x" in inputs:
        return out(model, {"x": inputs["x"] + torch.cat([start, start.new_zeros(14)])})
    name, parameter = trained(model)
    moved = parameter + torch.cat([start, start.new_zeros(len(parameter) - 2)])
    result: Tensor = functional_call(model, {name: moved}, kwargs=inputs)[0]
    return result


def names(model: nn.Module) -> list[str]:
    """Of the modules that stock models have, too, and that run."""
    return [
        name
        for name, module in model.named_modules()
        if "fpe_" not in name and not isinstance(module, nn.ModuleList)
    ]


def tensors(value: Any) -> list[Tensor]:
    """All tensors of a module's arguments or results."""
    if isinstance(value, Tensor):
        return [value.detach().clone()]
    if isinstance(value, dict):
        value = list(value.values())
    return [t for own in value for t in tensors(own)] if isinstance(value, (tuple, list)) else []


def activations(model: nn.Module) -> list[nn.Module]:
    """What makes hidden activations: activations, and the down projections that read them."""
    return [m for m in model.modules() if type(m).__name__ in ("GELU", "GELUActivation")] or [
        module
        for name, module in model.named_modules()
        if name.endswith(("down_proj", "dense", "c_proj", "experts")) and "fpe_" not in name
    ]


def forward_hooks(model: nn.Module, inputs: dict[str, Tensor]) -> Any:
    seen: dict[str, list[Tensor]] = {}

    def note(name: str) -> Callable[..., None]:
        return lambda module, args, result: seen.setdefault(name, []).extend(tensors(result))

    for name in names(model):
        model.get_submodule(name).register_forward_hook(note(name))
    out(model, inputs)
    return seen


def pre_hooks(model: nn.Module, inputs: dict[str, Tensor]) -> Any:
    seen: dict[str, list[Tensor]] = {}

    def note(name: str) -> Callable[..., None]:
        return lambda module, args: seen.setdefault(name, []).extend(tensors(args))

    for name in names(model):
        model.get_submodule(name).register_forward_pre_hook(note(name))
    out(model, inputs)
    return seen


def backward_hooks(model: nn.Module, inputs: dict[str, Tensor]) -> Any:
    seen: dict[str, list[Tensor]] = {}

    def note(name: str) -> Callable[..., None]:
        return lambda module, into, outof: seen.setdefault(name, []).extend(tensors(outof))

    for name in names(model)[1:]:
        model.get_submodule(name).register_full_backward_hook(note(name))
    out(model, inputs).square().sum().backward()
    return seen


def global_hook(model: nn.Module, inputs: dict[str, Tensor]) -> Any:
    shapes: list[tuple[int, ...]] = []
    known = {id(model.get_submodule(name)) for name in names(model)}

    def note(module: nn.Module, args: Any, result: Any) -> None:
        if id(module) in known:
            shapes.extend(tuple(t.shape) for t in tensors(result))

    handle = register_module_forward_hook(note)
    try:
        out(model, inputs)
    finally:
        handle.remove()
    return shapes


def captured_and_read_late(model: nn.Module, inputs: dict[str, Tensor]) -> Any:
    kept: list[Any] = []
    for module in activations(model):
        module.register_forward_hook(lambda module, args, result: kept.append((args, result)))
    out(model, inputs).square().mean().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.data.add_(1.0)
        torch.optim.SGD(model.parameters(), lr=0.1).step()
    return tensors(kept)


def gradient_of_a_captured_activation(model: nn.Module, inputs: dict[str, Tensor]) -> Any:
    kept: list[Tensor] = []

    def note(module: nn.Module, args: Any, result: Any) -> None:
        kept.append(result if isinstance(result, Tensor) else result[0])

    for module in activations(model):
        module.register_forward_hook(note)
    loss = out(model, inputs).square().sum()
    return torch.autograd.grad(loss, kept)


def edited_in_place(model: nn.Module, inputs: dict[str, Tensor]) -> Any:
    def edit(module: nn.Module, args: Any, result: Any) -> None:
        (result if isinstance(result, Tensor) else result[0]).mul_(2.0)

    for module in activations(model):
        module.register_forward_hook(edit)
    with torch.no_grad():
        return out(model, inputs)


def hook_replaces(model: nn.Module, inputs: dict[str, Tensor]) -> Any:
    first = out(model, inputs)
    handles = [
        module.register_forward_hook(
            lambda module, args, result: result * 2 if isinstance(result, Tensor) else None
        )
        for module in activations(model)
    ]
    second = out(model, inputs)
    for handle in handles:
        handle.remove()
    return first, second, out(model, inputs)


def hessian(model: nn.Module, inputs: dict[str, Tensor]) -> Any:
    start = torch.zeros(2, dtype=torch.float64)
    found = torch.autograd.functional.hessian(
        lambda start: with_start(model, inputs, start).square().sum(), start
    )
    assert bool(found.any())
    return found


def jacobians(model: nn.Module, inputs: dict[str, Tensor]) -> Any:
    start = torch.zeros(2, dtype=torch.float64)
    of = torch.autograd.functional.jacobian
    return [
        of(lambda start: with_start(model, inputs, start).flatten()[:5], start, vectorize=vectorize)
        for vectorize in (False, True)
    ]


def function_transforms(model: nn.Module, inputs: dict[str, Tensor]) -> Any:
    starts = torch.eye(2, dtype=torch.float64)
    of = lambda start: with_start(model, inputs, start)  # noqa: E731
    return (
        torch.func.jvp(of, (starts[0],), (starts[1],)),
        torch.func.grad(lambda start: of(start).square().sum())(starts[0]),
        torch.func.jacrev(lambda start: of(start).flatten()[:5])(starts[0]),
    )


def vmapped(model: nn.Module, inputs: dict[str, Tensor]) -> Any:
    starts = torch.eye(2, dtype=torch.float64)
    return torch.vmap(lambda start: with_start(model, inputs, start))(starts)


def gradient_penalty(model: nn.Module, inputs: dict[str, Tensor]) -> Any:
    start = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    loss = with_start(model, inputs, start).square().sum()
    (first,) = torch.autograd.grad(loss, start, create_graph=True)
    first.square().sum().backward()
    _, parameter = trained(model)
    return start.grad, parameter.grad if "x" not in inputs else None


def checkpointed(model: nn.Module, inputs: dict[str, Tensor]) -> Any:
    found = []
    for reentrant in (False, True):
        start = torch.zeros(2, dtype=torch.float64, requires_grad=True)
        result = checkpoint(
            lambda start: with_start(model, inputs, start), start, use_reentrant=reentrant
        )
        result.square().sum().backward()
        found.append(start.grad)
    return found


def inference_mode_then_training(model: nn.Module, inputs: dict[str, Tensor]) -> Any:
    with torch.inference_mode():
        first = out(model, inputs).clone()
    for module in model.modules():
        if isinstance(module, (FPELayer, nn.Linear)):
            module.requires_grad_(False)
    start = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    with_start(model, inputs, start).square().sum().backward()
    return first.sum().item(), start.grad


def copied(model: nn.Module, inputs: dict[str, Tensor]) -> Any:
    out(model, inputs)
    return [
        out(own, inputs)
        for own in (
            copy.deepcopy(model),
            copy.copy(model),
            pickle.loads(pickle.dumps(model)),
        )
    ]


def threads(model: nn.Module, inputs: dict[str, Tensor]) -> Any:
    """Inference from 8 threads, and two models in training at once."""
    with torch.no_grad():
        expected = out(model, inputs)
    other = copy.deepcopy(model)

    def infer(_: int) -> bool:
        with torch.no_grad():
            return bool(torch.allclose(out(model, inputs), expected))

    def train(own: nn.Module) -> list[Tensor]:
        for _ in range(3):
            own.zero_grad()
            out(own, inputs).square().sum().backward()
        return [trained(own)[1].grad.clone()]  # type: ignore[union-attr]

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(infer, range(24)))
        found = list(pool.map(train, (model, other)))
    torch.testing.assert_close(*found)
    return found[0] if "x" not in inputs else expected


def profiled(model: nn.Module, inputs: dict[str, Tensor]) -> Any:
    with profile(with_flops=True) as seen, torch.no_grad():
        out(model, inputs)
    assert sum(event.flops for event in seen.key_averages()) > 0
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        out(model, inputs)
    assert counter.get_total_flops() > 0


USES: dict[str, Use] = {
    use.__name__: use
    for use in (
        forward_hooks, pre_hooks, backward_hooks, global_hook, captured_and_read_late,
        gradient_of_a_captured_activation, edited_in_place, hook_replaces, hessian, jacobians,
        function_transforms, vmapped, gradient_penalty, checkpointed,
        inference_mode_then_training, copied, threads, profiled,
    )
}  # fmt: skip


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_as_with_stock(family: str, layout: str, use: str) -> None:
    model, stock, inputs = copy.deepcopy(made(family, layout))
    out(model, inputs)  # what is learned in a first run
    try:
        expected = USES[use](stock, inputs)
    except Exception as error:  # stock cannot do it
        with pytest.raises(type(error)):
            USES[use](model, inputs)
        return
    torch.testing.assert_close(USES[use](model, inputs), expected)


@pytest.mark.parametrize("family", [*FAMILIES[:-1], "t5_gated"])
def test_blocks_are_fused_unless_somebody_looks(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or else the tests above would compare plain operations with themselves."""
    calls: list[Any] = []
    monkeypatch.setattr(whole, "fused", lambda *given: calls.append(given) or fused(*given))
    model = tiny_model(family) if family != "mlp" else Sequence()
    inputs = {"x": torch.randn(2, 5, 16)} if family == "mlp" else tiny_inputs(model)
    blocks = fpe_hf.find_mlps(model, inputs)
    fpe_hf.widen(model, layout="block", example_inputs=inputs)
    for _ in range(2):  # the first run of a larger module is watched
        calls.clear()
        out(model.eval(), inputs)
        assert len(calls) == len(blocks)
    calls.clear()
    with unfused():
        out(model, inputs)
    for block in blocks:
        model.get_submodule(block.down).register_forward_hook(lambda module, args, result: None)
    out(model, inputs)
    assert not calls


class Pair(nn.Module):
    """Up projection, activation and down projection side by side, and what may go wrong."""

    __module__ = "transformers.models.made_up"  # others are not fused

    def __init__(self) -> None:
        super().__init__()
        self.up, self.act, self.down = nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 16)
        self.norm, self.way = nn.LayerNorm(16), "fine"
        self.seen: Any = None

    def forward(self, x: Tensor) -> Any:
        hidden = self.up(self.norm(x))
        if self.way == "read before":
            self.seen = hidden.sum()
        hidden = self.act(hidden)
        if self.way == "read after":
            self.seen = hidden.sum()
        if self.way == "changed":
            hidden = hidden * 2
        if self.way == "dropped":
            hidden = nn.functional.dropout(hidden, 0.5, self.training)
        result = x + self.down(hidden)
        if self.way == "twice":
            result = result + self.down(self.act(self.up(result)))
        return (result, hidden) if self.way == "returned" else (result,)


@pytest.mark.parametrize(
    "way", ["fine", "read before", "read after", "changed", "dropped", "twice", "returned"]
)
@pytest.mark.parametrize("training", [False, True])
def test_what_lies_between_is_never_assumed(way: str, training: bool) -> None:
    model = Pair()
    x = torch.randn(3, 4, 16)
    fpe_hf.widen(model, layout="block", example_inputs=(x,))
    model.way = way
    model.train(training)
    found = []
    for _ in range(3):
        torch.manual_seed(0)
        found.append((model(x), model.seen))
    torch.manual_seed(0)
    with unfused():
        expected = model(x), model.seen
    for own in found:
        torch.testing.assert_close(own, expected)


@pytest.mark.parametrize("way", ["changed", "dropped"])
def test_a_module_that_changes_after_its_first_run_is_noticed(way: str) -> None:
    model, x = Pair(), torch.randn(3, 4, 16)
    fpe_hf.widen(model, layout="block", example_inputs=(x,))
    model.train()(x)
    model.way = way
    with pytest.raises(FusingError, match="'down' no longer reads"):
        model(x)
    torch.manual_seed(0)
    found = model(x)
    torch.manual_seed(0)
    with unfused():
        torch.testing.assert_close(found, model(x))


def test_parts_can_be_called_by_themselves() -> None:
    model, _, inputs = copy.deepcopy(made("bert", "block"))
    out(model, inputs)
    layer = model.get_submodule("encoder.layer.0")
    x = torch.randn(2, 5, 32, dtype=torch.float64)
    hidden = layer.intermediate(x)
    assert hidden.shape == (2, 5, 96)
    expected = nn.functional.gelu(layer.intermediate.dense(x))
    torch.testing.assert_close(hidden, expected)


def test_forked_children_do_not_meet() -> None:
    """Memory that children share would let one overwrite what the other keeps for its gradient."""
    model, _, _ = copy.deepcopy(made("mlp", "block"))
    x = torch.randn(64, 16, dtype=torch.float64)

    def gradients(factor: float, wait: Callable[[], None] = lambda: None) -> list[Tensor]:
        model.zero_grad()
        loss = out(model, {"x": factor * x}).square().sum()
        wait()
        loss.backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    expected = [gradients(factor) for factor in (1.0, 2.0)]
    ready, go, pipes = os.pipe(), os.pipe(), []
    for factor in (1.0, 2.0):
        read, write = os.pipe()
        pipes.append(read)
        if os.fork() == 0:

            def wait() -> None:
                os.write(ready[1], b".")
                os.read(go[0], 1)

            with os.fdopen(write, "wb") as file:
                pickle.dump([g.tolist() for g in gradients(factor, wait)], file)
            os._exit(0)
        os.close(write)
    for _ in pipes:  # both are between forward and backward
        os.read(ready[0], 1)
    os.write(go[1], b"..")
    for read, wanted in zip(pipes, expected, strict=True):
        with os.fdopen(read, "rb") as file:
            found = [torch.tensor(g, dtype=torch.float64) for g in pickle.load(file)]
        os.wait()
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", ["mixtral", "llama", "bert"])
def test_offloaded(family: str, layout: str, tmp_path: Path) -> None:
    model, _, inputs = copy.deepcopy(made(family, layout))
    expected = out(model, inputs)
    on_disk = copy.deepcopy(model)
    cpu_offload(model, execution_device="cpu")
    torch.testing.assert_close(out(model, inputs), expected)
    disk_offload(on_disk, str(tmp_path), execution_device="cpu")
    for _ in range(2):
        torch.testing.assert_close(out(on_disk, inputs), expected)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_live_no_longer_than_their_parameters(layout: str) -> None:
    model, _, inputs = copy.deepcopy(made("mlp", layout))
    with torch.no_grad():
        out(model, inputs)
        out(model, {"x": inputs["x"][:1, :1]})
    out(model, inputs).sum().backward()
    model.zero_grad()
    kept = [weakref.ref(parameter) for parameter in model.parameters()]
    storages = [weakref.ref(p.untyped_storage()) for p in model.parameters()]
    model.to("meta")
    gc.collect()
    assert not any(reference() is not None for reference in (*kept, *storages))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_autocast(family: str, layout: str) -> None:
    model, stock, inputs = copy.deepcopy(made(family, layout))
    model, stock = model.float(), stock.float()
    inputs = {n: t.float() if t.is_floating_point() else t for n, t in inputs.items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, expected = out(model, inputs), out(stock, inputs)
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_compiled_to_one_graph(family: str, layout: str) -> None:
    model, _, inputs = copy.deepcopy(made(family, layout))
    if family == "mixtral":
        model.config._experts_implementation = "batched_mm"  # the others break graphs in stock
    torch._dynamo.reset()
    found = out(torch.compile(model, backend="eager", fullgraph=True), inputs)
    torch.testing.assert_close(found, out(model, inputs))


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("family", ["bert", "llama", "gpt2"])
def test_checkpointing_whole_layers_from_the_first_run(family: str, reentrant: bool) -> None:
    model = fpe_hf.widen(tiny_model(family), layout="block").train()
    other = copy.deepcopy(model)
    inputs = tiny_inputs(model)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    for own in (model, other):
        torch.manual_seed(0)
        out(own, inputs).square().mean().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, other.get_parameter(name).grad)


def chain() -> Any:
    model = nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 16))
    return fpe_hf.widen(model, layout="block", example_inputs=(torch.randn(1, 16),))


def test_a_chain_may_grow() -> None:
    model, x = chain(), torch.randn(8, 16)
    model.append(nn.Linear(16, 3))
    assert model(x).shape == (8, 3)


def test_classes_may_be_patched_later(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = fpe_hf.widen(tiny_model("llama"), layout="block"), torch.randn(8, 32)
    mlp = model.get_submodule("model.layers.0.mlp")
    expected = 2 * mlp(x)
    kind = type(mlp).__mro__[1]
    stock = kind.forward
    monkeypatch.setattr(kind, "forward", lambda self, x: 2 * stock(self, x))
    torch.testing.assert_close(mlp(x), expected)


def test_activations_may_be_exchanged() -> None:
    x = torch.randn(8, 16)
    for other in (nn.ReLU(), nn.PReLU(), nn.LayerNorm(48), nn.Softmax(-1)):
        model = chain()
        model(x)
        model[1] = other
        found = model(x)
        with unfused():
            torch.testing.assert_close(found, model(x))


class Moody(nn.Module):
    """Does something else in training, and with another scale."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.act, self.down = nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 16)
        self.scale = 1.0

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.act(self.up(x)) * self.scale
        if self.training:
            hidden = hidden * 0.5
        result: Tensor = self.down(hidden)
        return result


def test_programs_of_unknown_classes_are_run_as_they_are() -> None:
    x = torch.randn(8, 16)
    model = Moody().eval()
    fpe_hf.widen(model, layout="block", example_inputs=(x,))
    before = model(x)
    model.scale = 3.0
    model.train()
    found = model(x)
    assert not torch.allclose(found, before)
    with unfused():
        torch.testing.assert_close(found, model(x))


@pytest.mark.parametrize("family", FAMILIES)
def test_unfusing_leaves_the_rest_as_it_is(family: str) -> None:
    model, _, inputs = copy.deepcopy(made(family, "block"))
    expected = out(model, inputs)
    unfuse(model)
    torch.testing.assert_close(out(model, inputs), expected)
    assert not any(
        "_fpe_whole" in m.__dict__ or "_fpe_apart" in m.__dict__ for m in model.modules()
    )
