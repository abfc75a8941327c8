"""What all widened layers share: their place in a block, derived tensors and checksums."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, distributed, nn

from ..errors import CheckpointError, InputShapeError, OverwrittenError
from ..kernels.ordinary import is_ordinary
from ..linear import CHANNEL_AXES
from ..planning import BlockSpec
from ..splits import derive_seed
from .checksum import UNVERIFIED, checksum, was_averaged
from .seal import Seal, Stamps

INDEX_BUFFERS = ("keep", "owner", "inputs", "outputs")


class FPELayer(nn.Module):
    """A widened projection. Its parameters are non-zeros and nothing else (I1).

    Attributes:
        spec: The block this layer belongs to.
        index: Which of the block's up modules this is; `None` for the down projection.
        stock: What it replaced (see `fpe_hf.linear`), and what `to_dense` makes of it.
        in_features: Width of its input.
        out_features: Width of its output.
        weight: The kept weights, `[values]`; named after the parent's parameter so that stock
            transformers refuses the file instead of re-initialising the layer.
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
        values: int,
        biases: int,
        dtype: torch.dtype,
        device: torch.device | str | None,
    ) -> None:
        super().__init__()
        _ = spec.tiles  # made now: torch.compile cannot trace the lock of a cached property
        self.spec = spec
        self.index = index
        self.stock = stock
        self.in_features = in_features
        self.out_features = out_features
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
            InputShapeError: `x` is wider or narrower than `in_features`.
        """
        if x is None:
            return self.dense_weight(), self.dense_bias()
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

    def check(self, name: str) -> None:
        """Checks the index buffers after loading.

        Args:
            name: Dotted name of the layer, for the message.

        Raises:
            CheckpointError: An index is out of range, or a mask does not fit the weights.
        """
        raise NotImplementedError

    def reset_derived(self) -> None:
        """Recomputes the tensors that follow from the spec and are never stored."""

    def move_in(self, host: nn.Module, names: dict[str, str]) -> None:
        """Registers parameters with another module, which they belong to from then on.

        Args:
            host: The module.
            names: Name of a parameter here -> its name there.
        """
        for name, other in names.items():
            host._parameters[other] = self._parameters.pop(name)
        # In a tuple: registered, the host would be a submodule of its own submodule.
        self._host = (host, dict(names))

    @property
    def host_names(self) -> dict[str, str]:
        """Names in the host of the parameters that moved in there."""
        names: dict[str, str] = self.__dict__.get("_host", (None, {}))[1]
        return names

    def __getattr__(self, name: str) -> Any:
        host, names = self.__dict__.get("_host", (None, {}))
        if name in names:
            return host._parameters[names[name]]
        value: Any = super().__getattr__(name)
        if name in INDEX_BUFFERS and value is not None and not torch.compiler.is_compiling():
            if self._stamps.know(name, value) or not is_ordinary(value):
                return value
            return self._as_sealed(name, value)
        return value

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
            if value is own and not (distributed.is_available() and distributed.is_initialized()):
                raise OverwrittenError(
                    f"index buffer {name!r} of block {self.spec.name!r} was overwritten, as by an "
                    "average of buffers: average into a copy.deepcopy of the model, which mends "
                    "itself, or leave integers out. Load this model again."
                )
            if value is own:  # processes are made equal by writing to their buffers
                self.check(self.spec.name)
                self.seal()
            elif self._seal.fits(name, own) and self._seal.averaged(name, value):
                value = self._buffers[name] = own.to(value.device, copy=True)
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
        """The trainable tensors by name, wherever they are registered."""
        found = ((name, getattr(self, name, None)) for name in ("weight", "bias", "coupling"))
        return {name: parameter for name, parameter in found if parameter is not None}

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
        device = self.weight.device
        return torch.device("cpu") if device.type == "meta" else device

    def index_buffers(self) -> dict[str, Tensor]:
        """The buffers that say where the weights belong, by name, stored or derived."""
        buffers = ((name, getattr(self, name, None)) for name in INDEX_BUFFERS)
        return {name: buffer for name, buffer in buffers if buffer is not None}

    def bind(self, tensors: dict[str, Tensor]) -> None:
        """Takes numbers for the parameters and buffers of the same names."""
        for name, tensor in tensors.items():
            if name in self._parameters:
                self._parameters[name] = nn.Parameter(tensor)
            else:
                self._buffers[name] = tensor
        if self.checksum.device != self.weight.device:
            self.checksum = torch.full_like(self.checksum, UNVERIFIED, device=self.weight.device)
        self.seal()

    def compute_checksum(self) -> Tensor:
        """Sum of the parameters and index buffers, and the mark of the plan: int64 `[2]`.

        Both are `UNVERIFIED` where the numbers are not at hand.
        """
        own: dict[str, Tensor] = {**self.index_buffers(), **self.numbers()}
        ordered = [own[name] for name in sorted(own)]
        # Meta, fake and distributed tensors hold no numbers, or only a part of them.
        if any(type(t) not in (Tensor, nn.Parameter) or t.is_meta for t in ordered):
            return torch.full_like(self.checksum, UNVERIFIED)
        # The mark is summed, too, so that exchanged projections are noticed.
        mark = torch.tensor([self.mark], device="cpu").to(self.weight.device)
        total = checksum(t.to(self.weight.device) for t in (mark, *ordered))
        return torch.cat([total, mark])

    @property
    def mark(self) -> int:
        """A number that is the same only for the same projection of the same plan."""
        projection = self.spec.down if self.index is None else self.spec.ups[self.index]
        plan = json.dumps(replace(self.spec, place=()).to_dict(), sort_keys=True)
        return derive_seed(self.spec.seed, projection, plan)

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        self.index_buffers()  # as sealed
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.places > 1:
            # transformers ties the parameters again after loading, but nothing else.
            for name in self.stored().keys() - {"weight", "bias"}:
                destination[prefix + name] = destination[prefix + name].clone()
        if not torch.compiler.is_compiling():
            destination[prefix + "checksum"] = self.compute_checksum()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        state_dict = self._without_averages(state_dict, prefix)
        for name, tensor in self.stored().items():
            key = self.key(prefix.removesuffix("."), name)
            given = state_dict.get(key)
            if given is None:
                continue
            found = "another mark"
            if given.shape != tensor.shape:
                found = f"shape {tuple(given.shape)}, but the model has {tuple(tensor.shape)}"
            elif name != "checksum" or given.is_meta or int(given[1]) in (UNVERIFIED, self.mark):
                continue
            raise CheckpointError(
                f"tensor {key!r} has {found}: it comes from another plan. Load it into a model "
                "widened with the same configuration and parent, or by from_pretrained."
            )
        super()._load_from_state_dict(state_dict, prefix, *rest)
        if not self.weight.is_meta:
            # Not in place: after assign=True the buffer is the caller's own tensor.
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
        unverified = torch.full_like(self.checksum, UNVERIFIED)
        return {**state_dict, **exact, prefix + "checksum": unverified}

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
            f"coupling={spec.coupling}, nonzeros={self.weight.numel()}"
        )


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
        values: int,
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

    def cover(self) -> tuple[bool, float]:
        """Whether children of a parent share no input, and the share of inputs that any reads."""
        raise NotImplementedError

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
        fused = self.spec.fused
        shape = (self.spec.hidden, 2) if fused == "interleaved" else (-1, self.spec.hidden)
        hidden = axis if fused == "interleaved" else axis + 1
        apart: Tensor = rows.unflatten(axis, shape)
        return apart.index_select(hidden, self.children_places()[0]).flatten(axis, axis + 1)

    def dense_bias(self) -> Tensor | None:
        if self.bias is None:
            return None
        per_source = self.bias.view(self.spec.sources_per_up, -1)
        if self.spec.bias == "shared":
            per_source = self.expand(per_source)
        return self.merge_sources(per_source)


class DownLayer(FPELayer):
    """Bias of a down projection."""

    def __init__(
        self,
        spec: BlockSpec,
        stock: str,
        *,
        values: int,
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
