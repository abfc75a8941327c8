"""Small classifiers of the paper's kind, as transformers models: an MLP, and a CNN with one.

They are registered with transformers' auto classes: once this module is imported, they load like
any other model.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.activations import ACT2FN
from transformers.modeling_outputs import ImageClassifierOutput


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


class _Classifier(PreTrainedModel):  # type: ignore[misc]
    """What both have: initial weights, an MLP, and the loss."""

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            nn.init.kaiming_uniform_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)

    def _mlp(self, inputs: int) -> nn.Sequential:
        config: Any = self.config
        modules: list[nn.Module] = []
        for size in config.hidden_sizes:
            modules += [nn.Linear(inputs, size), ACT2FN[config.hidden_act]]
            inputs = size
        return nn.Sequential(*modules, nn.Linear(inputs, config.num_labels))

    def _output(self, logits: Tensor, labels: Tensor | None) -> ImageClassifierOutput:
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return ImageClassifierOutput(loss=loss, logits=logits)


class MLPClassifier(_Classifier):
    """`num_features -> hidden_sizes -> num_labels`."""

    config_class = MLPClassifierConfig
    main_input_name = "features"
    base_model_prefix = "mlp"

    def __init__(self, config: MLPClassifierConfig) -> None:
        super().__init__(config)
        self.layers = self._mlp(config.num_features)
        self.post_init()

    def forward(
        self, features: Tensor, labels: Tensor | None = None, **kwargs: Any
    ) -> ImageClassifierOutput:
        """Classifies feature vectors.

        Args:
            features: `[batch, num_features]`.
            labels: int64 `[batch]`.
            **kwargs: Ignored.
        """
        return self._output(self.layers(features), labels)


class CNNClassifier(_Classifier):
    """Strided 3x3 convolutions, flattened into an MLP."""

    config_class = CNNClassifierConfig
    main_input_name = "pixel_values"
    base_model_prefix = "cnn"

    def __init__(self, config: CNNClassifierConfig) -> None:
        super().__init__(config)
        convolutions: list[nn.Module] = []
        inputs, size = config.num_channels, config.image_size
        for channels in config.channels:
            convolutions += [nn.Conv2d(inputs, channels, 3, stride=2, padding=1), nn.ReLU()]
            inputs, size = channels, (size + 1) // 2
        self.features = nn.Sequential(*convolutions)
        self.head = self._mlp(inputs * size * size)
        self.post_init()

    def forward(
        self, pixel_values: Tensor, labels: Tensor | None = None, **kwargs: Any
    ) -> ImageClassifierOutput:
        """Classifies images.

        Args:
            pixel_values: `[batch, num_channels, image_size, image_size]`.
            labels: int64 `[batch]`.
            **kwargs: Ignored.
        """
        return self._output(self.head(torch.flatten(self.features(pixel_values), 1)), labels)


for _config, _model in ((MLPClassifierConfig, MLPClassifier), (CNNClassifierConfig, CNNClassifier)):
    AutoConfig.register(_config.model_type, _config)
    AutoModel.register(_config, _model)
    AutoModelForImageClassification.register(_config, _model)
