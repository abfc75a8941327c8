"""The paper's experiments (arXiv 2510.04500): tasks, small networks trained many at once, controls,
theory, and the reproductions that `fpe-hf reproduce` runs."""

from ..extras import need

need("science", "Reproductions")
