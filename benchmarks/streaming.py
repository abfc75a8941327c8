"""Widens a checkpoint that is larger than the memory allowed, and says what it took.

    python -m benchmarks.streaming                # 8 GB, peak memory below 3 GB
    python -m benchmarks.streaming --gigabytes 1  # a trial

A Llama of random numbers is written, file by file. `fpe-hf widen` converts it in a fresh process,
whose peak resident memory and time are taken; the time is held against that of a plain copy of
the same files. Then two processes load the result at once and must agree on every tensor. The
large files are removed in the end.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.environment import environment
from fpe_hf.files import write_whole
from fpe_hf.markup import table

RESULTS = Path(__file__).resolve().parent / "results"
HIDDEN, INTERMEDIATE, HEADS, GROUPS, VOCAB = 4096, 14336, 32, 8, 32000
LIMIT = 3e9
LAYOUTS = {
    "block": ["--layout", "block"],
    "element": ["--layout", "element"],
}


def write_llama(folder: Path, size: float) -> int:
    """Writes a Llama checkpoint in bfloat16, a file at a time.

    Args:
        folder: Where to.
        size: Bytes to reach, at least.

    Returns:
        Bytes of its weights.
    """
    from transformers import LlamaConfig

    from fpe_hf.streaming.shards import ShardWriter

    narrow = HIDDEN * GROUPS // HEADS
    shapes = {
        "input_layernorm": (HIDDEN,),
        "mlp.down_proj": (HIDDEN, INTERMEDIATE),
        "mlp.gate_proj": (INTERMEDIATE, HIDDEN),
        "mlp.up_proj": (INTERMEDIATE, HIDDEN),
        "post_attention_layernorm": (HIDDEN,),
        "self_attn.k_proj": (narrow, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HIDDEN),
        "self_attn.q_proj": (HIDDEN, HIDDEN),
        "self_attn.v_proj": (narrow, HIDDEN),
    }
    ends = {
        "model.embed_tokens": (VOCAB, HIDDEN),
        "model.norm": (HIDDEN,),
        "lm_head": (VOCAB, HIDDEN),
    }
    per_layer = 2 * sum(torch.Size(shape).numel() for shape in shapes.values())
    rest = 2 * sum(torch.Size(shape).numel() for shape in ends.values())
    layers = max(1, -int(-(size - rest) // per_layer))
    config = LlamaConfig(
        architectures=["LlamaForCausalLM"],
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        num_key_value_heads=GROUPS,
        vocab_size=VOCAB,
        tie_word_embeddings=False,
        dtype="bfloat16",
    )
    folder.mkdir(parents=True)
    config.save_pretrained(folder)
    named = {
        f"model.layers.{layer}.{name}": shape
        for layer in range(layers)
        for name, shape in shapes.items()
    }
    generator = torch.Generator().manual_seed(0)
    writer = ShardWriter(folder, 10**9)
    parameters = 0
    for name, shape in (named | ends).items():
        numbers = torch.empty(shape, dtype=torch.bfloat16)
        writer.add(f"{name}.weight", numbers.normal_(std=0.02, generator=generator))
        parameters += numbers.numel()
    writer.finish(parameters)
    return weight_bytes(folder)


def weight_bytes(folder: Path) -> int:
    """Bytes in the weight files of a folder."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def drop_cache(folder: Path) -> None:
    """Has the system forget what it holds of a folder's files, so that reading them is reading."""
    for file in folder.iterdir():
        handle = os.open(file, os.O_RDONLY)
        try:
            os.fsync(handle)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)


def timed(work: Callable[[], Any], folder: Path) -> float:
    """Seconds that something takes whose files are not in memory, results on the disk included."""
    drop_cache(folder)
    start = time.perf_counter()
    work()
    os.sync()
    return time.perf_counter() - start


WATCHED = """
import json, resource, sys
from fpe_hf.cli.app import app
try:
    app(sys.argv[1:], prog_name="fpe-hf", standalone_mode=False)
finally:
    print(json.dumps(1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss), file=sys.stderr)
"""


def watched_widen(source: Path, out: Path, options: list[str]) -> int:
    """Runs `fpe-hf widen` in a fresh process; its peak resident memory in bytes."""
    command = [sys.executable, "-c", WATCHED, "widen", str(source), "--out", str(out), *options]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return int(done.stderr.strip().splitlines()[-1])


READER = """
import sys
import fpe_hf
from benchmarks.streaming import fingerprint
from transformers import AutoModelForCausalLM
print(fingerprint(AutoModelForCausalLM.from_pretrained(sys.argv[1]).state_dict()))
"""


def fingerprint(state: dict[str, Tensor]) -> str:
    """A hash of all tensors and their names."""
    digest = hashlib.blake2b()
    for name in sorted(state):
        if name.endswith(".checksum"):
            continue  # computed anew by every call, from the others
        digest.update(name.encode())
        flat = state[name].detach().contiguous().view(-1).view(torch.uint8)
        for part in flat.split(1 << 26):
            digest.update(part.numpy().data)
    return digest.hexdigest()[:16]


def read_back(folder: Path, processes: int = 2) -> str:
    """The fingerprint of a model that several processes load at once; they must agree."""
    command = [sys.executable, "-c", READER, str(folder)]
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(processes)
    ]
    found = []
    for process in running:
        out, err = process.communicate()
        if process.returncode:
            raise RuntimeError(err)
        found.append(out.split()[-1])
    if len(set(found)) != 1:
        raise RuntimeError(f"{processes} processes read different models: {found}")
    return found[0]


def measure(root: Path, size: float, layouts: list[str]) -> dict[str, Any]:
    """Runs everything below a folder; the figures as JSON values."""
    source = root / "dense"
    written = write_llama(source, size)
    figures: dict[str, Any] = {"source bytes": written, "rows": []}
    for layout in layouts:
        copied, out = root / "copy", root / layout
        copying = timed(lambda: shutil.copytree(source, copied), source)  # noqa: B023
        shutil.rmtree(copied)
        peaks: list[int] = []
        options = LAYOUTS[layout]
        widening = timed(lambda: peaks.append(watched_widen(source, out, options)), source)  # noqa: B023
        row = {
            "layout": layout,
            "result bytes": weight_bytes(out),
            "peak resident bytes": peaks[0],
            "seconds": round(widening, 1),
            "MB/s": round(written / widening / 1e6, 1),
            "copy seconds": round(copying, 1),
            "copy MB/s": round(written / copying / 1e6, 1),
            "fingerprint in two processes at once": read_back(out),
        }
        figures["rows"].append(row)
        print(json.dumps(row), flush=True)
        shutil.rmtree(out)
    return figures


def page(figures: dict[str, Any]) -> str:
    """The figures as Markdown."""
    about = figures["environment"]
    versions = ", ".join(f"{name} {about[name]}" for name in ("torch", "transformers", "fpe_hf"))
    columns = ["layout", "peak resident bytes", "seconds", "MB/s", "copy seconds", "copy MB/s"]
    rows = [
        [row["layout"], *(f"{row[name]:,}" if name in row else "" for name in columns[1:])]
        for row in figures["rows"]
    ]
    lines = [
        "# Widening a checkpoint that does not fit in memory",
        "",
        f"`{figures['command']}`: a Llama of random numbers,",
        f"{figures['source bytes'] / 1e9:.2f} GB in bfloat16, widened by `fpe-hf widen` in a",
        "fresh process. Beside it a plain copy of the same files. Two processes loaded each result",
        "at once and agreed on every tensor.",
        "",
        f"{about['processor']}, {about['cores']} cores; {versions};",
        f"load on the machine at the start {about['load']}; {about['date']}.",
        "",
        table(columns, rows),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=8.0)
    parser.add_argument("--layout", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
    parser.add_argument("--folder", type=Path, default=None, help="where there is room")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    needed = 3.5e9 * options.gigabytes
    with tempfile.TemporaryDirectory(dir=options.folder) as root:
        if shutil.disk_usage(root).free < needed:
            parser.error(f"{needed / 1e9:.0f} GB of disk are needed in {root}; name a --folder")
        about = {**environment(torch.device("cpu")), "load": round(os.getloadavg()[0], 1)}
        command = "python -m benchmarks.streaming"
        if options.gigabytes != parser.get_default("gigabytes"):
            command += f" --gigabytes {options.gigabytes:g}"
        figures: dict[str, Any] = {"command": command, "environment": about}
        figures |= measure(Path(root), 1e9 * options.gigabytes, options.layout)
    figures["own peak resident bytes"] = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    options.out.mkdir(parents=True, exist_ok=True)
    write_whole(options.out / "streaming.json", json.dumps(figures, indent=1) + "\n")
    write_whole(options.out / "streaming.md", page(figures))
    print(page(figures))
    if any(row["peak resident bytes"] >= LIMIT for row in figures["rows"]):
        sys.exit(f"a peak is above {LIMIT / 1e9:g} GB")


if __name__ == "__main__":
    main()
