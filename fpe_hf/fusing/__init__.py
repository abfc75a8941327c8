"""Lets modules that hold a widened MLP compute it as one operation.

`recognize.py` reads from a module's own program what it does, `whole.py` is for modules that are an
MLP and nothing else, `apart.py` for larger ones whose projections lie side by side. Both give a
module a subclass of its class, so that it keeps its name, its children and its hooks, and both fall
back to the module's own program whenever somebody could notice.
"""

from .install import fuse, unfuse
from .whole import unfused

__all__ = ["fuse", "unfuse", "unfused"]
