"""Widening a checkpoint on disk, without the model in memory."""
