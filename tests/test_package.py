from __future__ import annotations

import importlib
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import fpe_hf

ROOT = Path(__file__).resolve().parent.parent


def run(code: str) -> str:
    """What code prints in a new interpreter that can import fpe_hf."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_import_is_quick_and_light() -> None:
    code = """
import time
start = time.process_time()  # does not depend on what else the machine does
import fpe_hf
print(time.process_time() - start)
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""
    seconds, loaded = [], set()
    for _ in range(3):
        first, second = run(code).splitlines()
        seconds.append(float(first))
        loaded = set(second.split())
    assert not loaded & {"torch", "transformers", "numpy", "sklearn", "accelerate", "safetensors"}
    assert min(seconds) < 0.3


@pytest.mark.parametrize("name", [name for name in fpe_hf.__all__ if name != "__version__"])
def test_public_names_resolve(name: str) -> None:
    value = getattr(fpe_hf, name)
    assert value.__doc__
    assert value.__module__.startswith("fpe_hf")
    assert getattr(importlib.import_module(value.__module__), name) is value


def test_the_public_names_are_the_contract() -> None:
    contract = {"widen", "FPEConfig", "find_mlps", "audit", "to_dense", "register_split"}
    assert contract <= set(fpe_hf.__all__)
    assert set(fpe_hf.__all__) < set(dir(fpe_hf))
    namespace: dict[str, object] = {}
    exec("from fpe_hf import *", namespace)
    assert set(fpe_hf.__all__) <= set(namespace)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'fpe_hf' has no attribute 'expand'"):
        _ = fpe_hf.expand
    with pytest.raises(ImportError, match="expand"):
        exec("from fpe_hf import expand")


def test_submodules_are_still_found() -> None:
    assert run("import fpe_hf.errors as e; print(e.FPEError.__name__)") == "FPEError"
    assert run("from fpe_hf import errors; print(errors.FPEError.__name__)") == "FPEError"


def test_modules_that_the_documentation_names_are_attributes() -> None:
    root = ROOT / "docs"
    texts = [page.read_text(encoding="utf-8") for page in (*root.glob("*.md"), ROOT / "README.md")]
    named = {name for text in texts for name in re.findall(r"\bfpe_hf\.([a-z_]+)\.", text)}
    modules = sorted(named & {path.stem for path in Path(fpe_hf.__file__).parent.iterdir()})
    assert "metrics" in modules
    for name in modules:
        code = f"import fpe_hf; print('torch' in __import__('sys').modules, fpe_hf.{name}.__name__)"
        assert run(code) == f"False fpe_hf.{name}"


def test_the_version_is_that_of_the_distribution() -> None:
    assert re.match(r"\d+\.\d+\.\d+", fpe_hf.__version__)
    try:
        installed = metadata.version("fpe-hf")
    except metadata.PackageNotFoundError:
        pytest.skip("fpe_hf runs from its source tree here")
    assert installed == fpe_hf.__version__


def test_it_is_typed() -> None:
    assert (Path(fpe_hf.__file__).parent / "py.typed").is_file()
