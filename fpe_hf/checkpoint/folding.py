"""Blocks that differ in a few values only are one entry of a plan, which lists those."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from ..errors import CheckpointError
from ..planning import BlockSpec
from .files import check_json_size

EACH = "each"
STEM = "*"
_NAMES = ("name", "ups", "down", "bias_names")
_LISTED = (
    "seed",
    "parent_nonzeros",
    "up_values",
    "down_values",
    "child_inputs",
    "child_outputs",
    "final_weights",
)
"""Fields that may differ from block to block of an entry."""


def fold(specs: Sequence[BlockSpec]) -> list[dict[str, Any]]:
    """The blocks of a plan as JSON values: neighbours that are alike share an entry.

    Args:
        specs: The blocks.
    """
    entries: list[dict[str, Any]] = []
    group: list[BlockSpec] = []
    place: int | None = None
    for spec in specs:
        at = _difference(group[-1], spec) if group else None
        if at is None or place not in (None, at):
            entries += [_entry(group, place)] if group else []
            group, at = [], None
        group.append(spec)
        place = at
    return entries + ([_entry(group, place)] if group else [])


def _entry(group: Sequence[BlockSpec], place: int | None) -> dict[str, Any]:
    """The entry of some blocks whose names differ in one part."""
    if place is None:
        return group[0].to_dict()
    members = [_starred(spec, place) for spec in group]
    shared = dict(members[0])
    each: dict[str, list[Any]] = {STEM: [spec.name.split(".")[place] for spec in group]}
    for name in _LISTED:
        values = [fields[name] for fields in members if name in fields]
        if any(value != values[0] for value in values):
            each[name] = values
            del shared[name]
    return {**shared, EACH: each}


def _difference(one: BlockSpec, other: BlockSpec) -> int | None:
    """Which part of their names tells two blocks apart, if they may share an entry."""
    names = one.name.split("."), other.name.split(".")
    apart = [at for at, parts in enumerate(zip(*names, strict=False)) if len(set(parts)) > 1]
    written = json.dumps([one.to_dict(), other.to_dict()])
    if len(names[0]) != len(names[1]) or len(apart) != 1 or STEM in written:
        return None
    fields = [_starred(spec, apart[0]) for spec in (one, other)]
    for own in fields:
        for name in _LISTED:
            own.pop(name, None)
    return apart[0] if fields[0] == fields[1] else None


def _starred(spec: BlockSpec, place: int) -> dict[str, Any]:
    """The fields of a block, with a star for a part of its name, in other names, too."""
    fields = spec.to_dict()
    stem = spec.name.split(".")[place]

    def star(name: str) -> str:
        parts = name.split(".")
        if len(parts) > place and parts[place] == stem:
            parts[place] = STEM
        return ".".join(parts)

    return _map_names(fields, star)


def unfold(entries: Iterable[Any]) -> Iterator[Any]:
    """What every block has, written out.

    Args:
        entries: What a plan holds, to be trusted in nothing.

    Raises:
        CheckpointError: An entry does not say what each of its blocks has, or stands for more
            than any plan holds.
    """
    written = 0
    for entry in entries:
        if not isinstance(entry, Mapping) or EACH not in entry:
            yield entry
            continue
        shared = {name: value for name, value in entry.items() if name != EACH}
        each = entry[EACH]
        where = f"{EACH!r} of block {entry.get('name')!r} of the FPE config"
        _check(where, shared, each)
        text, stems = json.dumps(shared), each[STEM]
        written += len(stems) * len(text) + text.count(STEM) * sum(map(len, stems))
        check_json_size(f"{where}, written out,", written)
        for values in zip(*each.values(), strict=True):
            own = dict(zip(each, values, strict=True))
            stem = own.pop(STEM)
            yield {**_map_names(shared, partial(_filled, stem)), **own}


def _check(where: str, shared: Mapping[str, Any], each: Any) -> None:
    def require(holds: bool, message: str) -> None:
        if not holds:
            raise CheckpointError(f"{where} {message}.")

    require(isinstance(each, Mapping), "must be an object")
    for name, values in each.items():
        require(name in (STEM, *_LISTED), f"has {name!r}; accepted: {STEM}, {', '.join(_LISTED)}")
        require(name not in shared, f"has {name!r}, which the block has already")
        require(isinstance(values, list) and len(values) > 0, f"must list the values of {name!r}")
    require(STEM in each, f"lacks {STEM!r}")
    require(len({len(values) for values in each.values()}) == 1, "has lists of different lengths")
    require(all(isinstance(stem, str) for stem in each[STEM]), f"must list texts for {STEM!r}")


def _filled(stem: str, name: str) -> str:
    return name.replace(STEM, stem)


def _map_names(fields: Mapping[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    """Fields with all names in them changed."""

    def mapped(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [mapped(item) for item in value]
        return change(value) if isinstance(value, str) else value

    return {name: mapped(value) if name in _NAMES else value for name, value in fields.items()}
