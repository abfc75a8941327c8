"""Plans that name projections which are no MLP block: of fitting shapes, but never run so."""

from __future__ import annotations

from pathlib import Path

import pytest

import fpe_hf
from fpe_hf.checkpoint.plan import FPEQuantizationConfig
from fpe_hf.checkpoint.saving import keep_names
from fpe_hf.checkpoint.validate import validate_checkpoint
from fpe_hf.config import FPEConfig
from fpe_hf.conversion import replace_block
from fpe_hf.discovery import MLPBlock
from fpe_hf.errors import CheckpointError
from fpe_hf.modules import take_weights
from fpe_hf.planning import plan_block
from tiny_models import tiny_model

ATTENTION = "bert.encoder.layer.0.attention"


def save_with(folder: Path, layout: str, ups: tuple[str, ...], down: str) -> None:
    """Saves a model in which these projections are widened as if they were a block."""
    model = tiny_model("bert_classifier")
    features = [model.get_submodule(name) for name in (*ups, down)]
    block = MLPBlock(
        name="made.up",
        up=ups[-1],
        gate=ups[0] if len(ups) == 2 else None,
        down=down,
        activation="gelu",
        in_features=features[0].in_features,
        parents=features[0].out_features,
        out_features=features[-1].out_features,
    )
    config = FPEConfig(layout=layout)
    plan = plan_block(block, take_weights(model, block), config)
    replace_block(model, block, plan)
    model.config.quantization_config = FPEQuantizationConfig.from_specs(config, [plan.spec])
    keep_names(model)
    model.save_pretrained(folder)


@pytest.mark.parametrize("layout", ["element", "block"])
@pytest.mark.parametrize(
    ("ups", "down"),
    [
        ((f"{ATTENTION}.self.value",), f"{ATTENTION}.output.dense"),
        ((f"{ATTENTION}.self.query",), f"{ATTENTION}.output.dense"),
        ((f"{ATTENTION}.self.query", f"{ATTENTION}.self.key"), f"{ATTENTION}.output.dense"),
        ((f"{ATTENTION}.output.dense",), "bert.pooler.dense"),
        (("bert.encoder.layer.0.intermediate.dense",), "bert.encoder.layer.1.output.dense"),
    ],
)
def test_projections_that_do_not_chain(
    layout: str, ups: tuple[str, ...], down: str, tmp_path: Path
) -> None:
    save_with(tmp_path, layout, ups, down)
    with pytest.raises(CheckpointError, match=r"block 'made.up' .* is no MLP block of Bert"):
        validate_checkpoint(tmp_path)


def test_what_can_be_widened_on_request_is_accepted(tmp_path: Path) -> None:
    """A pooler and a classifier."""
    save_with(tmp_path / "made", "element", ("bert.pooler.dense",), "classifier")
    validate_checkpoint(tmp_path / "made")
    model = fpe_hf.widen(tiny_model("bert_classifier"), targets=["classifier"])
    model.save_pretrained(tmp_path / "widened")
    validate_checkpoint(tmp_path / "widened")
