"""Inputs that several model types share, or that take more than a line to make."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

Inputs = dict[str, Any]


def ids(*shape: int, top: int = 60) -> Tensor:
    """Ids of ordinary tokens."""
    return torch.randint(5, top, shape)


def ones(*shape: int) -> Tensor:
    """A mask that hides nothing."""
    return torch.ones(shape, dtype=torch.long)


def patch_positions(side: int, batch: int = 2) -> Tensor:
    """`[batch, side * side, 2]`: column and row of every patch."""
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    return torch.stack([columns, rows], -1).view(1, -1, 2).expand(batch, -1, -1).clone()


def series(config: Any) -> Inputs:
    """A time series with its features, long enough for the lags."""
    length = config.context_length + max(config.lags_sequence)
    features = config.num_time_features + config.num_dynamic_real_features
    ahead = config.prediction_length
    return {
        "past_values": torch.rand(2, length),
        "past_time_features": torch.rand(2, length, features),
        "past_observed_mask": torch.ones(2, length),
        "future_values": torch.rand(2, ahead),
        "future_time_features": torch.rand(2, ahead, features),
    }


def channels(config: Any) -> Inputs:
    """A time series of several channels."""
    return {"past_values": torch.rand(2, config.context_length, config.num_input_channels)}


def decisions(config: Any) -> Inputs:
    """Eight steps of two agents."""
    return {
        "states": torch.randn(2, 8, config.state_dim),
        "actions": torch.randn(2, 8, config.act_dim),
        "rewards": torch.randn(2, 8, 1),
        "returns_to_go": torch.randn(2, 8, 1),
        "timesteps": torch.arange(8).expand(2, 8),
        "attention_mask": ones(2, 8),
    }


def codes(name: str) -> Callable[[Any], Inputs]:
    """Ids of several codebooks, flattened into the batch."""
    return lambda config: {"input_ids": ids(2 * getattr(config, name), 12)}


def detections(config: Any) -> Inputs:
    """A detector's text: its special tokens, too, so that no row of a mask is empty."""
    text = ids(2, 12)
    text[:, 0], text[:, -1] = 101, 102
    return {"input_ids": text, "attention_mask": ones(2, 12)}


def listened_and_seen(config: Any) -> Inputs:
    """Raw audio and a video."""
    return {
        "input_values": torch.randn(2, 1, 4_000),
        "pixel_values_videos": torch.randn(2, 2, 3, 64, 64),
    }


def patches(config: Any, count: int) -> Tensor:
    """Flattened patches of the size that the vision tower takes."""
    config = getattr(config, "vision_config", config)
    pixels = getattr(config, "patch_embed_hidden_size", None)
    if pixels is None:
        pixels = 3 * config.patch_size**2
    return torch.randn(2, count, pixels)


def tracking(module: str, name: str, side: int, *memory: int) -> Callable[[Any], Inputs]:
    """A video session whose first frame has been segmented: what follows tracks in the second.

    Args:
        module: Folder of the model.
        name: Class of the session.
        side: Height and width of the frames.
        memory: Shape, but for its width, of what the memory holds of the first frame.
    """

    def make(config: Any) -> Inputs:
        kind = getattr(import_module(f"transformers.models.{module}.modeling_{module}"), name)
        frames = torch.randn(2, 3, side, side)
        session = kind(frames, side, side, *[frames.device] * 3, frames.dtype)
        width, mask = config.memory_encoder_output_channels, side // 4
        remembered = {
            "maskmem_features": torch.randn(*memory, width),
            "maskmem_pos_enc": torch.randn(*memory, width),
            "object_pointer": torch.randn(1, config.memory_attention_hidden_size),
            "object_score_logits": torch.ones(1, 1),
            "pred_masks": torch.randn(1, 1, mask, mask),
        }
        session.store_output(session.obj_id_to_idx(1), 0, output_value=remembered)
        return {"inference_session": session, "frame_idx": 1}

    return make


def prompted(config: Any) -> Inputs:
    """A video session with one prompt: what follows detects in the first frame."""
    module = import_module("transformers.models.sam3_video.modeling_sam3_video")
    side = config.tracker_config.image_size
    frames = torch.randn(2, 3, side, side)
    session = module.Sam3VideoInferenceSession(
        frames, side, side, *[frames.device] * 3, frames.dtype
    )
    prompt = session.add_prompt("a word")
    session.prompt_input_ids[prompt] = ids(1, 6)
    session.prompt_attention_masks[prompt] = ones(1, 6)
    return {"inference_session": session, "frame_idx": 0}


def searched(config: Any) -> Inputs:
    """Images, the two classes to look for in each, and the words of the task."""
    side = config.image_size
    return {
        "pixel_values": torch.randn(2, 3, side, side),
        "classes_input_ids": ids(4, 6),
        "classes_attention_mask": ones(4, 6),
        "tasks_input_ids": ids(2, 8),
        "tasks_attention_mask": ones(2, 8),
        "classes_structure": torch.tensor([2, 2]),
    }


def encoder(config: Any) -> Any:
    """The part of a configuration that describes the encoder, or the whole of it."""
    return getattr(config, "encoder_config", config)
