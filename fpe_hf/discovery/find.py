"""`find_mlps`: what would be widened in a model, and what would not and why."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from fpe_hf.discovery.assemble import assemble
from fpe_hf.discovery.block import MLPBlocks, NearMiss
from fpe_hf.discovery.inputs import candidate_inputs, is_pretrained
from fpe_hf.discovery.trace import Inputs, Trace, Values, is_projection, names_of, trace
from fpe_hf.errors import DiscoveryError

UNREACHED = "no inputs reached it; pass example_inputs that do, to find the blocks in it"


def find_mlps(
    model: nn.Module, example_inputs: Mapping[str, Any] | tuple[Any, ...] | None = None
) -> MLPBlocks:
    """Finds the MLP blocks of a model by running it once; see `fpe_hf.find_mlps`."""
    # A default device that the caller has set must not reach the tensors made here.
    with torch.device("cpu"):
        traces = _runs(model, example_inputs)
        found = assemble(model, traces)
    found.near_misses += _unreached(model, traces)
    found.runs = [frozenset(call.projection for call in trace.calls) for trace in traces]
    return found


def _runs(model: nn.Module, example_inputs: Inputs | None) -> list[Trace]:
    """Traces of the model and of the parts that its own run did not reach.

    A tower may need inputs of another modality, an expert may not be chosen.
    """
    if not is_pretrained(model):
        return [_run(model, example_inputs)]
    traces: list[Trace] = []
    failure: DiscoveryError | None = None
    try:
        traces.append(_run(model, example_inputs))
    except DiscoveryError as error:
        if example_inputs is not None:
            raise
        failure = error
    names = names_of(model)
    called = {call.projection for trace in traces for call in trace.calls}
    for child in model.children():
        traces += _run_parts(child, names, called)
    if failure is not None and not any(trace.reads for trace in traces):
        raise failure
    return traces


def _run_parts(
    module: nn.Module, names: Mapping[nn.Module, str], called: set[str]
) -> Iterator[Trace]:
    """Runs `module`, or else its parts, alone if it has projections that were not called yet."""
    own = {names[part] for part in module.modules() if is_projection(part)}
    if len(own - called) < 2:
        return
    run = None if own & called else _try_alone(module, names)
    if run is not None:
        called.update(call.projection for call in run.calls)
        yield run
    for child in module.children():
        yield from _run_parts(child, names, called)


def _unreached(model: nn.Module, traces: Sequence[Trace]) -> Iterator[NearMiss]:
    """The parts of the model of which nothing is known, as no run reached their projections."""
    reached = {call.projection for trace in traces for call in trace.calls}
    bypassed = {name for trace in traces for name in trace.bypassed}
    reached |= {name.rpartition(".")[0] for name in bypassed}
    names = names_of(model)

    def parts(module: nn.Module, inside: bool = False, element: bool = False) -> Iterator[NearMiss]:
        own = {names[part] for part in module.modules() if is_projection(part)}
        if len(own) < 2:
            return
        if own & reached:
            stack = isinstance(module, (nn.ModuleList, nn.ModuleDict))
            for child in module.children():
                yield from parts(child, inside or element, stack)
        elif element or not inside:  # of a layer that runs, its experts, but not its attention
            yield NearMiss((names[module],), None, UNREACHED)

    for child in model.children():
        yield from parts(child, element=isinstance(model, (nn.ModuleList, nn.ModuleDict)))


def _try_alone(module: nn.Module, names: Mapping[nn.Module, str]) -> Trace | None:
    try:
        return _first_run(module, [*candidate_inputs(module)], ("fake", "blank"), names)
    except Exception:  # inputs cannot be made for it, or it does not run
        return None


def _run(model: nn.Module, example_inputs: Inputs | None) -> Trace:
    try:
        candidates = [example_inputs] if example_inputs is not None else [*candidate_inputs(model)]
    except Exception as failure:
        raise DiscoveryError(_advice(model, _in_short(failure), None)) from failure
    if not candidates:
        raise DiscoveryError(_advice(model, "its forward says nothing about its inputs", None))
    ways: list[Values] = ["fake", "blank", "real"] if _has_values(model) else ["fake", "blank"]
    try:
        return _first_run(model, candidates, ways)
    except Exception as failure:
        raise DiscoveryError(_advice(model, _in_short(failure), example_inputs)) from failure


def _first_run(
    model: nn.Module,
    candidates: Sequence[Inputs],
    ways: Iterable[Values],
    names: Mapping[nn.Module, str] | None = None,
) -> Trace:
    """The first run that succeeds; else raises what the likeliest inputs raised last."""
    told: Exception | None = None
    for values in ways:
        # Fake tensors are quick: only what they cannot do is tried with values.
        again: list[tuple[Inputs, Exception]] = []
        for inputs in candidates:
            try:
                return trace(model, _own(inputs), values, names)
            # Whatever the model's code raises, the next way may still work.
            except Exception as failure:
                told = told or failure
                if len(candidates) == 1 or _wants_values(failure):
                    again.append((inputs, failure))
        if not again:
            break
        candidates, told = [inputs for inputs, _ in again], again[0][1]
    raise told or ValueError("there are no inputs to try")


def _own(inputs: Inputs) -> Inputs:
    """The inputs with copies of what is no tensor: a model may keep its state in there."""
    copied: Inputs = tree_map(lambda x: x if isinstance(x, Tensor) else copy.deepcopy(x), inputs)
    return copied


def _wants_values(failure: Exception) -> bool:
    """Whether a run failed because its tensors have no values."""
    module = type(failure).__module__
    return (
        module == "torch._subclasses.fake_tensor"
        or module.startswith("torch.fx.experimental")
        or isinstance(failure, NotImplementedError)
        or "numpy" in str(failure)
    )


def _in_short(failure: Exception) -> str:
    lines = str(failure).strip().splitlines() or [""]
    return f"{type(failure).__name__}: {lines[0].rstrip('. ')}"


def _has_values(model: nn.Module) -> bool:
    tensors: Iterable[Any] = (*model.parameters(), *model.buffers())
    return not any(tensor.is_meta for tensor in tensors)


def _advice(model: nn.Module, reason: str, example_inputs: Inputs | None) -> str:
    fix = (
        "Pass example_inputs, a dict or tuple of arguments that its forward accepts."
        if example_inputs is None
        else "Check that model(**example_inputs) (model(*example_inputs) for a tuple) runs."
    )
    return f"{type(model).__name__} could not be run to find its MLP blocks: {reason}. {fix}"
