"""Data sets of recipes: where they come from, which part trains, and frozen embeddings of them."""

from .loading import Examples, load_examples

__all__ = ["Examples", "load_examples"]
