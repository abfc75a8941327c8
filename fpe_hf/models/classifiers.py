"""The models themselves. Importing this module registers them with transformers' auto classes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    PreTrainedModel,
)
from transformers.activations import ACT2FN
from transformers.modeling_outputs import ImageClassifierOutput

from .configs import CNNClassifierConfig, MLPClassifierConfig


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
    AutoModel.register(_config, _model, exist_ok=True)
    AutoModelForImageClassification.register(_config, _model, exist_ok=True)
