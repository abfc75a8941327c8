"""Loading a widened checkpoint where a class has ways of its own."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import Gemma3nAudioConfig, Gemma3nAudioEncoder
from transformers.models.blt.configuration_blt import BltPatcherConfig
from transformers.models.blt.modeling_blt import BltPatcher

import fpe_hf


def test_a_class_that_initializes_by_the_shapes_of_projections(tmp_path: Path) -> None:
    """BLT's blocks do, after loading, as if their projections were stock."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 2}
    config = BltPatcherConfig(vocab_size=60, num_attention_heads=2, **sizes)
    model = fpe_hf.widen(BltPatcher(config).eval())
    model.save_pretrained(tmp_path)
    loaded = BltPatcher.from_pretrained(tmp_path)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, loaded.get_parameter(name)), name


def test_a_class_that_initializes_numbers_that_are_not_saved(tmp_path: Path) -> None:
    """The feed-forward layers of Gemma 3n's audio tower do, in a buffer of theirs."""
    torch.manual_seed(0)
    config = Gemma3nAudioConfig(
        hidden_size=32, conf_num_attention_heads=2, conf_num_hidden_layers=1, input_feat_size=16
    )
    model = fpe_hf.widen(Gemma3nAudioEncoder(config).eval())
    model.save_pretrained(tmp_path)
    loaded = Gemma3nAudioEncoder.from_pretrained(tmp_path)
    for name, buffer in model.named_buffers():
        if not name.endswith("checksum"):
            assert torch.equal(buffer, loaded.get_buffer(name)), name
