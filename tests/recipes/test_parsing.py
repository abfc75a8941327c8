from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from fpe_hf.errors import RecipeError
from fpe_hf.recipes.parsing import json_schema, parse_recipe, read_recipe, training_values

RECIPE = """\
model:
  task: image-classification
  config: {model_type: vit}
data:
  source: digits
widen:
  alpha: 4
  at: {step: 10}
train:
  max_steps: 20
  learning_rate: 1e-3
output: {folder: out}
"""


def complaint(*assignments: str, text: str = RECIPE) -> str:
    with pytest.raises(RecipeError) as error:
        parse_recipe(text, assignments, name="mine.yaml")
    return str(error.value)


def test_a_recipe() -> None:
    recipe = parse_recipe(RECIPE, ["widen.alpha=3", "compare.seeds=[4, 5]"])
    assert recipe.widen.fpe().alpha == 3
    assert recipe.compare.seeds == (4, 5)
    assert recipe.widen.at is not None
    assert recipe.widen.at.step == 10
    assert recipe.metrics == ("accuracy",)


def test_what_yaml_reads_otherwise_than_people_do() -> None:
    train = parse_recipe(RECIPE, ["train.save_strategy=no", "train.eval_strategy=no"]).train
    assert train["learning_rate"] == "1e-3"
    assert training_values(train)["learning_rate"] == 1e-3
    assert training_values(train)["save_strategy"] == "no"
    assert training_values({"learning_rate": "1e-3", "bf16": "false", "optim": "sgd"}) == {
        "learning_rate": 1e-3,
        "bf16": False,
        "optim": "sgd",
    }


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("trian: {}", 13, ["trian", "Did you mean 'train'?"]),
        ("model: {}", 13, ["model is there twice (line 1)"]),
    ],
)
def test_a_complaint_names_the_line(text: str, line: int, words: list[str]) -> None:
    message = complaint(text=RECIPE + text + "\n")
    assert message.startswith(f"mine.yaml, line {line}: ")
    assert all(word in message for word in words)


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("train.learning_rte=1", ["train.learning_rte", "Did you mean 'learning_rate'?"]),
        ("train.max_steps=many", ["train.max_steps", "integer", "'many'"]),
        ("train.max_steps=true", ["train.max_steps", "not a boolean"]),
        ("train.output_dir=x", ["set by the recipe", "output.folder"]),
        ("widen.alph=3", ["widen.alph", "Did you mean 'alpha'?"]),
        ("widen.alpha=1", ["widen: alpha=1", "2 to 256"]),
        ("widen.split=clause", ["split='clause'", "'random'"]),
        ("widen.at={step: 3, epoch: 4}", ["widen.at", "give one of step and epoch"]),
        ("widen.schedule={begin: 0.2}", ["widen: schedule", "split: learned"]),
        ("widen.schedule={begn: 0.2}", ["widen.schedule.begn", "Did you mean 'begin'?"]),
        ("widen.schedule={begin: 0.7, end: 0.2}", ["widen.schedule", "before end=0.2"]),
        ("widen.schedule={end: 1.5}", ["widen.schedule.end", "less than or equal to 1"]),
        ("widen.coupling_schedule={end: 0.2}", ["widen: coupling_schedule", "coupling: 1.0"]),
        ("widen.coupling_schedule={shape: cos}", ["widen.coupling_schedule.shape", "'cosine'"]),
        ("widen.coupling_schedule={begin: 0.7}", ["widen.coupling_schedule", "before end=0.5"]),
        ("widen.coupling_lr_factor=10", ["widen: coupling_lr_factor", "learn_coupling: true"]),
        ("widen.coupling_lr_factor=0", ["widen.coupling_lr_factor", "greater than 0"]),
        ("compare.arms=[dense, fpe, narrow-dense]", ["'narrow-dense'", "widen.budget below 1"]),
        ("model.tsk=1", ["model.tsk", "Did you mean 'task'?"]),
        ("model.task=image-clasification", ["Did you mean 'image-classification'?"]),
        ("model.config=null", ["name_or_path", "config"]),
        ("model.config={hidden_size: 4}", ["model_type"]),
        ("data.splits.eval=2", ["data.splits.eval", "less than 1"]),
        ("data.source=null", ["data.source", "string"]),
        ("data=3", ["data"]),
        ("data.columns={lable: x}", ["data.columns.lable", "Did you mean 'label'?"]),
        ("data.streaming=true", ["splits.eval"]),
        ("data.embed={name_or_path: x, modality: image}", ["feature-classification"]),
        ("compare.arms=[fpe]", ["'dense'"]),
        ("compare.arms=[dense, fpe, fpe]", ["each once"]),
        ("compare.seeds=[]", ["at least one"]),
        ("evaluate.metrics=[]", ["at least one metric"]),
        ("output.push={repo_id: nobody}", ["output.push.repo_id"]),
        ("sweep={widen.alhpa: [1]}", ["sweep.widen.alhpa", "Did you mean 'alpha'?"]),
        ("sweep={model.confi: [1]}", ["Did you mean 'config'?"]),
        ("sweep={widen.alpha: []}", ["sweep.widen.alpha"]),
        ("model.task.x=1", ["'task' holds 'image-classification'"]),
        ("alpha", ["write key.sub=value"]),
        ("widen.alpha=[", ["not YAML"]),
    ],
)
def test_a_complaint_says_what_and_what_instead(assignment: str, words: list[str]) -> None:
    message = complaint(assignment)
    assert all(word in message for word in words), message


def test_all_complaints_come_at_once() -> None:
    message = complaint("train.learning_rte=1", "train.max_steps=x")
    assert len(message.splitlines()) == 2


@pytest.mark.parametrize("text", ["", "- a", "3", "a: [", "a: !!python/object:os.system {}"])
def test_what_is_no_recipe(text: str) -> None:
    complaint(text=text)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"description: \xe9")
    for name in ("missing.yaml", "latin.yaml"):
        with pytest.raises(RecipeError, match=name):
            read_recipe(tmp_path / name)


def test_the_schema_accepts_and_refuses_what_the_parser_does() -> None:
    schema = json_schema()
    json.dumps(schema)
    plain = yaml.safe_load(RECIPE) | {"train": {"max_steps": 20, "learning_rate": 1e-3}}
    jsonschema.validate(plain, schema)
    for section, key in (("train", "max_step"), ("widen", "alhpa"), ("model", "tsk")):
        broken = plain | {section: {**plain[section], key: 1}}
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(broken, schema)


def test_the_published_schema_is_current() -> None:
    published = Path(__file__).parents[2] / "docs" / "recipe.schema.json"
    assert json.loads(published.read_text()) == json_schema(), (
        "run: fpe-hf recipes schema > docs/recipe.schema.json"
    )


VALUES: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)
KEYS = st.sampled_from(
    "model model.task model.config data data.splits.eval data.columns widen widen.at widen.alpha "
    "train train.max_steps compare.arms compare.seeds output output.push sweep x".split()
)


@settings(max_examples=150, deadline=None)
@given(KEYS, VALUES)
def test_no_value_does_more_than_raise_a_recipe_error(key: str, value: Any) -> None:
    text = yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n").strip()
    with suppress(RecipeError):
        parse_recipe(RECIPE, [f"{key}={text}"])


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=60), st.integers(0, len(RECIPE)))
def test_no_text_does_more_than_raise_a_recipe_error(text: str, place: int) -> None:
    for whole in (text, RECIPE[:place] + text + RECIPE[place:]):
        with suppress(RecipeError):
            parse_recipe(whole)
