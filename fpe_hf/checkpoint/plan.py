"""The plan of a widened model, as its `config.json` holds it."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from typing import Any

from transformers.utils.quantization_config import QuantizationConfigMixin

from ..config import FPEConfig
from ..errors import CheckpointError, ConfigError, did_you_mean
from ..planning import BlockSpec
from ..splits import RANDOM
from ..version import __version__
from .files import QUANT_METHOD
from .folding import fold, unfold

FORMAT_VERSION = 3
_KEYS = ("quant_method", "format_version", "fpe_hf_version", "base_model", "config", "blocks")
_HUB_ID = re.compile(r"[\w.-]{1,96}(/[\w.-]{1,96})?", re.ASCII)


class FPEQuantizationConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """The `quantization_config` of a widened model's `config.json`; see docs/format.md.

    Args:
        quant_method: Always `"fpe"`.
        format_version: Version of the file format.
        fpe_hf_version: Version of fpe_hf that widened the model.
        base_model: Hub id of the dense parent, if it has one.
        config: The `FPEConfig` that was asked for.
        blocks: The `BlockSpec` of every widened block, or its fields; those that are alike may
            share an entry.

    Attributes:
        specs: The `BlockSpec` of every widened block.

    Raises:
        CheckpointError: A key is unknown, missing or mistyped, or the format is from the future.
    """

    def __init__(
        self,
        quant_method: str = QUANT_METHOD,
        format_version: Any = None,
        fpe_hf_version: Any = __version__,
        base_model: Any = None,
        config: Any = None,
        blocks: Any = None,
        **unknown: Any,
    ) -> None:
        for key in unknown:
            raise CheckpointError(
                f"unknown key {key!r} in the FPE quantization_config; accepted: "
                f"{', '.join(_KEYS)}.{did_you_mean(key, _KEYS)}"
            )
        if quant_method != QUANT_METHOD:
            raise CheckpointError(f"quant_method={quant_method!r} must be {QUANT_METHOD!r}.")
        _check_version(format_version)
        if not isinstance(config, Mapping):
            raise CheckpointError(f"config={config!r} in the FPE quantization_config is no object.")
        if not isinstance(blocks, (list, tuple)) or not blocks:
            raise CheckpointError("blocks in the FPE quantization_config must be a non-empty list.")
        if base_model is not None and not is_hub_id(base_model):
            raise CheckpointError(
                f"base_model={base_model!r} in the FPE quantization_config is no id of the Hub."
            )
        _check_config(config)
        self.quant_method = QUANT_METHOD
        self.format_version = format_version
        self.fpe_hf_version = str(fpe_hf_version)
        self.base_model: str | None = base_model
        self.config = dict(config)
        self.specs = tuple(
            block if isinstance(block, BlockSpec) else BlockSpec.from_dict(block)
            for block in unfold(blocks)
        )
        names = [(spec.place, spec.name) for spec in self.specs]
        if len(set(names)) != len(names):
            raise CheckpointError("blocks in the FPE quantization_config have names in common.")

    @classmethod
    def from_specs(
        cls,
        config: FPEConfig | Mapping[str, Any],
        specs: Sequence[BlockSpec],
        base_model: str | None = None,
    ) -> FPEQuantizationConfig:
        """The plan of a model whose blocks are these."""
        asked = config.to_dict() if isinstance(config, FPEConfig) else config
        return cls(format_version=FORMAT_VERSION, base_model=base_model, config=asked, blocks=specs)

    @property
    def blocks(self) -> list[dict[str, Any]]:
        """The widened blocks as JSON values, each written out."""
        return [spec.to_dict() for spec in self.specs]

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values, blocks that are alike in one entry."""
        values = {key: getattr(self, key) for key in _KEYS if key != "blocks"}
        if self.base_model is None:
            del values["base_model"]
        return {
            **copy.deepcopy(values),
            "format_version": FORMAT_VERSION,
            "blocks": fold(self.specs),
        }


def is_hub_id(name: object) -> bool:
    """Whether a name can be that of a model on the Hub."""
    return isinstance(name, str) and _HUB_ID.fullmatch(name) is not None


def _check_version(version: object) -> None:
    if type(version) is not int or version < 1:
        raise CheckpointError(
            f"format_version={version!r} in the FPE quantization_config must be an integer from 1."
        )
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"format_version={version} is newer than this fpe_hf reads ({FORMAT_VERSION}): "
            "upgrade fpe_hf."
        )


def _check_config(config: Mapping[str, Any]) -> None:
    """Checks a stored FPEConfig. Its split need not be registered: only planning calls it."""
    fields = dict(config)
    if isinstance(fields.get("split"), str):
        fields["split"] = RANDOM
    overrides = fields.get("overrides")
    if isinstance(overrides, Mapping):
        fields["overrides"] = {
            word: {**own, "split": RANDOM} if isinstance(own, Mapping) and "split" in own else own
            for word, own in overrides.items()
        }
    try:
        FPEConfig.from_dict(fields)
    except (ConfigError, TypeError) as error:
        raise CheckpointError(f"config in the FPE quantization_config: {error}") from error
