"""What the tests of recipes share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import pytest
import transformers as hf

from tiny_data import save_pretrained


@pytest.fixture(scope="session", autouse=True)
def _quiet() -> Iterator[None]:
    hf.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    yield
    hf.utils.logging.enable_progress_bar()
    datasets.enable_progress_bars()


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Family -> folder of its tiny pretrained model without a head, and of its processor."""
    made: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in made:
            made[family] = tmp_path_factory.mktemp(family)
            save_pretrained(family, made[family])
        return made[family]

    return folder
