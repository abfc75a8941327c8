from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cli.running import assert_refused, fpe_hf
from fpe_hf import __version__
from fpe_hf.errors import FPEError

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = "widen inspect export validate push run validate-recipe sweep recipes reproduce".split()


def in_subprocess(*args: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    search = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": search, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, *map(str, args)]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=cwd, env=environment
    )


def test_help_lists_the_commands() -> None:
    result = fpe_hf("--help")
    assert result.code == 0
    for command in COMMANDS:
        assert f"\n  {command} " in result.out
    assert "..." not in result.out.split("Commands:")[1], "a summary is cut off"
    assert fpe_hf().code == 2


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (
            "widen",
            "MODEL --out --alpha --split --fan-out --layout --tile-size --coupling "
            "--learn-coupling --no-learn-coupling --bias --seed --target --exclude --config "
            "--dtype --max-shard-size --revision --overwrite element|block replicate|partition",
        ),
        ("inspect", "MODEL_OR_DIR --json --config-only --revision"),
        ("export", "DIR --dense OUT --overwrite"),
        ("validate", "DIR"),
    ],
)
def test_help_of_a_command_names_all_its_options(command: str, words: str) -> None:
    for flag in ("--help", "-h"):
        result = fpe_hf(command, flag)
        assert result.code == 0
        for word in words.split():
            assert word in result.out


def test_help_of_widen_shows_the_defaults_of_the_config() -> None:
    shown = " ".join(fpe_hf("widen", "--help").out.split())
    for default in ("2", "random", "replicate", "training", "0.0", "shared", "all", "auto"):
        assert f"[default: {default}]" in shown


def test_version() -> None:
    assert fpe_hf("--version") == (0, f"fpe-hf {__version__}\n", "")


def test_unknown_commands_are_wrong_usage() -> None:
    assert_refused(fpe_hf("widne"), "No such command 'widne'. Did you mean 'widen'?", code=2)


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    options = ["widen", "some/model", "--out", "out", "--alpha", "1"]
    plain = in_subprocess("-m", "fpe_hf.cli", *options, cwd=tmp_path)
    assert plain.returncode == 1
    assert plain.stderr.startswith("Error: alpha=1 is out of range")
    assert "Traceback" not in plain.stderr
    debug = in_subprocess("-m", "fpe_hf.cli", "--debug", *options, cwd=tmp_path)
    assert debug.returncode == 1
    assert debug.stderr.startswith("Traceback")
    assert "fpe_hf.errors.ConfigError: alpha=1 is out of range" in debug.stderr


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (FPEError("one\ntwo\nthree"), "Error: one\ntwo\nthree\n"),
        (OSError("one\n\n two\nthree"), "Error: one\ntwo\n"),
        (
            KeyError("name"),
            "Error: KeyError: 'name'\n(fpe-hf --debug shows where this happened.)\n",
        ),
        (OSError("\x1b[2Jname\u202e"), "Error: \\x1b[2Jname\\u202e\n"),
        (
            RuntimeError(),
            "Error: RuntimeError: \n(fpe-hf --debug shows where this happened.)\n",
        ),
    ],
)
def test_errors_are_told_in_a_line_or_two(
    error: Exception, message: str, widened: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path, **options: object) -> None:
        raise error

    monkeypatch.setattr("fpe_hf.checkpoint.validate.validate_checkpoint", fail)
    assert fpe_hf("validate", widened) == (1, "", message)


def test_help_is_quick_because_it_imports_neither_torch_nor_transformers(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from fpe_hf.cli import main\n"
        "try:\n"
        "    main()\n"
        "finally:\n"
        "    heavy = {'torch', 'transformers', 'numpy', 'rich'} & set(sys.modules)\n"
        "    print('HEAVY', sorted(heavy))\n"
    )
    for args in (["--help"], ["widen", "--help"], ["--version"]):
        result = in_subprocess("-c", code, *args, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        assert "HEAVY []" in result.stdout


def test_sigterm_leaves_nothing(dense: Path, tmp_path: Path) -> None:
    code = (
        "import os, signal\n"
        "from fpe_hf.cli import main, widen\n"
        "widen._widen = lambda *_: os.kill(os.getpid(), signal.SIGTERM)\n"
        "main()\n"
    )
    result = in_subprocess("-c", code, "widen", dense, "--out", tmp_path / "out", cwd=tmp_path)
    assert result.returncode == 143, result.stderr
    assert not list(tmp_path.iterdir())


def test_the_entry_point_in_a_fresh_process(dense: Path, tmp_path: Path) -> None:
    result = in_subprocess("-m", "fpe_hf.cli", "widen", dense, "--out", "wide", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    *_, verdict, left, last = result.stdout.splitlines()
    assert (verdict, left) == ("All invariants hold.", "Not copied: README.md")
    assert last == "Saved the widened ViTForImageClassification to wide"
    assert "outputs of this pretrained model change until it is trained" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["wide"]


def test_validate_in_a_fresh_process(widened: Path, tmp_path: Path) -> None:
    result = in_subprocess("-m", "fpe_hf.cli", "validate", widened, cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("OK: ")
