"""Killed, stopped or out of disk at any moment: resuming gives what an uninterrupted run gives."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForImageClassification, TrainerCallback

from fpe_hf import audit
from fpe_hf.errors import InUseError, RecipeError
from fpe_hf.recipes import running, splitting
from fpe_hf.recipes.checkpoints import last_whole_checkpoint
from fpe_hf.recipes.claiming import claim, hold
from fpe_hf.recipes.parsing import parse_recipe
from fpe_hf.recipes.schema import Recipe
from fpe_hf.recipes.training import Interrupted

RECIPE = """
model:
  task: feature-classification
  config: {model_type: mlp_classifier, hidden_sizes: [8]}
data: {source: digits, max_train_samples: 96, max_eval_samples: 32}
widen: {targets: [layers], learn_coupling: true, coupling: 0.5, at: {step: 3}}
train:
  max_steps: 9
  per_device_train_batch_size: 16
  learning_rate: 1e-2
  weight_decay: 0.1
  save_strategy: steps
  save_steps: 2
  disable_tqdm: true
  use_cpu: true
compare: {arms: [dense, fpe, overlap]}
"""
ARMS = ("dense", "fpe", "overlap")
NIGHTLY = pytest.mark.nightly


LEARNED = (
    "widen={targets: [layers], split: learned, bias: child, at: {step: 3}}",
    "compare.arms=[dense, fpe, overlap]",
)
"""Open from step 3 on; closed from step 7 on."""


def recipe(folder: Path, *assignments: str) -> Recipe:
    return parse_recipe(RECIPE, [f"output.folder={folder}", *assignments])


def weights(folder: Path) -> dict[str, dict[str, Any]]:
    return {a: load_file(folder / "seed-0" / a / "model" / "model.safetensors") for a in ARMS}


def same(one: dict[str, dict[str, Any]], other: dict[str, dict[str, Any]]) -> bool:
    return all(
        one[arm].keys() == other[arm].keys()
        and all(torch.equal(tensor, other[arm][name]) for name, tensor in one[arm].items())
        for arm in ARMS
    )


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("whole") / "run"
    running.run_recipe(recipe(folder))
    return weights(folder)


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("learned") / "run"
    running.run_recipe(recipe(folder, *LEARNED))
    return weights(folder)


class _Die(TrainerCallback):  # type: ignore[misc]
    """Does something at the end of a step: to kill, to stop."""

    def __init__(self, step: int, arm: str, action: Callable[[], None]) -> None:
        self.step, self.arm, self.action = step, arm, action

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step and Path(args.output_dir).name == self.arm:
            self.action()


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def with_callback(callback: TrainerCallback) -> Callable[..., Any]:
    make = running.make_trainer

    def make_trainer(*args: Any, **kwargs: Any) -> Any:
        trainer = make(*args, **kwargs)
        trainer.add_callback(callback)
        return trainer

    return make_trainer


def in_a_fork(run: Callable[[], None]) -> int | None:
    """Exit code of a process that runs it; negative: the signal that ended it."""
    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    process.join()
    return process.exitcode


@pytest.mark.parametrize(
    ("arm", "step"),
    [
        ("warm-up", 1),
        ("fpe", 8),
        *(
            pytest.param(*moment, marks=NIGHTLY)
            for moment in (("dense", 5), ("fpe", 4), ("overlap", 7))
        ),
    ],
)
def test_killed_at_a_step(
    arm: str, step: int, uninterrupted: dict[str, Any], tmp_path: Path
) -> None:
    folder = tmp_path / "run"

    def run() -> None:
        running.make_trainer = with_callback(_Die(step, arm, kill))
        running.run_recipe(recipe(folder))

    assert in_a_fork(run) == -signal.SIGKILL
    assert not (folder / "results.json").exists()
    running.run_recipe(recipe(folder), resume=True)
    assert same(weights(folder), uninterrupted)


@pytest.mark.parametrize(
    ("arm", "step"),
    [
        ("fpe", 5),
        ("fpe", 9),
        pytest.param("fpe", 7, marks=NIGHTLY),
        pytest.param("fpe", 8, marks=NIGHTLY),
        pytest.param("overlap", 5, marks=NIGHTLY),
        ("overlap", 9),
    ],
)
def test_killed_while_the_budget_is_open_or_closed(
    arm: str, step: int, learned: dict[str, Any], tmp_path: Path
) -> None:
    """The last checkpoint is of step 4, before the budget closes, or of step 8."""
    folder = tmp_path / "run"

    def run() -> None:
        running.make_trainer = with_callback(_Die(step, arm, kill))
        running.run_recipe(recipe(folder, *LEARNED))

    assert in_a_fork(run) == -signal.SIGKILL
    running.run_recipe(recipe(folder, *LEARNED), resume=True)
    assert same(weights(folder), learned)
    model = AutoModel.from_pretrained(folder / "seed-0" / "fpe" / "model")
    assert audit(model).ok


@pytest.mark.parametrize("arm", [pytest.param("dense", marks=NIGHTLY), "fpe"])
def test_killed_while_a_checkpoint_is_written(
    arm: str, uninterrupted: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"

    def save(content: Any, file: Any, *rest: Any) -> None:
        if f"{arm}/checkpoint-6" in str(file):
            kill()
        original(content, file, *rest)

    original = torch.save

    def run() -> None:
        torch.save = save
        running.run_recipe(recipe(folder))

    assert in_a_fork(run) == -signal.SIGKILL
    partial = folder / "seed-0" / arm / "checkpoint-6"
    assert partial.is_dir()
    assert last_whole_checkpoint(partial.parent) == partial.with_name("checkpoint-4")
    running.run_recipe(recipe(folder), resume=True)
    assert same(weights(folder), uninterrupted)


def test_killed_in_the_midst_of_the_split(uninterrupted: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "run"

    def run() -> None:
        splitting.carry_state = lambda *_: kill()
        running.run_recipe(recipe(folder))

    assert in_a_fork(run) == -signal.SIGKILL
    running.run_recipe(recipe(folder), resume=True)
    assert same(weights(folder), uninterrupted)


def test_sigterm_saves_and_stops(
    uninterrupted: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    handler = signal.getsignal(signal.SIGTERM)
    stop = _Die(5, "fpe", lambda: os.kill(os.getpid(), signal.SIGTERM))
    with monkeypatch.context() as patch:
        patch.setattr(running, "make_trainer", with_callback(stop))
        with pytest.raises(Interrupted, match="step"):
            running.run_recipe(recipe(folder))
    assert last_whole_checkpoint(folder / "seed-0" / "fpe") is not None
    running.run_recipe(recipe(folder), resume=True)
    assert same(weights(folder), uninterrupted)
    assert signal.getsignal(signal.SIGTERM) == handler


VIT = """
model:
  task: image-classification
  config:
    {model_type: vit, hidden_size: 16, intermediate_size: 32, num_hidden_layers: 1,
     num_attention_heads: 2, image_size: 8, patch_size: 4, num_channels: 1}
data: {source: digits, max_train_samples: 64, max_eval_samples: 16}
widen: {at: {step: 2}}
train: {max_steps: 6, save_strategy: steps, save_steps: 1, learning_rate: 1e-2, use_cpu: true}
"""


def test_names_that_differ_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers saves a ViT under other names than it has in memory."""
    results = []
    for name in ("whole", "stopped"):
        own = parse_recipe(VIT, [f"output.folder={tmp_path / name}"])
        if name == "stopped":
            stop = _Die(4, "dense", lambda: os.kill(os.getpid(), signal.SIGTERM))
            with monkeypatch.context() as patch:
                patch.setattr(running, "make_trainer", with_callback(stop))
                with pytest.raises(Interrupted):
                    running.run_recipe(own)
        results.append(running.run_recipe(own, resume=name == "stopped"))
    for arm in ("dense", "fpe"):
        assert results[0].of_arm(arm)[0].curve == results[1].of_arm(arm)[0].curve
    model = tmp_path / "whole" / "seed-0" / "dense" / "model"
    assert any(name.startswith("vit.encoder") for name in load_file(model / "model.safetensors"))
    _, report = AutoModelForImageClassification.from_pretrained(model, output_loading_info=True)
    assert not report["missing_keys"]


def test_a_full_disk_leaves_the_last_checkpoint(
    uninterrupted: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    original = torch.save

    def save(content: Any, file: Any, *rest: Any) -> None:
        if "fpe/checkpoint-8" in str(file):
            Path(file).write_bytes(b"half")
            raise OSError(28, "No space left on device")
        original(content, file, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", save)
        with pytest.raises(OSError, match="No space"):
            running.run_recipe(recipe(folder))
    checkpoint = last_whole_checkpoint(folder / "seed-0" / "fpe")
    assert checkpoint is not None
    assert checkpoint.name == "checkpoint-6"
    running.run_recipe(recipe(folder), resume=True)
    assert same(weights(folder), uninterrupted)


@pytest.mark.parametrize(
    ("assignment", "named"),
    [
        ("widen.alpha=4", "widen.alpha: None -> 4"),
        ("widen.coupling=0.25", "widen.coupling: 0.5 -> 0.25"),
        ("train.learning_rate=0.1", "train.learning_rate"),
        ("compare.seeds=[1]", "compare.seeds"),
    ],
)
def test_resume_refuses_another_recipe(assignment: str, named: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    for resume in (False, True):
        with claim(folder, recipe(folder), resume):
            pass
    with (
        pytest.raises(RecipeError, match=named),
        claim(folder, recipe(folder, assignment), resume=True),
    ):
        pass


def test_a_folder_is_run_in_by_one_process_at_a_time(
    uninterrupted: dict[str, Any], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    (ready, tell), (wait, _) = os.pipe(), os.pipe()

    def pause() -> None:
        os.write(tell, b"!")
        os.read(wait, 1)

    def run() -> None:
        running.make_trainer = with_callback(_Die(5, "dense", pause))
        running.run_recipe(recipe(folder))

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    os.read(ready, 1)
    (half := folder / "seed-0" / "dense" / "checkpoint-5").mkdir()  # as if it were being written
    before = sorted(folder.rglob("*"))
    holder = f"process {process.pid} on {socket.gethostname()}"
    with pytest.raises(InUseError, match=f"is in use by {holder}"):
        running.run_recipe(recipe(folder), resume=True)
    with pytest.raises(InUseError), hold(folder):
        pass
    assert half.is_dir()
    assert sorted(folder.rglob("*")) == before
    process.kill()
    process.join()
    running.run_recipe(recipe(folder), resume=True)
    assert same(weights(folder), uninterrupted)


def test_killed_while_the_folder_is_claimed(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("process 1 on nowhere")
    (tmp_path / ".recipe.yaml.1.part").write_text("half")
    with claim(tmp_path, recipe(tmp_path), resume=False):
        assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "recipe.yaml"]
    (tmp_path / "seed-0").mkdir()
    (tmp_path / "seed-0" / ".result.json.1.part").write_text("half")
    with claim(tmp_path, recipe(tmp_path), resume=True):
        assert not list((tmp_path / "seed-0").iterdir())


def test_a_file_system_without_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", refuse)
    with claim(tmp_path, recipe(tmp_path), resume=False):
        assert "cannot be locked" in caplog.text


def test_a_used_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    for resume in (False, True):
        with pytest.raises(RecipeError, match=r"output\.folder"):
            running.run_recipe(recipe(tmp_path), resume=resume)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
