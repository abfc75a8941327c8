"""Turns a trace into blocks and near-misses."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from fpe_hf import belongings
from fpe_hf.discovery.block import MLPBlock, MLPBlocks, NearMiss
from fpe_hf.discovery.lineage import Call, Ended, Live, Op, Track
from fpe_hf.discovery.rows import channels
from fpe_hf.discovery.trace import Read, Trace, names_of
from fpe_hf.linear import features, is_linear, is_pointwise, twin_of

OUTSIDE = "outside a repeated stack; name it in targets to widen it"
NOT_ADDED = "its output is not added to hidden states; name it in targets to widen it"
EMBEDS_TIME = "it embeds a timestep; name it in targets to widen it"

_TIME_EMBEDDER = re.compile(r"(^|[._])time(step)?s?_?emb", re.IGNORECASE)


@dataclass(frozen=True)
class Match:
    """What one read of a projection showed.

    Attributes:
        ups: Names of the projections it read, gate first.
        down: Name of the projection that read.
        ops: The nonlinear operations between them.
        fused: As in `MLPBlock`.
        flaw: Why this is no block, if it is none.
    """

    ups: tuple[str, ...]
    down: str
    ops: tuple[Op, ...]
    fused: str | None = None
    flaw: str | None = None


@dataclass
class Candidate:
    """All reads by the same projection of what the same projections made."""

    matches: list[Match] = field(default_factory=list)
    runs: list[int] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)

    @property
    def first(self) -> Match:
        """The first read that has a flaw, else the first read."""
        return next((match for match in self.matches if match.flaw), self.matches[0])


def assemble(model: nn.Module, traces: Sequence[Trace]) -> MLPBlocks:
    """The blocks and near-misses that `traces` of `model` and its parts show."""
    candidates = _candidates(traces)
    trace = Trace(
        [call for trace in traces for call in trace.calls],
        [read for trace in traces for read in trace.reads],
        {name for trace in traces for name in trace.bypassed},
        {name: use for trace in traces for name, use in trace.misused.items()},
    )
    house = _House(model, trace)
    readers = _readers(trace)
    blocks, misses, taken = [], [], dict[str, str]()
    for candidate in candidates.values():
        match = candidate.first
        reason = (
            match.flaw
            or _inconsistent(candidate)
            or _used_elsewhere(candidate, readers)
            or _called_elsewhere(candidate, trace)
            or house.refusal(match)
        )
        if reason is None:
            block = house.block(candidate)
            names = (*match.ups, match.down)
            overlap = next((taken[name] for name in names if name in taken), None)
            if overlap is None:
                blocks.append(block)
                taken.update(dict.fromkeys(names, _words(block)))
                continue
            reason = f"it shares a projection with the block {overlap}"
        if house.same_region(match):
            misses.append(NearMiss(match.ups, match.down, reason))
    return _split_off(model, house, _told_apart(blocks), misses, trace)


def _told_apart(blocks: list[MLPBlock]) -> list[MLPBlock]:
    """Names blocks of one module by their down projections, or else they would share its name."""
    counts = Counter(block.name for block in blocks)
    return [replace(b, name=b.down) if counts[b.name] > 1 else b for b in blocks]


def _words(block: MLPBlock) -> str:
    return f"{' and '.join(block.ups)} -> {block.down}"


def _split_off(
    model: nn.Module,
    house: _House,
    blocks: list[MLPBlock],
    misses: list[NearMiss],
    trace: Trace,
) -> MLPBlocks:
    """Leaves the blocks of a repeated stack that add to its hidden states.

    Others are heads, gates, routers, embedders and the like: they are widened on request. A model
    that has nothing but such, as a plain chain of layers, is all blocks, gates excepted.
    """
    outputs: dict[str, list[Call]] = {block.down: [] for block in blocks}
    for call in trace.calls:
        outputs.get(call.projection, []).append(call)
    reasons = ((b.down, _why_on_request(house, b, outputs[b.down])) for b in blocks)
    why = {down: reason for down, reason in reasons if reason is not None}
    if len(why) == len(blocks) and not _holds_pretrained(model):
        gates = {down for down, calls in outputs.items() if any(call.scales for call in calls)}
        why = {down: why[down] for down in why if down in gates or why[down] == EMBEDS_TIME}
    on_request = [NearMiss(b.ups, b.down, why[b.down], b) for b in blocks if b.down in why]
    return MLPBlocks([b for b in blocks if b.down not in why], [*misses, *on_request])


def _why_on_request(house: _House, block: MLPBlock, outputs: Sequence[Call]) -> str | None:
    """Why a block is widened only when it is named, or `None`."""
    if not house.in_stack(block.name):
        return OUTSIDE
    if _TIME_EMBEDDER.search(block.down):  # in each layer of a DiT, added to another embedding
        return EMBEDS_TIME
    # Added to other activations wherever it is made.
    return None if all(call.joined is not False for call in outputs) else NOT_ADDED


def _holds_pretrained(model: nn.Module) -> bool:
    modeling_utils = sys.modules.get("transformers.modeling_utils")
    pretrained = getattr(modeling_utils, "PreTrainedModel", ())
    return any(isinstance(module, pretrained) for module in model.modules())


# -- reads ---------------------------------------------------------------------------------------


def _candidates(traces: Sequence[Trace]) -> dict[tuple[tuple[str, ...], str], Candidate]:
    candidates: dict[tuple[tuple[str, ...], str], Candidate] = {}
    for run, read in ((run, read) for run, trace in enumerate(traces) for read in trace.reads):
        match = _match(read)
        if match is None:
            continue
        candidate = candidates.setdefault((match.ups, match.down), Candidate())
        candidate.matches.append(match)
        candidate.runs.append(run)
        candidate.calls += _calls(read)
    return candidates


def _calls(read: Read) -> list[Call]:
    if isinstance(read.lineage, Ended):
        return list(read.lineage.calls)
    return list(dict.fromkeys(track.call for track in read.lineage.tracks))


def _match(read: Read) -> Match | None:
    """What `read` showed; `None` if no activation lies on the way, as in attention."""
    lineage = read.lineage
    if isinstance(lineage, Ended):
        ups = tuple(dict.fromkeys(call.projection for call in lineage.calls))
        return Match(ups, read.down, lineage.ops, flaw=lineage.reason) if lineage.ops else None
    tracks = _gate_first(lineage)
    ops = tuple(dict.fromkeys(op for track in tracks for op in track.ops))
    if not ops:
        return None
    ups = tuple(dict.fromkeys(track.call.projection for track in tracks))
    fused = _fused(tracks, read.axis)
    flaw = None if fused else _flaw(tracks, read.axis)
    return Match(ups, read.down, ops, fused, flaw)


def _gate_first(lineage: Live) -> list[Track]:
    """The tracks; the gate is the one that went through (more of) the activation."""
    return sorted(lineage.tracks, key=lambda track: -len(track.ops))


def _fused(tracks: list[Track], axis: int) -> str | None:
    """How gate and up lie in the rows of one projection, if they do."""
    if len(tracks) != 2 or tracks[0].call is not tracks[1].call:
        return None
    lines = [line for track in tracks if (line := channels(track.rows, axis)) is not None]
    if len(lines) != 2 or tracks[0].call.rows != 2 * len(lines[0]):
        return None
    # Gate and up may come in either order.
    rows = torch.stack(sorted(lines, key=lambda line: int(line[0]))).long()
    everything = torch.arange(rows.numel(), device="cpu")
    if torch.equal(rows, everything.view_as(rows)):
        return "halves"
    return "interleaved" if torch.equal(rows, everything.view_as(rows.t()).t()) else None


def _flaw(tracks: list[Track], axis: int) -> str | None:
    """Why tracks of separate projections are no block, if they are none."""
    if len({track.call.projection for track in tracks}) < len(tracks):
        return "several rows of one projection meet in a hidden channel, but not gate and up"
    if len({track.call.value for track in tracks}) > 1:
        return "its projections read different inputs"
    return next((flaw for track in tracks if (flaw := _row_flaw(track, axis)) is not None), None)


def _row_flaw(track: Track, axis: int) -> str | None:
    rows, name = channels(track.rows, axis), track.call.projection
    if rows is None:
        return f"the hidden channels of {name} are not all along the axis that is read"
    used = torch.unique(rows[rows >= 0])
    if len(used) < track.call.rows:
        return f"only {len(used)} of the {track.call.rows} rows of {name} are read"
    if len(rows) > track.call.rows:
        return f"the outputs of {name} are joined with other values or used twice"
    if not torch.equal(rows, torch.arange(len(rows), device="cpu")):
        return f"the hidden channels of {name} are read in another order"
    return f"the outputs of {name} are reshaped over the hidden axis" if track.reshaped else None


def _inconsistent(candidate: Candidate) -> str | None:
    shapes = {(match.ups, match.fused) for match in candidate.matches}
    return "its calls differ in how the projections are combined" if len(shapes) > 1 else None


def _readers(trace: Trace) -> dict[Call, set[str]]:
    readers: dict[Call, set[str]] = {}
    for read in trace.reads:
        for call in _calls(read):
            readers.setdefault(call, set()).add(read.down)
    return readers


def _used_elsewhere(candidate: Candidate, readers: dict[Call, set[str]]) -> str | None:
    down = candidate.first.down
    for call in candidate.calls:
        if call.leaks:
            return f"the output of {call.projection} is also used by {call.leaks[0]}"
        others = readers[call] - {down}
        if others:
            return f"the output of {call.projection} is also read by {min(others)}"
    return None


def _called_elsewhere(candidate: Candidate, trace: Trace) -> str | None:
    """A projection that is also called for something else cannot be replaced."""
    match, times = candidate.first, len(candidate.matches)
    called = Counter(call.projection for call in trace.calls)
    for name in (*match.ups, match.down):
        if called[name] != times:
            return f"{name} is called {called[name]} times, but only {times} times in this block"
    return None


# -- modules -------------------------------------------------------------------------------------


class _House:
    """Where the modules of a model stand, and what speaks against replacing them."""

    def __init__(self, model: nn.Module, trace: Trace) -> None:
        self._modules = dict(model.named_modules())
        self._names: dict[nn.Module, list[str]] = {}
        self._firsts = names_of(model)
        for name, module in model.named_modules(remove_duplicate=False):
            # Tied projections are one, reachable by the names of all.
            self._names.setdefault(self._modules[self._firsts[module]], []).append(name)
        self._owners: dict[int, list[tuple[nn.Module, str]]] = {}
        for module in model.modules():
            for name, tensor in module._parameters.items():
                if tensor is not None:
                    self._owners.setdefault(id(tensor), []).append((module, name))
        self._bypassed = trace.bypassed
        self._misused = trace.misused
        self._calls = trace.calls

    def block(self, candidate: Candidate) -> MLPBlock:
        """The block that `candidate` is."""
        match = candidate.first
        if match.down not in self._modules:
            return self._experts(candidate)
        up, down = self._modules[match.ups[-1]], self._modules[match.down]
        rows = candidate.calls[0].rows
        others = (
            name
            for first in (*match.ups, match.down)
            for name in self._names[self._modules[first]]
            if name != first
        )
        return _block(candidate, (features(up)[0], rows, features(down)[1]), others)

    def _experts(self, candidate: Candidate) -> MLPBlock:
        """The block of experts that `candidate` is."""
        match = candidate.first
        names = (*match.ups, match.down)
        calls = [self._call(name) for name in names]
        rows, out_features = calls[0].rows, calls[-1].rows
        experts, first, second = self._parameter(match.ups[0]).shape
        sizes = (first if calls[0].transposed else second, rows, out_features)
        others = (other for name in names for other in self._other_names(name))
        return replace(
            _block(candidate, sizes, others),
            experts=experts,
            transposed=tuple(bool(call.transposed) for call in calls),
            bias_names=tuple(call.bias for call in calls),
        )

    def _call(self, name: str) -> Call:
        return next(call for call in self._calls if call.projection == name)

    def _parameter(self, name: str) -> Tensor:
        tensor: Tensor = self._modules[_home(name)].get_parameter(name.rpartition(".")[2])
        return tensor

    def _other_names(self, name: str) -> Iterator[str]:
        """Further names of a parameter whose module is registered more than once."""
        own = name.rpartition(".")[2]
        for other in self._names[self._modules[_home(name)]][1:]:
            yield f"{other}.{own}"

    def refusal(self, match: Match) -> str | None:
        """Why a projection cannot be replaced, if one cannot."""
        names = (*match.ups, match.down)
        stacked = {name not in self._modules for name in names}
        if stacked == {True}:
            return self._stack_refusal(names)
        if stacked == {True, False}:
            return "it mixes modules with parameters that stack experts"
        return next((reason for name in names if (reason := self._refusal(name))), None)

    def _refusal(self, name: str) -> str | None:
        module = self._modules[name]
        kind = f"{type(module).__module__}.{type(module).__qualname__}"
        if hasattr(module, "lora_A") or kind.startswith("peft."):
            return f"{name} carries an adapter ({kind}); merge it into the weights first"
        if parametrize.is_parametrized(module):
            return f"the weight of {name} is computed; remove its parametrizations first"
        if is_pointwise(module) and not is_linear(module):
            return f"{name} is a convolution by groups, whose outputs read a part of the inputs"
        if not is_linear(module):
            return f"{name} is a {kind}, not a plain linear layer; {_REMEDY}"
        weight = module._parameters.get("weight")
        if weight is None or module._parameters.keys() - {"weight", "bias"}:
            return f"the weight of {name} is computed; make it a plain parameter first"
        if is_traceable_wrapper_subclass(weight) or not weight.is_floating_point():
            return f"{name} is quantized ({type(weight).__name__}, {weight.dtype}); {_REMEDY}"
        kept = self._tied(name, module) or self._bypass(name, module)
        return kept or belongings.refusal(module, name)

    def _stack_refusal(self, names: tuple[str, ...]) -> str | None:
        """Why parameters that stack experts cannot be replaced, if they cannot."""
        if len({self._parameter(name).shape[0] for name in names}) > 1:
            return "its parameters stack different numbers of experts"
        if self._parameter(names[0]).shape[0] == 1:
            return f"{names[0]} stacks only one matrix"
        for name in names:
            own = [call for call in self._calls if call.projection == name]
            if len({(call.transposed, call.bias) for call in own}) > 1:
                return f"the calls of {name} differ in their orientation or bias"
            for parameter in filter(None, (name, own[0].bias)):
                reason = self._parameter_refusal(parameter)
                if reason is not None or _home(parameter) != _home(name):
                    return reason or f"{parameter} lies in another module than {name}"
        return None

    def _parameter_refusal(self, name: str) -> str | None:
        module, tensor = self._modules[_home(name)], self._parameter(name)
        if name in self._misused:
            return f"{name} {self._misused[name]}"
        if parametrize.is_parametrized(module) or hasattr(module, "base_layer"):
            return f"{name} is computed or adapted; merge what was added to it first"
        if is_traceable_wrapper_subclass(tensor) or not tensor.is_floating_point():
            return f"{name} is quantized ({type(tensor).__name__}, {tensor.dtype}); dequantize it"
        if belongings.has_gradient_hooks(tensor):
            return f"{name} has hooks on its gradient; remove them first"
        if len(self._owners[id(tensor)]) > 1:
            return f"{name} is tied to another parameter; untie it first"
        return None

    def _tied(self, name: str, module: nn.Module) -> str | None:
        for tensor in self._own(module):
            for owner, attribute in self._owners[id(tensor)]:
                if owner is not module and not twin_of(owner, module):
                    other = f"{self._firsts[owner]}.{attribute}"
                    return f"a parameter of {name} is tied to {other}; untie it first"
        return None

    def _bypass(self, name: str, module: nn.Module) -> str | None:
        for attribute, tensor in module._parameters.items():
            if tensor is not None and f"{name}.{attribute}" in self._bypassed:
                return f"{name}.{attribute} is used without calling {name}"
        return None

    @staticmethod
    def _own(module: nn.Module) -> Iterator[Tensor]:
        yield from (tensor for tensor in module._parameters.values() if tensor is not None)

    def in_stack(self, name: str) -> bool:
        """Whether the module `name` lies in one element of a repeated stack."""
        return self._element(name) is not None

    def same_region(self, match: Match) -> bool:
        """Whether all projections lie in the same element of a stack, or all outside of any."""
        return len({self._element(name) for name in (*match.ups, match.down)}) == 1

    def _element(self, name: str) -> str | None:
        """The outermost element of a repeated stack that holds the module `name`."""
        name = name if name in self._modules else _home(name)
        parts = name.split(".") if name else []
        for length in range(1, len(parts) + 1):
            parent, prefix = ".".join(parts[: length - 1]), ".".join(parts[:length])
            if _is_repeated(self._modules[parent], self._modules[prefix]):
                return prefix
        return None


_REMEDY = "dequantize or replace it with an nn.Linear first"


def _block(candidate: Candidate, sizes: tuple[int, int, int], others: Iterable[str]) -> MLPBlock:
    """The block of a candidate, given its inputs, rows and outputs and its other names."""
    match = candidate.first
    in_features, rows, out_features = sizes
    return MLPBlock(
        name=_common_prefix((*match.ups, match.down)),
        up=match.ups[-1],
        gate=match.ups[0] if len(match.ups) > 1 else None,
        down=match.down,
        activation=_activation(match.ops),
        in_features=in_features,
        parents=rows // 2 if match.fused else rows,
        out_features=out_features,
        fused=match.fused,
        shared=tuple(others),
        calls=max(Counter(candidate.runs).values()),
    )


def _is_repeated(stack: nn.Module, element: nn.Module) -> bool:
    """Whether `element` is one of the layers that `stack` repeats."""
    if not element._modules:
        return False
    if isinstance(stack, (nn.ModuleList, nn.ModuleDict)):
        return True
    # A Sequential may also be just a chain of different things.
    siblings = [child for child in stack.children() if child is not element]
    return isinstance(stack, nn.Sequential) and (
        not siblings or any(type(child) is type(element) for child in siblings)
    )


def _home(name: str) -> str:
    """The module that holds the parameter `name`."""
    return name.rpartition(".")[0]


def _common_prefix(names: Iterable[str]) -> str:
    prefix: list[str] = []
    for parts in zip(*(name.split(".") for name in names), strict=False):
        if len(set(parts)) > 1:
            break
        prefix.append(parts[0])
    return ".".join(prefix)


def _activation(ops: tuple[Op, ...]) -> str:
    """The operation, or the module that holds all the operations, or all operations."""
    names = list(dict.fromkeys(op.name for op in ops))
    if len(names) == 1 and not names[0].startswith("_"):
        return names[0]
    module = ops[0].module
    if module is not None and all(op.module == module for op in ops):
        return module[1]
    return "+".join(names)
