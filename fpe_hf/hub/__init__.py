"""The Hub: pushing a model with a card that states facts, loading it, checking it beforehand."""

from __future__ import annotations

from ..errors import HubError
from .companions import Companions, copy_companions
from .loading import from_pretrained
from .push import Pushed, push_to_hub
from .results import Evaluation

__all__ = [
    "Companions",
    "Evaluation",
    "HubError",
    "Pushed",
    "copy_companions",
    "from_pretrained",
    "push_to_hub",
]
