"""Every error fpe_hf raises on purpose, so that callers can catch them by kind.

All derive from `FPEError`. The message names the bad value, what is accepted and the fix.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FPEError(Exception):
    """Base class of all fpe_hf errors."""


class ConfigError(FPEError, ValueError):
    """A field of a configuration is unknown, mistyped or out of range."""


class DiscoveryError(FPEError, RuntimeError):
    """The model could not be run or holds no block that can be widened."""


class TargetError(FPEError, ValueError):
    """`targets`, `exclude` or an override names nothing in the model."""


class PlanError(FPEError, ValueError):
    """A block cannot be widened as asked: its shapes or its weights forbid it."""


class BudgetError(FPEError, AssertionError):
    """A widened block holds more non-zeros than its parent, or breaks another invariant."""


class CheckpointError(FPEError, ValueError):
    """A saved model is missing, truncated, altered, or of a format this version cannot read."""


class RecipeError(ConfigError):
    """A recipe cannot be run: an unknown key, a bad value, or data that do not fit."""


class InUseError(RecipeError):
    """Another process is running a recipe in the same folder."""


class DataError(FPEError, ValueError):
    """A data file is damaged, or is something else than it should be."""


class MissingDataError(FPEError, FileNotFoundError):
    """A data set or a pretrained encoder is not on this machine."""


class MissingExtraError(FPEError, ImportError):
    """What was asked for needs packages that an extra of fpe_hf brings."""


class HubError(FPEError, OSError):
    """The Hub refused a request, could not be reached, or was asked for something impossible."""


class InputShapeError(FPEError, RuntimeError):
    """A widened layer was given inputs of another width, where `nn.Linear` raises RuntimeError."""


class OverwrittenError(FPEError, RuntimeError):
    """Something else than loading has written to the indices of a widened layer."""


class FusingError(FPEError, RuntimeError):
    """A module was changed after a run that had shown how it uses its MLP."""


class ExportError(FPEError, RuntimeError):
    """A widened model has no stock equivalent of its own class."""


def did_you_mean(word: str, accepted: Iterable[str]) -> str:
    """Returns ` Did you mean 'x'?` for the accepted word nearest to `word`, or an empty string."""
    nearest = difflib.get_close_matches(word, list(accepted), n=1, cutoff=0.5)
    return f" Did you mean {nearest[0]!r}?" if nearest else ""
