"""Ways to break things. All chance comes from a `random.Random`, so that a case can be repeated."""

from __future__ import annotations

import copy
import json
import math
from random import Random
from typing import Any

import torch
from torch import Tensor

ODD_NUMBERS: tuple[Any, ...] = (
    *(0, 1, -1, 2, 7, 255, 256, 10**6, 10**9, 2**31, 2**63 - 1, 2**63, 2**64, 10**30, -(2**63)),
    *(0.5, -0.0, 1e308, math.inf, -math.inf, math.nan),
)
ODD_TEXTS = (
    *("", " ", "\0", "a" * 5000, "..", "../../etc/passwd", "/", "\ud800", "é", "{}", "[", "%s"),
    *("__class__", "__init__.__globals__", "weight", "model", "encoder..layer", "*", "(a+)+$"),
    *("element", "block", "replicate", "hash", "fpe", "gelu", "bert", "F32", "I64", "BF16"),
)
ODD_CHARACTERS = (0, 9, 34, 58, 91, 123, 233, 65536)
DEEP = b"[" * 100_000
ODD_VALUES: tuple[Any, ...] = (None, True, False, [], {}, [[]], [None], *ODD_NUMBERS, *ODD_TEXTS)


def some_value(random: Random) -> Any:
    """A value that is rarely expected; sometimes a nest or a long list."""
    draw = random.random()
    if draw < 0.05:
        nest: Any = []
        for _ in range(random.choice((10, 200))):
            nest = [nest]
        return nest
    if draw < 0.1:
        return [random.choice(ODD_NUMBERS)] * random.choice((1, 3, 10_000))
    return copy.deepcopy(random.choice(ODD_VALUES))


def break_json(random: Random, value: Any, changes: int | None = None) -> Any:
    """Changes some places of a JSON value: replaces, removes, repeats, renames, exchanges."""
    broken = copy.deepcopy(value)
    for _ in range(changes or random.choice((1, 1, 1, 2, 5))):
        places = list(_places(broken))
        if not places:
            return some_value(random)
        _change(random, *random.choice(places), places)
    return broken


def _places(value: Any) -> Any:
    """Every (container, key) below a value."""
    stack = [value]
    while stack:
        inner = stack.pop()
        keys = inner.keys() if isinstance(inner, dict) else range(len(inner))
        for key in list(keys):
            yield inner, key
            if isinstance(inner[key], (dict, list)):
                stack.append(inner[key])


def _change(random: Random, container: Any, key: Any, places: Any) -> None:
    old = container[key]
    way = random.randrange(8)
    if way == 0:
        del container[key]
    elif way == 1 and isinstance(container, dict):
        container[random.choice((*ODD_TEXTS, str(key) + "s"))] = container.pop(key)
    elif way == 2 and isinstance(container, list):
        container.insert(random.randrange(len(container) + 1), copy.deepcopy(old))
    elif way == 3:
        other, there = random.choice(places)
        if not _reaches(other, there, container):
            container[key] = copy.deepcopy(other[there])
    elif way in (4, 5) and type(old) in (int, float):
        container[key] = random.choice((old + 1, old - 1, old * 2, -old, float(old), str(old)))
    elif way == 6 and isinstance(old, str):
        container[key] = break_text(random, old)
    else:
        container[key] = some_value(random)


def _reaches(container: Any, key: Any, wanted: Any) -> bool:
    """Whether a place is gone, or holds a container: then its content is not copied into that."""
    try:
        return container[key] is wanted
    except (KeyError, IndexError):
        return True


def break_text(random: Random, text: str) -> str:
    """Changes some characters, or cuts, repeats or inserts pieces."""
    for _ in range(random.choice((1, 1, 2, 4))):
        at = random.randrange(len(text) + 1)
        way = random.randrange(5)
        if way == 0:
            text = text[:at]
        elif way == 1:
            text = text[:at] + random.choice(ODD_TEXTS) + text[at:]
        elif way == 2:
            end = min(len(text), at + random.randrange(1, 30))
            text = text[:at] + text[at:end] * random.choice((0, 2, 50)) + text[end:]
        else:
            text = text[:at] + chr(random.choice(ODD_CHARACTERS)) + text[at + 1 :]
    return text


def break_bytes(random: Random, content: bytes) -> bytes:
    """Flips bits, or cuts, overwrites, inserts or removes pieces."""
    broken = bytearray(content)
    for _ in range(random.choice((1, 1, 2, 8))):
        at = random.randrange(len(broken) + 1)
        size = random.choice((1, 1, 4, 8, 64))
        way = random.randrange(6)
        if way <= 1 and broken:
            broken[min(at, len(broken) - 1)] ^= 1 << random.randrange(8)
        elif way == 2:
            del broken[at:]
        elif way == 3:
            broken[at : at + size] = random.choice((b"\0", b"\xff", b"\x80")) * size
        elif way == 4:
            broken[at:at] = random.randbytes(size)
        else:
            del broken[at : at + size]
    return bytes(broken)


def break_document(random: Random, value: Any) -> bytes:
    """A JSON document with changes: mostly of its values, sometimes of its bytes."""
    text = json.dumps(break_json(random, value) if random.random() < 0.85 else value)
    content = text.encode("utf-8", "surrogatepass")
    if random.random() < 0.02:
        at = random.randrange(len(content))
        return content[:at] + DEEP + content[at:]
    return break_bytes(random, content) if random.random() < 0.25 else content


def break_safetensors(random: Random, content: bytes) -> bytes:
    """A safetensors file with changes: of its header as JSON, of its length, of any bytes."""
    if random.random() < 0.5:
        return break_bytes(random, content)
    size = int.from_bytes(content[:8], "little")
    header = break_document(random, json.loads(content[8 : 8 + size]))
    length = len(header)
    if random.random() < 0.1:
        length = random.choice((0, 1, length - 1, length + 1, 2**31, 2**40, 2**63, 2**64 - 1))
    return (length % 2**64).to_bytes(8, "little") + header + content[8 + size :]


def break_tensor(random: Random, tensor: Tensor) -> Tensor:
    """A tensor with other bytes, or of another shape, order or type."""
    way = random.randrange(8)
    if way == 0 or not tensor.numel():
        return tensor.to(random.choice((torch.int64, torch.uint8, torch.float64, torch.bool)))
    if way == 1:
        return tensor.flatten()[: random.randrange(tensor.numel() + 1)]
    if way == 2:
        return tensor.flatten().flip(0).view(tensor.shape)
    if way == 3:
        return tensor.flatten()[:1].expand(tensor.numel()).view(tensor.shape)
    raw = bytearray(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    for _ in range(random.choice((1, 2, 8, 64))):
        raw[random.randrange(len(raw))] = random.choice(
            (0, 1, 127, 128, 255, random.randrange(256))
        )
    return torch.frombuffer(raw, dtype=tensor.dtype).view(tensor.shape)
