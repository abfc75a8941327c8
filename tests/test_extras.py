"""The core works without the packages of the extras, which say what they need."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from fpe_hf.errors import MissingExtraError
from fpe_hf.extras import EXTRAS, need

ROOT = Path(__file__).resolve().parent.parent
MODULES = {"markdown-it-py": "markdown_it", "pillow": "PIL", "pyyaml": "yaml"}
MODULES["scikit-learn"] = "sklearn"
WITH_THE_CORE = {"jinja2", "markdown_it", "pydantic", "yaml"}
"""Modules of extras that torch, rich, typer and transformers bring along."""

CORE = """
import copy, sys
sys.modules.update(dict.fromkeys({blocked!r}))  # None: as if they were not installed
import torch, transformers
import fpe_hf
from fpe_hf.cli import main
from fpe_hf.errors import MissingExtraError

def command(*words):
    sys.argv = ["fpe-hf", *map(str, words)]
    try:
        main()
    except SystemExit as stop:
        return stop.code or 0

def refused(action, extra):
    try:
        action()
    except MissingExtraError as error:
        assert f"fpe-hf[{{extra}}]" in str(error), error
        assert f"'.[{{extra}}]' in a clone" in str(error), error
    else:
        raise AssertionError(extra)

config = transformers.BertConfig(
    vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
)
ids = torch.arange(3, 13)[None]
dense = transformers.BertModel(copy.deepcopy(config))
dense.save_pretrained("dense")
for layout in ("element", "block"):
    model = fpe_hf.widen(transformers.BertModel(copy.deepcopy(config)), layout=layout).eval()
    fpe_hf.audit(model, strict=True)
    model.train()(ids).last_hidden_state.sum().backward()
    model.eval().save_pretrained("saved")
    loaded = fpe_hf.from_pretrained("saved")
    expected = model(ids).last_hidden_state
    assert torch.equal(loaded(ids).last_hidden_state, expected)
    found = transformers.AutoModel.from_pretrained("saved")(ids).last_hidden_state
    assert torch.equal(found, expected)
    fpe_hf.to_dense(loaded)
assert command("widen", "dense", "--out", "widened") == 0
assert command("inspect", "dense") == 0
assert command("inspect", "widened") == 0
assert command("validate", "widened") == 0
assert command("export", "widened", "--dense", "stock") == 0
assert command("push", "widened", "user/name", "--dry-run") == 0
for words in (["run", "digits-vit"], ["recipes", "ls"], ["sweep", "digits-vit"]):
    assert command(*words) == 1
assert command("reproduce", "theory") == 1
refused(lambda: __import__("fpe_hf.recipes.running"), "recipes")
refused(lambda: __import__("fpe_hf.science.boolean"), "science")
refused(lambda: __import__("fpe_hf.metrics.measurements"), "recipes")
model = transformers.BertModel(copy.deepcopy(config))
refused(lambda: fpe_hf.widen(model, split="feature"), "science")
print("DONE")
"""


def dependencies() -> dict[str, set[str]]:
    """Modules of the distributions in `pyproject.toml`, by extra; the core's under `""`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = {"": project["dependencies"], **project["optional-dependencies"]}
    return {
        extra: {MODULES.get(name, name) for line in lines for name in re.findall(r"^[\w-]+", line)}
        for extra, lines in found.items()
    }


def test_the_extras_are_those_of_the_project() -> None:
    project = dependencies()
    core = "accelerate huggingface_hub numpy rich safetensors torch tqdm transformers typer"
    assert project[""] == set(core.split())
    for extra, modules in EXTRAS.items():
        assert project[extra] == set(modules.split())


@pytest.mark.parametrize("extra", EXTRAS)
def test_what_is_missing_is_named(extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    need(extra, "this")
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(MissingExtraError, match="this: not installed are scipy"):
        need(extra, "this")


def test_the_core_works_alone(tmp_path: Path) -> None:
    blocked = {module for modules in EXTRAS.values() for module in modules.split()}
    blocked = sorted((blocked | {"pandas", "pyarrow"}) - WITH_THE_CORE)
    run = [sys.executable, "-c", CORE.format(blocked=blocked)]
    result = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.stdout.endswith("DONE\n"), result.stderr
    assert "fpe-hf[recipes]" in result.stderr
