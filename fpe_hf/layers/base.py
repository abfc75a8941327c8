"""What all widened layers share: their place in a block, derived tensors and checksums."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import reduce
from typing import Any, NoReturn

import torch
from torch import Tensor, distributed, fx, nn
from torch.utils._python_dispatch import _disable_current_modes

from ..errors import CheckpointError, ExportError, InputShapeError, OverwrittenError
from ..kernels.ordinary import is_ordinary, is_readable
from ..linear import CHANNEL_AXES
from ..planning import BlockSpec
from ..splits import derive_seed
from .checksum import UNVERIFIED, checksum, was_averaged
from .parting import note_training
from .seal import Seal, Stamps

INDEX_BUFFERS = ("keep", "owner", "codes", "inputs", "outputs")

_OTHER_PLAN = (
    "it comes from another plan. Load it into a model widened with the same configuration and "
    "parent, or by from_pretrained."
)


def at_hand(*tensors: Tensor) -> bool:
    """Whether tensors hold all their numbers: not so meta, fake and distributed ones."""
    return all(type(t) in (Tensor, nn.Parameter) and not t.is_meta for t in tensors)


class FPELayer(nn.Module):
    """A widened projection. Its parameters are non-zeros and nothing else (I1).

    Attributes:
        spec: The block this layer belongs to.
        index: Which of the block's up modules this is; `None` for the down projection.
        stock: What it replaced (see `fpe_hf.linear`), and what `to_dense` makes of it.
        in_features: Width of its input.
        out_features: Width of its output.
        values: How many weights it keeps.
        weight: The kept weights, `[values]` (while the budget is open, a matrix); named after the
            parent's parameter so that stock transformers refuses the file instead of
            re-initialising the layer.
        bias: Bias or `None`.
        checksum: int64 `[2]` buffer, filled in only in what `state_dict` returns: the sum of the
            numbers, and the mark of the plan they belong to.
        places: In how many places of the model it stands.
    """

    places: int = 1

    checksum: Tensor
    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(
        self,
        spec: BlockSpec,
        index: int | None,
        stock: str,
        in_features: int,
        out_features: int,
        *,
        values: int | tuple[int, ...],
        biases: int,
        dtype: torch.dtype,
        device: torch.device | str | None,
    ) -> None:
        super().__init__()
        self.respecify(spec)
        self.index = index
        self.stock = stock
        self.in_features = in_features
        self.out_features = out_features
        self.values = values if isinstance(values, int) else math.prod(values)
        self.weight = nn.Parameter(torch.empty(values, dtype=dtype, device=device))
        if biases:
            self.bias = nn.Parameter(torch.empty(biases, dtype=dtype, device=device))
        else:
            self.register_parameter("bias", None)
        unverified = torch.full((2,), UNVERIFIED, dtype=torch.int64, device=device)
        self.register_buffer("checksum", unverified)
        self._seal, self._stamps = Seal({}), Stamps()

    def forward(self, x: Tensor | None = None) -> Any:
        """Projects `x` along the axis on which the replaced module did.

        Experts, whose matrices another module multiplies with, return `dense_weight` and
        `dense_bias` instead.

        Raises:
            InputShapeError: `x` is wider or narrower than `in_features`, or a view of a nested
                tensor.
        """
        note_training(self)
        if x is None:
            return self.dense_weight(), self.dense_bias()
        if isinstance(x, fx.Proxy):  # torch.fx looks into other modules than torch's own
            return x.tracer.create_proxy("call_module", x.tracer.path_of_module(self), (x,), {})
        if x.is_nested:
            return self._forward_nested(x)
        axis = CHANNEL_AXES[self.stock]
        if axis != -1:
            x = x.movedim(axis, -1)
        if x.shape[-1] != self.in_features:
            raise InputShapeError(
                f"mat1 and mat2 shapes cannot be multiplied ({x.shape[:-1].numel()}x{x.shape[-1]} "
                f"and {self.in_features}x{self.out_features}): block {self.spec.name!r} reads "
                f"{self.in_features} features."
            )
        result = self.project(x)
        return result if axis == -1 else result.movedim(-1, axis).contiguous()

    def _forward_nested(self, x: Any) -> Tensor:
        if x.layout != torch.jagged:
            return torch.nested.as_nested_tensor([self.forward(own) for own in x.unbind()])
        if not x.is_contiguous():
            raise InputShapeError(
                f"block {self.spec.name!r} reads nested tensors that are contiguous and jagged "
                "along their second axis, as nn.Linear does."
            )
        made: Tensor = torch.nested.nested_tensor_from_jagged(self.forward(x.values()), x.offsets())
        return made

    def project(self, x: Tensor) -> Tensor:
        """`[..., in_features]` -> `[..., out_features]`."""
        raise NotImplementedError

    def dense_weight(self) -> Tensor:
        """The layer's matrix with its zeros filled in, `[out_features, in_features]`, coupling
        included; differentiable. Experts have one each, `[experts, out_features, in_features]`."""
        raise NotImplementedError

    def dense_bias(self) -> Tensor | None:
        """The layer's bias, one per output, `[out_features]` (`[experts, out_features]`);
        differentiable."""
        raise NotImplementedError

    def merged_weight(self) -> Tensor:
        """The matrix with one neuron in the place of all children of a parent, if `mergeable`:
        `[sources * parents, inputs]` or `[outputs, parents]`, experts as in `dense_weight`."""
        raise NotImplementedError

    def merged_bias(self) -> Tensor | None:
        """The bias that goes with `merged_weight`."""
        raise NotImplementedError

    @property
    def mergeable(self) -> bool:
        """Whether the children of a parent are equal at all times, as they are at coupling 1."""
        spec = self.spec
        equal = spec.coupling == 1.0 and not spec.learn_coupling
        return equal and (spec.bias == "shared" or not any(spec.up_biases))

    def children_places(self) -> Tensor:
        """Places of a parent's children among the hidden neurons (of an expert): int64
        `[alpha, parents]`."""
        alpha = self.spec.alpha
        tiles = [tile for tile in self.spec.tiles if tile[1] <= self.spec.parents]
        places = [
            torch.arange(alpha * start, alpha * stop, device=self.weight.device).view(alpha, -1)
            for start, stop in tiles
        ]
        return torch.cat(places, 1)

    def __prepare_scriptable__(self) -> NoReturn:
        raise ExportError(
            f"block {self.spec.name!r} cannot be scripted: use torch.jit.trace or torch.export, or "
            "script the result of fpe_hf.to_dense."
        )

    def check(self, name: str) -> None:
        """Checks the index buffers after loading.

        Args:
            name: Dotted name of the layer, for the message.

        Raises:
            CheckpointError: An index is out of range, or a mask does not fit the weights.
        """
        raise NotImplementedError

    def respecify(self, spec: BlockSpec) -> None:
        """Takes another spec of the same shapes, as when a coupling is annealed."""
        _ = spec.tiles  # made now: torch.compile cannot trace the lock of a cached property
        self.spec = spec

    def reset_derived(self) -> None:
        """Recomputes the tensors that follow from the spec and are never stored."""

    def move_in(self, host: nn.Module, names: dict[str, str]) -> None:
        """Registers parameters with another module, which they belong to from then on.

        Args:
            host: The module.
            names: Name of a parameter here -> its name there.
        """
        if not any(isinstance(module, FPELayer) for module in host._modules.values()):
            host.register_load_state_dict_pre_hook(_verify_moved)
        for name, other in names.items():
            host._parameters[other] = self._parameters.pop(name)
        # In a tuple: registered, the host would be a submodule of its own submodule.
        self._host = (host, dict(names))

    @property
    def home(self) -> tuple[nn.Module, dict[str, str]]:
        """Where parameters are registered, and under which names."""
        own = {name: name for name, tensor in self._parameters.items() if tensor is not None}
        home: tuple[nn.Module, dict[str, str]] = self.__dict__.get("_host", (self, own))
        return home

    @property
    def host_names(self) -> dict[str, str]:
        """Names in the host of the parameters that moved in there."""
        names: dict[str, str] = self.__dict__.get("_host", (None, {}))[1]
        return names

    def __getattr__(self, name: str) -> Any:
        host, names = self.__dict__.get("_host", (None, {}))
        if name in names:
            return getattr(host, names[name])
        value: Any = super().__getattr__(name)
        if name not in INDEX_BUFFERS or value is None or torch.compiler.is_compiling():
            return value
        if self._stamps.know(name, value) or not is_readable(value):
            return value
        with _disable_current_modes():
            return self._as_sealed(name, value)

    def settle(self) -> None:
        """Makes what follows from loaded tensors, and seals them."""
        self._seal = Seal({})
        self.reset_derived()
        self.seal()

    def seal(self) -> None:
        """Has the index buffers stay as they are now, whatever averages the model's buffers."""
        buffers = {name: self._buffers.get(name) for name in INDEX_BUFFERS}
        here = {n: t for n, t in buffers.items() if t is not None and not t.is_meta}
        self._seal, self._stamps = Seal(here if is_ordinary(*here.values()) else {}), Stamps()

    def _as_sealed(self, name: str, value: Tensor) -> Tensor:
        """An index buffer, as it was sealed.

        Raises:
            OverwrittenError: It has been overwritten, and there is no copy.
        """
        own = self._seal.tensors.get(name)
        if own is None or value.is_meta:
            return value
        if not self._seal.fits(name, value):
            if self._seal.fits(name, own):
                if self._seal.averaged(name, value):
                    value = self._buffers[name] = own.to(value.device, copy=True)
            elif distributed.is_available() and distributed.is_initialized():
                self.check(self.spec.name)  # processes are made equal by writing to their buffers
                self.seal()
            else:
                raise OverwrittenError(
                    f"index buffer {name!r} of block {self.spec.name!r} was overwritten, as by an "
                    "average of buffers: average into a copy.deepcopy of the model, which mends "
                    "itself, or leave integers out. Load this model again."
                )
        self._stamps.note(name, value)
        return value

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        before = dict(self._buffers)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        own = self._seal.tensors.items()
        moved = {n: self._buffers[n] if before[n] is t else t for n, t in own}
        here = {n: t for n, t in moved.items() if t is not None and not t.is_meta}
        self._seal = self._seal.moved(here)
        self._stamps = Stamps()
        return self

    def numbers(self) -> dict[str, nn.Parameter]:
        """The trainable tensors by name, wherever they are registered.

        Not those that torch computes from others, for a parametrization or for pruning.
        """
        host = self.__dict__.get("_host", (self,))[0]
        names = ((name, self.host_names.get(name)) for name in ("weight", "bias", "coupling"))
        found = (
            (name, (self if own is None else host)._parameters.get(own or name))
            for name, own in names
        )
        return {name: parameter for name, parameter in found if parameter is not None}

    def nonzeros(self) -> int:
        """How many numbers of the budget the layer holds."""
        return sum(number.numel() for number in self.numbers().values())

    @property
    def device(self) -> torch.device:
        """Where the trainable tensors are."""
        return next(iter((*self.numbers().values(), self.checksum))).device

    def key(self, name: str, tensor: str) -> str:
        """Name in a state dict of one of this layer's tensors.

        Args:
            name: Dotted name of the layer.
            tensor: Name of the tensor here.
        """
        if tensor in self.host_names:
            name, tensor = name.rpartition(".")[0], self.host_names[tensor]
        return f"{name}.{tensor}" if name else tensor

    def index_device(self) -> torch.device:
        """Where derived tensors belong: beside the weights, or on the CPU if those are nowhere."""
        return torch.device("cpu") if self.device.type == "meta" else self.device

    def index_buffers(self) -> dict[str, Tensor]:
        """The buffers that say where the weights belong, by name, stored or derived.

        Each is compared with what was sealed, as writes to `.data` count no version.

        Raises:
            OverwrittenError: One has been overwritten, and there is no copy.
        """
        self._stamps.clear()
        buffers = ((name, getattr(self, name, None)) for name in INDEX_BUFFERS)
        return {name: buffer for name, buffer in buffers if buffer is not None}

    def bind(self, tensors: dict[str, Tensor]) -> None:
        """Takes numbers for the parameters and buffers of the same names."""
        for name, tensor in tensors.items():
            if name in self._parameters:
                self._parameters[name] = nn.Parameter(tensor)
            else:
                self._buffers[name] = tensor
        if self.checksum.device != self.device:
            self.checksum = torch.full_like(self.checksum, UNVERIFIED, device=self.device)
        self.seal()

    def compute_checksum(self) -> Tensor:
        """Sum of the parameters and index buffers, and the mark of the plan: int64 `[2]`.

        Where the numbers are not at hand, the mark's complement stands in for the sum: zeros would
        look like damage.
        """
        own: dict[str, Tensor] = {**self.index_buffers(), **self.numbers()}
        ordered = [own[name] for name in sorted(own)]
        if not at_hand(*ordered):
            return torch.tensor(self.unsummed, dtype=torch.int64, device=self.checksum.device)
        # The mark is summed, too, so that exchanged projections are noticed.
        mark = torch.tensor([self.mark], dtype=torch.int64, device="cpu").to(self.device)
        total = checksum(t.to(self.device) for t in (mark, *ordered))
        return torch.cat([total, mark])

    @property
    def mark(self) -> int:
        """A number that is the same only for the same projection of the same plan."""
        projection = self.spec.down if self.index is None else self.spec.ups[self.index]
        # A training that anneals couplings is gone on with in the model that was widened.
        own = replace(self.spec.as_widened, place=())
        plan = json.dumps(own.to_dict(), sort_keys=True)
        return derive_seed(self.spec.seed, projection, plan)

    @property
    def unsummed(self) -> list[int]:
        """The checksum of numbers that were not at hand when they were saved, as by FSDP."""
        return [~self.mark, self.mark]

    def verify(self, name: str, tensors: Mapping[str, Tensor]) -> FPELayer | None:
        """Checks tensors before they are loaded; the layer stays as it is.

        Indices are always checked, the checksum if it and all that it sums are among them. What is
        not at hand (meta, fake and distributed tensors) cannot be checked.

        Args:
            name: Dotted name of the layer, for the message.
            tensors: Some or all of those in `stored()`, by name.

        Returns:
            A layer that holds them, or `None` if that could not be checked.

        Raises:
            CheckpointError: A tensor has another shape or kind of dtype than the layer's, an index
                is out of range or repeated, a mask does not fit the weights, or the checksum does
                not match.
        """
        stored = self.stored()
        given = {own: self._fitting(name, own, tensors[own]) for own in stored if own in tensors}
        summed = given.pop("checksum", None)
        twin = None
        # Not as attributes: what is there may have been overwritten, and is to be replaced.
        indices = {n: given.get(n, own) for n, own in stored.items() if n in INDEX_BUFFERS}
        if given and at_hand(*indices.values()):
            twin = self._holding(given)
            twin.check(name)
        if summed is None or not at_hand(summed):
            return twin
        if int(summed[1]) != self.mark:
            raise CheckpointError(
                f"tensor {self.key(name, 'checksum')!r} has another mark: {_OTHER_PLAN} Or it was "
                "zeroed, and the file is damaged."
            )
        whole = given.keys() == stored.keys() - {"checksum"} and at_hand(*given.values())
        if twin is None or not whole or summed.tolist() == self.unsummed:
            return twin
        if not torch.equal(twin.compute_checksum().to(summed.device), summed):
            raise CheckpointError(
                f"the tensors of {name!r} do not match their checksum: the file is damaged, or "
                "tensors were exchanged. Download or save it again; of a state dict that was "
                f"changed on purpose, leave {self.key(name, 'checksum')!r} out."
            )
        return twin

    def _fitting(self, name: str, own: str, tensor: Tensor) -> Tensor:
        """A tensor that is to be loaded, in the integer dtype that the layer keeps it in."""
        key, expected = self.key(name, own), self.stored()[own]
        if tensor.shape != expected.shape:
            raise CheckpointError(
                f"tensor {key!r} has shape {tuple(tensor.shape)}, but the model has "
                f"{tuple(expected.shape)}: {_OTHER_PLAN}"
            )
        integers = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
        floats = expected.is_floating_point()
        fits = tensor.is_floating_point() if floats else tensor.dtype in (expected.dtype, *integers)
        if not fits:
            raise CheckpointError(
                f"tensor {key!r} has dtype {tensor.dtype}; accepted: "
                f"{'floating types' if floats else 'integers'}, as {expected.dtype}."
            )
        if floats or tensor.dtype == expected.dtype:
            return tensor
        narrow = tensor.to(expected.dtype)
        if at_hand(tensor) and not torch.equal(narrow.to(tensor.dtype), tensor):
            raise CheckpointError(f"tensor {key!r} holds values that {expected.dtype} cannot hold.")
        return narrow

    def _holding(self, tensors: Mapping[str, Tensor]) -> FPELayer:
        """A layer like this one, on its own, that holds other tensors."""
        twin: FPELayer = object.__new__(type(self))  # torch forbids copies of parametrized modules
        twin.__dict__.update(self.__dict__)
        twin.__dict__.pop("_host", None)
        twin._parameters = {**self._parameters, **self.numbers()}
        twin._buffers = dict(self._buffers)
        twin.bind(dict(tensors))
        twin.settle()
        return twin

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        self.index_buffers()  # as sealed
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.places > 1:
            # transformers ties the parameters again after loading, but nothing else.
            for name in self.stored():
                if name not in ("weight", "bias"):
                    destination[prefix + name] = destination[prefix + name].clone()
        if not torch.compiler.is_compiling():
            destination[prefix + "checksum"] = self.compute_checksum()

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        *rest: Any,
    ) -> None:
        name, stored = prefix.removesuffix("."), self.stored()
        indices = [own for own in stored if own in INDEX_BUFFERS]
        if any(prefix + own not in state_dict for own in indices):
            self.index_buffers()  # what stays must be as sealed
        state_dict = self._without_averages(state_dict, prefix)
        self.verify(name, self.of_state(name, state_dict))
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, *rest
        )
        if prefix + "checksum" in missing_keys:
            missing_keys.remove(prefix + "checksum")
        for own in indices:
            # After assign=True it is the caller's own tensor, of any dtype.
            buffer: Any = self._buffers[own]
            self._buffers[own] = buffer.to(stored[own].dtype)
        if self.device.type != "meta":
            self.checksum = torch.full_like(self.checksum, UNVERIFIED)
            self.settle()

    def _without_averages(self, state_dict: dict[str, Any], prefix: str) -> dict[str, Any]:
        """A state dict in which averages of integers are what was averaged.

        The indices of state dicts of this very plan are the layer's own, if perhaps rounded. Their
        checksums say nothing any more.
        """
        checksum = state_dict.get(prefix + "checksum")
        own = {n: t for n, t in self._seal.tensors.items() if prefix + n in state_dict}
        if checksum is not None and not was_averaged(checksum, self.mark):
            return state_dict
        if not all(self._seal.averaged(name, state_dict[prefix + name]) for name in own):
            return state_dict
        exact = {prefix + name: tensor for name, tensor in own.items()}
        others = {key: own for key, own in state_dict.items() if key != prefix + "checksum"}
        return {**others, **exact}

    def of_state(self, name: str, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Those of this layer's tensors that a state dict holds, by their names here.

        Args:
            name: Dotted name of the layer.
            state_dict: The state dict.
        """
        keys = {own: self.key(name, own) for own in self.stored()}
        return {own: state_dict[key] for own, key in keys.items() if key in state_dict}

    def stored(self) -> dict[str, Tensor]:
        """Everything the layer keeps in a state dict, by name."""
        return {
            name: tensor
            for name, tensor in (*self.numbers().items(), *self._buffers.items())
            if tensor is not None and name not in self._non_persistent_buffers_set
        }

    def extra_repr(self) -> str:
        """One line for `print(model)`."""
        spec = self.spec
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"alpha={spec.alpha}, layout={spec.layout!r}, fan_out={spec.fan_out!r}, "
            f"coupling={spec.coupling}, nonzeros={self.values}"
        )


def _verify_moved(host: nn.Module, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
    """Has the layers in a host verify what is about to be loaded, the host's own tensors included:
    those are loaded first, and are not in what the layers are given to load."""
    for own, layer in host._modules.items():
        if isinstance(layer, FPELayer):
            given = layer._without_averages(state_dict, f"{prefix}{own}.")
            layer.verify(prefix + own, layer.of_state(prefix + own, given))


class UpLayer(FPELayer):
    """Bias and coupling of an up (or gate, or fused) projection.

    Attributes:
        coupling: Trainable coupling, one per parent row `[sources * parents]`, or `None`.
    """

    coupling: nn.Parameter | None

    def __init__(
        self,
        spec: BlockSpec,
        index: int,
        stock: str,
        *,
        values: int | tuple[int, ...],
        dtype: torch.dtype,
        device: torch.device | str | None,
    ) -> None:
        per_source = (spec.alpha if spec.bias == "child" else 1) * spec.all_parents
        super().__init__(
            spec,
            index,
            stock,
            spec.in_features,
            spec.sources_per_up * spec.hidden,
            values=values,
            biases=spec.sources_per_up * per_source if spec.up_biases[index] else 0,
            dtype=dtype,
            device=device,
        )
        if spec.learn_coupling:
            rows = spec.sources_per_up * spec.all_parents
            self.coupling = nn.Parameter(torch.empty(rows, dtype=dtype, device=device))
        else:
            self.register_parameter("coupling", None)

    def parent_extras(self, weight: Tensor, bias: Tensor | None) -> dict[str, Tensor]:
        """Bias and coupling to start from.

        Args:
            weight: The parent's weights (for dtype and device).
            bias: The parent's bias `[sources, parents]` or `None`.
        """
        tensors: dict[str, Tensor] = {}
        if bias is not None:
            shared = self.spec.bias == "shared"
            tensors["bias"] = (bias if shared else self.expand(bias)).reshape(-1)
        if self.spec.learn_coupling:
            rows = self.spec.sources_per_up * self.spec.all_parents
            tensors["coupling"] = weight.new_full((rows,), self.spec.coupling)
        return tensors

    def readers(self) -> tuple[Tensor, Tensor]:
        """The first and the last child that reads each input, alpha and -1 if none does: int16
        `[rows, inputs]`, with a row for every parent (`block`: for every tile) or one for all."""
        raise NotImplementedError

    def coverage(self) -> float:
        """The share of a parent's inputs that some child reads, mean over parents."""
        read = (self.readers()[1] >= 0).mean(1, dtype=torch.float64)
        if self.spec.layout != "block":
            return float(read.mean())
        sizes = [stop - start for start, stop in self.spec.tiles]
        parents = torch.tensor(sizes, dtype=read.dtype, device=read.device)
        return float(read @ parents) / self.spec.all_parents

    def couplings(self) -> Tensor | float:
        """The coupling: a number, or trainable `[sources, parents]`."""
        if self.coupling is None:
            return self.spec.coupling
        return self.coupling.view(self.spec.sources_per_up, self.spec.all_parents)

    def expand(self, per_parent: Tensor) -> Tensor:
        """Repeats a value per parent for its children: `[..., parents]` -> `[..., hidden]`."""
        lead = per_parent.shape[:-1]
        parts = [
            per_parent[..., None, start:stop]
            .expand(*lead, self.spec.alpha, stop - start)
            .reshape(*lead, self.spec.alpha * (stop - start))  # there may be no tokens
            for start, stop in self.spec.tiles
        ]
        return torch.cat(parts, -1) if len(parts) > 1 else parts[0]

    def merge_sources(self, per_source: Tensor) -> Tensor:
        """Puts fused gate and up into the parent's row order: `[sources, n]` leading dimensions
        `[sources, n, ...]` -> `[sources * n, ...]`, with experts `[experts, sources * n, ...]`."""
        parts = per_source.unflatten(1, (self.spec.experts, -1)).transpose(0, 1)
        if self.spec.fused == "interleaved":
            parts = parts.transpose(1, 2)
        merged: Tensor = parts.flatten(1, 2)
        return merged if self.spec.experts > 1 else merged[0]

    def merged_weight(self) -> Tensor:
        return self._first_children(self.dense_weight())

    def merged_bias(self) -> Tensor | None:
        bias = self.dense_bias()
        return None if bias is None else self._first_children(bias)

    def _first_children(self, rows: Tensor) -> Tensor:
        """Of rows in the order of `merge_sources`, those of every parent's first child."""
        axis = 0 if self.spec.experts == 1 else 1
        return self.by_sibling(rows)[0].flatten(axis, axis + 1)

    def by_sibling(self, rows: Tensor) -> Tensor:
        """Rows in the order of `merge_sources`, the children of a parent apart: `[alpha, sources,
        parents, ...]`, interleaved `[alpha, parents, sources, ...]`, experts after `alpha`."""
        axis = 0 if self.spec.experts == 1 else 1
        fused = self.spec.fused
        shape = (self.spec.hidden, 2) if fused == "interleaved" else (-1, self.spec.hidden)
        hidden = axis if fused == "interleaved" else axis + 1
        places = self.children_places()
        apart: Tensor = rows.unflatten(axis, shape)
        apart = apart.index_select(hidden, places.flatten())
        apart = apart.unflatten(hidden, tuple(places.shape))
        return apart.movedim(hidden, 0)

    def dense_bias(self) -> Tensor | None:
        if self.bias is None:
            return None
        per_source = self.bias.view(self.spec.sources_per_up, -1)
        if self.spec.bias == "shared":
            per_source = self.expand(per_source)
        return self.merge_sources(per_source)


def are_apart(ups: Sequence[UpLayer]) -> bool:
    """Whether no two children of a parent share an input (I2), be it one by its gate and another
    by its up projection."""
    readers = [[own.cpu() for own in up.readers()] for up in ups]
    firsts, lasts = zip(*readers, strict=True)
    return bool((reduce(torch.maximum, lasts) <= reduce(torch.minimum, firsts)).all())


class DownLayer(FPELayer):
    """Bias of a down projection."""

    def __init__(
        self,
        spec: BlockSpec,
        stock: str,
        *,
        values: int | tuple[int, ...],
        dtype: torch.dtype,
        device: torch.device | str | None,
    ) -> None:
        super().__init__(
            spec,
            None,
            stock,
            spec.hidden,
            spec.out_features,
            values=values,
            biases=spec.experts * spec.out_features if spec.down_bias else 0,
            dtype=dtype,
            device=device,
        )

    def by_expert(self, weight: Tensor) -> Tensor:
        """`[outputs, experts * hidden]` -> `[experts, outputs, hidden]`; as it is without."""
        if self.spec.experts == 1:
            return weight
        parts: Tensor = weight.unflatten(1, (self.spec.experts, -1))
        return parts.transpose(0, 1)

    def merged_weight(self) -> Tensor:
        merged: Tensor = self.dense_weight()[..., self.children_places()].sum(-2)
        return merged

    def merged_bias(self) -> Tensor | None:
        return self.dense_bias()

    def dense_bias(self) -> Tensor | None:
        if self.bias is None or self.spec.experts == 1:
            return self.bias
        return self.bias.view(self.spec.experts, -1)
