"""Widen Hugging Face models without adding parameters (Fixed Parameter Expansion).

After `import fpe_hf`, `AutoModel*.from_pretrained` loads widened models.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .checkpoint.registration import register as _register
from .version import __version__

if TYPE_CHECKING:
    from .access import audit, find_mlps, to_dense
    from .auditing import AuditReport
    from .callback import BudgetCallback, CouplingCallback
    from .config import FPEConfig
    from .conversion import widen
    from .coupling import CouplingSchedule, parameter_groups
    from .discovery import MLPBlock
    from .errors import FPEError
    from .hub import copy_companions, from_pretrained, push_to_hub
    from .memory import recompute_hidden
    from .schedule import BudgetSchedule
    from .splits import register_split

__all__ = [
    "AuditReport",
    "BudgetCallback",
    "BudgetSchedule",
    "CouplingCallback",
    "CouplingSchedule",
    "FPEConfig",
    "FPEError",
    "MLPBlock",
    "__version__",
    "audit",
    "copy_companions",
    "find_mlps",
    "from_pretrained",
    "parameter_groups",
    "push_to_hub",
    "recompute_hidden",
    "register_split",
    "to_dense",
    "widen",
]

_HOMES = {
    "AuditReport": "auditing",
    "BudgetCallback": "callback",
    "BudgetSchedule": "schedule",
    "CouplingCallback": "callback",
    "CouplingSchedule": "coupling",
    "FPEConfig": "config",
    "FPEError": "errors",
    "MLPBlock": "discovery",
    "audit": "access",
    "copy_companions": "hub",
    "find_mlps": "access",
    "from_pretrained": "hub",
    "parameter_groups": "coupling",
    "push_to_hub": "hub",
    "recompute_hidden": "memory",
    "register_split": "splits",
    "to_dense": "access",
    "widen": "conversion",
}


_MODULES = (
    "discovery",
    "errors",
    "fusing",
    "hub",
    "metrics",
    "planning",
    "recipes",
    "science",
    "splits",
)
"""Modules that the documentation names."""


def __getattr__(name: str) -> Any:
    """Imports a public name or module when it is first used."""
    if name in _MODULES:
        return import_module(f".{name}", __name__)
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*__all__, *_MODULES})


_register()
