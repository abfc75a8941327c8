"""Inputs for running a model once when the user gives none."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from fpe_hf.discovery.trace import Inputs

BATCH, LENGTH = 2, 8
"""Small, larger than 1 (so that no axis is taken for another by broadcasting), and different."""

IMAGE, CHANNELS, GRID = 32, 3, 8
SAMPLES = 16_000

_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def candidate_inputs(model: nn.Module) -> Iterator[Inputs]:
    """Inputs that `model` may accept, the likeliest first, in the floating type of the model."""
    make = _pretrained_inputs if is_pretrained(model) else _plain_inputs
    floats = (p.dtype for p in model.parameters() if p.dtype in _FLOATS)
    dtype = next(floats, torch.float32)
    for inputs in make(model):
        yield tree_map_only(Tensor, partial(_cast, dtype), inputs)


def is_pretrained(model: nn.Module) -> bool:
    """Whether `model` is a transformers model, or looks like one."""
    return getattr(model, "main_input_name", None) is not None and hasattr(model, "config")


def _cast(dtype: torch.dtype, tensor: Tensor) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


# -- transformers models ---------------------------------------------------------------------------


def _pretrained_inputs(model: nn.Module) -> Iterator[Inputs]:
    parameters = inspect.signature(model.forward).parameters
    config: Any = model.config
    made = {name: make(config) for name, make in _MAKERS.items() if name in parameters}
    quiet = {"use_cache": False} if "use_cache" in parameters else {}
    seen = []
    for names in _argument_sets(model, parameters):
        chosen = [name for name in parameters if name in names and name in made]
        if chosen in seen:
            continue
        seen.append(chosen)
        # Where a name stands for different things, they come in the same order.
        for form in range(max((len(made[name]) for name in chosen), default=0)):
            yield {**{name: made[name][min(form, len(made[name]) - 1)] for name in chosen}, **quiet}
    dummy = getattr(model, "dummy_inputs", None)
    if isinstance(dummy, dict):
        yield dummy


def _argument_sets(model: nn.Module, parameters: Mapping[str, Any]) -> Iterator[set[str]]:
    """Which arguments to give: of all modalities, the least, all that are known, text alone."""
    config: Any = model.config
    least = {name for name, entry in parameters.items() if entry.default is entry.empty}
    least.add(str(getattr(model, "main_input_name", "input_ids")))
    if getattr(config, "is_encoder_decoder", False):
        least.add("decoder_input_ids")
    if hasattr(config, "text_config") and hasattr(config, "vision_config"):
        yield {*least, "input_ids", "pixel_values"}
    yield least
    yield {*parameters} - _ALTERNATIVES
    yield {*parameters}
    yield {"input_ids", "decoder_input_ids"} & {*parameters}


_ALTERNATIVES = {"inputs_embeds", "decoder_inputs_embeds", "hidden_states", "encoder_hidden_states"}
"""Arguments that may be given instead of others."""


def _zeros(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.float32, device="cpu")


def _integers(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int64, device="cpu")


def _tokens() -> Tensor:
    return _integers(*range(BATCH * LENGTH)).view(BATCH, LENGTH)


def _ids(config: Any) -> list[Tensor]:
    """Token ids that every vocabulary has and that are no special tokens in most."""
    del config
    return [_tokens() % 5 + 3]


def _pixels(config: Any) -> list[Tensor]:
    vision = _with(config, "image_size")
    size = getattr(vision, "image_size", IMAGE) or IMAGE
    height, width = (size, size) if isinstance(size, (int, float)) else list(size)[-2:]
    shape = (_channels(config), int(height), int(width))
    return [
        _zeros(BATCH, *shape),
        _zeros(BATCH, 2, *shape),
        _zeros(BATCH, _number(config, ("num_frames",), 4), *shape),
        _zeros(BATCH, GRID * GRID, _patch_width(config)),
        _zeros(BATCH * GRID * GRID, _patch_width(config)),
        *(_zeros(BATCH, shape[0], side, side) for side in (224, 1536)),
        _zeros(BATCH, 1, *shape[1:]),
    ]


def _channels(config: Any) -> int:
    names = ("num_channels", "in_channels", "in_chans")
    return _number(config, names, CHANNELS)


def _patch_width(config: Any) -> int:
    """Numbers in a flattened patch."""
    patch = _number(config, ("patch_size",), 16)
    frames = _number(config, ("temporal_patch_size",), 1)
    return _channels(config) * frames * patch * patch


def _video(config: Any) -> list[Tensor]:
    frames = _number(config, ("num_frames",), 4)
    image = _pixels(config)[0]
    return [image.unsqueeze(1).expand(BATCH, frames, *image.shape[1:])]


def _features(config: Any) -> list[Tensor]:
    names = ("num_mel_bins", "input_feat_per_channel", "num_mels", "feature_size")
    bins = _number(config, names, 80)
    audio = _with(config, "max_source_positions")
    frames = 2 * getattr(audio, "max_source_positions", 64)
    return [
        _zeros(BATCH, bins, frames),
        _zeros(BATCH, frames, bins),
        _zeros(BATCH, 1, 1024, bins),
        _zeros(BATCH, frames, 160),
    ]


def _samples(config: Any) -> list[Tensor]:
    frames = _number(config, ("max_length", "max_time_bins"), 64)
    bins = _number(config, ("num_mel_bins", "feature_size"), 128)
    samples = _zeros(BATCH, SAMPLES)
    return [samples, _zeros(BATCH, frames, bins), samples.unsqueeze(1)]


def _hidden(config: Any) -> list[Tensor]:
    width = _number(config, ("hidden_size", "d_model", "embed_dim", "encoder_hidden_size"), 64)
    return [
        _zeros(BATCH, LENGTH, width),
        _zeros(2 * GRID * GRID, _patch_width(config)),
        _zeros(2 * GRID * GRID, width),
    ]


def _conditions(config: Any) -> list[Tensor]:
    """What a larger model hands to a small one for all of its steps."""
    return [_zeros(BATCH, 1, _number(config, ("input_size", "hidden_size"), 64))]


def _grid(config: Any) -> list[Tensor]:
    del config
    return [_integers(1, GRID, GRID).repeat(BATCH, 1)]


def _boxes(config: Any) -> list[Tensor]:
    corners = _integers(1, 2, 3, 4)
    boxes = corners.expand(BATCH, LENGTH, 4)
    return [boxes, corners.repeat(2).expand(BATCH, LENGTH, 8)]


def _shapes(config: Any) -> list[Tensor]:
    del config
    return [_integers(GRID, GRID).repeat(BATCH, 1)]


def _patch_positions(config: Any) -> list[Tensor]:
    del config
    places = _integers(*range(GRID * GRID))
    return [torch.stack([places % GRID, places // GRID], -1).expand(BATCH, -1, 2)]


def _ones(*shape: int) -> Callable[[Any], list[Tensor]]:
    return lambda config: [_zeros(*shape).long() + 1]


def _pixel_mask(config: Any) -> list[Tensor]:
    images = _pixels(config)
    sizes = [image.shape[-2:] if image.dim() > 3 else image.shape[1:2] for image in images]
    return [_zeros(BATCH, *size).long() + 1 for size in sizes]


def _patches(config: Any) -> list[Tensor]:
    """Rows of Pix2Struct: place down, place across, pixels."""
    places = _zeros(BATCH, LENGTH, 2) + 1
    return [torch.cat([places, _zeros(BATCH, LENGTH, _patch_width(config))], -1)]


def _feature_mask(config: Any) -> list[Tensor]:
    """Beside `_features`: one entry per frame."""
    pairs = zip(_features(config), (2, 1, 2, 1), strict=True)
    counts = [features.shape[axis] for features, axis in pairs]
    return [_zeros(BATCH, count).long() + 1 for count in counts]


def _encoded(config: Any) -> list[Tensor]:
    width = _number(config, ("encoder_hidden_size", "cross_attention_hidden_size"), 0)
    return [_zeros(BATCH, LENGTH, width)] if width else _hidden(config)


_MAKERS: dict[str, Callable[[Any], list[Tensor]]] = {
    "input_ids": _ids,
    "decoder_input_ids": _ids,
    "qformer_input_ids": _ids,
    "pixel_values": _pixels,
    "pixel_values_videos": _video,
    "pixel_mask": _pixel_mask,
    "pixel_attention_mask": _pixel_mask,
    "patch_attention_mask": _ones(BATCH, GRID, GRID),
    "pixel_position_ids": _patch_positions,
    "flattened_patches": _patches,
    "spatial_shapes": _shapes,
    "grid_thw": _grid,
    "image_grid_thw": _grid,
    "bbox": _boxes,
    "input_features": _features,
    "input_values": _samples,
    "input_features_mask": _feature_mask,
    "feature_attention_mask": _feature_mask,
    "encoder_hidden_states": _encoded,
    "hidden_states": _hidden,
    "inputs_embeds": _hidden,
    "last_hidden_state": _conditions,
    "query_embeds": _hidden,
}
"""Name of an argument of `forward` -> the tensors it may stand for, made from the configuration."""


def _with(config: Any, field: str) -> Any:
    """The configuration, or the sub-configuration, that has `field`."""
    return next((part for part in _parts(config) if hasattr(part, field)), config)


def _number(config: Any, names: Iterable[str], default: int) -> int:
    """The first field of one of these names that is a number, or a list of equal ones."""
    for part in _parts(config):
        for name in names:
            value = getattr(part, name, None)
            value = value[-1] if isinstance(value, (list, tuple)) and value else value
            if isinstance(value, int) and not isinstance(value, bool):
                return value
    return default


def _parts(config: Any) -> list[Any]:
    """The configuration and its sub-configurations, those of other modalities before the text's."""
    names = ("vision_config", "audio_config", "encoder", "encoder_config", "text_config")
    parts = [getattr(config, name, None) for name in names]
    return [config, *(part for part in parts if hasattr(part, "to_dict"))]


# -- other modules ---------------------------------------------------------------------------------


def _plain_inputs(model: nn.Module) -> Iterator[Inputs]:
    """Tensors that the first layer with a known input accepts, for every required argument."""
    parameters = inspect.signature(model.forward).parameters.values()
    required = [
        parameter
        for parameter in parameters
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    others = max(0, len(required) - 1)
    for tensor in _first_layer_inputs(model):
        yield (tensor,) * (1 + others)
        if others:
            # Masks and such, of which None means no mask, and bounds of packed sequences.
            packed = [_bounds(tensor) if "cu_seqlens" in p.name else None for p in required[1:]]
            yield (tensor, *packed)


def _bounds(tokens: Tensor) -> Tensor:
    return _integers(0, len(tokens)).int()


def _first_layer_inputs(model: nn.Module) -> Iterator[Tensor]:
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            yield _tokens() % module.num_embeddings
        elif isinstance(module, nn.Linear):
            yield _zeros(BATCH, module.in_features)
            yield _zeros(BATCH, LENGTH, module.in_features)
        elif isinstance(module, nn.modules.conv._ConvNd):
            dims = len(module.kernel_size)
            for size in (IMAGE, 224, 28):
                yield _zeros(BATCH, module.in_channels, *[size] * dims)
        elif isinstance(module, nn.LayerNorm):
            yield _zeros(BATCH, LENGTH, module.normalized_shape[-1])
        else:
            continue
        return
