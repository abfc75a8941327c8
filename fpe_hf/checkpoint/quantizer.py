"""How transformers comes to know widened models: as quantized ones.

transformers builds a quantized model empty, lets its quantizer swap modules in, loads the weights
by name, and hands the model back to the quantizer. That is exactly what a widened model needs.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer

from ..errors import ConfigError
from .files import QUANT_METHOD
from .plan import FPEQuantizationConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger("fpe_hf")

register_quantization_config(QUANT_METHOD)(FPEQuantizationConfig)


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
        from .verify import open_tensors, stored_bytes, verify_model

        wrap_saving()
        specs, files = self.quantization_config.specs, kwargs.get("checkpoint_files")
        with open_tensors(files or ()) as opened:
            stored = stored_bytes(files) if files else None
            check_plan(specs, stored)
            insert_empty_layers(model, specs)
            if stored is not None:
                verify_model(model, opened, self, stored=stored)
        return model

    def _process_model_after_weight_loading(
        self, model: PreTrainedModel, **kwargs: Any
    ) -> PreTrainedModel:
        from ..auditing import openness
        from .loading import finish_loading
        from .saving import keep_names

        finish_loading(model)
        warning = openness(model)
        if warning is not None:
            logger.warning("%s", warning)
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
