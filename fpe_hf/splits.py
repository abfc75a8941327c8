"""Splits: how the inputs of parent neurons are divided among their children.

A split is a function registered under a name. It sees the weights of a group of parents and
returns, for every input, which child reads it: each input goes to exactly one child (I2).
"""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from .errors import ConfigError, PlanError, did_you_mean
from .extras import need

if TYPE_CHECKING:
    from torch import Tensor

RANDOM = "random"
LEARNED = "learned"
_GOLDEN = 0x9E3779B97F4A7C15
_CHUNK = 1 << 16  # keys at a time: they stay in cache
_FEW_CHUNKS = 16  # that one thread works through before others have started


class Split(Protocol):
    """A way to divide inputs."""

    def __call__(self, weight: Tensor, alpha: int, *, seed: int, shared: bool) -> Tensor:
        """Divides the inputs of a block.

        Args:
            weight: The parents' incoming weights `[sources, parents, inputs]`, float32, on the CPU
                (`sources` is 2 for gated blocks, whose gate and up share the split).
            alpha: Children per parent.
            seed: Seed for whatever is drawn at random.
            shared: Whether all parents must share one division (the `block` layout).

        Returns:
            Child of every input, integers in `[0, alpha)`: `[inputs]`, or `[parents, inputs]` if
            `shared` is false and the division differs from parent to parent.
        """
        ...


_SPLITS: dict[str, Split] = {}


def register_split(name: str, split: Split | None = None) -> Split:
    """Makes a split available as `FPEConfig(split=name)`; usable as a decorator.

    Args:
        name: The name, not yet taken.
        split: The function (see `Split`); leave it out to get a decorator.

    Returns:
        The function itself.

    Raises:
        ConfigError: The name is taken.
    """
    if split is None:

        def decorate(function: Split) -> Split:
            return register_split(name, function)

        return decorate  # type: ignore[return-value]
    if name in _SPLITS:
        raise ConfigError(f"split {name!r} is already registered; choose another name.")
    _SPLITS[name] = split
    return split


def check_split(name: object) -> None:
    """Raises `ConfigError` unless `name` is a registered split."""
    if not isinstance(name, str) or name not in _SPLITS:
        words = ", ".join(repr(word) for word in sorted(_SPLITS))
        raise ConfigError(
            f"split={name!r} is not registered; accepted: {words} (more by register_split)."
            f"{did_you_mean(str(name), _SPLITS)}"
        )


def divide(name: str, weight: Tensor, alpha: int, *, seed: int, shared: bool) -> Tensor:
    """Runs a registered split and checks what it returns.

    Args:
        name: Registered name.
        weight: See `Split`.
        alpha: See `Split`.
        seed: See `Split`.
        shared: See `Split`.

    Returns:
        Child of every input, uint8, `[inputs]` or `[parents, inputs]`.

    Raises:
        PlanError: The split returned the wrong shape, or children out of range.
    """
    import torch

    check_split(name)
    children = _SPLITS[name](weight.cpu().float(), alpha, seed=seed, shared=shared)
    if not isinstance(children, torch.Tensor):
        raise PlanError(f"split {name!r} returned a {type(children).__name__}, not a tensor.")
    children = children.cpu()
    parents, inputs = weight.shape[-2:]
    accepted = [(inputs,)] if shared else [(inputs,), (parents, inputs)]
    if tuple(children.shape) not in accepted:
        raise PlanError(f"split {name!r} returned {tuple(children.shape)}; accepted: {accepted}.")
    if children.is_floating_point() or children.min() < 0 or children.max() >= alpha:
        raise PlanError(f"split {name!r} must return integers from 0 to {alpha - 1}.")
    return children.to(torch.uint8)


def derive_seed(seed: int, *names: str) -> int:
    """A seed in `[0, 2**63)` that depends on `seed` and the names (SHA-256)."""
    digest = hashlib.sha256("\0".join([str(seed), *names]).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def hashed_children(seed: int, rows: int, columns: int, alpha: int) -> npt.NDArray[np.uint8]:
    """A random balanced division of `columns` items among `alpha` children, for every row.

    The division is a pure function of its arguments (it is never stored, so it belongs to the file
    format): entry `(r, i)` gets the key `splitmix64(seed + golden * (r * columns + i + 1))` with
    its lowest bits replaced by `i`; the item whose key has rank `q` within its row goes to child
    `q * alpha // columns`.

    Args:
        seed: `[0, 2**63)`.
        rows: Rows, each divided independently.
        columns: Items per row.
        alpha: Children, 1 to 256.

    Returns:
        uint8 `[rows, columns]`.
    """
    import torch

    children = np.zeros((rows, columns), np.uint8)
    index = np.arange(columns, dtype=np.uint64)
    low_bits = np.uint64(max(columns - 1, 1).bit_length())
    ranks = np.arange(columns) * alpha // columns
    starts = np.searchsorted(ranks, np.arange(1, alpha))
    cuts = starts[starts < columns]
    step = max(1, _CHUNK // columns)

    def divide_rows(first: int) -> None:
        row = np.arange(first, min(first + step, rows), dtype=np.uint64)[:, None]
        with np.errstate(over="ignore"):
            counter = row * np.uint64(columns) + index + np.uint64(1)
            keys = _mix(np.uint64(seed) + np.uint64(_GOLDEN) * counter)
        keys = (keys >> low_bits << low_bits) | index
        thresholds = np.partition(keys, cuts, axis=1)[:, cuts] if len(cuts) else keys[:, :0]
        part = children[first : first + step]
        for cut in range(thresholds.shape[1]):
            part += keys >= thresholds[:, cut : cut + 1]

    firsts = range(0, rows, step)
    if len(firsts) < _FEW_CHUNKS:
        for first in firsts:
            divide_rows(first)
        return children
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        for _ in threads.map(divide_rows, firsts):  # which raises what they raise
            pass
    return children


def _mix(keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The output function of SplitMix64 (Steele, Lea, Flood 2014)."""
    keys = (keys ^ (keys >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    keys = (keys ^ (keys >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return keys ^ (keys >> np.uint64(31))


def random_split(weight: Tensor, alpha: int, *, seed: int, shared: bool) -> Tensor:
    """A random balanced division of the inputs (the paper's *random* split)."""
    import torch

    parents, inputs = weight.shape[-2:]
    children = torch.from_numpy(hashed_children(seed, 1 if shared else parents, inputs, alpha))
    return children[0] if shared else children


def feature_split(weight: Tensor, alpha: int, *, seed: int, shared: bool) -> Tensor:
    """Balanced clusters of the rows of the Gram matrix `W1^T W1` (the paper's *feature* split).

    Inputs that the same parents weigh alike go to the same child. Clusters come from k-means;
    they are balanced by filling them in order of regret, the cost of a second choice.
    """
    import torch

    need("science", "split='feature'")
    from sklearn.cluster import KMeans

    matrix = weight.reshape(-1, weight.shape[-1])
    inputs = matrix.shape[1]
    gram = (matrix.T @ matrix).numpy()
    means = KMeans(n_clusters=alpha, n_init=4, random_state=seed % 2**32).fit(gram)
    distance = means.transform(gram)
    capacity = np.bincount(np.arange(inputs) * alpha // inputs, minlength=alpha)
    nearest = np.partition(distance, min(1, alpha - 1), axis=1)
    children = np.full(inputs, -1)
    for item in np.argsort(nearest[:, 0] - nearest[:, min(1, alpha - 1)], kind="stable"):
        choice = next(child for child in np.argsort(distance[item]) if capacity[child] > 0)
        children[item] = choice
        capacity[choice] -= 1
    return torch.from_numpy(children)


register_split(RANDOM, random_split)
register_split("feature", feature_split)
register_split(LEARNED, random_split)  # where training has not decided yet
