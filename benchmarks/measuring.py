"""Runs a preset: group after group of blocks, then whole models."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from tqdm import tqdm

from fpe_hf import FPEError

from .blocks import make_parent, make_tokens
from .cases import DTYPES, TRAIN, Group, Preset
from .contenders import DENSE, FLOOR, Contender, WrongResult, block_call, build
from .counting import empty_memory, memory_rows
from .environment import available_bytes
from .models import NotAtHand, Workload, build_model, make_workload, model_call
from .results import BLOCK, MODEL, Results, Row
from .timing import UNSUPPORTED, Call, clock, in_short, interleave

BASES = (Contender(DENSE), Contender(FLOOR))
EXAMPLE = 5
"""Tokens with which contenders are checked."""

_SHARE = 0.5
"""Of the free memory, for the contenders that are timed together."""

_NOT_BUILT = (*UNSUPPORTED, FPEError, WrongResult)


@dataclass(frozen=True)
class Setting:
    """Where and how to measure.

    Attributes:
        device: Where.
        cpu_time: On a CPU, count processor time instead of time.
        peak: On a CPU, measure the peak of resident memory, in a fresh process per contender.
    """

    device: torch.device
    cpu_time: bool = False
    peak: bool = False


def measure(preset: Preset, setting: Setting, results: Results) -> None:
    """Measures what the results do not hold yet.

    Args:
        preset: What.
        setting: Where and how.
        results: Takes the rows, case by case.
    """
    groups, models = list(preset.groups()), preset.models
    with tqdm(total=len(groups) + len(models) * len(preset.alphas), smoothing=0) as bar:
        for group in groups:
            bar.set_description(f"{group.shape.name} alpha {group.alpha} {group.dtype}")
            measure_group(group, preset, setting, results)
            bar.update()
        for name in models:
            for alpha in preset.alphas:
                bar.set_description(f"{name} alpha {alpha}")
                measure_model(name, alpha, preset, setting, results)
                bar.update()


def measure_group(group: Group, preset: Preset, setting: Setting, results: Results) -> None:
    """Measures blocks that share their weights.

    Args:
        group: Which.
        preset: Tokens, modes and contenders.
        setting: Where and how.
        results: Takes the rows.
    """
    dtype, known = DTYPES[group.dtype], results.known
    wanted = [
        contender
        for contender in preset.contenders()
        if any(
            _block_row(group, contender, tokens, mode).key not in known
            for tokens, mode in preset.cases()
            if contender.runs(mode)
        )
        or any(
            empty_memory(group, contender, tokens).key not in known
            for tokens in preset.memory
            if contender.runs(TRAIN)
        )
    ]
    sizes = [c.step_bytes(group.shape, group.alpha, dtype) for c in wanted]
    for heat in heats(sizes, int(_SHARE * available_bytes(setting.device))):
        _block_heat([wanted[i] for i in heat], group, preset, setting, results)


def _block_heat(
    wanted: list[Contender],
    group: Group,
    preset: Preset,
    setting: Setting,
    results: Results,
) -> None:
    device, dtype, known = setting.device, DTYPES[group.dtype], results.known
    modules, notes = _build_all(wanted, group, device)
    for tokens, mode in preset.cases():
        x = make_tokens(group.shape, tokens, dtype, device)
        calls = {c: block_call(own, x, mode) for c, own in modules.items() if c.runs(mode)}
        empty = {c: _block_row(group, c, tokens, mode) for c in (*calls, *notes)}
        if any(row.key not in known for row in empty.values()):
            results.add(timed(empty, calls, notes, setting, preset.budget))
    trained = {c: own for c, own in modules.items() if c.runs(TRAIN)}
    for tokens in preset.memory:
        if any(empty_memory(group, c, tokens).key not in known for c in trained):
            rows = memory_rows(group, trained, notes, tokens, device, peak=setting.peak)
            results.add(memory=rows)


def measure_model(
    name: str, alpha: int, preset: Preset, setting: Setting, results: Results
) -> None:
    """Measures a whole model at one alpha: float32 on a CPU, bfloat16 on a GPU.

    Args:
        name: Among `MODELS`.
        alpha: Children per parent.
        preset: Modes and contenders.
        setting: Where and how.
        results: Takes the rows.
    """
    device = setting.device
    dtype = "bf16" if device.type == "cuda" else "fp32"
    wanted = preset.model_contenders()
    try:
        workload = make_workload(name, device, DTYPES[dtype])
    except NotAtHand as error:
        notes = dict.fromkeys(wanted, str(error))
        for mode in preset.model_modes:
            empty = {c: _model_row(name, alpha, dtype, c, 0, mode) for c in wanted}
            results.add(timed(empty, {}, notes, setting, 0.0))
        return
    items, known = workload.items, results.known
    wanted = [
        c
        for c in wanted
        if any(
            _model_row(name, alpha, dtype, c, items, mode).key not in known
            for mode in preset.model_modes
            if c.runs(mode)
        )
    ]
    sizes = [workload.step_bytes(contender, alpha) for contender in wanted]
    for heat in heats(sizes, int(_SHARE * available_bytes(device))):
        models, notes = _build_models([wanted[i] for i in heat], workload, alpha)
        for mode in preset.model_modes:
            calls = {
                contender: model_call(model, workload.inputs, mode)
                for contender, model in models.items()
                if contender.runs(mode)
            }
            empty = {c: _model_row(name, alpha, dtype, c, items, mode) for c in (*calls, *notes)}
            results.add(timed(empty, calls, notes, setting, 2 * preset.budget))
            del calls  # and the optimizers with them
        del models  # before the next heat is built


def heats(sizes: Sequence[int], limit: int) -> Iterator[list[int]]:
    """Divides contenders into heats that fit into memory; each is timed beside the dense parent.

    Args:
        sizes: Bytes that each contender needs.
        limit: Bytes that a heat may need; a contender above it runs alone.

    Yields:
        Positions in `sizes`.
    """
    heat: list[int] = []
    for position, size in enumerate(sizes):
        if heat and sum(sizes[i] for i in heat) + size > limit:
            yield heat
            heat = []
        heat.append(position)
    if heat:
        yield heat


def timed(
    empty: Mapping[Contender, Row],
    calls: Mapping[Contender, Call],
    notes: Mapping[Contender, str],
    setting: Setting,
    budget: float,
) -> list[Row]:
    """Times calls in turns and fills in the rows.

    Args:
        empty: Rows to fill in.
        calls: What to time; the dense parent is among them, unless there is nothing to time.
        notes: Why the others cannot be.
        setting: Where and how.
        budget: Seconds to spend, about.
    """
    named = {contender.name: call for contender, call in calls.items()}
    now = clock(setting.device, cpu_time=setting.cpu_time)
    timings = interleave(named, every_round=(DENSE, FLOOR), budget=budget, now=now)
    rows = []
    for contender, row in empty.items():
        note = notes.get(contender) or timings.failures.get(contender.name)
        found: dict[str, object] = {"note": note}
        if not note:
            ratio = timings.ratio(contender.name, DENSE)
            seconds = timings.seconds(contender.name).median
            found = {"ratio": ratio.median, "low": ratio.low, "high": ratio.high}
            found |= {"rounds": ratio.count, "seconds": seconds}
            found["items_per_second"] = row.tokens / seconds
            if FLOOR in timings.samples:
                found["floor"] = timings.ratio(FLOOR, contender.name).median
        rows.append(Row(**{**vars(row), **found}))
    return rows


def _build_all(
    wanted: list[Contender], group: Group, device: torch.device
) -> tuple[dict[Contender, nn.Module], dict[Contender, str]]:
    """The modules of the dense parent, the floor and contenders, and why some are missing."""
    dtype = DTYPES[group.dtype]
    parent = make_parent(group.shape, dtype, device)
    example = make_tokens(group.shape, EXAMPLE, dtype, device)

    def make(contender: Contender) -> nn.Module:
        needed = contender.build_bytes(group.shape, group.alpha, dtype)
        free = available_bytes(device)
        if needed > 0.9 * free:
            needed, free = round(needed / 2**30), round(free / 2**30)
            raise MemoryError(f"needs about {needed} GiB, {free} GiB are free")
        return build(contender, parent, group.shape, group.alpha, example)

    return _built([*BASES, *wanted], make)


def _build_models(
    wanted: list[Contender], workload: Workload, alpha: int
) -> tuple[dict[Contender, nn.Module], dict[Contender, str]]:
    models, notes = _built(wanted, lambda contender: build_model(contender, workload, alpha))
    return {Contender(DENSE): workload.model, **models}, notes


def _built(
    wanted: list[Contender], make: Callable[[Contender], nn.Module]
) -> tuple[dict[Contender, nn.Module], dict[Contender, str]]:
    modules: dict[Contender, nn.Module] = {}
    notes: dict[Contender, str] = {}
    for contender in wanted:
        try:
            modules[contender] = make(contender)
        except _NOT_BUILT as error:
            notes[contender] = in_short(error)
    return modules, notes


def _block_row(group: Group, c: Contender, tokens: int, mode: str) -> Row:
    block = (BLOCK, group.shape.name, c.name, c.kind, c.tiles, c.way)
    return Row(*block, group.alpha, group.dtype, tokens, mode)


def _model_row(name: str, alpha: int, dtype: str, c: Contender, items: int, mode: str) -> Row:
    return Row(MODEL, name, c.name, c.kind, c.tiles, c.way, alpha, dtype, items, mode)
