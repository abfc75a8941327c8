"""Closing a budget: which weights of an open block stay, and the closed block that they make."""

from .block import OpenBlock, open_blocks
from .fit import close_as, resume_closed
from .pack import Packed, pack, successor

__all__ = ["OpenBlock", "Packed", "close_as", "open_blocks", "pack", "resume_closed", "successor"]
