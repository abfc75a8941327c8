"""Which blocks to widen, and with which settings."""

from __future__ import annotations

from collections.abc import Iterable

from .config import FPEConfig
from .discovery import MLPBlock, MLPBlocks
from .errors import DiscoveryError, TargetError, did_you_mean
from .planning import check_block


def select_blocks(found: MLPBlocks, config: FPEConfig) -> list[tuple[MLPBlock, FPEConfig]]:
    """Applies `targets`, `exclude` and `overrides` to what discovery found.

    Args:
        found: Result of `find_mlps`.
        config: The user's configuration.

    Returns:
        The blocks to widen with the configuration of each, in the order they run.

    Raises:
        DiscoveryError: There is nothing to widen.
        TargetError: A word of the configuration names no block.
        PlanError: A block is too small for its configuration.
    """
    known = found.with_requested
    if config.targets is None:
        chosen = list(found)
    else:
        _check_words("targets", config.targets, known)
        chosen = [block for block in known if _matches(block, config.targets)]
    _check_words("exclude", config.exclude, known)
    chosen = [block for block in chosen if not _matches(block, config.exclude)]
    if not chosen:
        raise DiscoveryError(_nothing(found))
    _check_words("overrides", config.overrides, chosen)
    selected = []
    for block in chosen:
        own = config.for_block([word for word in config.overrides if block.matches(word)])
        check_block(block, own)
        selected.append((block, own))
    return selected


def _matches(block: MLPBlock, words: Iterable[str]) -> bool:
    return any(block.matches(word) for word in words)


def _check_words(field: str, words: Iterable[str], blocks: list[MLPBlock]) -> None:
    for word in words:
        if not any(block.matches(word) for block in blocks):
            names = [name for b in blocks for name in (b.name, *b.ups, b.down)]
            shown = ", ".join(block.name for block in blocks[:4]) + (", ..." if blocks[4:] else "")
            raise TargetError(
                f"{field}: {word!r} names no MLP block; there are {len(blocks)}: {shown or 'none'}."
                f"{did_you_mean(word, names)} find_mlps(model) lists them."
            )


def _nothing(found: MLPBlocks) -> str:
    if found:
        return "exclude leaves no block to widen."
    reasons = "; ".join(
        f"{' -> '.join(filter(None, (' + '.join(miss.up), miss.down)))}: {miss.reason}"
        for miss in found.near_misses[:3]
    )
    return f"The model has no MLP block to widen. {'Near-misses: ' + reasons if reasons else ''}"
