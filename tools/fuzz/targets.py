"""The readers that are fuzzed. To add one, write a `Target` and put it into `TARGETS`."""

from __future__ import annotations

import copy
import json
import logging
from abc import ABC, abstractmethod
from functools import cache, cached_property
from pathlib import Path
from random import Random
from typing import Any, ClassVar

import torch

from fpe_hf.errors import FPEError

from . import mutations

ROOT = Path(__file__).resolve().parents[2]
_CONFIG, _WEIGHTS = "config.json", "model.safetensors"


class Target(ABC):
    """A reader, and how to break what it reads.

    Attributes:
        name: What to call it on the command line.
        accepted: What it may raise; anything else is a crash.
        share: Its share of the inputs, in relation to the others'.
    """

    name: ClassVar[str]
    accepted: ClassVar[tuple[type[Exception], ...]] = (FPEError,)
    share: ClassVar[int] = 1

    def __init__(self, place: Path) -> None:
        """`place` is an empty folder for the target's files."""
        self.place = place

    @abstractmethod
    def make(self, random: Random) -> Any:
        """A broken input."""

    @abstractmethod
    def read(self, case: Any) -> object:
        """Has the reader read it."""

    def survives(self, random: Random) -> bool:
        """Whether a broken input was accepted all the same.

        Raises:
            Exception: The reader crashed.
        """
        case = self.make(random)
        try:
            self.read(case)
        except self.accepted:
            return False
        return True


class ConfigTarget(Target):
    """`FPEConfig.from_json`."""

    name = "config"

    def make(self, random: Random) -> str:
        from fpe_hf import FPEConfig

        overrides = {"*.layers.0.*": {"alpha": 4, "layout": "block", "tile_size": 8}}
        config = FPEConfig(targets=("a", "b.*"), exclude=("c",), overrides=overrides, coupling=0.5)
        content = mutations.break_document(random, config.to_dict())
        return content.decode("utf-8", "replace")

    def read(self, case: str) -> object:
        from fpe_hf import FPEConfig

        return FPEConfig.from_json(case).to_json()


class ResultsTarget(Target):
    """`results.json`, which ends up in model cards."""

    name = "results"

    def make(self, random: Random) -> bytes:
        arm = {"mean": 1.5, "std": 0.5, "values": [1, 2], "nonzeros": 7}
        content = {"dataset": "d", "metric": "m", "arms": {"dense": arm, "fpe": arm}}
        return mutations.break_document(random, content)

    def read(self, case: bytes) -> object:
        from fpe_hf.hub.results import RESULTS, read_results

        (self.place / RESULTS).write_bytes(case)
        return read_results(self.place)


class CheckpointTarget(Target):
    """A saved model: its config, the headers and numbers of its weights, its index."""

    name = "checkpoint"
    share = 5

    @cached_property
    def originals(self) -> list[dict[str, bytes]]:
        return [dict(files) for files in _saved_models()]

    def make(self, random: Random) -> dict[str, bytes]:
        files = dict(random.choice(self.originals))
        names = [name for name in files if name != _CONFIG]
        draw = random.random()
        if draw < 0.5:
            config = json.loads(files[_CONFIG])
            if random.random() < 0.7:
                plan = config["quantization_config"]
                config["quantization_config"] = mutations.break_json(random, plan)
                files[_CONFIG] = json.dumps(config).encode("utf-8", "surrogatepass")
            else:
                files[_CONFIG] = mutations.break_document(random, config)
        else:
            name = random.choice(names)
            if name.endswith(".json"):
                files[name] = mutations.break_document(random, json.loads(files[name]))
            else:
                files[name] = mutations.break_safetensors(random, files[name])
        if draw > 0.97:
            del files[random.choice(list(files))]
        return files

    def read(self, case: dict[str, bytes]) -> object:
        from fpe_hf.checkpoint.validate import validate_checkpoint

        return validate_checkpoint(self._write(case))

    def _write(self, case: dict[str, bytes]) -> Path:
        for old in self.place.iterdir():
            old.unlink()
        for name, content in case.items():
            (self.place / name).write_bytes(content)
        return self.place


class LoadingTarget(CheckpointTarget):
    """The same, loaded by `fpe_hf.from_pretrained`."""

    name = "loading"
    accepted = (FPEError, OSError)
    share = 2

    def read(self, case: dict[str, bytes]) -> object:
        import fpe_hf

        try:
            return fpe_hf.from_pretrained(self._write(case))
        except Exception:
            if _is_widened(case):
                raise
            return None  # what transformers raises at other models is its own business


class StateDictTarget(Target):
    """A state dict, loaded into a model of its plan, which then runs."""

    name = "state-dict"
    accepted = (FPEError, RuntimeError)  # torch's own, of keys and shapes

    @cached_property
    def models(self) -> list[Any]:
        from torch import nn

        from fpe_hf import widen

        def mlp(**way: Any) -> nn.Module:
            model = nn.Sequential(nn.Linear(12, 9), nn.GELU(), nn.Linear(9, 12))
            return widen(model, example_inputs=(torch.ones(1, 12),), **way)

        learned = mlp(split="learned", alpha=3)

        with torch.random.fork_rng():
            torch.manual_seed(0)
            return [
                mlp(split="feature", alpha=3, learn_coupling=True),
                mlp(fan_out="partition", coupling=0.5),
                mlp(layout="block", tile_size=4),
                mlp(layout="block", fan_out="partition", alpha=3),
                learned,
                _closed(copy.deepcopy(learned)),
            ]

    def make(self, random: Random) -> int:
        return random.getrandbits(64)  # tensors cannot be compared with ==

    def read(self, case: int) -> object:
        random = Random(case)
        model = copy.deepcopy(random.choice(self.models))
        state = {key: tensor.detach().clone() for key, tensor in model.state_dict().items()}
        for _ in range(random.choice((1, 1, 2, 4))):
            key = random.choice(list(state))
            state[key] = mutations.break_tensor(random, state[key])
        if random.random() < 0.7:  # so that the checksum does not tell
            state = {key: tensor for key, tensor in state.items() if not key.endswith("checksum")}
        with torch.no_grad():
            model.load_state_dict(state, strict=random.random() < 0.5, assign=random.random() < 0.5)
            return model(torch.ones(5, 12, dtype=next(model.parameters()).dtype))


class RecipeTarget(Target):
    """A recipe file, as far as it is checked without data or model."""

    name = "recipe"

    @cached_property
    def originals(self) -> list[str]:
        files = sorted((ROOT / "recipes").glob("*.yaml"))
        return [file.read_text(encoding="utf-8") for file in files]

    def make(self, random: Random) -> str:
        import yaml

        text = random.choice(self.originals)
        if random.random() < 0.6:
            broken = mutations.break_json(random, yaml.safe_load(text))
            text = json.dumps(broken)  # JSON is YAML
        return mutations.break_text(random, text) if random.random() < 0.5 else text

    def read(self, case: str) -> object:
        from fpe_hf.recipes.parsing import parse_recipe

        return parse_recipe(case)


TARGETS: dict[str, type[Target]] = {
    target.name: target
    for target in (
        *(ConfigTarget, CheckpointTarget, LoadingTarget, StateDictTarget),
        *(ResultsTarget, RecipeTarget),
    )
}
"""Name -> target."""


def _closed(model: Any) -> Any:
    """A model with a learned split, its budget closed after what may have been training."""
    from fpe_hf import BudgetSchedule

    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    BudgetSchedule(model, 1).close()
    return model


def _is_widened(case: dict[str, bytes]) -> bool:
    """Whether a broken model still says that it is a widened one."""
    try:
        stored = json.loads(case[_CONFIG])["quantization_config"]
        return bool(stored["quant_method"] == "fpe")
    except (KeyError, TypeError, ValueError, RecursionError):
        return False


@cache
def _saved_models() -> list[dict[str, bytes]]:
    """The files of a few tiny widened models: of each layout, in one file and in shards, and of a
    learned split before and after its budget is closed."""
    from tempfile import TemporaryDirectory

    from transformers import (
        BertConfig,
        BertForSequenceClassification,
        LlamaConfig,
        LlamaForCausalLM,
    )

    import fpe_hf

    logging.getLogger("transformers").setLevel(logging.CRITICAL)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "vocab_size": 12}
    sizes |= {"num_hidden_layers": 1, "max_position_embeddings": 8, "pad_token_id": 0}
    llama = LlamaConfig(**sizes, tie_word_embeddings=True)
    ways: list[tuple[Any, dict[str, Any], dict[str, Any]]] = [
        (
            BertForSequenceClassification(BertConfig(**sizes)),
            {"split": "feature", "learn_coupling": True, "coupling": 0.5},
            {},
        ),
        (
            BertForSequenceClassification(BertConfig(**sizes)),
            {"layout": "block", "fan_out": "partition", "tile_size": 10},
            {"max_shard_size": "8KB"},
        ),
        (LlamaForCausalLM(llama), {"layout": "block", "bias": "child"}, {}),
        (LlamaForCausalLM(llama), {"split": "learned", "budget": 0.8}, {}),
    ]
    saved = []
    for model, way, options in ways:
        with torch.random.fork_rng(), TemporaryDirectory() as place:
            fpe_hf.widen(model.eval(), **way).save_pretrained(place, **options)
            saved.append({file.name: file.read_bytes() for file in Path(place).iterdir()})
    with torch.random.fork_rng(), TemporaryDirectory() as place:
        _closed(model).save_pretrained(place)
        saved.append({file.name: file.read_bytes() for file in Path(place).iterdir()})
    return saved
