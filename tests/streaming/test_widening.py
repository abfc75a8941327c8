from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from checkpoint.fresh import run_fresh
from fpe_hf import FPEConfig
from fpe_hf.checkpoint.validate import validate_checkpoint
from fpe_hf.errors import BudgetError, ConfigError, PlanError
from fpe_hf.streaming.stock import NotStreamableError
from fpe_hf.streaming.widening import WidenedCheckpoint, widen_checkpoint, widen_in_memory
from tiny_models import tiny_config, tiny_inputs, tiny_model
from tiny_moe import MIXTURES, tiny_mixture

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
LAYOUTS = {
    "element": FPEConfig(alpha=3, layout="element", seed=5, bias="child"),
    "block": FPEConfig(layout="block", tile_size=16, fan_out="partition", coupling=1.0),
}


def tensors(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


def both_ways(
    source: Path, folder: Path, config: FPEConfig, **options: Any
) -> tuple[WidenedCheckpoint, WidenedCheckpoint]:
    results = []
    for name, way in (("streamed", widen_checkpoint), ("whole", widen_in_memory)):
        (folder / name).mkdir()
        results.append(way(source, folder / name, config, **options))
    return results[0], results[1]


def assert_same(source: Path, folder: Path, config: FPEConfig, **options: Any) -> None:
    """That streaming writes what the model in memory saves, and reports the same."""
    streamed, whole = both_ways(source, folder, config, **options)
    assert streamed == whole
    found, expected = tensors(folder / "streamed"), tensors(folder / "whole")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype is tensor.dtype, name
        assert torch.equal(found[name], tensor), name
    for file in ("config.json", "generation_config.json"):
        written = [folder / name / file for name in ("streamed", "whole")]
        assert written[0].exists() == written[1].exists()
        if written[1].exists():
            assert json.loads(written[0].read_text()) == json.loads(written[1].read_text())
    validate_checkpoint(folder / "streamed")


def tiny(family: str) -> PreTrainedModel:
    if family == "llama_tied":
        config = tiny_config("llama")
        config.tie_word_embeddings = True
        return AutoModelForCausalLM.from_config(config)
    return tiny_mixture(family) if family in MIXTURES else tiny_model(family)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a saved tiny model of a family."""
    root = tmp_path_factory.mktemp("dense")

    def save(family: str) -> Path:
        if not (root / family).exists():
            tiny(family).save_pretrained(root / family)
        return root / family

    return save


FAMILIES = ("bert_masked_lm", "llama", "llama_tied", "gpt2", "clip", "t5", "albert", "phi3")
EXPERTS = ("mixtral", "gpt_oss", "deepseek_v3")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", [*FAMILIES, *EXPERTS])
def test_streaming_writes_what_the_model_in_memory_saves(
    family: str, layout: str, saved: Callable[[str], Path], tmp_path: Path
) -> None:
    assert_same(saved(family), tmp_path, LAYOUTS[layout])


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_sources_and_results_in_many_files(
    family: str, saved: Callable[[str], Path], tmp_path: Path
) -> None:
    tiny(family).save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 3
    assert_same(tmp_path / "sharded", tmp_path, LAYOUTS["element"], max_shard_size=30_000)
    streamed, whole = tmp_path / "streamed", tmp_path / "whole"
    written = [json.loads((folder / INDEX).read_text()) for folder in (streamed, whole)]
    assert written[0]["metadata"] == written[1]["metadata"]
    assert set(written[0]["weight_map"].values()) == {
        f.name for f in streamed.glob("*.safetensors")
    }
    for file in streamed.glob("*.safetensors"):
        assert file.stat().st_size < 35_000 or len(load_file(file)) == 1
        with safe_open(file, framework="pt") as opened:
            assert opened.metadata() == {"format": "pt"}
            keys = list(opened.keys())
        assert {written[0]["weight_map"][key] for key in keys} == {file.name}


def test_the_result_loads_and_computes_the_same(
    saved: Callable[[str], Path], tmp_path: Path
) -> None:
    widen_checkpoint(saved("llama"), tmp_path, LAYOUTS["block"])
    model = tiny_model("llama")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    inputs = tiny_inputs(model)
    torch.testing.assert_close(loaded(**inputs).logits, model(**inputs).logits)


def test_dtype_and_selection(saved: Callable[[str], Path], tmp_path: Path) -> None:
    config = FPEConfig(
        layout="block",
        exclude=("*.layers.0.mlp",),
        overrides={"*.layers.1.*": {"alpha": 4, "layout": "element"}},
    )
    assert_same(saved("llama"), tmp_path, config, dtype="bfloat16")
    assert {t.dtype for n, t in tensors(tmp_path / "streamed").items() if "norm" in n} == {
        torch.bfloat16
    }


def renamed(source: Path, folder: Path, change: Callable[[str], str | None]) -> Path:
    """A copy of a checkpoint with other names of tensors in its file."""
    folder.mkdir()
    for file in source.glob("*.json"):
        (folder / file.name).write_bytes(file.read_bytes())
    found = {change(name): tensor for name, tensor in load_file(source / SINGLE).items()}
    kept = {name: tensor for name, tensor in found.items() if name is not None}
    save_file(kept, folder / SINGLE, metadata={"format": "pt"})
    return folder


def test_names_in_the_files_may_be_those_of_the_base_model_or_old(
    saved: Callable[[str], Path], tmp_path: Path
) -> None:
    def old(name: str) -> str:
        name = name.removeprefix("bert.")
        return re.sub("LayerNorm.weight$", "LayerNorm.gamma", name)

    source = renamed(saved("bert_masked_lm"), tmp_path / "old", old)
    assert "encoder.layer.0.output.LayerNorm.gamma" in load_file(source / SINGLE)
    assert_same(source, tmp_path, LAYOUTS["element"])


@pytest.mark.parametrize("equal", [True, False])
def test_tied_tensors_that_are_both_in_the_files(
    equal: bool, saved: Callable[[str], Path], tmp_path: Path
) -> None:
    source = renamed(saved("llama_tied"), tmp_path / "source", lambda name: name)
    held = load_file(source / SINGLE)
    embedding = held["model.embed_tokens.weight"]
    held["lm_head.weight"] = embedding.clone() if equal else embedding + 1
    save_file(held, source / SINGLE, metadata={"format": "pt"})
    assert_same(source, tmp_path, LAYOUTS["element"])
    assert ("lm_head.weight" in tensors(tmp_path / "streamed")) != equal


def test_a_tied_tensor_may_be_there_under_its_other_name(
    saved: Callable[[str], Path], tmp_path: Path
) -> None:
    source = renamed(
        saved("llama_tied"),
        tmp_path / "source",
        lambda name: "lm_head.weight" if name == "model.embed_tokens.weight" else name,
    )
    assert_same(source, tmp_path, LAYOUTS["element"])


def test_tensors_that_the_model_has_no_use_for_are_left_out(
    saved: Callable[[str], Path], tmp_path: Path
) -> None:
    source = renamed(saved("llama"), tmp_path / "source", lambda name: name)
    save_file(load_file(source / SINGLE) | {"extra.weight": torch.ones(3)}, source / SINGLE)
    assert_same(source, tmp_path, LAYOUTS["element"])


def test_tensors_to_be_started_at_random_need_the_whole_model(
    saved: Callable[[str], Path], tmp_path: Path
) -> None:
    source = renamed(saved("bert_masked_lm"), tmp_path / "source", lambda name: name)
    config = json.loads((source / "config.json").read_text())
    del config["architectures"]  # it becomes a BertModel, which has a pooler
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(NotStreamableError, match=r"'pooler\.dense\.weight' is not in its files"):
        widen_checkpoint(source, tmp_path, LAYOUTS["element"])


@pytest.mark.parametrize(
    ("file", "reason"),
    [(None, "it has no safetensors files"), ("adapter_config.json", "it is an adapter")],
)
def test_what_cannot_be_streamed_says_why(
    file: str | None, reason: str, saved: Callable[[str], Path], tmp_path: Path
) -> None:
    source = renamed(saved("llama"), tmp_path / "source", lambda name: name)
    if file is None:
        (source / SINGLE).unlink()
    else:
        (source / file).write_text("{}")
    with pytest.raises(NotStreamableError, match=reason):
        widen_checkpoint(source, tmp_path / "out", LAYOUTS["element"])


WATCHED = """
import resource, sys
from pathlib import Path
from fpe_hf import FPEConfig
from fpe_hf.streaming.widening import widen_checkpoint

small, large, out = map(Path, sys.argv[1:])
config = FPEConfig(layout="block")
peaks = []
for source, name in ((small, "small"), (large, "large")):
    (out / name).mkdir()
    widen_checkpoint(source, out / name, config, max_shard_size=16_000_000)
    peaks.append(1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print(peaks[1] - peaks[0])
"""


def test_memory_does_not_grow_with_the_checkpoint(
    saved: Callable[[str], Path], tmp_path: Path
) -> None:
    config = tiny_config("llama")
    config.hidden_size, config.intermediate_size, config.num_hidden_layers = 512, 2048, 14
    config.head_dim = 64
    large = tmp_path / "dense"
    AutoModelForCausalLM.from_config(config).save_pretrained(large)
    size = (large / SINGLE).stat().st_size
    assert size > 180_000_000
    result = run_fresh(WATCHED, saved("llama"), large, tmp_path)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) < size / 3
    assert sum(file.stat().st_size for file in (tmp_path / "large").glob("*.safetensors")) >= size


def test_errors_are_those_of_widen(saved: Callable[[str], Path], tmp_path: Path) -> None:
    source = renamed(saved("llama"), tmp_path / "source", lambda name: name)
    held = load_file(source / SINGLE)
    held["model.layers.1.mlp.up_proj.weight"][0, 0] = torch.nan
    save_file(held, source / SINGLE, metadata={"format": "pt"})
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(PlanError, match=r"layers\.1\.mlp.*not finite"):
        widen_checkpoint(source, out, LAYOUTS["element"])
    widen_checkpoint(saved("llama"), out, LAYOUTS["element"])
    with pytest.raises(ConfigError, match="already widened"):
        widen_checkpoint(out, tmp_path / "again", LAYOUTS["element"])


def test_the_budget_of_every_block_is_checked_as_it_is_written(
    saved: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fpe_hf.planning.plan.keep_largest", _keep_everything)
    with pytest.raises(BudgetError, match="more than its parent"):
        widen_checkpoint(saved("llama"), tmp_path, LAYOUTS["element"])
    assert not list(tmp_path.glob("*.safetensors"))


def _keep_everything(
    ups: list[Tensor], down: Tensor, copies: int, keep: int
) -> tuple[list[Tensor], Tensor]:
    return [torch.ones_like(up, dtype=torch.bool) for up in ups], torch.ones_like(down).bool()
