"""A fixed sample of model types goes through all steps of the coverage harness."""

from __future__ import annotations

import pytest

from tools.coverage.steps import check_type

SAMPLE: dict[str, tuple[str, list[str]]] = {
    "albert": ("pass", ["plain", "shared"]),
    "bert": ("pass", ["plain"]),
    "blip": ("pass", ["plain"]),
    "clip": ("pass", ["plain"]),
    "cohere": ("pass", ["gated"]),
    "convnext": ("pass", ["plain"]),
    "deepseek_v3": ("pass", ["experts", "gated"]),
    "falcon": ("pass", ["plain"]),
    "gemma3": ("pass", ["gated", "plain"]),
    "gpt2": ("pass", ["plain"]),
    "gpt_oss": ("pass", ["experts"]),
    "gptj": ("pass", ["plain"]),
    "llama": ("pass", ["gated"]),
    "mamba": ("no MLP", []),
    "mixtral": ("pass", ["experts"]),
    "mobilevitv2": ("pass", ["convolution", "plain"]),
    "modernbert": ("pass", ["fused"]),
    "moshi_depth": ("pass", ["experts"]),
    "phi3": ("pass", ["fused"]),
    "qwen2_vl": ("pass", ["gated", "plain"]),
    "resnet": ("no MLP", []),
    "segformer": ("refused", []),
    "swin": ("pass", ["plain"]),
    "t5": ("pass", ["plain"]),
    "vit": ("pass", ["plain"]),
    "wav2vec2": ("pass", ["plain"]),
    "whisper": ("pass", ["plain"]),
}
"""Model type -> the status and the kinds of blocks that are expected."""

ALIKE = set("blip clip cohere convnext falcon gemma3 gpt_oss gptj llama moshi_depth phi3".split())
ALIKE |= set("qwen2_vl resnet swin vit wav2vec2 whisper".split())
"""Types whose kinds of blocks the others have, too."""


@pytest.mark.parametrize(
    "model_type",
    [pytest.param(t, marks=pytest.mark.nightly) if t in ALIKE else t for t in SAMPLE],
)
def test_type_goes_through_all_steps(model_type: str) -> None:
    record = check_type(model_type)
    status, kinds = SAMPLE[model_type]
    assert record["status"] == status, f"{record['step']}: {record['error']}"
    assert record["kinds"] == kinds
    assert not record["missed"]
    if kinds:
        assert record["sensitivity"] > 1e-3, "equal outputs prove nothing if blocks do not matter"
