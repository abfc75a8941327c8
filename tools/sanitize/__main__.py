"""Compiles the kernels with sanitizers for each instruction set, and calls them in a process of
their own: an access out of bounds ends it with a report."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile

SETS = {"as it is": "", "AVX2": "-mno-avx512f", "no AVX": "-mno-avx512f -mno-avx2 -mno-avx"}
OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=0,halt_on_error=1,verify_asan_link_order=0",
    "UBSAN_OPTIONS": "halt_on_error=1,print_stacktrace=1",
}


def main() -> int:
    """Returns the number of instruction sets for which something was reported."""
    parser = argparse.ArgumentParser(prog="python -m tools.sanitize", description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0, help="In all.")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    compiler = shutil.which("gcc")
    if compiler is None:
        parser.error("gcc is needed, and its libasan and libubsan")
    libraries = [
        subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True)
        for name in ("libasan.so", "libubsan.so")
    ]
    preload = " ".join(library.stdout.strip() for library in libraries)
    failed = 0
    for number, (name, flags) in enumerate(SETS.items()):
        seconds = 60 * given.minutes / len(SETS)
        sweep = [
            sys.executable,
            "-m",
            "tools.sanitize.sweep",
            str(seconds),
            str(given.seed + number),
        ]
        with tempfile.TemporaryDirectory() as cache:
            more = {"CC": compiler, "XDG_CACHE_HOME": cache, "SANITIZE_FLAGS": flags}
            environment = {**os.environ, **OPTIONS, **more, "LD_PRELOAD": preload}
            done = subprocess.run(sweep, env=environment, capture_output=True, text=True)
        ok = done.returncode == 0
        failed += not ok
        print(f"{name}: {done.stdout.strip()}{'' if ok else ' FAILED' + done.stderr[-8000:]}")
    return failed


if __name__ == "__main__":
    sys.exit(main())
