"""Runs a model once and records which projections read what other projections made."""

from __future__ import annotations

import contextlib
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_map_only
from torch.utils.weak import WeakTensorKeyDictionary

from fpe_hf.belongings import is_foreign
from fpe_hf.discovery import rules
from fpe_hf.discovery.experts import Product, Stacks, traceable_experts
from fpe_hf.discovery.lineage import (
    Call,
    Ended,
    Lineage,
    Live,
    Outcome,
    Step,
    begin,
    live_tracks,
    operator_name,
    tensors,
)
from fpe_hf.discovery.rows import varying
from fpe_hf.linear import channel_axis, is_linear, is_pointwise, twin_of

Inputs = Mapping[str, Any] | tuple[Any, ...]
"""Arguments of a forward pass: by name, or by position."""

RESHAPES = frozenset(
    "view _unsafe_view reshape _reshape_alias clone alias detach unsqueeze squeeze expand".split()
)
"""Operations after which a tensor still stands for the same value, up to its shape."""


@dataclass(frozen=True)
class Read:
    """One call of a projection that read what other projections made.

    Attributes:
        down: Dotted name of the projection.
        lineage: The lineage of what it read.
        axis: The axis along which it read the channels.
    """

    down: str
    lineage: Lineage
    axis: int = -1


@dataclass
class Trace:
    """What one forward pass showed.

    Attributes:
        calls: Every call of every projection, in order.
        reads: Every read of a value with a lineage, in order.
        bypassed: Names of parameters that code other than their projection computed with.
        misused: Names of parameters that code used as something else than the weights or biases
            of experts, and as what.
    """

    calls: list[Call] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)
    bypassed: set[str] = field(default_factory=set)
    misused: dict[str, str] = field(default_factory=dict)


def is_projection(module: nn.Module) -> bool:
    """Whether `module` looks like a linear layer, stock or not: lineages start and end there."""
    if isinstance(module, nn.Linear) or is_linear(module) or hasattr(module, "lora_A"):
        return not isinstance(module, nn.MultiheadAttention)
    if hasattr(module, "in_features") and hasattr(module, "out_features"):
        return True
    if hasattr(module, "infeatures") and hasattr(module, "outfeatures"):
        return True  # GPTQ
    return is_pointwise(module)  # also those by groups, to say why they are not replaced


Values = Literal["fake", "blank", "real"]
"""What a run computes with: fake tensors, which have shapes but no values and take no memory; true
tensors for the inputs beside weights that are all zeros, which take as little; the model's own."""


def trace(
    model: nn.Module,
    inputs: Inputs,
    values: Values = "fake",
    names: Mapping[nn.Module, str] | None = None,
) -> Trace:
    """Runs `model` once on `inputs` and leaves it as it was.

    Args:
        model: The model; its parameters may lie on any device, the meta device included.
        inputs: Arguments of its forward pass.
        values: What the run computes with.
        names: Names to use for the modules, if `model` is a part of a larger one.
    """
    known = names or names_of(model)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_untouched(model))
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        if values == "fake":
            stack.enter_context(_silent("torch._subclasses.fake_tensor"))
            stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
            state = {name: _fake(tensor) for name, tensor in _state(model)}
            inputs = tree_map_only(Tensor, _fake, inputs)
        elif values == "blank":
            state = {name: _blank(tensor) for name, tensor in _state(model)}
        else:
            device = _device(model)
            state = dict(_state(model))
            inputs = tree_map_only(Tensor, lambda tensor: tensor.to(device), inputs)
        if values != "real":
            stack.enter_context(traceable_experts(model))
        prefix = f"{known[model]}." if known[model] else ""
        tracer = _Tracer({prefix + name: tensor for name, tensor in state.items()}, values)
        stack.enter_context(tracer)
        stack.enter_context(tracer.hooked(model, known))
        named = isinstance(inputs, Mapping)
        args, kwargs = ((), dict(inputs)) if named else (inputs, {})
        tracer.returned(functional_call(model, state, args, kwargs), alone=names is not None)
        return tracer.trace


def names_of(model: nn.Module) -> dict[nn.Module, str]:
    """The first name of every module; projections tied to an earlier one go by its name."""
    names: dict[nn.Module, str] = {}
    projections: dict[int, nn.Module] = {}
    for name, module in model.named_modules():
        names[module] = name
        weight = module._parameters.get("weight")
        if weight is not None and is_linear(module):
            first = projections.setdefault(id(weight), module)
            names[module] = names[first] if twin_of(module, first) else name
    return names


def _state(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _device(model: nn.Module) -> torch.device:
    return next((tensor.device for _, tensor in _state(model)), torch.device("cpu"))


def _fake(tensor: Tensor) -> Tensor:
    """A CPU tensor without values, laid out like `tensor` (a fake mode is active)."""
    return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device="cpu")


def _blank(tensor: Tensor) -> Tensor:
    """A CPU tensor of one repeated number; small tables that have values keep them."""
    if not tensor.is_meta and tensor.numel() <= _SMALL:
        return tensor.detach().cpu()
    return torch.zeros((), dtype=tensor.dtype, device="cpu").expand(tensor.shape)


_SMALL = 1 << 16


@contextlib.contextmanager
def _silent(logger: str) -> Iterator[None]:
    """Failures of a run are raised, or the next way to run is tried; they need no log entry."""
    log = logging.getLogger(logger)
    before = log.disabled
    log.disabled = True
    try:
        yield
    finally:
        log.disabled = before


@contextlib.contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    """Eval mode; whatever the forward pass leaves behind in the modules is taken back.

    Fake tensors must not survive in caches, and the random state must not advance. Hooks of others
    see nothing of it.
    """
    modules = list(model.modules())
    before = [
        (module, dict(module.__dict__), dict(module._parameters), dict(module._buffers))
        for module in modules
    ]
    fast_path = torch.backends.mha.get_fastpath_enabled()
    try:
        # The fast path of nn.TransformerEncoderLayer calls no modules.
        torch.backends.mha.set_fastpath_enabled(False)
        for module in modules:
            module.training = False
            for name in ("_forward_hooks", "_forward_pre_hooks"):
                hooks = module.__dict__[name].items()
                own = OrderedDict((key, hook) for key, hook in hooks if not is_foreign(hook))
                module.__dict__[name] = own
            if hasattr(module, "_hf_hook") and hasattr(module, "_old_forward"):
                # accelerate moves inputs and weights between devices: not now.
                module.__dict__["forward"] = module._old_forward
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for module, attributes, parameters, buffers in before:
            module.__dict__.clear()
            module.__dict__.update(attributes)
            # functional_call leaves its stand-ins in a module that is registered twice.
            module._parameters.clear()
            module._parameters.update(parameters)
            module._buffers.clear()
            module._buffers.update(buffers)


class _Tracer(TorchDispatchMode):
    """Keeps the lineage of every tensor while the model runs."""

    def __init__(self, state: Mapping[str, Tensor], values: Values) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.trace = Trace()
        self._blank = values == "blank"
        self._outputs: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self._origins: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self._lineages: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self._values: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self._parameters = {id(tensor): name for name, tensor in state.items()}
        self._state = state  # Keeps the ids valid.
        with _disable_current_modes():
            self._stacks = Stacks(state.items())
        self._pieces: dict[str, tuple[Call, Lineage | None]] = {}
        self.trace.misused = self._stacks.misused
        self._modules: list[tuple[str, nn.Module]] = []
        self._inside = 0  # Depth of projections being run; nothing is followed inside.

    # -- operations --

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        output = self._run(func, args, kwargs)
        if not self._inside:
            self._follow(Step(func, args, kwargs, output, self._of, self._origin, self._leaf()))
        return output

    def _run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not self._blank or operator_name(func) not in rules.HEAVY:
            return func(*args, **kwargs)
        # Blank weights make blank products: work out their shape, spare the rest.
        args, kwargs = tree_map_only(Tensor, lambda tensor: tensor.to("meta"), (args, kwargs))
        shape = func(*args, **kwargs)
        return tree_map_only(Tensor, lambda t: torch.zeros_like(t, device="cpu"), shape)

    def _follow(self, step: Step) -> None:
        operands = step.operands()
        self._follow_outputs(step)
        self.trace.bypassed.update(
            name for tensor, _ in operands if (name := self._parameter(tensor)) is not None
        )
        self._follow_origin(step, operands)
        self._follow_value(step)
        if self._follow_stacks(step):
            return
        lineages = [lineage for _, lineage in operands if lineage is not None]
        if not lineages or step.name in rules.SHAPE_ONLY:
            return
        with _disable_current_modes():
            outcome = rules.follow(step)
        self._note_leaks(step, lineages, outcome)
        if step.func._schema.is_mutable:
            self._end_neighbours(step, outcome)
        if isinstance(step.output, Tensor):
            self._set(step.output, outcome if not isinstance(outcome, list) else None)
        elif isinstance(outcome, list):
            for tensor, lineage in zip(step.output, outcome, strict=True):
                self._set(tensor, lineage)
        else:
            for tensor in tensors(step.output):
                self._set(tensor, outcome)

    def _follow_origin(self, step: Step, operands: list[tuple[Tensor, Lineage | None]]) -> None:
        """What is computed from parameters alone, place by place, is known by the first of them."""
        if step.name in RESHAPES or torch.Tag.pointwise in step.func.tags:
            origins = [self._origin(tensor) for tensor, _ in operands]
            if origins and all(origins):
                self._origins[step.result] = origins[0]

    def _follow_stacks(self, step: Step) -> bool:
        """Follows the weights of experts; whether no more is to be said about `step`."""
        names = self._stacks.names(step)
        if not names or step.name in rules.SHAPE_ONLY:
            return bool(names)
        at_home = self._at_home()
        for name in names:
            if name not in at_home:
                self._stacks.misused.setdefault(name, "is used outside of its module's forward")
        with _disable_current_modes():
            if self._stacks.move(step):
                return True
            product = self._stacks.product(step)
            if product is not None:
                self._multiplied(step, product)
                return True
            if self._biased(step):
                return True
        self._stacks.misused.update(dict.fromkeys(names, f"is also used by {step.place}"))
        return False

    def _multiplied(self, step: Step, product: Product) -> None:
        """A product with the weights of experts is a call of a projection.

        Products with one expert after the other, in one run of their module, are one call.
        """
        name, axis = product.parameter, product.axis
        lineage = self._of(product.activation)
        call, first = self._pieces.get(name, (None, None))
        if call is None:
            call = Call(name, product.rows, self._value(product.activation))
            call.transposed, call.bias, call.joined = product.transposed, product.bias, False
            self.trace.calls.append(call)
        if product.activation.numel() and not _same_course(lineage, first):
            self._pieces[name] = call, lineage
            if lineage is not None:
                self.trace.reads.append(Read(name, lineage, axis))
        self._pieces.setdefault(name, (call, None))
        if call.transposed != product.transposed or product.bias not in (None, call.bias):
            self._stacks.misused[name] = "is used in several ways"
        self._outputs[step.output] = (call,)
        self._lineages[step.output] = begin(call, step.output.shape, axis)

    def _biased(self, step: Step) -> bool:
        """Whether `step` adds biases of experts to what their weights just made."""
        if step.name != "add" or step.kwargs or not isinstance(step.args[1], Tensor):
            return False
        for made, bias in (step.args[:2], step.args[1::-1]):
            lineage = self._of(made)
            if not isinstance(lineage, Live) or len(lineage.tracks) != 1:
                continue
            track, shape = lineage.tracks[0], step.result.shape
            axes = varying(track.rows)
            if track.ops or made.shape != shape or len(axes) != 1:
                continue
            name = self._stacks.bias(bias, shape, axes[0], track.call.rows)
            if name is not None and track.call.bias in (None, name):
                track.call.bias = name
                self._lineages[step.output] = lineage
                return True
        return False

    def _follow_value(self, step: Step) -> None:
        """Reshaped tensors stand for the same value, so that two of them can be compared."""
        if step.func._schema.is_mutable:
            for tensor in tensors(step.output):
                self._values[tensor] = object()
        elif step.name in RESHAPES and isinstance(step.output, Tensor):
            same = step.output.shape == step.args[0].shape
            value = self._value(step.args[0])
            self._values[step.output] = value if same else (value, step.output.shape)

    def _follow_outputs(self, step: Step) -> None:
        """Follows what a projection made until it is added to other activations, or used up."""
        operands = [(tensor, self._outputs.get(tensor, ())) for tensor, _ in step.operands()]
        kept: dict[Call, None] = {}
        for source, calls in operands:
            for call in calls:
                if step.name in rules.SUMS and any(
                    call not in others
                    and tensor.numel() == step.result.numel()
                    and self._origin(tensor) is None
                    for tensor, others in operands
                ):
                    call.joined = True
                elif rules.carries(step, source):
                    kept[call] = None
        for tensor in tensors(step.output) if kept else ():
            self._outputs[tensor] = tuple(kept)

    def _note_leaks(self, step: Step, lineages: list[Lineage], outcome: Outcome) -> None:
        outcomes = outcome if isinstance(outcome, list) else [outcome]
        kept = {track.call for track in live_tracks(outcomes)}
        for track in live_tracks(lineages):
            if track.call not in kept:
                track.call.leaks.append(step.place)
                track.call.scales |= step.name in rules.PRODUCTS

    def _end_neighbours(self, step: Step, outcome: Outcome) -> None:
        """After an in-place write, other tensors on the same memory hold something else."""
        target = step.args[0]
        storage = target.untyped_storage()
        if isinstance(outcome, Live) and target.numel() * target.itemsize < storage.nbytes():
            for track in outcome.tracks:
                track.call.leaks.append("a write into a part of another tensor")
        for tensor, lineage in list(self._lineages.items()):
            if tensor is target or tensor.untyped_storage()._cdata != storage._cdata:
                continue
            if isinstance(lineage, Live):
                reason = f"{step.place} between them writes in place through a view"
                ops = tuple(op for track in lineage.tracks for op in track.ops)
                calls = tuple(track.call for track in lineage.tracks)
                self._lineages[tensor] = Ended(calls, reason, ops)

    def _of(self, tensor: Tensor) -> Lineage | None:
        lineage: Lineage | None = self._lineages.get(tensor)
        return lineage

    def _set(self, tensor: Tensor, lineage: Lineage | None) -> None:
        if lineage is not None:
            self._lineages[tensor] = lineage
        else:
            self._lineages.pop(tensor, None)

    def _value(self, tensor: Tensor) -> object:
        return self._values.setdefault(tensor, object())

    def _origin(self, tensor: Tensor) -> str | None:
        """The name of the parameter or buffer that a tensor is, or is computed from alone."""
        return self._parameter(tensor) or self._origins.get(tensor)

    def _parameter(self, tensor: Tensor) -> str | None:
        return self._parameters.get(id(tensor))

    # -- modules --

    @contextlib.contextmanager
    def hooked(self, model: nn.Module, names: Mapping[nn.Module, str]) -> Iterator[None]:
        """Lets the tracer see the calls of all modules of `model`."""
        with contextlib.ExitStack() as stack:
            for module in model.modules():
                before, after = self._hooks(names[module], module)
                stack.enter_context(module.register_forward_pre_hook(before, with_kwargs=True))
                stack.enter_context(module.register_forward_hook(after, with_kwargs=True))
            yield

    def _hooks(self, name: str, module: nn.Module) -> tuple[Callable[..., None], ...]:
        projection = is_projection(module)
        axis = channel_axis(module)

        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._modules.append((name, module))
            for parameter in module._parameters.values():
                if parameter is not None:
                    self._pieces.pop(self._parameter(parameter) or "", None)
            if projection:
                if not self._inside:
                    self._read(name, axis, args, kwargs)
                self._inside += 1

        def after(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
        ) -> None:
            self._modules.pop()
            if projection:
                self._inside -= 1
                if not self._inside:
                    self._made(name, axis, args, kwargs, output)

        return before, after

    def _at_home(self) -> set[str | None]:
        """The parameters of the modules that run now."""
        running = (module._parameters.values() for _, module in self._modules)
        return {self._parameter(p) for own in running for p in own if p is not None}

    def _leaf(self) -> tuple[str, str] | None:
        """The module that runs now, if it has no modules in it."""
        if not self._modules or self._modules[-1][1]._modules:
            return None
        name, module = self._modules[-1]
        return name, type(module).__name__

    def _read(self, name: str, axis: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        source = next(iter(tensors((args, kwargs))), None)
        lineage = None if source is None or not source.numel() else self._of(source)
        if lineage is not None:
            self.trace.reads.append(Read(name, lineage, axis))

    def _made(
        self, name: str, axis: int, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        source = next(iter(tensors((args, kwargs))), None)
        # Quantized layers also return a scale.
        output = next(iter(tensors(output)), None)
        if source is None or output is None or not output.dim():
            return
        if not output.numel():
            return  # no token took this way: nothing is known about it
        call = Call(name, output.shape[axis], self._value(source))
        self.trace.calls.append(call)
        call.joined = False
        self._outputs[output] = (call, *self._outputs.get(source, ()))
        with _disable_current_modes():
            self._lineages[output] = begin(call, output.shape, axis)

    def returned(self, output: Any, alone: bool) -> None:
        """Values that the model returns are used outside of it."""
        for tensor in tensors(output) if alone else ():
            for call in self._outputs.get(tensor, ()):
                call.joined = True
        for track in live_tracks(map(self._of, tensors(output))):
            track.call.leaks.append("the model's output")


def _same_course(first: Lineage | None, second: Lineage | None) -> bool:
    """Whether two values came the same way from the same calls."""
    if not isinstance(first, Live) or not isinstance(second, Live):
        return first is second
    courses = [[(track.call, track.ops) for track in live.tracks] for live in (first, second)]
    return courses[0] == courses[1]
