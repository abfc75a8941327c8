"""Their configs. Importing this module registers them with transformers' `AutoConfig`."""

from __future__ import annotations

from transformers.configuration_utils import PreTrainedConfig
from transformers.models.auto.configuration_auto import AutoConfig


class MLPClassifierConfig(PreTrainedConfig):  # type: ignore[misc]
    """Config of `MLPClassifier`.

    Args:
        num_features: Width of the input.
        hidden_sizes: Neurons of every hidden layer.
        hidden_act: Activation.
    """

    model_type = "mlp_classifier"

    num_features: int = 64
    hidden_sizes: tuple[int, ...] | list[int] = (8,)
    hidden_act: str = "relu"


class CNNClassifierConfig(PreTrainedConfig):  # type: ignore[misc]
    """Config of `CNNClassifier`.

    Args:
        num_channels: Channels of the image.
        image_size: Height and width of the image in pixels.
        channels: Channels of every convolution; each halves height and width.
        hidden_sizes: Neurons of every hidden layer of the MLP head.
        hidden_act: Activation.
    """

    model_type = "cnn_classifier"

    num_channels: int = 1
    image_size: int = 28
    channels: tuple[int, ...] | list[int] = (16, 32)
    hidden_sizes: tuple[int, ...] | list[int] = (8,)
    hidden_act: str = "relu"


for _config in (MLPClassifierConfig, CNNClassifierConfig):
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
