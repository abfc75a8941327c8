"""Fast ways to compute what the layers define, each with a plain torch one beside it."""
