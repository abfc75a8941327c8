"""What the generic rules do not know: one table, model type -> `Fix`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Any

import torch
from transformers import AutoConfig

from .samples import (
    Inputs,
    channels,
    codes,
    decisions,
    detections,
    encoder,
    ids,
    listened_and_seen,
    ones,
    patch_positions,
    patches,
    prompted,
    searched,
    series,
    tracking,
)


@dataclass(frozen=True)
class Fix:
    """Special treatment of one model type.

    Attributes:
        config: Dotted field -> value, set after shrinking.
        model: Name of the model class.
        make: Makes the configuration instead of the class's defaults.
        inputs: Makes the inputs from the model's configuration.
        more: Inputs beside the generic ones.
    """

    config: Mapping[str, Any] = field(default_factory=dict)
    model: str | None = None
    make: Callable[[], Any] | None = None
    inputs: Callable[[Any], Inputs] | None = None
    more: Callable[[Any], Inputs] | None = None


def fix_of(model_type: str) -> Fix:
    """The entry of a type, or an empty one."""
    return FIXES.get(model_type, Fix())


# -- the table -------------------------------------------------------------------------------------

_SERIES = Fix({"num_time_features": 1, "context_length": 16}, inputs=series)
_LENGTHS = Fix(
    inputs=lambda c: {
        "input_features": torch.randn(c.num_mel_bins, 2 * 64),
        "feature_lens": torch.tensor([64, 64]),
    }
)
_QFORMER = Fix(
    inputs=lambda c: {
        "query_embeds": torch.randn(2, 8, c.hidden_size),
        "encoder_hidden_states": torch.randn(2, 12, c.encoder_hidden_size),
    }
)
_INSTRUCTED_QFORMER = Fix(
    inputs=lambda c: {
        "input_ids": ids(2, 6),
        "attention_mask": ones(2, 14),
        "query_embeds": torch.randn(2, 8, c.hidden_size),
        "encoder_hidden_states": torch.randn(2, 12, c.encoder_hidden_size),
    }
)
_GEMMA_AUDIO = Fix(
    inputs=lambda c: {
        "audio_mel": torch.randn(2, 64, c.input_feat_size),
        "audio_mel_mask": torch.zeros(2, 64, dtype=torch.bool),
    }
)
_GEMMA_VISION = Fix(
    inputs=lambda c: {
        "pixel_values": torch.rand(2, 144, 3 * c.patch_size**2),
        "pixel_position_ids": patch_positions(12),
    }
)
_FLATTENED = Fix(
    inputs=lambda c: {
        "flattened_patches": torch.cat([patch_positions(4) + 1.0, patches(c, 16)], -1)
    }
)
_SIGLIP2 = Fix(
    inputs=lambda c: {
        "pixel_values": torch.randn(2, 16, 3 * c.patch_size**2),
        "pixel_attention_mask": ones(2, 16),
        "spatial_shapes": torch.tensor([[4, 4]] * 2),
    }
)
_SAM3_ENCODER = Fix(
    inputs=lambda c: {
        "vision_features": [torch.randn(2, c.hidden_size, 4, 4)],
        "text_features": torch.randn(2, 6, c.hidden_size),
        "vision_pos_embeds": [torch.randn(2, c.hidden_size, 4, 4)],
    }
)
_SAM3_DECODER = Fix(
    inputs=lambda c: {
        "vision_features": torch.randn(2, 16, c.hidden_size),
        "text_features": torch.randn(2, 6, c.hidden_size),
        "vision_pos_encoding": torch.randn(2, 16, c.hidden_size),
        "spatial_shapes": torch.tensor([[4, 4]]),
    }
)
_PACKED_PATCHES = Fix(
    {"insert_layer_id": 0},
    inputs=lambda c: {
        "pixel_values": torch.randn(1, 3, c.patch_size, 32 * c.patch_size),
        "target_sizes": torch.tensor([[4, 4]] * 2, dtype=torch.int32),
    },
)
_TWO_FRAME_PATCHES = Fix(
    inputs=lambda c: {
        "pixel_values": torch.randn(32, 2 * 3 * c.patch_size**2),
        "grid_thw": torch.tensor([[1, 4, 4]] * 2),
    }
)
_SAM2_STAGES = {
    "image_size": [256, 256],
    "window_size_per_stage": [8, 4, 4, 2],
    "blocks_per_stage": [1, 1, 2, 1],
    "global_attention_blocks": [3],
    "embed_dim_per_stage": [16, 32, 64, 128],
    "hidden_size": 16,
}
_SAM2_FRAMES = {
    **{f"vision_config.backbone_config.{name}": value for name, value in _SAM2_STAGES.items()},
    "vision_config.backbone_channel_list": [128, 64, 32, 16],
    "vision_config.backbone_feature_sizes": [[64, 64], [32, 32], [16, 16]],
    "prompt_encoder_config.image_size": 256,
    "image_size": 256,
    "memory_attention_rope_feat_sizes": [16, 16],
}
_SAM3_FRAMES = {
    "vision_config.backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
    "prompt_encoder_config.image_size": 56,
    "image_size": 56,
    "memory_attention_rope_feat_sizes": [4, 4],
}
_SAM_PROMPTS = {
    "vision_config.num_pos_feats": 32,
    "prompt_encoder_config.image_size": 64,
    "prompt_encoder_config.image_embedding_size": 4,
}
_TIMM_VIT = {
    "vision_config.architecture": "vit_tiny_patch16_224",
    "vision_config.model_args": {"depth": 2, "embed_dim": 64, "num_heads": 4, "img_size": 64},
}
_TIMM_PYRAMID = {
    "backbone_config.architecture": "convnext_atto",
    "backbone_channel_list": [320, 160, 80, 40],
    "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
}
_SMALL_CODEC = {"num_filters": 4, "downsampling_ratios": [2] * 6, "depths": [1] * 7}
_SAM_MASKS = Fix(
    inputs=lambda c: {
        "decoder_queries": torch.randn(2, 8, c.hidden_size),
        "backbone_features": [torch.randn(2, c.hidden_size, s, s) for s in (16, 8, 4)],
        "encoder_hidden_states": torch.randn(2, 16, c.hidden_size),
    }
)
_STACKED_MEL = Fix(
    inputs=lambda c: {"input_features": torch.randn(2, 32, 4 * encoder(c).num_mel_bins)}
)
_ROPE = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [3, 3, 2]}
_NATURAL_PATCHES = Fix(
    inputs=lambda c: {
        "pixel_values": torch.randn(1, 32, 3, c.patch_size, c.patch_size),
        "grid_thw": torch.tensor([[1, 4, 4]] * 2),
    }
)


def _of(module: str, name: str) -> Any:
    """A configuration that transformers does not export."""
    return getattr(import_module(f"transformers.models.{module}.configuration_{module}"), name)()


def _part(model_type: str, model: str) -> Fix:
    """The part that reads and writes stands for a model that has no forward of its own."""
    return Fix(make=lambda: AutoConfig.for_model(model_type), model=model)


_MUSIC = Fix(
    model="MusicgenForConditionalGeneration",
    inputs=lambda c: {
        "input_ids": ids(2, 8),
        "decoder_input_ids": ids(2 * c.decoder.num_codebooks, 6),
    },
)
_SPEECH_CODEC = Fix(
    {"quantization_dim": 128},
    inputs=lambda c: {
        "input_values": torch.randn(2, 1, 5_120),
        "input_features": torch.randn(2, 16, 160),
    },
)


def _with_resnet(model_type: str) -> Fix:
    """A detector with a small backbone of transformers' own in the place of timm's."""
    backbone = {
        "model_type": "resnet",
        "layer_type": "basic",
        "embedding_size": 16,
        "hidden_sizes": [16, 32, 64, 128],
        "depths": [1, 1, 1, 1],
        "out_features": ["stage1", "stage2", "stage3", "stage4"],
    }
    return Fix(make=lambda: AutoConfig.for_model(model_type, backbone_config=dict(backbone)))


_LCNET = {
    "model_type": "pp_lcnet_v4",
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
    # As by default, but halving height and width from stage to stage.
    "block_configs": [
        [[3, 96, 96, 1, True]],
        [[3, 96, 96, 2, False]],
        [[3, 96, 192, 2, False], [3, 192, 192, 1, True]],
        [[3, 192, 384, 2, False], [3, 384, 384, 1, True]],
    ],
}


FIXES: dict[str, Fix] = {
    "align": Fix({"projection_dim": 640, "vision_config.depth_coefficient": 0.3}),
    "apertus1p5": Fix(
        {
            "audio_config.codebook_size": 32,
            "audio_config.codebook_dim": 64,
            "audio_config.hidden_size": 64,
            "vision_config.base_channels": 32,
            "vision_config.codebook_size": 64,
            "image_token_offset": 200,
            "audio_token_offset": 264,
        }
    ),
    "apertus1p5_vision_tokenizer": Fix({"base_channels": 32}),
    "autoformer": _SERIES,
    "bark": Fix(model="BarkSemanticModel", make=lambda: _of("bark", "BarkSemanticConfig")),
    "blip-2": Fix({"image_token_index": 250, "image_token_id": 250}),
    "blip_2_qformer": _QFORMER,
    "blt": Fix({"encoder_hash_byte_group_vocab": 500, "decoder_config.hidden_size_global": 64}),
    "blt_local_decoder": Fix(
        inputs=lambda c: {
            "inputs_embeds": torch.randn(2, 16, c.hidden_size),
            "patch_embeds": torch.randn(2, 4, c.hidden_size_global),
        }
    ),
    "blt_local_encoder": Fix(
        inputs=lambda c: {
            "input_ids": ids(2, 16),
            "num_patches": 4,
            "patch_ids": torch.arange(4).repeat_interleave(4).expand(2, -1).clone(),
        }
    ),
    "chameleon": Fix({"vocabulary_map": {"<image>": 250}}),
    "chmv2": Fix({"backbone_config.return_class_token": True}),
    "clap": Fix(
        {"audio_config.patch_embeds_hidden_size": 8},
        inputs=lambda c: {
            "input_ids": ids(2, 16),
            "input_features": torch.randn(2, 1, 1024, c.audio_config.num_mel_bins),
            "is_longer": torch.zeros(2, 1, dtype=torch.bool),
        },
    ),
    "clap_audio_model": Fix(
        inputs=lambda c: {
            "input_features": torch.randn(2, 1, 1024, c.num_mel_bins),
            "is_longer": torch.zeros(2, 1, dtype=torch.bool),
        }
    ),
    "clvp": Fix(
        {"decoder_config.vocab_size": 250},
        inputs=lambda c: {"input_ids": ids(2, 16), "input_features": torch.randn(2, 80, 64)},
    ),
    "cohere_compass": Fix(
        {
            "text_config.rope_parameters": {
                "sliding_attention": dict(_ROPE),
                "full_attention": dict(_ROPE),
            }
        }
    ),
    "cohere_compass_text": Fix(
        {"rope_parameters": {"sliding_attention": dict(_ROPE), "full_attention": dict(_ROPE)}}
    ),
    "conditional_detr": _with_resnet("conditional_detr"),
    "csm": Fix({"codec_config.upsample_groups": 64}),
    "cvt": Fix({"depth": [1, 2, 10]}),
    "dab-detr": _with_resnet("dab-detr"),
    "dbrx": Fix({"attn_config.rope_theta": 10_000.0, "attn_config.clip_qkv": 8.0}),
    "decision_transformer": Fix(inputs=decisions),
    "deepseek_ocr2": Fix({"text_config.mlp_layer_types": ["dense", "sparse"]}),
    "deepseek_ocr2_encoder": Fix(
        {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0}},
        inputs=lambda c: {"inputs_embeds": torch.randn(2, 16, c.hidden_size), "num_patches": 16},
    ),
    "deepseek_ocr2_text": Fix({"mlp_layer_types": ["dense", "sparse"]}),
    "deepseek_ocr2_vision": Fix(
        {"sam_config.output_channels": 64, "sam_config.downsample_channels": [128, 64]}
    ),
    "deformable_detr": _with_resnet("deformable_detr"),
    "depth_pro": Fix(
        {"patch_size": 56, "intermediate_hook_ids": [1, 0]},
        inputs=lambda c: {"pixel_values": torch.randn(1, 3, 224, 224)},
    ),
    "detr": _with_resnet("detr"),
    "dia_decoder": Fix(
        inputs=lambda c: {
            "input_ids": ids(2, 12, c.num_channels),
            "encoder_hidden_states": torch.randn(2, 6, c.cross_hidden_size),
        }
    ),
    "diffusion_gemma": Fix({"text_config.num_experts": 4}),
    "diffusion_gemma_text": Fix({"num_experts": 4}),
    "donut-swin": Fix({"window_size": 2}),
    "dots1": Fix({"n_routed_experts": 4, "n_shared_experts": 1, "n_group": 1, "topk_group": 1}),
    "dots3_note": Fix({"audio_config.adapter_input_size": 64}),
    "dots3_note_audio_encoder": Fix(
        {"adapter_input_size": 64},
        inputs=lambda c: {
            "input_features": torch.randn(2, c.feature_size, 64),
            "chunk_sample_lengths": torch.tensor([8000, 8000]),
        },
    ),
    "edgetam": Fix(
        {
            **{f"vision_config.{name}": value for name, value in _TIMM_PYRAMID.items()},
            "prompt_encoder_config.image_size": 64,
        }
    ),
    "edgetam_vision_model": Fix(_TIMM_PYRAMID),
    "efficientnet": Fix({"depth_coefficient": 0.3}),
    "edgetam_video": Fix(
        {
            **_SAM2_FRAMES,
            "memory_attention_rope_k_sizes": [4, 4],
            "perceiver_resampler_attention_head_dim": 64,
            "perceiver_resampler_num_latents": 16,
            "perceiver_resampler_num_latents_2d": 16,
        },
        inputs=tracking("edgetam_video", "EdgeTamVideoInferenceSession", 256, 1, 32),
    ),
    "emu3": Fix({"vocabulary_map": {"<image>": 250}, "vq_config.base_channels": 32}),
    "emu3_vqgan": Fix({"base_channels": 32}),
    "esm": Fix({"pad_token_id": 1, "mask_token_id": 4}),
    "fast_vlm": Fix(
        {"vision_config.architecture": "convnext_atto", "vision_config.model_args": {}}
        | {"vision_config.hidden_size": 320}
    ),
    "fastspeech2_conformer_hifigan": Fix(
        inputs=lambda c: {"spectrogram": torch.randn(2, 12, c.model_in_dim)}
    ),
    "florence_vision": Fix(inputs=lambda c: {"hidden_states": torch.randn(2, 3, 64, 64)}),
    "fun_asr_nano": Fix({"adaptor_config.intermediate_size": 16}),
    "fun_asr_nano_encoder": Fix(
        inputs=lambda c: {
            "input_features": torch.randn(2, 16, c.num_mel_bins * c.num_stacked_frames),
            "input_features_mask": ones(2, 16),
        }
    ),
    "gemma3n": Fix({"vision_config.architecture": "convnext_atto"}),
    "gemma3n_audio": _GEMMA_AUDIO,
    "gemma3n_vision": Fix({"architecture": "convnext_atto"}),
    "gemma4_vision": _GEMMA_VISION,
    "gpt_neo": Fix({"attention_types": [[["global", "local"], 1]]}),
    "granite4_vision": Fix({"deepstack_layer_map": [[-1, 0]], "downsample_rate": "2/4"}),
    "granite_speech5_ctc": _STACKED_MEL,
    "granite_speech5_encoder": _STACKED_MEL,
    "grounding-dino": Fix(more=detections),
    "higgs_audio_v2_tokenizer": Fix(
        {
            "acoustic_model_config.encoder_hidden_size": 4,
            "acoustic_model_config.downsampling_ratios": [8, 5, 4, 2, 3],
            "acoustic_model_config.upsampling_ratios": [8, 5, 4, 2, 3],
        },
        inputs=lambda c: {"input_values": torch.randn(2, 1, 9_600)},
    ),
    "hunyuan_v1_moe": Fix({"num_experts": 4, "moe_topk": 2}),
    "idefics": Fix(
        more=lambda c: {
            "pixel_values": torch.randn(2, 1, 3, *[c.vision_config.image_size] * 2),
            "image_attention_mask": ones(2, 16, 1),
            "attention_mask": ones(2, 16),
        }
    ),
    "idefics2_perceiver": Fix(
        inputs=lambda c: {
            "context": torch.randn(2, 12, c.hidden_size),
            "attention_mask": ones(2, 12),
        }
    ),
    "informer": _SERIES,
    "inkling_audio": Fix(inputs=lambda c: {"audio_input_ids": ids(2, 16, c.num_codebooks, top=10)}),
    "inkling_mm_model": Fix({"vision_config.patch_size": 4, "vision_config.num_hidden_layers": 4}),
    "inkling2_vision": Fix(
        inputs=lambda c: {
            "pixel_values": torch.randn(
                8, *[c.patch_size * c.spatial_merge_size] * 2, c.num_channels
            ),
            "image_grid_thw": torch.tensor([[1, 2, 2]] * 2),
        }
    ),
    "inkling_vision": Fix(
        {"patch_size": 4, "num_hidden_layers": 4},
        inputs=lambda c: {
            "pixel_values": torch.randn(
                2, c.temporal_patch_size, c.patch_size, c.patch_size, c.num_channels
            )
        },
    ),
    "instructblip": Fix({"image_token_index": 250, "image_token_id": 250}),
    "instructblip_qformer": _INSTRUCTED_QFORMER,
    "instructblipvideo": Fix(
        {"video_token_index": 250, "video_token_id": 250},
        more=lambda c: {
            "pixel_values": torch.randn(2, 1, 3, *[c.vision_config.image_size] * 2),
        },
    ),
    "instructblipvideo_qformer": _INSTRUCTED_QFORMER,
    "jev": Fix(
        more=lambda c: {
            "input_ids": ids(1, 16),
            "marks": torch.tensor([[4, 8]]),
            "num_options": torch.tensor([[2, 2]]),
            "question_type_ids": torch.tensor([[0, 0]]),
        }
    ),
    "kimi_k25_vision": Fix(
        inputs=lambda c: {
            "pixel_values": torch.randn(32, 3, c.patch_size, c.patch_size),
            "grid_thw": torch.tensor([[1, 4, 4]] * 2),
        }
    ),
    "kosmos-2": Fix(
        more=lambda c: {
            "image_embeds_position_mask": torch.cat(
                [torch.ones(2, c.latent_query_num), torch.zeros(2, 4)], 1
            ).bool(),
            "input_ids": ids(2, c.latent_query_num + 4),
        }
    ),
    "kosmos_2_5_vision_model": _FLATTENED,
    "lfm2_moe": Fix({"layer_types": ["conv", "full_attention"]}),
    "llama4_vision_model": Fix(
        {"intermediate_size": 256, "projector_input_dim": 64, "projector_output_dim": 64}
    ),
    "longcat_flash": Fix({"qk_head_dim": 32, "head_dim": 16}),
    "lw_detr": Fix({"projector_scale_factors": [1.0]}),
    "lxmert": Fix(
        more=lambda c: {
            "visual_feats": torch.randn(2, 6, c.visual_feat_dim),
            "visual_pos": torch.rand(2, 6, c.visual_pos_dim),
        }
    ),
    "mamba2": Fix({"num_heads": 8}),
    "mimi_decoder": Fix(inputs=lambda c: {"latents": torch.randn(2, c.hidden_size, 8)}),
    "mimo_v2_flash": Fix({"num_key_value_heads": 2, "swa_num_key_value_heads": 2}),
    "minicpm_ocr_vision": _PACKED_PATCHES,
    "minicpmv4_6_vision": _PACKED_PATCHES,
    "minicpmv4_7_vision": _PACKED_PATCHES,
    "mllama_vision_model": Fix(
        {"intermediate_layers_indices": [0, 1]},
        inputs=lambda c: {
            "pixel_values": torch.randn(1, 1, c.max_num_tiles, 3, c.image_size, c.image_size),
            "aspect_ratio_ids": torch.tensor([[1]]),
            "aspect_ratio_mask": ones(1, 1, c.max_num_tiles),
        },
    ),
    "mm-grounding-dino": Fix(more=detections),
    "molmo2": Fix({"adapter_config.vision_feature_layer": [-1, -2]}),
    "molmo2_adapter": Fix(
        inputs=lambda c: {
            "image_features": torch.randn(2, 16, c.hidden_size * len(c.vision_feature_layer)),
            "pooled_patches_idx": torch.arange(32).view(8, 4),
        }
    ),
    "molmo2_vision": Fix(
        inputs=lambda c: {"pixel_values": torch.randn(2, 16, 3 * c.patch_size**2)}
    ),
    "moonshine_streaming": Fix({"num_key_value_heads": 4, "encoder_config.num_key_value_heads": 4}),
    "moshi_depth": Fix(
        inputs=lambda c: {
            "input_ids": ids(2, c.num_codebooks),
            "last_hidden_state": torch.randn(2, 1, c.input_size),
            "use_cache": False,
        }
    ),
    "muse_glimmer_assistant": Fix(
        inputs=lambda c: {
            "noise_embeds": torch.randn(2, 4, c.hidden_size),
            "context_hidden_states": torch.randn(2, 8, 5 * c.hidden_size),
        }
    ),
    "muse_glimmer_vision": _TWO_FRAME_PATCHES,
    "muse_spark_audio": Fix(inputs=lambda c: {"input_values": torch.randn(2, 1920 * 4)}),
    "muse_spark_vision": _TWO_FRAME_PATCHES,
    "musicgen": _MUSIC,
    "musicgen_decoder": Fix(inputs=codes("num_codebooks")),
    "musicgen_melody": replace(_MUSIC, model="MusicgenMelodyForConditionalGeneration"),
    "musicgen_melody_decoder": Fix(inputs=codes("num_codebooks")),
    "nemotron": Fix({"num_key_value_heads": 2}),
    "neucodec": _SPEECH_CODEC,
    "omdet-turbo": Fix({"cache_size": 1, "image_size": 224}, inputs=searched),
    "oneformer": Fix({"mask_dim": 64}, more=lambda c: {"task_inputs": ids(2, c.task_seq_len)}),
    "paddleocr_vl": Fix(
        {"text_config.rope_parameters": dict(_ROPE)},
        more=lambda c: {
            "pixel_values": torch.randn(
                32, 3, c.vision_config.patch_size, c.vision_config.patch_size
            ),
        },
    ),
    "paddleocr_vl_vision": _NATURAL_PATCHES,
    "patchtsmixer": Fix(inputs=channels),
    "patchtst": Fix(inputs=channels),
    "pe_audio_video": Fix(
        {f"audio_video_config.video_config.{n}": v for n, v in _TIMM_VIT.items()},
        more=listened_and_seen,
    ),
    "pe_audio_video_encoder": Fix(
        {f"video_config.{n}": v for n, v in _TIMM_VIT.items()},
        more=listened_and_seen,
    ),
    "pe_video": Fix({f"video_config.{n}": v for n, v in _TIMM_VIT.items()}),
    "pe_video_encoder": Fix(_TIMM_VIT),
    "perceiver": Fix(
        {"d_latents": 64, "num_latents": 16, "d_model": 32},
        inputs=lambda c: {"inputs": torch.randn(2, 12, c.d_model)},
    ),
    "perception_lm": Fix(_TIMM_VIT, more=lambda c: {"pixel_values": torch.randn(2, 1, 3, 64, 64)}),
    "phi4_multimodal_audio": Fix(
        inputs=lambda c: {
            "hidden_states": torch.randn(2, 64, c.input_size),
            "mask": torch.ones(2, 64, dtype=torch.bool),
        }
    ),
    "pi0": Fix(
        more=lambda c: {
            "action_embeds": torch.randn(2, 4, c.dit_config.hidden_size),
            "pixel_attention_mask": torch.ones(2, 1, dtype=torch.bool),
            "pixel_values": torch.randn(2, 1, 3, *[c.vlm_config.vision_config.image_size] * 2),
            "attention_mask": ones(2, 16),
        }
    ),
    "pix2struct": Fix(
        inputs=lambda c: {
            "flattened_patches": torch.cat([patch_positions(4) + 1.0, patches(c, 16)], -1),
            "decoder_input_ids": ids(2, 8),
        }
    ),
    "pix2struct_text_model": Fix({"initializer_range": 0.02}),
    "pix2struct_vision_model": _FLATTENED,
    "pocket_tts_audio_tokenizer_decoder": Fix(
        inputs=lambda c: {"latents": torch.randn(2, c.hidden_size, 8)}
    ),
    "pp_doclayout_v2": Fix({"class_thresholds": [0.5] * 20, "class_order": list(range(20))}),
    "pp_formulanet": Fix({"vision_config.output_channels": 256}),
    "pp_formulanet_vision": Fix({"output_channels": 256}),
    "pp_ocrv5_mobile_rec": Fix(
        model="PPOCRV5MobileRecForTextRecognition",
        inputs=lambda c: {"pixel_values": torch.randn(2, 3, 96, 320)},
    ),
    "pp_ocrv5_server_rec": Fix(model="PPOCRV5ServerRecForTextRecognition"),
    "pp_ocrv6_small_det": Fix(
        {"layer_list_out_channels": [96, 96, 192, 384]},
        make=lambda: AutoConfig.for_model("pp_ocrv6_small_det", backbone_config=_LCNET),
    ),
    "pp_ocrv6_small_rec": Fix(model="PPOCRV6SmallRecForTextRecognition"),
    "pp_ocrv6_tiny_rec": Fix(model="PPOCRV6TinyRecForTextRecognition"),
    "pvt": Fix({"num_encoder_blocks": 4}),
    "qwen2_5_omni": _part("qwen2_5_omni_thinker", "Qwen2_5OmniThinkerForConditionalGeneration"),
    "qwen2_5_omni_audio_encoder": _LENGTHS,
    "qwen2_5_omni_bigvgan": Fix(inputs=lambda c: {"mel_spectrogram": torch.randn(2, c.mel_dim, 8)}),
    "qwen2_5_omni_dit": Fix(
        inputs=lambda c: {
            "hidden_states": torch.randn(2, 8, c.mel_dim),
            "condition_vector": torch.randn(2, 16, c.mel_dim),
            "speaker_embedding": torch.randn(2, 8, c.enc_emb_dim),
            "quantized_code": ids(2, 4),
            "time_step": torch.tensor(0.5),
        }
    ),
    "qwen2_5_omni_token2wav": Fix(
        {"bigvgan_config.upsample_initial_channel": 64},
        inputs=lambda c: {
            "code": ids(2, 4),
            "conditioning": torch.randn(2, c.dit_config.enc_emb_dim),
            "reference_mel": torch.randn(2, 16, c.dit_config.mel_dim),
            "num_steps": 3,
        },
    ),
    "qwen3_asr_encoder": Fix(
        inputs=lambda c: {
            "input_features": torch.randn(2, c.num_mel_bins, 200),
            "input_features_mask": ones(2, 200),
        }
    ),
    "qwen3_omni_moe": _part(
        "qwen3_omni_moe_thinker", "Qwen3OmniMoeThinkerForConditionalGeneration"
    ),
    "qwen3_omni_moe_audio_encoder": _LENGTHS,
    "qwen3_omni_moe_talker_code_predictor": Fix(
        inputs=lambda c: {"inputs_embeds": torch.randn(2, 2, c.hidden_size)}
    ),
    "qwen3_omni_moe_talker_text": Fix(
        {"shared_expert_intermediate_size": 48},
        inputs=lambda c: {"inputs_embeds": torch.randn(2, 8, c.hidden_size)},
    ),
    "qwen4_exp": Fix(
        {
            "text_config.indexer_n_heads": 4,
            "text_config.indexer_kv_heads": 1,
            "text_config.indexer_head_dim": 16,
            "text_config.indexer_budget": 8,
            "text_config.indexer_compress_ratio": 4,
        }
    ),
    "qwen4_exp_text": Fix(
        {
            "indexer_n_heads": 4,
            "indexer_kv_heads": 1,
            "indexer_head_dim": 16,
            "indexer_budget": 8,
            "indexer_compress_ratio": 4,
        }
    ),
    "rag": Fix(
        {"n_docs": 2},
        inputs=lambda c: {
            "input_ids": ids(2, 8),
            "context_input_ids": ids(4, 12),
            "context_attention_mask": ones(4, 12),
            "doc_scores": torch.randn(2, 2),
            "decoder_input_ids": ids(2, 6),
        },
    ),
    "sam": Fix(_SAM_PROMPTS),
    "sam2": Fix(
        {
            **{f"vision_config.backbone_config.{n}": value for n, value in _SAM2_STAGES.items()},
            "vision_config.backbone_channel_list": [128, 64, 32, 16],
            "vision_config.backbone_feature_sizes": [[64, 64], [32, 32], [16, 16]],
            "prompt_encoder_config.image_size": 256,
        },
        inputs=lambda c: {"pixel_values": torch.randn(1, 3, 256, 256)},
    ),
    "sam2_hiera_det_model": Fix(
        _SAM2_STAGES, inputs=lambda c: {"pixel_values": torch.randn(1, 3, 256, 256)}
    ),
    "sam2_vision_model": Fix(
        {
            **{f"backbone_config.{name}": value for name, value in _SAM2_STAGES.items()},
            "backbone_channel_list": [128, 64, 32, 16],
        },
        inputs=lambda c: {"pixel_values": torch.randn(1, 3, 256, 256)},
    ),
    "sam2_video": Fix(
        _SAM2_FRAMES, inputs=tracking("sam2_video", "Sam2VideoInferenceSession", 256, 256, 1)
    ),
    "sam3_detr_decoder": _SAM3_DECODER,
    "sam3_detr_encoder": _SAM3_ENCODER,
    "sam3_lite_text_detr_decoder": _SAM3_DECODER,
    "sam3_lite_text_detr_encoder": _SAM3_ENCODER,
    "sam3_lite_text_mask_decoder": _SAM_MASKS,
    "sam3_mask_decoder": _SAM_MASKS,
    "sam3_tracker": Fix(
        {
            "vision_config.backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
            "prompt_encoder_config.image_size": 56,
        }
    ),
    "sam3_tracker_video": Fix(
        _SAM3_FRAMES,
        inputs=tracking("sam3_tracker_video", "Sam3TrackerVideoInferenceSession", 56, 16, 1),
    ),
    # Every detection counts, as the weights are random.
    "sam3_video": Fix(
        {
            **{f"tracker_config.{name}": value for name, value in _SAM3_FRAMES.items()},
            "low_res_mask_size": 16,
            "score_threshold_detection": 0.0,
            "new_det_thresh": 0.0,
            "det_nms_thresh": 0.0,
            "fill_hole_area": 0,
            "max_num_objects": 4,
        },
        inputs=prompted,
    ),
    "sam_hq": Fix(_SAM_PROMPTS),
    "seggpt": Fix(
        inputs=lambda c: {
            name: torch.randn(2, 3, c.image_size[0] // 2, c.image_size[1])
            for name in ("pixel_values", "prompt_pixel_values", "prompt_masks")
        }
    ),
    "shieldgemma2": Fix({"mm_tokens_per_image": 16, "yes_token_index": 10, "no_token_index": 11}),
    "siglip2": Fix(
        inputs=lambda c: {"input_ids": ids(2, 16), **_SIGLIP2.inputs(c.vision_config)}  # type: ignore[misc]
    ),
    "siglip2_vision_model": _SIGLIP2,
    "slanet": Fix({"max_text_length": 8}),
    "slanext": Fix({"vision_config.output_channels": 256, "max_text_length": 8}),
    "slanext_vision": Fix({"output_channels": 256}),
    "speech-encoder-decoder": Fix(
        inputs=lambda c: {
            "input_values": torch.randn(2, 4_000),
            "decoder_input_ids": ids(2, 8),
        }
    ),
    "speecht5": Fix(
        inputs=lambda c: {
            "input_values": torch.randn(2, 8, c.hidden_size),
            "decoder_input_values": torch.randn(2, 8, c.hidden_size),
        }
    ),
    "speecht5_hifigan": Fix(inputs=lambda c: {"spectrogram": torch.randn(2, 12, c.model_in_dim)}),
    "step3p5": Fix({"sliding_window": 8}),
    "step3p7": Fix({"text_config.sliding_window": 8}),
    "swin": Fix({"window_size": 2}),
    "t5gemma2_decoder": Fix(
        {"dropout_rate": 0.0},
        more=lambda c: {"encoder_hidden_states": torch.randn(2, 6, c.hidden_size)},
    ),
    "t5gemma2_encoder": Fix({"text_config.dropout_rate": 0.0}),
    "t5gemma2_text": Fix({"dropout_rate": 0.0}),
    "table-transformer": _with_resnet("table-transformer"),
    "time_series_transformer": _SERIES,
    "timesfm": Fix(
        inputs=lambda c: {
            "past_values": torch.rand(2, 64),
            "past_values_padding": torch.zeros(2, 64),
            "freq": torch.zeros(2, 1, dtype=torch.long),
        }
    ),
    "timesfm2_5": Fix(inputs=lambda c: {"past_values": torch.rand(2, 64)}),
    "timm_backbone": Fix({"backbone": "convnext_atto"}),
    "timm_wrapper": Fix({"architecture": "convnext_atto"}),
    "trocr": Fix(
        more=lambda c: {
            "encoder_hidden_states": torch.randn(2, 6, c.cross_attention_hidden_size or c.d_model)
        }
    ),
    "tvp": Fix(
        {"max_img_size": 64, "visual_prompt_size": 8},
        more=lambda c: {
            "input_ids": ids(1, 16),
            "pixel_values": torch.randn(1, c.num_frames, 3, c.max_img_size, c.max_img_size),
            "attention_mask": ones(1, 16),
        },
    ),
    "univnet": Fix(inputs=lambda c: {"input_features": torch.randn(2, 12, c.num_mel_bins)}),
    "unlimited_ocr_vision": Fix({"sam_config.downsample_channels": [128, 64]}),
    "unlimited_ocr_vision_encoder": Fix(
        inputs=lambda c: {"patch_embeds": torch.randn(2, c.hidden_size, 4, 4)}
    ),
    "vibevoice": Fix(
        {
            f"{part}.{name}": value
            for part in ("audio_config", "semantic_model_config")
            for name, value in _SMALL_CODEC.items()
        }
    ),
    "vibevoice_acoustic_tokenizer": Fix(
        _SMALL_CODEC, inputs=lambda c: {"input_values": torch.randn(2, 1, 640)}
    ),
    "vibevoice_acoustic_tokenizer_decoder": Fix(
        _SMALL_CODEC, inputs=lambda c: {"hidden_states": torch.randn(2, c.hidden_size, 4)}
    ),
    "vibevoice_acoustic_tokenizer_encoder": Fix(
        _SMALL_CODEC, inputs=lambda c: {"hidden_states": torch.randn(2, 1, 640)}
    ),
    "vibevoice_asr": Fix(
        {
            f"{part}_tokenizer_encoder_config.{name}": value
            for part in ("acoustic", "semantic")
            for name, value in _SMALL_CODEC.items()
        }
    ),
    "video_llama_3_vision": Fix(
        inputs=lambda c: {
            "pixel_values": torch.randn(32, 3 * c.patch_size**2),
            "grid_thw": torch.tensor([[1, 4, 4]] * 2),
            "merge_sizes": torch.tensor([1, 1]),
        }
    ),
    "visual_bert": Fix(
        more=lambda c: {
            "attention_mask": ones(2, 16),
            "visual_embeds": torch.randn(2, 6, c.visual_embedding_dim),
            "visual_attention_mask": ones(2, 6),
        }
    ),
    "vitmatte": Fix({"fusion_hidden_sizes": [256, 128, 64, 32], "hidden_size": 64}),
    "voxtral_realtime": Fix(
        inputs=lambda c: {
            "input_ids": ids(2, 16),
            "input_features": torch.randn(2, c.audio_config.num_mel_bins, 128),
        }
    ),
    "voxtral_realtime_text": Fix(more=lambda c: {"t_cond": torch.randn(2, 1, c.hidden_size)}),
    "xclip_vision_model": Fix(
        inputs=lambda c: {"pixel_values": torch.randn(16, 3, c.image_size, c.image_size)}
    ),
    "xcodec2": _SPEECH_CODEC,
    "xmod": Fix({"default_language": "en_XX"}),
    "zamba": Fix(
        {
            "attention_hidden_size": 128,
            "attention_head_dim": 32,
            "num_hidden_layers": 4,
            "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
        }
    ),
    "zoedepth": Fix({"bottleneck_features": 64}),
}
"""Model type -> what is special about it."""
