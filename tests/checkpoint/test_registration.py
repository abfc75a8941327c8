from __future__ import annotations

import importlib
import sys
from pathlib import Path

from transformers import AutoModel
from transformers.quantizers.auto import (
    AUTO_QUANTIZATION_CONFIG_MAPPING,
    AUTO_QUANTIZER_MAPPING,
)

import fpe_hf
from checkpoint.fresh import run_fresh
from fpe_hf.checkpoint.plan import FPEQuantizationConfig
from fpe_hf.checkpoint.quantizer import FPEQuantizer
from fpe_hf.checkpoint.registration import register
from tiny_models import tiny_model

ORDERS = (
    "import fpe_hf, transformers.quantizers.auto",
    "import transformers.quantizers.auto, fpe_hf",
    "import fpe_hf.checkpoint.validate",
    "from transformers import AutoModel; import fpe_hf, transformers.quantizers.auto",
    "from transformers import AutoTokenizer; import fpe_hf, transformers.quantizers.auto",
    "from transformers import AutoConfig; import fpe_hf; from transformers import AutoModel",
    "import fpe_hf; from transformers import AutoModelForCausalLM, Trainer",
)
IN_FORKS = """
import os, sys, torch  # the slow part of every import, done once

for code in sys.argv[1:]:
    if os.fork() == 0:
        exec(code)
        auto = sys.modules["transformers.quantizers.auto"]
        known = (auto.AUTO_QUANTIZER_MAPPING, auto.AUTO_QUANTIZATION_CONFIG_MAPPING)
        print(code, ":", *("fpe" in mapping for mapping in known), flush=True)
        os._exit(0)
    os.wait()
"""


def test_it_is_registered_once_and_again_without_harm() -> None:
    before = list(sys.meta_path)
    for _ in range(3):
        register()
    assert AUTO_QUANTIZER_MAPPING["fpe"] is FPEQuantizer
    assert AUTO_QUANTIZATION_CONFIG_MAPPING["fpe"] is FPEQuantizationConfig
    assert sys.meta_path == before


def test_every_order_of_imports_registers() -> None:
    result = run_fresh(IN_FORKS, *ORDERS)
    lines = [line.partition(" : ")[::2] for line in result.stdout.splitlines()]
    assert lines == [(order, "True True") for order in ORDERS], result.stderr


def test_models_of_our_own_load_after_the_import_of_fpe_hf() -> None:
    code = """
import sys, fpe_hf
from transformers import AutoConfig
config = AutoConfig.for_model("mlp_classifier", num_features=4)
assert "transformers.modeling_utils" not in sys.modules
from transformers import AutoModel
assert type(AutoModel.from_config(config)).__name__ == "MLPClassifier"
assert not [finder for finder in sys.meta_path if "fpe_hf" in type(finder).__module__]
"""
    result = run_fresh(code)
    assert result.returncode == 0, result.stderr


def test_it_waits_without_loading_transformers() -> None:
    code = """
import sys, fpe_hf
from fpe_hf.checkpoint.registration import register
register()
finders = [finder for finder in sys.meta_path if "fpe_hf" in type(finder).__module__]
assert len(finders) == 1
assert "transformers" not in sys.modules
"""
    result = run_fresh(code)
    assert result.returncode == 0, result.stderr


def test_reloading_the_package_keeps_one_registration(tmp_path: Path) -> None:
    fpe_hf.widen(tiny_model("bert")).save_pretrained(tmp_path)
    importlib.reload(fpe_hf)
    assert AUTO_QUANTIZER_MAPPING["fpe"] is FPEQuantizer
    assert fpe_hf.audit(AutoModel.from_pretrained(tmp_path)).ok
