"""A few kilobytes that claim to be a giant: refused soon, with next to no memory taken."""

from __future__ import annotations

import json
import resource
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from torch import nn
from transformers import Ernie4_5_MoeConfig, Ernie4_5_MoeForCausalLM

import fpe_hf
from fpe_hf.checkpoint import limits as limits_module
from fpe_hf.checkpoint import validate as validate_module
from fpe_hf.checkpoint.folding import unfold
from fpe_hf.checkpoint.limits import check_backing, check_counts
from fpe_hf.checkpoint.validate import validate_checkpoint
from fpe_hf.cli.validate import check_folder
from fpe_hf.errors import CheckpointError
from tiny_models import tiny_model
from tools.fuzz.campaign import limited_memory, limited_time

MEMORY = 2**29
Change = Callable[[dict[str, Any]], object]


def giant_tiles(config: dict[str, Any]) -> None:
    """A billion tiles of one parent each, within the budget that goes with them."""
    parents = 10**9
    config["intermediate_size"] = parents
    for block in config["quantization_config"]["blocks"]:
        inputs, outputs = sum(block["child_inputs"]), sum(block["child_outputs"])
        block |= {"parents": parents, "tile_size": 1}
        block["parent_nonzeros"] = parents * (inputs + outputs + 1) + block["out_features"]


def some_tiles(config: dict[str, Any]) -> None:
    """A million tiles in every block: as many as a block may have, but not what two may have."""
    parents = 500_000
    config["intermediate_size"] = parents
    for block in config["quantization_config"]["blocks"]:
        inputs, outputs = sum(block["child_inputs"]), sum(block["child_outputs"])
        block |= {"parents": parents, "tile_size": 1}
        block["parent_nonzeros"] = parents * (inputs + outputs + 1) + block["out_features"]


def giant_mixture(config: dict[str, Any]) -> None:
    """Ten million experts, in the config and in the plan."""
    experts = 10**7
    config["moe_num_experts"] = experts
    for block in config["quantization_config"]["blocks"]:
        for name in ("parent_nonzeros", "down_values"):
            block[name] = block[name] // block["experts"] * experts
        block["up_values"] = [n // block["experts"] * experts for n in block["up_values"]]
        block["experts"] = experts


CLAIMS: dict[str, tuple[str, Change]] = {
    "hidden size": ("bert_classifier", lambda c: c.update(hidden_size=10**6)),
    "vocabulary": ("bert_classifier", lambda c: c.update(vocab_size=10**10)),
    "positions": ("bert_classifier", lambda c: c.update(max_position_embeddings=10**10)),
    "causal mask": ("gpt2", lambda c: c.update(n_positions=10**6)),
    "layers": ("bert_classifier", lambda c: c.update(num_hidden_layers=10**9)),
    "many layers": ("bert_classifier", lambda c: c.update(num_hidden_layers=10**6)),
    "labels": ("bert_classifier", lambda c: c.update(num_labels=10**10)),
    "tiles": ("bert_classifier", giant_tiles),
    "total tiles": ("bert_classifier", some_tiles),
    "experts": ("ernie", giant_mixture),
    "nested": ("clip", lambda c: c["vision_config"].update(num_hidden_layers=10**9)),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny widened model of each family."""
    place = tmp_path_factory.mktemp("claims")
    for family in ("bert_classifier", "gpt2", "clip"):
        model = fpe_hf.widen(tiny_model(family), layout="block", tile_size=16)
        model.save_pretrained(place / family)
        fpe_hf.from_pretrained(place / family)  # what is slow the first time
    sizes = {"hidden_size": 16, "intermediate_size": 24, "moe_intermediate_size": 24}
    sizes |= {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    ernie = Ernie4_5_MoeConfig(**sizes, vocab_size=16, moe_num_experts=4, moe_k=2)
    fpe_hf.widen(
        Ernie4_5_MoeForCausalLM(ernie), layout="element", targets=["experts"]
    ).save_pretrained(place / "ernie")
    return {folder.name: folder for folder in place.iterdir()}


@pytest.mark.parametrize("read", [validate_checkpoint, fpe_hf.from_pretrained])
@pytest.mark.parametrize("claim", CLAIMS)
def test_claims_of_a_config(
    claim: str, read: Any, folders: dict[str, Path], tmp_path: Path
) -> None:
    family, change = CLAIMS[claim]
    for file in folders[family].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    plan = config["quantization_config"]
    plan["blocks"] = list(unfold(plan["blocks"]))
    change(config)
    (tmp_path / "config.json").write_text(json.dumps(config))
    check_refused(read, tmp_path)


@pytest.mark.parametrize("read", [validate_checkpoint, fpe_hf.from_pretrained])
@pytest.mark.parametrize("length", [10**9, 2**62, 2**64 - 1])
def test_a_header_that_claims_to_be_long(
    length: int, read: Any, folders: dict[str, Path], tmp_path: Path
) -> None:
    for file in folders["bert_classifier"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(length.to_bytes(8, "little") + weights.read_bytes()[8:])
    check_refused(read, tmp_path)


def test_what_no_file_holds_must_stay_small() -> None:
    """New heads and tables of positions are made in loading, whatever size a config gives them."""
    model: Any = nn.Sequential(nn.Linear(2**14, 2**14, device="meta"))  # 1 GiB and a bias
    check_backing(model, ("0.weight",), stored=0)
    check_backing(model, (), stored=2**17)
    with pytest.raises(
        CheckpointError, match=r"1,073,807,360 bytes .* most of them for '0.weight'"
    ):
        check_backing(model, (), stored=0)


def test_checks_of_the_command_have_limits(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """For configs that make transformers itself busy, or take memory."""

    def busy(*args: object) -> None:
        while True:
            pass

    def greedy(*args: object) -> bytearray:
        return bytearray(2**31)

    limits = partial(limits_module.limited_resources, memory=2**28, seconds=0.2)
    monkeypatch.setattr(validate_module, "limited_resources", limits)
    for build, message in ((busy, r"more than 0\.2 s"), (greedy, "more than 268,435,456 bytes")):
        before = resource.getrlimit(resource.RLIMIT_AS), signal.getsignal(signal.SIGPROF)
        with monkeypatch.context() as patch:
            patch.setattr(validate_module, "_empty_model", build)
            with pytest.raises(CheckpointError, match=message):
                check_folder(folders["bert_classifier"])
        assert before == (resource.getrlimit(resource.RLIMIT_AS), signal.getsignal(signal.SIGPROF))
    assert check_folder(folders["bert_classifier"]).numbers


@pytest.mark.parametrize(
    ("name", "value", "fine"),
    [
        ("moe_num_experts", 100_001, 512),
        ("decoder_n_points", 10**6, 4),
        ("depths", [2, 2, 10**6], [2, 2, 100]),
        ("num_labels", 1_000_001, 21_843),
        ("checkpoint_steps", None, 10**7),
        ("block_size", None, 10**6),
        ("image_token_id", None, 10**7),
        ("layer_norm_eps", None, 1e-5),
    ],
)
def test_counts_that_no_model_has(name: str, value: Any, fine: Any) -> None:
    check_counts({"text_config": {name: fine}})
    if value is not None:
        with pytest.raises(CheckpointError, match=f"{name}=.* in text_config in config.json"):
            check_counts({"text_config": {name: value}})


def check_refused(read: Any, folder: Path) -> None:
    with limited_time(), limited_memory(MEMORY), pytest.raises(CheckpointError) as caught:
        read(folder)
    assert "MemoryError" not in str(caught.value)
    assert "not enough memory" not in str(caught.value)
