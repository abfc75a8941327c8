"""An independent count of feed-forward layers: by the names and shapes of parameters alone."""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class FeedForward:
    """A feed-forward layer as its parameters show it.

    Attributes:
        ups: Names of the up-type parameters, without `.weight`.
        down: Name of the down-type parameter, without `.weight`.
        hidden: Hidden neurons.
    """

    ups: tuple[str, ...]
    down: str
    hidden: int


PAIRS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("gate_proj", "up_proj"), "down_proj"),
    (("up_proj",), "down_proj"),
    (("gate_up_proj",), "down_proj"),
    (("gate_and_up_proj",), "down_proj"),
    (("fc1",), "fc2"),
    (("fc_1", "fc_2"), "proj"),
    (("fc_in",), "fc_out"),
    (("wi_0", "wi_1"), "wo"),
    (("wi",), "wo"),
    (("Wi",), "Wo"),
    (("w1", "w3"), "w2"),
    (("w1", "v1"), "w2"),
    (("w1",), "w2"),
    (("w_1",), "w_2"),
    (("weights_in",), "weights_out"),
    (("w12",), "w3"),
    (("lin1",), "lin2"),
    (("linear1",), "linear2"),
    (("linear_1",), "linear_2"),
    (("linear_fc1",), "linear_fc2"),
    (("linear_in",), "linear_out"),
    (("dense1",), "dense2"),
    (("dense_1",), "dense_2"),
    (("layer1",), "layer2"),
    (("layer_1",), "layer_2"),
    (("c_fc",), "c_proj"),
    (("c_fc", "c_fc2"), "c_proj"),
    (("c_fc_0", "c_fc_1"), "c_proj"),
    (("dense_h_to_4h",), "dense_4h_to_h"),
    (("intermediate_dense",), "output_dense"),
    (("intermediate.dense",), "output.dense"),
    (("linear_up.linear",), "linear_down.linear"),
    (("mlp.0.linear",), "mlp.1"),
    (("intermediate_query.dense",), "output_query.dense"),
    (("pwconv1",), "pwconv2"),
    (("conv1",), "conv2"),
    (("conv_1",), "conv_2"),
    (("fully_connected_1",), "fully_connected_2"),
    (("expand_conv",), "project_conv"),
    (("proj_in",), "proj_out"),
    (("input_linear",), "output_linear"),
    (("ffn.dense",), "ffn_output.dense"),
    (("ffn",), "ffn_output"),
    (("ffn.0",), "ffn.2"),
    (("mlp.0",), "mlp.2"),
    (("mlp.0",), "mlp.3"),
    (("net.0.proj",), "net.2"),
    (("ff.0",), "ff.3"),
    (("ff.0",), "ff.2"),
    (("0",), "2"),
    (("0",), "3"),
    (("1",), "3"),
    (("1",), "4"),
    (("ff_layer1",), "ff_layer2"),
    (("linear_v", "linear"), "linear_1"),
    (("w_in.w_0", "w_in.w_1"), "w_out"),
    (("pointwise_conv1",), "pointwise_conv2"),
    (("conv1.convolution",), "conv2.convolution"),
    (("fc1.proj",), "fc2"),
    (("ffw_layer_1",), "ffw_layer_2"),
    (("point_wise_conv1",), "point_wise_conv2"),
    (("lang_inter.dense",), "lang_output.dense"),
    (("visn_inter.dense",), "visn_output.dense"),
    (("gate_proj.linear", "up_proj.linear"), "down_proj.linear"),
    (("feed_forward.key",), "feed_forward.value"),
    (("layout_intermediate.dense",), "layout_output.dense"),
    (("feed_forward.intermediate",), "feed_forward.output"),
    (("feed_forward.dense_in",), "feed_forward.dense_out"),
)
"""Names of up-type parameters and of the down-type one, below the same module."""

SEEN_BY_EYE: dict[str, str] = {
    # The second right after the first, without an activation.
    "PPFormulaNet": r"multi_modal_projector\.linear_2$",
    "SLAN": r"head\.structure_generator\.fc2$",
}
"""Start of a model class -> down-type parameters whose layer is none after all."""

NOT_FEED_FORWARD = re.compile(
    r"(attn|attention|router|adapter|mamba|ssm|lora|conv_block|downsample|upsample"
    r"|resblock|patch_embed|rel_pos|pos_embed|position|time_embed|temporal_block|residual_unit)"
    r"[^.]*(\.\d+)?(\.experts)?\.[^.]*$",
    re.I,
)
"""Parents, by name, whose projections are something else."""


def count(model: nn.Module) -> list[FeedForward]:
    """The feed-forward layers of a model, in the order of its parameters."""
    shapes = {
        name.removesuffix(".weight"): shape
        for name, parameter in model.named_parameters()
        if not name.endswith("bias") and (shape := _squeezed(tuple(parameter.shape))) is not None
    }
    below: dict[str, set[str]] = defaultdict(set)
    for name in shapes:
        parts = name.split(".")
        for length in range(max(0, len(parts) - 3), len(parts)):
            below[".".join(parts[:length])].add(".".join(parts[length:]))
    modules = dict(model.named_modules())
    found: dict[str, FeedForward] = {}
    for parent, names in below.items():
        for ups, down in PAIRS:
            if ups[0].isdigit() and not isinstance(modules[parent], nn.Sequential):
                continue
            if down in names and names.issuperset(ups):
                layer = _layer(parent, ups, down, shapes)
                if layer is not None and layer.down not in found:
                    found[layer.down] = layer
    seen = [p for start, p in SEEN_BY_EYE.items() if type(model).__name__.startswith(start)]
    used = set(itertools.chain.from_iterable(layer.ups for layer in found.values()))
    return [
        layer
        for layer in found.values()
        if layer.down not in used and not any(re.search(pattern, layer.down) for pattern in seen)
    ]


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """Two sizes for linear and 1x1 convolution weights, three for experts."""
    while len(shape) > 2 and shape[-1] == 1:
        shape = shape[:-1]
    return shape if len(shape) in (2, 3) and min(shape) > 1 else None


def _layer(
    parent: str, ups: tuple[str, ...], down: str, shapes: dict[str, tuple[int, ...]]
) -> FeedForward | None:
    def full(name: str) -> str:
        return f"{parent}.{name}" if parent else name

    if NOT_FEED_FORWARD.search(full(down)):
        return None
    above, below = [shapes[full(name)] for name in ups], shapes[full(down)]
    if len({len(shape) for shape in (*above, below)}) > 1 or len(set(above)) > 1:
        return None
    if len(below) == 3 and (above[0][0] != below[0] or "conv" in full(down)):
        return None  # no experts: convolutions
    if ups == ("w1", "v1"):  # DBRX flattens its experts, and applies `w2` transposed
        hidden = above[0][0] if above[0] == below else None
    else:
        hidden = _hidden(above[0][-2:], below[-2:])
    return hidden and FeedForward(tuple(map(full, ups)), full(down), hidden)  # type: ignore[return-value]


def _hidden(up: tuple[int, ...], down: tuple[int, ...]) -> int | None:
    """Hidden neurons of `[h, d]` and `[o, h]`, or of both transposed; gated ups have `2 h` rows."""
    for (rows, columns), (outputs, inputs) in ((up, down), (up[::-1], down[::-1])):
        if rows in (inputs, 2 * inputs) and columns == outputs:
            return inputs
    for (rows, _), (_, inputs) in ((up, down), (up[::-1], down[::-1])):
        if rows in (inputs, 2 * inputs):
            return inputs
    return None
