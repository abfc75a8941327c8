"""The Hub: pushing a model with a card that states facts, loading it, checking it beforehand."""

from __future__ import annotations

from ..errors import HubError
from .loading import from_pretrained
from .push import Pushed, push_to_hub
from .results import Evaluation

__all__ = ["Evaluation", "HubError", "Pushed", "from_pretrained", "push_to_hub"]
