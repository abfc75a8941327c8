"""True shapes: time and memory, each measured in a process of its own."""

from __future__ import annotations

import json
from typing import Any

import pytest

from checkpoint.fresh import run_fresh

MEASURE = """
import json, os, time, threading
import psutil, torch

class Peak(threading.Thread):
    \"\"\"Highest resident set while it runs, in bytes; started after what is not to count.\"\"\"

    def __init__(self):
        super().__init__(daemon=True)
        self.process, self.running = psutil.Process(), True
        self.start_bytes = self.peak = self.process.memory_info().rss

    def run(self):
        while self.running:
            self.peak = max(self.peak, self.process.memory_info().rss)
            time.sleep(0.002)
"""
CLIP = """
import fpe_hf, transformers
options = json.loads({options!r})
# Everything that is loaded on first use must not count.
small = transformers.CLIPConfig(
    text_config=dict(num_hidden_layers=1), vision_config=dict(num_hidden_layers=1)
)
fpe_hf.audit(fpe_hf.widen(transformers.CLIPModel(small), **options))
model = transformers.CLIPModel(transformers.CLIPConfig())
size = sum(p.numel() * p.element_size() for p in model.parameters())
peak = Peak()
peak.start()
start = time.process_time()  # does not depend on what else the machine does
fpe_hf.widen(model, **options)
seconds = time.process_time() - start
peak.running = False
ok = fpe_hf.audit(model).ok
print(json.dumps([seconds, (peak.peak - peak.start_bytes) / size, size, ok]))
"""
LLAMA = """
import fpe_hf, transformers
config = transformers.LlamaConfig(
    vocab_size=128256, hidden_size=8192, intermediate_size=28672, num_hidden_layers=80,
    num_attention_heads=64, num_key_value_heads=8, max_position_embeddings=8192,
)
with torch.device("meta"):
    model = transformers.LlamaForCausalLM(config)
assert model.num_parameters() > 70e9
"""
QWEN = """
import fpe_hf, transformers
config = transformers.Qwen3MoeConfig(
    vocab_size=151936, hidden_size=4096, num_hidden_layers=94, num_attention_heads=64,
    num_key_value_heads=4, head_dim=128, num_experts=128, num_experts_per_tok=8,
    moe_intermediate_size=1536, max_position_embeddings=40960,
)
with torch.device("meta"):
    model = transformers.Qwen3MoeForCausalLM(config)
assert model.num_parameters() > 230e9
"""
FIND = """
start = time.process_time()
blocks = fpe_hf.find_mlps(model)
seconds = time.process_time() - start
with open("/proc/self/status") as status:  # ru_maxrss would be that of the process before exec
    peak = 1024 * next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
print(json.dumps([seconds, peak, len(blocks), blocks[-1].kind, blocks[-1].parents]))
"""


def measure(code: str) -> list[Any]:
    result = run_fresh(MEASURE + code)
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"layout": "block"},
        {"coupling": 1.0, "fan_out": "partition"},
    ],
    ids=str,
)
def test_clip_at_true_shapes(options: dict[str, Any]) -> None:
    seconds, growth, size, ok = measure(CLIP.replace("{options!r}", repr(json.dumps(options))))
    assert ok
    assert size > 600e6
    assert seconds < 30
    assert growth < 1  # beside the model itself: under 2x the model in all


@pytest.mark.parametrize(
    ("model", "found"),
    [
        pytest.param(LLAMA, (80, "gated", 28672), id="70B dense"),
        pytest.param(QWEN, (94, "experts", 1536), id="235B mixture", marks=pytest.mark.nightly),
    ],
)
def test_a_large_model_on_the_meta_device(model: str, found: tuple[int, str, int]) -> None:
    seconds, peak, *blocks = measure(model + FIND)
    assert tuple(blocks) == found
    assert seconds < 60
    assert peak < 4 * 2**30
