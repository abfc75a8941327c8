"""Nothing in a checkpoint is run or unpickled; of a recipe, only what was allowed by name."""

from __future__ import annotations

import ast
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForSequenceClassification

import fpe_hf
from fpe_hf.checkpoint.folding import unfold
from fpe_hf.checkpoint.validate import validate_checkpoint
from fpe_hf.errors import CheckpointError, RecipeError
from fpe_hf.recipes import launching
from fpe_hf.recipes.parsing import parse_recipe
from fpe_hf.recipes.running import run_recipe
from fpe_hf.recipes.trust import check_code, code_in
from tiny_models import tiny_model

READERS = [
    AutoModelForSequenceClassification.from_pretrained,
    fpe_hf.from_pretrained,
    validate_checkpoint,
]
BLOCK = "bert.encoder.layer.0"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    fpe_hf.widen(tiny_model("bert_classifier")).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def trap(tmp_path: Path) -> Path:
    """A file that exists if someone's code has been run."""
    return tmp_path / "trap"


def change(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    config = json.loads((folder / "config.json").read_text())
    edit(config)
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("read", READERS, ids=["auto", "fpe_hf", "validate"])
def test_code_beside_a_model_is_not_run(read: Any, folder: Path, trap: Path) -> None:
    code = f"open({str(trap)!r}, 'w')\nclass Model: pass\nclass Config: pass\n"
    for name in ("modeling.py", "conftest.py", "sitecustomize.py"):
        (folder / name).write_text(code)
    auto_map = {
        "AutoConfig": "modeling.Config",
        "AutoModelForSequenceClassification": "modeling.Model",
    }
    change(folder, lambda config: config.update(auto_map=auto_map))
    assert type(read(folder)).__name__ in ("BertForSequenceClassification", "ValidationReport")
    assert not trap.exists()


class _Trap:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.file), "w")


@pytest.mark.parametrize("read", READERS, ids=["auto", "fpe_hf", "validate"])
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_a_pickle_is_not_opened(name: str, read: Any, folder: Path, trap: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(_Trap(trap)))
    with pytest.raises(CheckpointError, match=r"safetensors"):
        read(folder)
    assert not trap.exists()


@pytest.mark.parametrize("read", READERS, ids=["auto", "fpe_hf", "validate"])
@pytest.mark.parametrize(
    "name",
    [
        f"{BLOCK}.__class__",
        f"{BLOCK}.intermediate.dense.weight.grad_fn",
        f"{BLOCK}.intermediate.dense.forward",
        "__init__.__globals__",
        "config.quantization_config",
        "../../model",
        "",
    ],
)
def test_names_are_names_of_modules_of_the_model(name: str, read: Any, folder: Path) -> None:
    def rename(config: dict[str, Any]) -> None:
        plan = config["quantization_config"]
        plan["blocks"] = list(unfold(plan["blocks"]))
        block = plan["blocks"][0]
        assert block["name"] == BLOCK
        block["ups"] = [name]

    change(folder, rename)
    with pytest.raises(CheckpointError, match=r"does not (have|fit)"):
        read(folder)


@pytest.mark.parametrize("name", ["/etc/passwd", "../model.safetensors", "a/b", "", "a\0", ".."])
def test_shards_are_files_of_the_folder(name: str, folder: Path) -> None:
    index = {"metadata": {}, "weight_map": {"bert.pooler.dense.bias": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").rename(folder.parent / "model.safetensors")
    for read in (fpe_hf.from_pretrained, validate_checkpoint):
        with pytest.raises(CheckpointError, match="which is not a file in the folder"):
            read(folder)


# -- recipes -----------------------------------------------------------------------------------

RECIPE = """
model:
  task: feature-classification
  config: {model_type: mlp_classifier, hidden_sizes: [8]}
data: {source: digits, max_train_samples: 32, max_eval_samples: 8}
widen: {targets: [layers]}
train: {max_steps: 1, use_cpu: true, save_strategy: "no"}
"""
METRIC = """
import datasets
import evaluate
open({trap!r}, "w")
class Ones(evaluate.Metric):
    def _info(self):
        value = datasets.Value("int64")
        features = datasets.Features({{"predictions": value, "references": value}})
        return evaluate.MetricInfo("", "", features)
    def _compute(self, predictions, references):
        return {{"ones": 1.0}}
"""


def test_a_metric_in_a_file_runs_only_if_it_is_allowed(tmp_path: Path, trap: Path) -> None:
    file = tmp_path / "ones.py"
    file.write_text(METRIC.format(trap=str(trap)))
    recipe = parse_recipe(
        RECIPE, [f"output.folder={tmp_path / 'run'}", f"evaluate.metrics=[{file}, accuracy]"]
    )
    for allowed in ([], ["ones"], [str(tmp_path)]):
        with pytest.raises(RecipeError, match=f"--allow-code {file}"):
            run_recipe(recipe, allow_code=allowed)
    assert not trap.exists()
    assert not (tmp_path / "run").exists()
    results = run_recipe(recipe, allow_code=[str(file)], say=lambda line: None)
    assert results.runs[0].metrics[str(file)] == 1.0
    assert trap.exists()


def test_nothing_is_fetched_for_a_recipe_that_may_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launching, "_fetch", lambda *_: pytest.fail("fetched"))
    recipe = parse_recipe(RECIPE, [f"output.folder={tmp_path}", "evaluate.metrics=[bleu]"])
    with pytest.raises(RecipeError, match="--allow-code bleu"):
        launching.launch(recipe, resume_from="user/name")


@pytest.mark.parametrize(
    ("assignment", "names"),
    [
        ("evaluate.metrics=[accuracy, f1, top5_accuracy, loss, perplexity]", []),
        ("evaluate.metrics=[accuracy, exact_match]", ["exact_match"]),
        ("model.config.attn_implementation=sdpa", []),
        ("model.config.attn_implementation=someone/kernel", ["someone/kernel"]),
        ("model.config.text_config={_attn_implementation: {x: someone/kernel@v1:f}}",
         ["someone/kernel@v1:f"]),
    ],
)  # fmt: skip
def test_code_that_a_recipe_names(assignment: str, names: list[str]) -> None:
    recipe = parse_recipe(RECIPE, ["output.folder=out", assignment])
    assert list(code_in(recipe)) == names
    check_code(recipe, names)
    if names:
        with pytest.raises(RecipeError, match="--allow-code"):
            check_code(recipe)


@pytest.mark.parametrize(
    "assignment",
    ["model={{task: text-classification, name_or_path: {folder}}}",
     "data={{source: digits, embed: {{name_or_path: {folder}, modality: image}}}}"],
)  # fmt: skip
def test_code_beside_a_model_of_a_recipe_is_not_run(
    assignment: str, tmp_path: Path, trap: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on the terminal"))
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "modeling.py").write_text(f"open({str(trap)!r}, 'w')")
    names = ("AutoConfig", "AutoModel", "AutoImageProcessor", "AutoTokenizer")
    auto_map = dict.fromkeys(names, "modeling.Custom")
    for name in ("config.json", "preprocessor_config.json", "tokenizer_config.json"):
        config = {"model_type": "of_someone", "auto_map": auto_map}
        (folder / name).write_text(json.dumps(config))
    changes = [f"output.folder={tmp_path / 'run'}", assignment.format(folder=folder)]
    if "text" in assignment:
        (tmp_path / "data.csv").write_text("text,label\na,x\nb,y\nc,x\nd,y\n")
        changes.append(f"data={{source: csv, data_files: {tmp_path / 'data.csv'}}}")
    with pytest.raises(RecipeError):
        run_recipe(parse_recipe(RECIPE, changes))
    assert not trap.exists()


def test_everything_is_loaded_without_code() -> None:
    """Left out, `trust_remote_code` lets transformers ask on a terminal."""
    for file in Path(fpe_hf.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            if node.func.attr in ("from_pretrained", "from_config"):
                given = {key.arg: ast.unparse(key.value) for key in node.keywords}
                assert given.get("trust_remote_code") == "False", f"{file}:{node.lineno}"
