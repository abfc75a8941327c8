"""The part of a training in which something changes: what all schedules share."""

from __future__ import annotations

from numbers import Integral, Real

from .errors import ConfigError


def check_count(name: str, value: object, least: int) -> None:
    """Raises `ConfigError` if a value is no integer from `least` on."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ConfigError(f"{name}={value!r} must be an integer from {least}.")


def check_real(name: str, value: object) -> None:
    """Raises `ConfigError` if a value is no real number."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ConfigError(f"{name}={value!r} must be a number.")


def check_span(total_steps: object, begin: float, end: float, start: object) -> None:
    """Raises `ConfigError` if a training, or the part of it that is meant, cannot be."""
    check_count("total_steps", total_steps, 1)
    check_count("start", start, 0)
    check_real("begin", begin)
    check_real("end", end)
    if not 0.0 <= begin < end <= 1.0:
        raise ConfigError(
            f"begin={begin!r}, end={end!r} must be shares of the training: 0 <= begin < end <= 1."
        )


def span(total_steps: int, begin: float, end: float) -> tuple[int, int]:
    """The steps after which something begins and has ended."""
    return round(begin * total_steps), max(1, round(end * total_steps))
