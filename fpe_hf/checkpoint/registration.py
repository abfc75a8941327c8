"""Makes transformers know widened models, and our own classes, as soon as it is there to be told.

`import fpe_hf` must stay quick, and importing transformers' quantizers and models takes seconds. So
if they are not loaded yet, an import hook waits for them.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Iterable, Sequence
from importlib import import_module
from types import ModuleType

_OURS = {
    "transformers.quantizers.auto": "fpe_hf.checkpoint.quantizer",
    "transformers.models.auto.configuration_auto": "fpe_hf.models.configs",
    "transformers.models.auto.modeling_auto": "fpe_hf.models.classifiers",
}
"""Module of transformers -> our module that registers itself with it when it is imported."""


def register() -> None:
    """Registers what belongs to the modules that are there, now, and the rest later. Idempotent."""
    loaded = [theirs for theirs in _OURS if theirs in sys.modules]
    waiting = any(isinstance(finder, _Waiter) for finder in sys.meta_path)
    if len(loaded) < len(_OURS) and not waiting:
        sys.meta_path.insert(0, _Waiter(_OURS.keys() - set(loaded)))
    for theirs in loaded:  # only now: ours import more of theirs
        import_module(_OURS[theirs])


class _Waiter(importlib.abc.MetaPathFinder):
    """Finds these modules as usual, with a loader that registers afterwards."""

    def __init__(self, expected: Iterable[str]) -> None:
        self._expected = set(expected)

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: ModuleType | None = None,
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in self._expected:
            return None
        self._expected.remove(fullname)  # before all finders are asked, this one included
        if not self._expected:
            sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _RegisteringLoader(spec.loader, _OURS[fullname])
        return spec


class _RegisteringLoader(importlib.abc.Loader):
    def __init__(self, loader: importlib.abc.Loader, ours: str) -> None:
        self._loader = loader
        self._ours = ours

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        import_module(self._ours)
