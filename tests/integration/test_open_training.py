"""Models whose budget is open train in every way people train: PyTorch's loops and copies."""

from __future__ import annotations

import copy
import io
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import fpe_hf
from fpe_hf.modules import fpe_layers
from tiny_models import tiny_inputs, tiny_model
from tiny_moe import forward, labels, tiny_mixture

STEPS, CLOSING = 10, 7  # end=0.7
ORDERS = list(itertools.permutations(("model", "optimizer", "schedule")))


def perceptron() -> nn.Sequential:
    torch.manual_seed(0)
    layers = (nn.Linear(12, 16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 3))
    return nn.Sequential(*layers)


def perceptron_loss(model: nn.Module, step: int) -> Tensor:
    draw = torch.Generator().manual_seed(step)
    x, y = torch.randn(32, 12, generator=draw), torch.randint(0, 3, (32,), generator=draw)
    return nn.functional.cross_entropy(model(x).float(), y)


def bert_loss(model: nn.Module, step: int) -> Tensor:
    torch.manual_seed(step)  # dropout
    return model(**tiny_inputs(model), labels=torch.tensor([step % 5, 1])).loss


def mixture_loss(model: nn.Module, step: int) -> Tensor:
    return forward(model, labels=labels()).loss


Loss = Callable[[nn.Module, int], Tensor]
KINDS: dict[str, tuple[Callable[[], Any], Loss]] = {
    "plain": (perceptron, perceptron_loss),
    "bert": (lambda: tiny_model("bert_classifier").train(), bert_loss),
    "experts": (lambda: tiny_mixture("mixtral"), mixture_loss),
    "gpt_oss": (lambda: tiny_mixture("gpt_oss"), mixture_loss),
    "llama": (lambda: tiny_model("llama"), mixture_loss),
    "gpt2": (lambda: tiny_model("gpt2"), mixture_loss),
    "phi3": (lambda: tiny_model("phi3"), mixture_loss),
}


def opened(kind: str = "plain", **options: Any) -> Any:
    return fpe_hf.widen(KINDS[kind][0](), **{"alpha": 3, "split": "learned", **options})


def train_whole(model: nn.Module, loss: Loss, optimizer: torch.optim.Optimizer) -> None:
    """From an open budget to the end of the training."""
    schedule = fpe_hf.BudgetSchedule(model, STEPS, optimizer=optimizer)
    for step in range(STEPS):
        optimizer.zero_grad()
        loss(model, step).backward()
        optimizer.step()
        schedule.step()


class Run:
    """A model in training: what a script has."""

    def __init__(self, kind: str = "plain", optimizer: Any = torch.optim.AdamW, **options: Any):
        self.loss, self.model = KINDS[kind][1], opened(kind)
        self.optimizer = optimizer(self.model.parameters(), **{"lr": 1e-2, **options})
        self.schedule = fpe_hf.BudgetSchedule(self.model, STEPS, optimizer=self.optimizer)
        self.step = 0

    def train(self, steps: int) -> Run:
        for _ in range(steps):
            torch.manual_seed(self.step)
            self.step += 1
            self.optimizer.zero_grad()
            self.loss(self.model, self.step).backward()
            self.optimizer.step()
            self.schedule.step()
        return self

    def state(self) -> dict[str, Any]:
        file = io.BytesIO()
        parts = ("model", "optimizer", "schedule")
        torch.save({name: getattr(self, name).state_dict() for name in parts}, file)
        file.seek(0)
        return {"step": self.step, **torch.load(file)}

    def load(self, state: dict[str, Any], order: tuple[str, ...]) -> Run:
        for name in order:
            # A copy: optimizers take the tensors themselves.
            getattr(self, name).load_state_dict(copy.deepcopy(state[name]))
        self.step = state["step"]
        return self


def assert_same(first: nn.Module, second: nn.Module) -> None:
    one, two = first.state_dict(), second.state_dict()
    assert one.keys() == two.keys()
    assert [name for name in one if not torch.equal(one[name], two[name])] == []


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("step", [1, 4, CLOSING - 1, CLOSING, CLOSING + 1])
@pytest.mark.parametrize("kind", ["plain", "experts"])
def test_states_resume_bit_by_bit_in_any_order(
    kind: str, step: int, order: tuple[str, ...]
) -> None:
    run = Run(kind).train(step)
    state = run.state()
    run.train(STEPS - step)
    resumed = Run(kind).load(state, order).train(STEPS - step)
    assert resumed.schedule.open == run.schedule.open
    assert_same(run.model, resumed.model)
    assert fpe_hf.audit(resumed.model, strict=True).ok


@pytest.mark.parametrize("kind", ["bert", "gpt_oss", "llama", "gpt2", "phi3"])
@pytest.mark.parametrize("step", [CLOSING - 1, CLOSING])
def test_states_of_every_kind_of_block_resume(kind: str, step: int) -> None:
    run = Run(kind).train(step)
    state = run.state()
    run.train(STEPS - step)
    for order in (("model", "optimizer", "schedule"), ("schedule", "optimizer", "model")):
        resumed = Run(kind).load(state, order).train(STEPS - step)
        assert_same(run.model, resumed.model)


OPTIMIZERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "momentum": (torch.optim.SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    "adafactor": (torch.optim.Adafactor, {}),
    "rmsprop": (torch.optim.RMSprop, {"momentum": 0.9, "centered": True, "lr": 1e-3}),
    "fused": (torch.optim.AdamW, {"fused": True}),
    "foreach": (torch.optim.AdamW, {"foreach": True, "amsgrad": True}),
    "adagrad": (torch.optim.Adagrad, {}),
    "rprop": (torch.optim.Rprop, {}),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_goes_on_after_closing(name: str) -> None:
    kind, options = OPTIMIZERS[name]
    run = Run("plain", kind, **options).train(CLOSING - 1)
    before = {
        place: layer.by_child(value).sum()
        for place, layer in fpe_layers(run.model)
        for value in run.optimizer.state[layer.weight].values()
        if isinstance(value, Tensor) and value.shape == layer.weight.shape
    }
    run.train(1)
    assert not run.schedule.open
    trained = [own for group in run.optimizer.param_groups for own in group["params"]]
    assert {id(own) for own in trained} == {id(own) for own in run.model.parameters()}
    assert set(run.optimizer.state) <= set(trained)
    for _, layer in fpe_layers(run.model):
        # Adafactor keeps rows and columns of a matrix, of which a vector has none: it starts anew.
        assert (layer.weight in run.optimizer.state) == (name != "adafactor")
    assert before or name == "adafactor"
    weights = [layer.weight.detach().clone() for _, layer in fpe_layers(run.model)]
    state = run.state()
    run.train(STEPS - CLOSING)
    for (_, layer), weight in zip(fpe_layers(run.model), weights, strict=True):
        assert not torch.equal(layer.weight, weight)
    resumed = Run("plain", kind, **options)
    resumed.load(state, ("optimizer", "model", "schedule")).train(STEPS - CLOSING)
    assert_same(run.model, resumed.model)


@pytest.mark.parametrize("order", ORDERS)
def test_lbfgs_goes_on_after_closing(order: tuple[str, ...]) -> None:
    def train(run: Run, steps: int) -> None:
        def closure() -> Tensor:
            run.optimizer.zero_grad()
            torch.manual_seed(0)
            loss = perceptron_loss(run.model, 0)
            loss.backward()
            return loss

        for _ in range(steps):
            run.optimizer.step(closure)
            run.schedule.step()

    run, resumed = (Run("plain", torch.optim.LBFGS, lr=0.1, max_iter=3) for _ in range(2))
    train(run, CLOSING + 1)
    weight, state = run.model[0].weight.detach().clone(), run.state()
    train(run, 2)
    assert not torch.equal(run.model[0].weight, weight)
    train(resumed.load(state, order), 2)
    assert_same(run.model, resumed.model)


def test_an_optimizer_that_trains_matrices_only_is_refused() -> None:
    model = opened()
    weights = [own for own in model.parameters() if own.dim() == 2]
    muon = torch.optim.Muon(weights, lr=1e-2)
    with pytest.raises(fpe_hf.errors.ConfigError, match="Muon"):
        fpe_hf.BudgetSchedule(model, STEPS, optimizer=muon)


def test_a_new_optimizer_after_closing() -> None:
    model = opened()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    schedule = fpe_hf.BudgetSchedule(model, STEPS)
    for step in range(STEPS):
        was_open = schedule.open
        optimizer.zero_grad()
        perceptron_loss(model, step).backward()
        optimizer.step()
        schedule.step()
        if was_open and not schedule.open:
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    assert set(optimizer.state) == set(model.parameters())
    assert fpe_hf.audit(model, strict=True).ok


# -- copies --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["plain", "bert", "experts"])
@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
def test_a_copy_trains_and_closes_like_the_model(way: str, kind: str) -> None:
    run = Run(kind).train(3)
    if way == "deepcopy":
        twin = copy.deepcopy(run.model)
    else:
        file = io.BytesIO()
        torch.save(run.model, file)
        file.seek(0)
        twin = torch.load(file, weights_only=False)
    other = Run(kind)
    other.load(run.state(), ("model", "optimizer", "schedule"))
    # The twin is on its own: it is neither closed with the model nor watched by its schedule.
    run.train(STEPS - 3)
    assert fpe_hf.audit(twin).open
    optimizer = torch.optim.AdamW(twin.parameters(), lr=1e-2)
    schedule = fpe_hf.BudgetSchedule(twin, STEPS, optimizer=optimizer, start=3)
    optimizer.load_state_dict(other.optimizer.state_dict())
    other.model, other.optimizer, other.schedule = twin, optimizer, schedule
    other.train(STEPS - 3)
    assert_same(run.model, twin)


def test_a_copy_watches_its_own_gradients() -> None:
    """Hooks on gradients are copied with their parameters; they speak of the copy's masks."""
    run = Run().train(5)
    twin = copy.deepcopy(run.model)
    run.schedule.close()
    for _, layer in fpe_layers(twin):
        layer.mask.fill_(True)
    perceptron_loss(twin, 0).backward()
    for _, layer in fpe_layers(twin):
        assert bool(layer.weight.grad.any())


def test_all_that_trains_is_copied_together() -> None:
    run = Run().train(5)
    twin = copy.deepcopy(run)
    perceptron_loss(twin.model, 0).backward()
    for _, layer in fpe_layers(twin.model):
        assert not bool(layer.weight.grad.masked_select(~layer.mask).any())
    run.train(STEPS - 5)
    assert twin.schedule.open
    twin.train(STEPS - 5)
    assert_same(run.model, twin.model)


def test_a_closed_state_loads_into_a_copy() -> None:
    run = Run()
    twin = copy.deepcopy(run.model)
    run.train(STEPS)
    twin.load_state_dict(run.model.state_dict())
    assert_same(run.model, twin)


@pytest.mark.parametrize("kind", ["plain", "bert", "experts"])
def test_averages_of_an_open_model_hold_together(kind: str) -> None:
    """Alive is what was alive in any of them; of a closed model, another average is made."""
    run = Run(kind)
    average = AveragedModel(run.model, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True)
    seen = {name: torch.zeros_like(layer.mask) for name, layer in fpe_layers(run.model)}
    for _ in range(CLOSING - 1):
        run.train(1)
        average.update_parameters(run.model)
        for name, layer in fpe_layers(run.model):
            seen[name] |= layer.mask
    for name, layer in fpe_layers(average.module):
        layer.check(name)
        assert torch.equal(layer.mask, seen[name])
    other = opened(kind)
    other.load_state_dict(average.module.state_dict())
    assert_same(other, average.module)
    run.train(1)
    average = AveragedModel(run.model, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True)
    average.update_parameters(run.model)
    run.train(1)
    average.update_parameters(run.model)
    assert fpe_hf.audit(average.module, strict=True).ok


def test_an_average_of_an_open_model_takes_no_closed_one() -> None:
    run = Run()
    average = AveragedModel(run.model, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True)
    average.update_parameters(run.model)
    run.train(STEPS)
    with pytest.raises(RuntimeError):
        average.update_parameters(run.model)


# -- freezing, moving, sharing -------------------------------------------------------------------


def test_frozen_blocks_close_and_stay_frozen() -> None:
    model = tiny_model("bert_classifier")
    fpe_hf.widen(model, alpha=3, split="learned")
    frozen = model.bert.encoder.layer[0].requires_grad_(False)
    before = {name: own.clone() for name, own in frozen.named_parameters() if "bias" in name}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    train_whole(model, bert_loss, optimizer)
    assert not any(own.requires_grad for own in frozen.parameters())
    assert all(own.requires_grad for own in model.bert.encoder.layer[1].parameters())
    for name, own in before.items():
        assert torch.equal(frozen.get_parameter(name), own)
    assert fpe_hf.audit(model, strict=True).ok


def test_everything_but_the_blocks_is_frozen() -> None:
    model = fpe_hf.widen(tiny_model("llama").requires_grad_(False), alpha=3, split="learned")
    own = [p for _, layer in fpe_layers(model) for p in layer.requires_grad_(True).parameters()]
    optimizer = torch.optim.AdamW(own, lr=1e-2)
    train_whole(model, mixture_loss, optimizer)
    trained = [p for p in model.parameters() if p.requires_grad]
    assert trained == optimizer.param_groups[0]["params"]
    assert len(trained) == len(own)
    assert fpe_hf.audit(model, strict=True).ok


def test_weights_that_begin_to_train_are_watched() -> None:
    model = opened()
    model.requires_grad_(False)
    schedule = fpe_hf.BudgetSchedule(model, STEPS)
    for _ in range(4):
        schedule.step()
    model.requires_grad_(True)
    schedule.step()
    perceptron_loss(model, 0).backward()
    for _, layer in fpe_layers(model):
        assert not bool(layer.mask.all())
        assert not bool(layer.weight.grad.masked_select(~layer.mask).any())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_model_that_changes_its_dtype_closes(dtype: torch.dtype) -> None:
    run = Run().train(4)
    run.model.to(dtype)
    if dtype == torch.bfloat16:
        x = torch.randn(32, 12, dtype=dtype)
        run.model(x).sum().backward()
        for _, layer in fpe_layers(run.model):
            assert not bool(layer.weight.grad.masked_select(~layer.mask).any())
    run.schedule.close()
    assert {own.dtype for own in run.model.parameters()} == {dtype}
    assert fpe_hf.audit(run.model, strict=True).ok


@pytest.mark.parametrize("step", [4, CLOSING])
def test_states_are_assigned(step: int) -> None:
    run = Run().train(step)
    model = opened()
    state = copy.deepcopy(run.model.state_dict())
    model.load_state_dict(state, assign=True)
    assert_same(run.model, model)
    assert model[0].weight.data_ptr() == state["0.weight"].data_ptr()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    schedule = fpe_hf.BudgetSchedule(model, STEPS, optimizer=optimizer)
    optimizer.load_state_dict(copy.deepcopy(run.optimizer.state_dict()))
    schedule.load_state_dict(run.schedule.state_dict())
    resumed = Run()
    resumed.model, resumed.optimizer, resumed.schedule = model, optimizer, schedule
    resumed.step = step
    run.train(STEPS - step)
    resumed.train(STEPS - step)
    assert_same(run.model, model)


def test_shared_blocks_close_once() -> None:
    model = fpe_hf.widen(tiny_model("albert"), alpha=3, split="learned")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    schedule = fpe_hf.BudgetSchedule(model, STEPS, optimizer=optimizer)
    for _ in range(STEPS):
        optimizer.zero_grad()
        model(**tiny_inputs(model)).last_hidden_state.square().mean().backward()
        optimizer.step()
        schedule.step()
    report = fpe_hf.audit(model, strict=True)
    assert len(report.blocks) == 1
    assert set(optimizer.state) == {own for own in model.parameters() if own in optimizer.state}


def test_tied_projections_close_as_one() -> None:
    model = nn.Sequential(perceptron(), perceptron())
    for place in (0, 3):
        model[1][place].weight, model[1][place].bias = (
            model[0][place].weight,
            model[0][place].bias,
        )
    model = nn.Sequential(model[0], nn.Linear(3, 12), model[1])
    fpe_hf.widen(model, alpha=3, split="learned")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    train_whole(model, perceptron_loss, optimizer)
    assert model[0][0].weight is model[2][0].weight
    assert fpe_hf.audit(model, strict=True).ok


def test_a_larger_model_takes_a_closed_state() -> None:
    """`widen` was given a part of the model that is saved."""
    whole, again = (nn.Sequential(opened(), nn.Linear(3, 3)) for _ in range(2))
    fpe_hf.BudgetSchedule(whole, STEPS).close()
    again.load_state_dict(whole.state_dict())
    assert_same(whole, again)


def test_a_damaged_state_leaves_an_open_model_as_it_is() -> None:
    run, model = Run().train(CLOSING), opened()
    before = copy.deepcopy(model.state_dict())
    state = run.model.state_dict()
    state["0.weight"] = state["0.weight"] + 1
    with pytest.raises(fpe_hf.errors.CheckpointError, match="checksum"):
        model.load_state_dict(state)
    assert fpe_hf.audit(model).open
    assert all(torch.equal(own, before[name]) for name, own in model.state_dict().items())


# -- compiled and exported -----------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_open_model_trains_and_closes(backend: str) -> None:
    torch._dynamo.reset()
    run, compiled = Run(), Run()
    compiled.model = torch.compile(compiled.model, backend=backend)
    compiled.schedule = fpe_hf.BudgetSchedule(compiled.model, STEPS, optimizer=compiled.optimizer)
    compiled.model.eval(), run.model.eval()
    run.train(STEPS)
    compiled.train(STEPS)
    assert not compiled.schedule.open
    assert fpe_hf.audit(compiled.model, strict=True).ok
    inner = compiled.model._orig_mod
    for one, two in zip(run.model.parameters(), inner.parameters(), strict=True):
        torch.testing.assert_close(one, two)
    other = torch.compile(opened(), backend=backend)
    other.load_state_dict(compiled.model.state_dict())
    assert_same(other, compiled.model)


@pytest.mark.parametrize("kind", ["plain", "bert", "gpt2"])
def test_an_open_model_is_exported(kind: str) -> None:
    model = opened(kind).eval()
    if kind == "plain":
        args, kwargs = (torch.randn(4, 12),), {}
    else:
        args, kwargs = (), tiny_inputs(model)
        model.config.use_cache = False
    exported = torch.export.export(model, args, kwargs).module()
    first, second = model(*args, **kwargs), exported(*args, **kwargs)
    if kind != "plain":
        first, second = first.logits, second.logits
    torch.testing.assert_close(first, second)
