"""All checks of one model type, and the record they leave."""

from __future__ import annotations

import copy
import dataclasses
import re
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

import fpe_hf
from fpe_hf.discovery import MLPBlock, MLPBlocks
from fpe_hf.errors import ExportError
from fpe_hf.linear import is_pointwise

from .build import builders
from .count import FeedForward, count
from .inputs import Inputs, candidates, repaired
from .types import config_class, model_class

Record = dict[str, Any]

TOLERANCE = 1e-4
LAYOUTS = ("element", "block")
EXACT: Record = {"coupling": 1.0, "fan_out": "partition"}
SHOWN_MISSES = 40


class StepError(Exception):
    """A check failed."""


def check_type(model_type: str, steps: str = "all") -> Record:
    """Runs the checks of one type, up to discovery (`find`) or all of them (`all`)."""
    started = time.perf_counter()
    record: Record = {
        "type": model_type,
        "transformers": transformers.__version__,
        "status": "pass",
        "step": "build",
        "error": None,
    }
    try:
        _check(record, model_type, steps)
    except Exception as failure:
        early = {"build": "not buildable", "forward": "not runnable"}
        record["status"] = early.get(record["step"], "fail")
        record["error"] = in_short(failure)
        record["trace"] = traceback.format_exc().splitlines()[-14:]
    record["seconds"] = round(time.perf_counter() - started, 2)
    return record


def in_short(failure: BaseException) -> str:
    """The kind of an error and what it says, on one line."""
    return f"{type(failure).__name__}: {' '.join(str(failure).split())[:300]}"


def _check(record: Record, model_type: str, steps: str) -> None:
    record["class"] = model_class(model_type).__name__
    model, inputs = _runnable(record, model_type)
    if steps == "forward":
        return
    record["step"] = "find"
    found = _find(record, model, inputs)
    counted = count(model)
    blocks = list(found) or _on_request(found, counted)
    _describe(record, model, found, blocks)
    _compare_counts(record, counted, _modules_that_run(model, inputs), found, blocks)
    if steps == "all" and blocks:
        _check_widening(record, model, inputs)
    record["step"] = "done"
    if record["missed"]:
        record |= {"status": "fail", "step": "find", "error": "feed-forward layers were missed"}
    elif "no_export" in record:
        record |= {"status": "no export", "error": record["no_export"]}
    elif not blocks:
        record["status"] = "refused" if record["refused"] else "no MLP"


# -- the reference ---------------------------------------------------------------------------------


def _runnable(record: Record, model_type: str) -> tuple[Any, Inputs]:
    """The first model and inputs that run."""
    failures: list[Exception] = []
    unbuilt: list[Exception] = []
    for level, build in builders(model_type):
        record["level"] = level
        try:
            model: Any = build()
        except Exception as failure:
            unbuilt.append(failure)
            continue
        record["parameters"] = sum(p.numel() for p in model.parameters())
        record["counted"] = len(count(model))
        record["step"] = "forward"
        if model.config.model_type != config_class(model_type).model_type:
            record["stands_in"] = model.config.model_type
        for label, inputs in _candidates(model, model_type, failures):
            try:
                inputs = _tried(model, inputs)
            except Exception as failure:
                failures.append(failure)
                continue
            record["inputs"] = label
            record["arguments"] = sorted(inputs)
            return model, inputs
    record["tried"] = list(dict.fromkeys(map(in_short, (*failures, *unbuilt))))[:8]
    raise (failures or unbuilt)[0]


def _candidates(
    model: Any, model_type: str, failures: list[Exception]
) -> Iterator[tuple[str, Inputs]]:
    try:
        yield from candidates(model, model_type)
    except Exception as failure:
        failures.append(failure)


def _tried(model: nn.Module, inputs: Inputs) -> Inputs:
    """Inputs that run, repaired if the model says how; raises what the model raised."""
    try:
        outputs = run(model, inputs)
    except Exception as failure:
        changed = repaired(model, inputs, failure)
        if changed is None:
            raise
        inputs, outputs = changed, run(model, changed)
    if not outputs:
        raise StepError("the outputs hold no tensor")
    if any(bool(tensor.isnan().any()) for tensor in outputs):
        raise StepError("the outputs are not numbers")
    return inputs


def run(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """All tensors that a forward pass returns, the same at every call."""
    torch.manual_seed(0)
    with torch.no_grad():
        return list(_tensors(model(**copy.deepcopy(inputs))))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value.detach()
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _tensors(getattr(value, field.name))


def difference(ours: list[Tensor], reference: list[Tensor]) -> float:
    """The largest difference, relative to the largest value of its tensor."""
    if [tensor.shape for tensor in ours] != [tensor.shape for tensor in reference]:
        raise StepError("the outputs have other shapes")
    worst = 0.0
    for own, other in zip(ours, reference, strict=True):
        if not own.numel():
            continue
        own, other = own.double(), other.double()
        scale = float(other[other.isfinite()].abs().max()) if bool(other.isfinite().any()) else 1.0
        apart = torch.where(own == other, 0.0, own - other)  # some masks are infinite
        worst = max(worst, float(apart.abs().max()) / (scale or 1.0))
    return worst


# -- discovery -------------------------------------------------------------------------------------


def _find(record: Record, model: nn.Module, inputs: Inputs) -> MLPBlocks:
    """What `find_mlps` finds, by itself if it can, else with the harness's inputs."""
    reference = _state(model)
    found = fpe_hf.find_mlps(model, copy.deepcopy(inputs))
    try:
        alone = {block.down for block in fpe_hf.find_mlps(model)}
        same = alone == {block.down for block in found}
        record["unaided"] = "same" if same else f"{len(alone)} blocks, not {len(found)}"
    except Exception as failure:
        record["unaided"] = in_short(failure)
    if reference != _state(model):
        raise StepError("find_mlps changed the model")
    return found


def _state(model: nn.Module) -> list[tuple[str, int]]:
    return [(name, tensor._version) for name, tensor in model.state_dict(keep_vars=True).items()]


def _on_request(found: MLPBlocks, counted: list[FeedForward]) -> list[MLPBlock]:
    """The feed-forward layers that are widened only when `targets` names them."""
    downs = {layer.down for layer in counted}
    blocks = [miss.block for miss in found.near_misses if miss.block is not None]
    return [block for block in blocks if _module(block.down) in downs]


def _describe(record: Record, model: nn.Module, found: MLPBlocks, blocks: list[MLPBlock]) -> None:
    record["blocks"] = [_block(model, block) for block in blocks]
    record["targets"] = None if found or not blocks else [block.name for block in blocks]
    record["kinds"] = sorted({kind for block in record["blocks"] for kind in block["kinds"]})
    record["near_misses"] = [
        {
            "ups": list(miss.up),
            "down": miss.down,
            "reason": miss.reason,
            "on_request": miss.block is not None,
        }
        for miss in found.near_misses[:SHOWN_MISSES]
    ]


def _block(model: nn.Module, block: MLPBlock) -> Record:
    kinds = [block.kind]
    if block.experts == 1 and is_pointwise(model.get_submodule(block.down)):
        kinds.append("convolution")
    if re.search(r"experts?\b", block.down) and "experts" not in kinds:
        kinds.append("experts")  # in a list of modules
    kinds += ["shared"] if block.shared or block.calls > 1 else []
    return {
        "name": block.name,
        "ups": list(block.ups),
        "down": block.down,
        "activation": block.activation,
        "sizes": [block.in_features, block.parents, block.out_features],
        "kinds": kinds,
    }


def _compare_counts(
    record: Record,
    counted: list[FeedForward],
    ran: set[str],
    found: MLPBlocks,
    blocks: list[MLPBlock],
) -> None:
    """What the count by names says, beside what discovery says."""
    downs = {_module(block.down) for block in blocks}
    refused = {
        _module(name): miss.reason
        for miss in found.near_misses
        for name in (*miss.up, miss.down)
        if name is not None
    }
    mine = {layer.down for layer in counted}
    record["counted"] = len(counted)
    record["refused"], record["missed"], record["idle"] = [], [], []
    for layer in counted:
        if layer.down in downs:
            continue
        names = (*layer.ups, layer.down)
        reason = next((refused[name] for name in names if name in refused), None)
        entry = {"ups": list(layer.ups), "down": layer.down}
        if reason is not None:
            record["refused"].append({**entry, "reason": reason})
        elif _ran(layer, ran):
            record["missed"].append(entry)
        else:
            record["idle"].append(entry)
    record["extra"] = [
        {"ups": list(block.ups), "down": block.down}
        for block in blocks
        if _module(block.down) not in mine
    ]


def _module(name: str) -> str:
    """A projection's name, be it given as a module's or as a parameter's."""
    return name.removesuffix(".weight")


def _modules_that_run(model: nn.Module, inputs: Inputs) -> set[str]:
    ran: set[str] = set()
    hooks = [
        module.register_forward_hook(lambda *_, name=name: ran.add(name))
        for name, module in model.named_modules()
    ]
    run(model, inputs)
    for hook in hooks:
        hook.remove()
    return ran


def _ran(layer: FeedForward, ran: set[str]) -> bool:
    return layer.down in ran or layer.down.rpartition(".")[0] in ran


# -- widening --------------------------------------------------------------------------------------


def _check_widening(record: Record, model: Any, inputs: Inputs) -> None:
    record["step"] = "control"
    reference = run(model, inputs)
    noise = difference(run(model, inputs), reference)
    if noise > TOLERANCE / 10:
        raise StepError(f"two forward passes of the parent differ by {noise:.1e}")
    record["sensitivity"] = _sensitivity(model, record, inputs, reference)
    record["differences"] = {}
    # A single output cannot be divided among two children.
    single = [block["name"] for block in record["blocks"] if block["sizes"][-1] == 1]
    chosen = {"targets": record["targets"], "exclude": single}
    for layout in LAYOUTS:
        record["step"] = f"widen ({layout})"
        parent = copy.deepcopy(model)
        given = copy.deepcopy(inputs)  # a model may write into its inputs
        widened = fpe_hf.widen(parent, layout=layout, example_inputs=given, **chosen, **EXACT)
        outputs = run(widened, inputs)
        _same(record, layout, widened, model, inputs, reference)
        record["step"] = f"audit ({layout})"
        report = fpe_hf.audit(widened)
        if not report.ok:
            raise StepError(" ".join(report.breaches))
        record["step"] = f"save and load ({layout})"
        _round_trip(record, widened, model, inputs, outputs)
        _check_export(record, layout, widened, model, inputs, reference)


def _check_export(
    record: Record,
    layout: str,
    widened: Any,
    model: Any,
    inputs: Inputs,
    reference: list[Tensor],
) -> None:
    """The stock model must compute the same; that none can hold the widths is noted."""
    record["step"] = f"to_dense ({layout})"
    try:
        dense = fpe_hf.to_dense(widened, copy.deepcopy(inputs))
    except ExportError as failure:
        record["no_export"] = in_short(failure)
        return
    record["merged"] = _merged(record, model, dense)
    outputs = run(dense, inputs)
    _same(record, f"dense {layout}", dense, model, inputs, reference)
    record["step"] = f"reload dense ({layout})"
    if hasattr(dense.config, "quantization_config"):
        raise StepError("the dense model's config names a quantization method")
    _round_trip(record, dense, model, inputs, outputs)


def _merged(record: Record, model: nn.Module, dense: nn.Module) -> int:
    """Blocks that are as wide as in the parent: no field of the config sets their width."""
    before, after = (dict(m.named_parameters(remove_duplicate=False)) for m in (model, dense))
    downs = [block["down"] for block in record["blocks"] if block["sizes"][-1] > 1]
    names = [name if name in before else f"{name}.weight" for name in downs]
    return sum(before[name].shape == after[name].shape for name in names)


def _same(
    record: Record, key: str, model: Any, other: Any, inputs: Inputs, outputs: list[Tensor]
) -> None:
    """`model` must compute what `other` does, whose outputs are given."""
    worst = difference(run(model, inputs), outputs)
    if worst > TOLERANCE:  # Rounding, maybe: it would be gone in double precision.
        worst = difference(*(run(_double(m), _double(inputs)) for m in (model, other)))
        key = f"{key} (float64)"
    record["differences"][key] = float(f"{worst:.2g}")
    if not worst <= TOLERANCE:
        raise StepError(f"the outputs differ by {worst:.1e} of their scale")


def _double(value: Any) -> Any:
    """A copy of a model or of inputs in double precision."""
    if isinstance(value, nn.Module):
        return copy.deepcopy(value).double()
    return tree_map_only(Tensor, lambda t: t.double() if t.is_floating_point() else t, value)


def _round_trip(
    record: Record, model: Any, stock: Any, inputs: Inputs, outputs: list[Tensor]
) -> None:
    """Saved and loaded, the model must compute the same bits, if the stock model does."""
    try:
        _save_and_load(model, inputs, outputs)
    except Exception:
        try:
            _save_and_load(stock, inputs, run(stock, inputs))
        except Exception as control:
            record["unsaved"] = in_short(control)
            return
        raise


def _save_and_load(model: Any, inputs: Inputs, outputs: list[Tensor]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        loaded = type(model).from_pretrained(folder).eval()
    again = run(loaded, inputs)
    if not all(torch.equal(a, b) for a, b in zip(again, outputs, strict=True)):
        raise StepError(f"the loaded model differs by {difference(again, outputs):.1e}")


def _sensitivity(model: Any, record: Record, inputs: Inputs, reference: list[Tensor]) -> float:
    """How much the outputs change when the blocks are silenced; little would prove nothing."""
    downs = {_module(block["down"]) for block in record["blocks"]}
    silent = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in silent.named_parameters():
            if {_module(name), name.removesuffix(".bias")} & downs:
                parameter.zero_()
    return float(f"{difference(run(silent, inputs), reference):.2g}")
