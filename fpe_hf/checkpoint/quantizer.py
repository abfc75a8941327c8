"""How transformers comes to know widened models: a quantization config and a quantizer.

transformers builds a quantized model empty, lets its quantizer swap modules in, loads the weights
by name, and hands the model back to the quantizer. That is exactly what a widened model needs.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from ..config import FPEConfig
from ..errors import CheckpointError, ConfigError, did_you_mean
from ..version import __version__

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..planning import BlockSpec

QUANT_METHOD = "fpe"
FORMAT_VERSION = 1
_KEYS = ("quant_method", "format_version", "fpe_hf_version", "config", "blocks")


@register_quantization_config(QUANT_METHOD)
class FPEQuantizationConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """The `quantization_config` of a widened model's `config.json`; see docs/format.md.

    Args:
        quant_method: Always `"fpe"`.
        format_version: Version of the file format.
        fpe_hf_version: Version of fpe_hf that widened the model.
        config: The `FPEConfig` that was asked for.
        blocks: The `BlockSpec` of every widened block.

    Raises:
        CheckpointError: A key is unknown, missing or mistyped, or the format is from the future.
    """

    def __init__(
        self,
        quant_method: str = QUANT_METHOD,
        format_version: Any = None,
        fpe_hf_version: Any = __version__,
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
        _check_config(config)
        self.quant_method = QUANT_METHOD
        self.format_version = format_version
        self.fpe_hf_version = str(fpe_hf_version)
        self.config = dict(config)
        self.blocks = [dict(block) if isinstance(block, Mapping) else block for block in blocks]
        names = [(spec.place, spec.name) for spec in self.specs]
        if len(set(names)) != len(names):
            raise CheckpointError("blocks in the FPE quantization_config have names in common.")

    @classmethod
    def from_specs(cls, config: FPEConfig, specs: Sequence[BlockSpec]) -> FPEQuantizationConfig:
        """The config of a model that has just been widened."""
        return cls(
            format_version=FORMAT_VERSION,
            config=config.to_dict(),
            blocks=[spec.to_dict() for spec in specs],
        )

    @property
    def specs(self) -> list[BlockSpec]:
        """The widened blocks.

        Raises:
            CheckpointError: A block's fields are not as they should be.
        """
        from ..planning.spec import BlockSpec

        return [BlockSpec.from_dict(block) for block in self.blocks]

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return {key: copy.deepcopy(getattr(self, key)) for key in _KEYS}


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
    from ..splits import RANDOM

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


def keep_names(model: Any) -> None:
    """Has a model saved under the names it has in memory.

    transformers undoes, when saving, what it did to a checkpoint's tensors when loading: splits and
    merges that make no sense for packed weights. Its loader reads names as in memory, too.
    """
    model._weight_conversions = []


@register_quantizer(QUANT_METHOD)
class FPEQuantizer(HfQuantizer):  # type: ignore[misc]
    """Puts empty widened layers into a model before its weights load, and checks them after."""

    requires_calibration = False
    quantization_config: FPEQuantizationConfig

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:
        """Refuses to widen on the fly: that needs weights to plan with.

        Raises:
            ConfigError: A dense model was given together with an FPE quantization_config.
        """
        if not self.pre_quantized:
            raise ConfigError(
                "from_pretrained cannot widen a dense checkpoint: load it, then call fpe_hf.widen."
            )

    def update_weight_conversions(self, weight_conversions: list[Any], model: Any) -> list[Any]:
        """Keeps the renamings; splits and merges were not undone in saving (see `keep_names`)."""
        from transformers.core_model_loading import WeightRenaming

        return [entry for entry in weight_conversions if isinstance(entry, WeightRenaming)]

    def _process_model_before_weight_loading(
        self, model: PreTrainedModel, **kwargs: Any
    ) -> PreTrainedModel:
        from .limits import check_plan
        from .loading import insert_empty_layers
        from .saving import wrap_saving
        from .verify import stored_bytes, verify_files

        wrap_saving()
        files = kwargs.get("checkpoint_files")
        specs = self.quantization_config.specs
        check_plan(specs, None if files is None else stored_bytes(files))
        insert_empty_layers(model, specs)
        if files is not None:
            verify_files(model, files, self)
        return model

    def _process_model_after_weight_loading(
        self, model: PreTrainedModel, **kwargs: Any
    ) -> PreTrainedModel:
        from .loading import finish_loading

        finish_loading(model)
        keep_names(model)
        # From here on the model is an ordinary one: with a quantizer attached, transformers would
        # refuse half(), or ignore the state dict that FSDP and ZeRO hand to save_pretrained.
        model.hf_quantizer = None
        model.is_quantized = False
        del model.quantization_method
        for module in model.modules():
            if hasattr(getattr(module, "config", None), "_is_quantized"):
                module.config._is_quantized = False
        return model

    def is_serializable(self, *args: Any, **kwargs: Any) -> bool:
        """Widened models save like any other."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Widened models train like any other."""
        return True

    @property
    def is_qat_trainable(self) -> bool:
        """All parameters train, not only adapters."""
        return True

    @property
    def is_compileable(self) -> bool:
        """Widened layers compile."""
        return True
