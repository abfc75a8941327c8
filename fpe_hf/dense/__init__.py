"""`to_dense`: a stock model with the same outputs, for those who do not have fpe_hf (I5)."""

from .export import to_dense

__all__ = ["to_dense"]
