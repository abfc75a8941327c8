"""Tiny, randomly initialised transformers models, one per family that discovery must get right."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import transformers as hf
from torch import Tensor

HIDDEN, MLP, LAYERS, HEADS, VOCAB = 32, 48, 2, 4, 96


class Family(NamedTuple):
    """How to build one family, and what discovery must find in it."""

    architecture: str
    config: str
    options: dict[str, Any]
    blocks: int
    kind: str = "plain"


_WIDTHS = {
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "intermediate_size": MLP,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
_IDS = {"bos_token_id": 1, "eos_token_id": 2}
_DECODER = {**_WIDTHS, **_IDS, "num_key_value_heads": 2, "tie_word_embeddings": False}
_IMAGE = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "image_size": 16,
    "patch_size": 8,
}
_VIT = {**_IMAGE, "intermediate_size": MLP}
_TEXT_TOWER = {**_WIDTHS, **_IDS}
_T5 = {
    "vocab_size": VOCAB,
    "d_model": HIDDEN,
    "d_kv": 8,
    "d_ff": MLP,
    "num_layers": LAYERS,
    "num_decoder_layers": LAYERS,
    "num_heads": HEADS,
}

_TABLE: dict[str, Family] = {
    "clip": Family(
        "CLIPModel",
        "CLIPConfig",
        {"text_config": _TEXT_TOWER, "vision_config": _VIT, "projection_dim": 24},
        2 * LAYERS,
    ),
    "vit": Family("ViTForImageClassification", "ViTConfig", {**_VIT, "num_labels": 5}, LAYERS),
    "bert": Family("BertModel", "BertConfig", _WIDTHS, LAYERS),
    "bert_classifier": Family(
        "BertForSequenceClassification", "BertConfig", {**_WIDTHS, "num_labels": 5}, LAYERS
    ),
    "bert_masked_lm": Family("BertForMaskedLM", "BertConfig", _WIDTHS, LAYERS),
    "roberta": Family("RobertaForMaskedLM", "RobertaConfig", _WIDTHS, LAYERS),
    "distilbert": Family(
        "DistilBertForSequenceClassification",
        "DistilBertConfig",
        {
            "vocab_size": VOCAB,
            "dim": HIDDEN,
            "hidden_dim": MLP,
            "n_layers": LAYERS,
            "n_heads": HEADS,
            "max_position_embeddings": 64,
        },
        LAYERS,
    ),
    "gpt2": Family(
        "GPT2LMHeadModel",
        "GPT2Config",
        {
            "vocab_size": VOCAB,
            "n_embd": HIDDEN,
            "n_inner": MLP,
            "n_layer": LAYERS,
            "n_head": HEADS,
            "n_positions": 64,
            **_IDS,
        },
        LAYERS,
    ),
    "llama": Family("LlamaForCausalLM", "LlamaConfig", _DECODER, LAYERS, "gated"),
    "mistral": Family("MistralForCausalLM", "MistralConfig", _DECODER, LAYERS, "gated"),
    "qwen2": Family("Qwen2ForCausalLM", "Qwen2Config", _DECODER, LAYERS, "gated"),
    "phi3": Family("Phi3ForCausalLM", "Phi3Config", _DECODER, LAYERS, "fused"),
    "t5": Family("T5ForConditionalGeneration", "T5Config", _T5, 2 * LAYERS),
    "t5_gated": Family(
        "T5ForConditionalGeneration",
        "T5Config",
        {**_T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
        2 * LAYERS,
        "gated",
    ),
    "opt": Family(
        "OPTForCausalLM",
        "OPTConfig",
        {
            "vocab_size": VOCAB,
            "hidden_size": HIDDEN,
            "word_embed_proj_dim": HIDDEN,
            "ffn_dim": MLP,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "max_position_embeddings": 64,
        },
        LAYERS,
    ),
    "whisper": Family(
        "WhisperForConditionalGeneration",
        "WhisperConfig",
        {
            "vocab_size": VOCAB,
            "d_model": HIDDEN,
            "encoder_layers": LAYERS,
            "decoder_layers": LAYERS,
            "encoder_attention_heads": HEADS,
            "decoder_attention_heads": HEADS,
            "encoder_ffn_dim": MLP,
            "decoder_ffn_dim": MLP,
            "num_mel_bins": 8,
            "max_source_positions": 16,
            "max_target_positions": 32,
            "pad_token_id": 0,
            "decoder_start_token_id": 1,
            "suppress_tokens": None,
            "begin_suppress_tokens": None,
            **_IDS,
        },
        2 * LAYERS,
    ),
    "dinov2": Family("Dinov2Model", "Dinov2Config", {**_IMAGE, "mlp_ratio": 2}, LAYERS),
    "dinov2_swiglu": Family(
        "Dinov2Model",
        "Dinov2Config",
        {**_IMAGE, "mlp_ratio": 2, "use_swiglu_ffn": True},
        LAYERS,
        "gated",
    ),
    "siglip": Family(
        "SiglipModel",
        "SiglipConfig",
        # The vision tower pools with an attention head whose MLP is not in a repeated stack.
        {"text_config": {**_TEXT_TOWER, "projection_size": HIDDEN}, "vision_config": _VIT},
        2 * LAYERS,
    ),
    "albert": Family("AlbertModel", "AlbertConfig", {**_WIDTHS, "embedding_size": 16}, 1),
    "modernbert": Family(
        "ModernBertForMaskedLM",
        "ModernBertConfig",
        {**_WIDTHS, **_IDS, "cls_token_id": 1, "sep_token_id": 2, "local_attention": 8},
        LAYERS,
        "fused",
    ),
}

FAMILIES: dict[str, int] = {name: family.blocks for name, family in _TABLE.items()}
"""Family name -> number of blocks `find_mlps` must return for its tiny model."""

KINDS: dict[str, str] = {name: family.kind for name, family in _TABLE.items()}
"""Family name -> `MLPBlock.kind` of all its blocks."""


def tiny_config(family: str) -> hf.PretrainedConfig:
    """The configuration of the tiny model of `family`."""
    entry = _TABLE[family]
    config: hf.PretrainedConfig = getattr(hf, entry.config)(**entry.options)
    return config


def tiny_model(family: str, seed: int = 0) -> hf.PreTrainedModel:
    """The tiny model of `family`, in eval mode, every parameter random (biases included)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: hf.PreTrainedModel = getattr(hf, _TABLE[family].architecture)(tiny_config(family))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return model.eval()


def tiny_inputs(model: hf.PreTrainedModel, batch: int = 2, length: int = 6) -> dict[str, Tensor]:
    """Inputs of `model`, the same at every call."""
    generator = torch.Generator().manual_seed(1)
    config = model.config
    ids = torch.randint(3, VOCAB, (batch, length), generator=generator)
    text = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if model.main_input_name == "input_features":
        frames = (batch, config.num_mel_bins, 2 * config.max_source_positions)
        features = torch.randn(frames, generator=generator)
        return {"input_features": features, "decoder_input_ids": ids}
    vision = getattr(config, "vision_config", config)
    if hasattr(vision, "patch_size"):
        shape = (batch, vision.num_channels, vision.image_size, vision.image_size)
        pixels = {"pixel_values": torch.randn(shape, generator=generator)}
        return {**text, **pixels} if vision is not config else pixels
    if config.is_encoder_decoder:
        return {**text, "decoder_input_ids": ids.flip(1)}
    return text


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "sat", "on", "the", "mat"]


def tiny_tokenizer() -> hf.BertTokenizerFast:
    """A tokenizer for the BERT-type models."""
    words = WORDS + [f"[unused{number}]" for number in range(VOCAB - len(WORDS))]
    return hf.BertTokenizerFast(vocab={word: number for number, word in enumerate(words)})
