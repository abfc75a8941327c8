from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from fpe_hf.cli.app import app
from fpe_hf.recipes.report import again


def test_a_report_is_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from recipes.report.runs import make_results

    make_results({"dense": [0.5], "fpe": [0.6]}).write(tmp_path)
    monkeypatch.setattr(again, "write_report", lambda *_: None)
    result = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert f"Report: {tmp_path / 'report.html'}" in result.output


def test_a_folder_without_results_is_an_error(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert result.exit_code == 1
    assert "holds no results.json" in result.output
