"""Runs presets, group after group: builds the contenders, checks them, times them side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm

from fpe_hf import FPEError

from .blocks import make_parent, make_tokens
from .cases import DTYPES, EXAMPLE, Group, Preset
from .contenders import DENSE, Contender, WrongResult, block_call, build, check, check_block
from .environment import available_bytes, cores
from .memory import memory_of
from .models import NotAtHand, hidden, make_inputs, make_model, model_call
from .results import CHECK, MEMORY, Case, Results, Row
from .running import prepared
from .timing import UNSUPPORTED, Call, Purse, clock, in_short, interleave

BASE = Contender(DENSE)
_FAILURES = (*UNSUPPORTED, FPEError, WrongResult, NotAtHand)

Modules = dict[Contender, nn.Module]
Notes = dict[Contender, str]


@dataclass(frozen=True)
class Setting:
    """Where to measure.

    Attributes:
        device: Where.
        threads: Numbers of threads of a CPU; `(0,)` on a GPU.
    """

    device: torch.device
    threads: tuple[int, ...]


def measure(presets: Sequence[Preset], setting: Setting, results: Results, budget: float) -> None:
    """Measures what the results do not hold yet, while there is time.

    Args:
        presets: What, the most important first.
        setting: Where.
        results: Takes the rows, case by case.
        budget: Seconds, about.
    """
    known, jobs = results.known, []
    for preset in presets:
        for group in preset.groups():
            wanted = [BASE, *preset.contenders(group)]
            cases = [
                case
                for case in preset.cases(group, setting.device.type, setting.threads)
                if any(_row(case, contender).key not in known for contender in wanted)
            ]
            if cases:
                jobs.append((group, wanted, cases))
    purse = Purse(budget, sum(len(cases) for _, _, cases in jobs))
    results.left = []
    with tqdm(jobs, smoothing=0) as bar:
        for group, wanted, cases in bar:
            bar.set_description(f"{group.name} alpha {group.alpha} {group.dtype}")
            _measure_group(group, wanted, cases, setting, results, purse)
    results.save()


def _measure_group(
    group: Group,
    wanted: list[Contender],
    cases: list[Case],
    setting: Setting,
    results: Results,
    purse: Purse,
) -> None:
    modules: Modules = {}
    notes: Notes = {}
    if purse.left > 0:
        torch.set_num_threads(max(setting.threads) or cores())
        modules, notes = _build(group, wanted, setting.device, purse)
    for case in cases:
        share = purse.share()
        if share <= 0:
            results.left.append(case.group)
        elif case.mode == CHECK:
            results.add(_row(case, c, note=notes.get(c, "")) for c in (*modules, *notes))
        elif case.mode == MEMORY:
            results.add(_memory(case, group, modules, notes, setting.device))
        else:
            torch.set_num_threads(case.threads or cores())
            calls, failures = _calls(case, group, modules, setting.device, purse)
            results.add(timed(case, calls, {**notes, **failures}, setting.device, share))
            if len(calls) + len(failures) < len(modules):
                results.left.append(case.group)


def _build(
    group: Group, wanted: list[Contender], device: torch.device, purse: Purse
) -> tuple[Modules, Notes]:
    """The modules of contenders, each checked, and why some are missing; while there is time."""
    try:
        if group.shape:
            parent = make_parent(group.shape, DTYPES[group.dtype], device)
        else:
            parent = make_model(group.model, device, DTYPES[group.dtype])
    except _FAILURES as error:
        return {}, dict.fromkeys(wanted, in_short(error))
    modules: Modules = {BASE: parent}
    notes: Notes = {}
    for contender in wanted[1:]:
        if purse.left <= 0:
            break
        try:
            modules[contender] = _built(group, contender, parent, device)
        except _FAILURES as error:
            notes[contender] = in_short(error)
    return modules, notes


def _built(
    group: Group, contender: Contender, parent: nn.Module, device: torch.device
) -> nn.Module:
    weights = sum(p.numel() * p.element_size() for p in parent.parameters())
    needed, free = contender.bytes(weights, group.alpha), available_bytes(device)
    if needed > 0.9 * free:
        needed, free = round(needed / 2**30), round(free / 2**30)
        raise MemoryError(f"needs about {needed} GiB, {free} GiB are free")
    if not group.shape:
        module, dense = build(contender, parent, group.alpha, hidden(parent), None)
        inputs = make_inputs(parent, 1)
        found, expected = (model_call(own.eval(), inputs, "")() for own in (module, dense))
        check(contender.name, "outputs", found, expected)
        return module
    few, more = (
        make_tokens(group.shape, tokens, DTYPES[group.dtype], device) for tokens in (3, EXAMPLE)
    )
    module, dense = build(contender, parent, group.alpha, group.shape.hidden, few)
    for x in (few, more):  # they may take different ways
        check_block(contender, module, dense, x)
        if contender.way == "exact":
            check_block(contender, module, parent, x)
    return module


def _calls(
    case: Case, group: Group, modules: Modules, device: torch.device, purse: Purse
) -> tuple[dict[Contender, Call], Notes]:
    """What is timed, and why some is not; while there is time."""

    def call_of(module: nn.Module) -> Call:
        if group.shape:
            return block_call(module, _tokens(case, group, device), case.mode)
        return model_call(module, make_inputs(modules[BASE], case.tokens), case.mode)

    calls: dict[Contender, Call] = {}
    notes: Notes = {}
    for contender, module in modules.items():
        if purse.left <= 0:
            break
        try:
            calls[contender] = prepared(case.how, module, call_of)
        except _FAILURES as error:
            notes[contender] = in_short(error)
    return calls, notes


def _tokens(case: Case, group: Group, device: torch.device) -> Tensor:
    assert group.shape is not None
    return make_tokens(group.shape, case.tokens, DTYPES[group.dtype], device)


def timed(
    case: Case,
    calls: Mapping[Contender, Call],
    notes: Mapping[Contender, str],
    device: torch.device,
    budget: float,
) -> list[Row]:
    """Times calls in turns.

    Args:
        case: The case.
        calls: What to time, the dense parent among it, unless there is nothing to time.
        notes: Why others cannot be.
        device: Where.
        budget: Seconds to spend, about.
    """
    named = {contender.name: call for contender, call in calls.items()}
    timings = interleave(named, every_round=(DENSE,), budget=budget, now=clock(device))
    notes = {**notes, **{c: timings.failures[c.name] for c in calls if c.name in timings.failures}}
    rows = [_row(case, contender, note=note) for contender, note in notes.items()]
    for contender in calls:
        if contender not in notes and DENSE in timings.samples:
            ratio = timings.ratio(contender.name, DENSE)
            spread = {"ratio": ratio.median, "low": ratio.low, "high": ratio.high}
            seconds = timings.seconds(contender.name).median
            rows.append(_row(case, contender, rounds=ratio.count, seconds=seconds, **spread))
    return rows


def _memory(
    case: Case, group: Group, modules: Modules, notes: Notes, device: torch.device
) -> list[Row]:
    """How much memory a training step of each contender takes."""
    rows = [_row(case, contender, note=note) for contender, note in notes.items()]
    dense: dict[str, int] = {}
    for contender, module in modules.items():
        try:
            found = memory_of(module, _tokens(case, group, device))
        except UNSUPPORTED as error:
            rows.append(_row(case, contender, note=in_short(error)))
            continue
        dense = dense or found
        ratios = {name: found[name] / dense[name] for name in found if dense.get(name)}
        rows.append(_row(case, contender, memory=ratios, bytes=found))
    return rows


def _row(case: Case, c: Contender, **found: object) -> Row:
    who = {"contender": c.name, "layout": c.kind, "tiles": c.tiles, "way": c.way}
    return Row(**case.case, **who, **found)  # type: ignore[arg-type]
