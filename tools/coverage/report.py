"""`docs/coverage.md` and `docs/coverage.json` from the records of a sweep."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tools.coverage.steps import LAYOUTS, TOLERANCE

Record = dict[str, Any]

ORDER = ("pass", "no export", "fail", "refused", "no MLP", "not runnable", "not buildable")
MEANING = {
    "pass": "widened in both layouts; outputs equal, audited, saved, loaded, exported, reloaded",
    "no export": "as pass, but `to_dense` says that the class cannot hold the result",
    "fail": "a check failed, or a feed-forward layer was missed",
    "refused": "has feed-forward layers, all refused with a reason",
    "no MLP": "no feed-forward layer, by discovery and by the count of names",
    "not runnable": "no forward of its own, or the harness knows no inputs that it takes",
    "not buildable": "no model of its own, a library missing, or no small configuration known",
}
WIDENED = ("pass", "no export", "fail", "refused")
"""Statuses of the types that have feed-forward layers, or whose checks ended before that was seen.

Those of types that do not run are counted by their names.
"""

KEPT = (
    "type",
    "class",
    "status",
    "step",
    "error",
    "level",
    "parameters",
    "stands_in",
    "inputs",
    "unaided",
    "kinds",
    "targets",
    "merged",
    "unsaved",
    "counted",
    "differences",
    "sensitivity",
    "seconds",
)
"""What the JSON file keeps of a record as it is."""

LAYERS = ("blocks", "refused", "missed", "idle", "extra")
"""Lists of layers, of which it keeps one entry for those that differ only in their number."""

HEAD = """\
# Coverage of transformers

<!-- Written by `python -m tools.coverage report`; do not edit. -->

What fpe_hf does with a tiny, randomly initialised model of every model type of transformers
{transformers} (torch {torch}; {timm}): discovery, then the exact start (`coupling=1.0`,
`fan_out="partition"`) in the layouts {layouts}. Outputs must agree within {tolerance:g} of their
scale; where rounding in float32 exceeds that, both models are compared again in float64. Saved
and loaded models must compute the same bits, and the stock model that `to_dense` makes must
agree, too, also after saving and loading. A feed-forward layer that an independent count by
parameter names and shapes finds, but discovery neither finds nor refuses with a reason, is a
failure.

This page and [the details of every type](coverage.json) are written by

```bash
python -m tools.coverage run --steps all --jobs 2 --limit 240 --out build/coverage.jsonl
python -m tools.coverage report build/coverage.jsonl
```
"""


def write(records: list[Record], folder: Path, also: Sequence[list[Record]] = ()) -> None:
    """Writes both files.

    Args:
        records: Of the sweep that the files are about.
        folder: Where they go.
        also: Records of sweeps with other versions of transformers, for a section each.
    """
    records = _sorted(records)
    lines = ",\n".join(json.dumps(_kept(record)) for record in records)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "coverage.json").write_text(f"[\n{lines}\n]\n")
    (folder / "coverage.md").write_text(page(records, also))


def _sorted(records: list[Record]) -> list[Record]:
    return sorted(records, key=lambda record: record["type"].lower())


def _kept(record: Record) -> Record:
    """What the JSON file says of a type."""
    kept = {key: record[key] for key in KEPT if key in record}
    return kept | {key: _folded(record[key]) for key in LAYERS if record.get(key)}


def _folded(entries: list[Record]) -> list[Record]:
    """Entries with `*` in the place of numbers in names; of equal ones, one, and how many."""
    texts = Counter(
        json.dumps({key: _numberless(value) for key, value in entry.items()}) for entry in entries
    )
    return [{**json.loads(text), "count": count} for text, count in texts.items()]


def _numberless(value: Any) -> Any:
    if isinstance(value, str):
        return re.sub(r"\b\d+\b", "*", value)
    return [_numberless(item) for item in value] if isinstance(value, list) else value


def page(records: list[Record], also: Sequence[list[Record]] = ()) -> str:
    """The Markdown page; see `write`."""
    try:
        timm = f"timm {version('timm')}"
    except PackageNotFoundError:
        timm = "without timm"
    head = HEAD.format(
        transformers=_transformers(records),
        torch=version("torch").partition("+")[0],
        timm=timm,
        layouts=" and ".join(f"`{layout}`" for layout in LAYOUTS),
        tolerance=TOLERANCE,
    )
    others = [_also(records, _sorted(other)) for other in also]
    tables = [_kinds(records), _grouped(records), _table(records)]
    return "\n".join([head, _summary(records), *others, *tables])


def _transformers(records: list[Record]) -> str:
    """The version that was swept; old records do not say."""
    versions = {record["transformers"] for record in records if "transformers" in record}
    if len(versions) > 1:
        raise ValueError(f"The records are of several versions of transformers: {versions}.")
    return versions.pop() if versions else version("transformers")


def _also(records: list[Record], others: list[Record]) -> str:
    """What another version of transformers gave, and where it differs."""
    here, there = _transformers(records), _transformers(others)
    known = {record["type"]: record["status"] for record in records}
    counts = Counter(record["status"] for record in others)
    changed = [
        (record["type"], known.get(record["type"], "unknown"), record["status"], _remark(record))
        for record in others
        if known.get(record["type"]) != record["status"]
    ]
    told = ", ".join(f"{counts[status]} {status}" for status in ORDER if counts[status])
    lines = [f"## Also on transformers {there}\n", f"{len(others)} types: {told}."]
    if changed:
        lines += ["What differs:\n", *_rows(("type", here, there, "remark"), changed)]
    else:
        lines.append(f"Nothing differs from {here}.")
    return "\n".join([*lines, ""])


def _summary(records: list[Record]) -> str:
    counts = Counter(record["status"] for record in records)
    rows = [(status, str(counts[status]), MEANING[status]) for status in ORDER]
    built = [record for record in records if _has_layers(record)]
    unrun = [record["type"] for record in built if record["status"] == "not runnable"]
    share = f"{100 * counts['pass'] / len(built):.1f} %" if built else "none"
    parts = [f"{r['type']} by {r['stands_in']}" for r in records if r.get("stands_in")]
    passed = [record for record in records if record["status"] == "pass"]
    merged = [record["type"] for record in passed if record.get("merged")]
    asked = [record["type"] for record in passed if record.get("targets")]
    deaf = [r["type"] for r in passed if (r.get("sensitivity") or 0.0) < TOLERANCE]
    minutes = sum(record.get("seconds") or 0 for record in records) / 60
    return "\n".join(
        [
            "## Summary\n",
            *_rows(("status", "types", "meaning"), rows),
            "",
            f"Of the {len(built)} types that can be built and have feed-forward layers, by "
            f"discovery or by the count of names, {share} pass. Those that do not run are among "
            f"them: {', '.join(unrun) or 'none'}. "
            f"The checks took {minutes:.0f} minutes of one process.\n",
            "Models without a forward of their own are represented by a part: "
            f"{', '.join(parts) or 'none'}.\n",
            f"Of those that pass, {len(merged)} have blocks whose hidden width no field of the "
            "configuration sets alone (most classes fix it at a multiple of another width). "
            "`to_dense` can export these blocks only with `coupling` fixed at 1, merged to their "
            f"parents' width: {', '.join(merged) or 'none'}.\n",
            f"{len(deaf)} pass although silencing all their blocks changes the outputs less than "
            "by the tolerance, so that equal outputs prove little (some codecs return codes): "
            f"{', '.join(deaf) or 'none'}.\n",
            f"{len(asked)} have feed-forward layers only where `targets` must name them: "
            f"{', '.join(asked) or 'none'}.\n",
        ]
    )


def _has_layers(record: Record) -> bool:
    """Whether a type was built and has feed-forward layers; if nothing was counted, it may."""
    unrun = record["status"] == "not runnable" and record.get("counted") != 0
    return unrun or record["status"] in WIDENED


def _kinds(records: list[Record]) -> str:
    blocks = [block for record in records for block in record.get("blocks", ())]
    by_kind = Counter(kind for block in blocks for kind in block["kinds"])
    types = Counter(kind for record in records for kind in record.get("kinds") or ())
    rows = [(kind, str(types[kind]), str(count)) for kind, count in by_kind.most_common()]
    return "\n".join(["## Kinds\n", *_rows(("kind", "types", "blocks"), rows), ""])


def _grouped(records: list[Record]) -> str:
    """Types that do not pass, by what was said."""
    lines = ["## What does not pass, and why\n"]
    for status in ("fail", "no export", "refused", "not runnable", "not buildable"):
        groups: dict[tuple[str, str], list[str]] = defaultdict(list)
        for record in records:
            if record["status"] == status:
                groups[_cause(record)].append(record["type"])
        if groups:
            lines += [f"### {status}\n", *_groups(groups), ""]
    refusals: dict[tuple[str, str], list[str]] = defaultdict(list)
    for record in (record for record in records if record["status"] != "refused"):
        for reason in {_general(entry["reason"]) for entry in record.get("refused") or ()}:
            refusals["", reason].append(record["type"])
    return "\n".join(
        [*lines, "### Refused layers of types that pass otherwise\n", *_groups(refusals), ""]
    )


def _cause(record: Record) -> tuple[str, str]:
    if record["status"] == "refused":
        return "", "; ".join(sorted({_general(entry["reason"]) for entry in record["refused"]}))
    return record["step"], _general(record["error"] or "")


def _general(text: str) -> str:
    """A message without the names and numbers of one type."""
    text = re.sub(r"'[\w.]+'", "'...'", text)
    text = re.sub(r"\b[a-z_]\w*(\.\w+)+\b", "...", text)
    return re.sub(r"\b\d[\d.]*(e-\d+)?\b", "N", text).strip()[:160]


def _groups(groups: dict[tuple[str, str], list[str]]) -> Iterable[str]:
    for (step, error), types in sorted(groups.items(), key=lambda item: -len(item[1])):
        place = f"{step}: " if step else ""
        yield f"- {place}{_text(error)} ({len(types)}): {', '.join(types)}"


def _table(records: list[Record]) -> str:
    rows = [
        (
            record["type"],
            record["status"],
            str(len(record.get("blocks") or ())),
            ", ".join(record.get("kinds") or ()),
            str(record.get("counted", "")),
            _remark(record),
        )
        for record in records
    ]
    header = ("type", "status", "blocks", "kinds", "counted", "remark")
    return "\n".join(["## All types\n", *_rows(header, rows), ""])


def _remark(record: Record) -> str:
    """The error, or what is left out and why."""
    if record["error"]:
        unneeded = record["status"] == "not runnable" and not _has_layers(record)
        layers = "; no feed-forward layer by the count of names" if unneeded else ""
        return f"{record['step']}: {record['error'][:140]}{layers}"
    remarks = [
        f"{count} refused: {reason[:100]}"
        for reason, count in Counter(e["reason"] for e in record.get("refused") or ()).items()
    ][:2]
    if record.get("targets"):
        remarks.append("only when named in targets")
    if record.get("merged"):
        remarks.append(f"{record['merged']} blocks exported by merging")
    if record.get("unsaved"):
        remarks.append(f"the stock model cannot be saved and loaded: {record['unsaved'][:80]}")
    if record.get("idle"):
        remarks.append(f"{len(record['idle'])} not reached by the inputs")
    if record.get("extra"):
        remarks.append(f"{len(record['extra'])} not in the count of names")
    if record.get("unaided") not in (None, "same"):
        remarks.append("needs example_inputs")
    return "; ".join(remarks)


def _rows(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterable[str]:
    yield f"| {' | '.join(header)} |"
    yield f"|{'---|' * len(header)}"
    for row in rows:
        yield f"| {' | '.join(map(_text, row))} |"


def _text(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")
