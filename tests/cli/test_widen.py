from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageClassification

import fpe_hf as library
from cli.conftest import COMPANIONS
from cli.damage import CONFIG, WEIGHTS
from cli.running import assert_refused, contents, fpe_hf
from tiny_models import tiny_inputs, tiny_model


def plan(folder: Path) -> dict[str, object]:
    """The `FPEConfig` stored in a widened model."""
    stored: dict[str, object] = json.loads((folder / CONFIG).read_text())["quantization_config"]
    return stored["config"]  # type: ignore[return-value]


def test_saves_what_the_python_function_makes(dense: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    result = fpe_hf("widen", dense, "-o", out, "--alpha", 4, "--seed", 3, "--bias", "child")
    assert result.code == 0, result
    assert result.out.endswith(
        "All invariants hold.\nNot copied: README.md\n"
        f"Saved the widened ViTForImageClassification to {out}\n"
    )
    assert "vit.layers.1.mlp" in result.out
    assert contents(out).keys() == {CONFIG, WEIGHTS, *COMPANIONS}
    assert [path.name for path in out.parent.iterdir()] == ["out"]

    model = library.widen(tiny_model("vit"), alpha=4, seed=3, bias="child")
    loaded = AutoModelForImageClassification.from_pretrained(out).eval()
    inputs = tiny_inputs(model)
    assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)


def test_every_option_reaches_the_config(dense: Path, tmp_path: Path) -> None:
    options = {
        "alpha": 3,
        "split": "feature",
        "fan_out": "partition",
        "layout": "block",
        "tile_size": 12,
        "purpose": "serving",
        "coupling": 0.5,
        "bias": "child",
        "budget": 0.75,
        "seed": 7,
    }
    flags = [x for name, value in options.items() for x in ("--" + name.replace("_", "-"), value)]
    words = ["--target", "vit.layers.*", "--target", "layers.0.mlp", "--exclude", "layers.1.mlp"]
    result = fpe_hf("widen", dense, "--out", tmp_path / "out", "--learn-coupling", *flags, *words)
    assert result.code == 0, result
    assert plan(tmp_path / "out") == {
        **options,
        "learn_coupling": True,
        "open": False,
        "targets": ["vit.layers.*", "layers.0.mlp"],
        "exclude": ["layers.1.mlp"],
        "overrides": {},
    }


def test_options_take_precedence_over_the_config_file(dense: Path, tmp_path: Path) -> None:
    fields = {"alpha": 4, "seed": 5, "learn_coupling": True, "overrides": {"*.0.*": {"alpha": 3}}}
    (tmp_path / "fpe.json").write_text(json.dumps(fields))
    options = ["--config", tmp_path / "fpe.json", "--seed", 6, "--no-learn-coupling"]
    result = fpe_hf("widen", dense, "--out", tmp_path / "out", *options)
    assert result.code == 0, result
    stored = plan(tmp_path / "out")
    assert (stored["alpha"], stored["seed"], stored["learn_coupling"]) == (4, 6, False)
    assert stored["overrides"] == {"*.0.*": {"alpha": 3}}


@pytest.mark.parametrize(("option", "dtype"), [("auto", "bfloat16"), ("float16", "float16")])
def test_dtype_is_the_stored_one_unless_given(option: str, dtype: str, tmp_path: Path) -> None:
    tiny_model("llama").bfloat16().save_pretrained(tmp_path / "dense")
    result = fpe_hf("widen", tmp_path / "dense", "--out", tmp_path / "out", "--dtype", option)
    assert result.code == 0, result
    weight = load_file(tmp_path / "out" / WEIGHTS)["model.layers.0.mlp.up_proj.weight"]
    assert weight.dtype is getattr(torch, dtype)


def test_shards(dense: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert fpe_hf("widen", dense, "--out", out, "--max-shard-size", "40KB").code == 0
    assert len(list(out.glob("*.safetensors"))) > 1
    result = fpe_hf("validate", out)
    assert result.code == 0, result


def test_revision_reaches_the_config_too(
    dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    read = AutoConfig.from_pretrained

    def read_and_record(name: str, **options: object) -> object:
        asked.append(options.get("revision"))
        return read(name, **options)

    monkeypatch.setattr(AutoConfig, "from_pretrained", read_and_record)
    assert fpe_hf("widen", dense, "--out", tmp_path / "out", "--revision", "v2").code == 0
    assert asked[0] == "v2"


def test_overwrite_replaces_a_saved_model(dense: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(dense, out)
    assert fpe_hf("widen", dense, "--out", out, "--overwrite").code == 0
    assert contents(out).keys() == {CONFIG, WEIGHTS, *COMPANIONS}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_pretrained_model_comes_with_a_warning_unless_the_start_is_exact(
    dense: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    exact = ["--fan-out", "partition", "--coupling", 1]
    fpe_hf("widen", dense, "--out", tmp_path / "exact", *exact)
    assert "outputs of this pretrained model change" not in caplog.text
    fpe_hf("widen", dense, "--out", tmp_path / "paper")
    assert "outputs of this pretrained model change" in caplog.text


def test_generation_settings_are_those_of_the_source(tmp_path: Path) -> None:
    model = tiny_model("llama")
    model.generation_config.max_new_tokens = 11
    model.save_pretrained(tmp_path / "dense")
    assert fpe_hf("widen", tmp_path / "dense", "--out", tmp_path / "out").code == 0
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert loaded.generation_config.max_new_tokens == 11


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--alpha", 1], "alpha=1 is out of range: it must be an integer from 2 to 256."),
        (["--alpha", 64], "vit.layers.0.mlp"),
        (["--coupling", 1.5], "coupling=1.5 is out of range"),
        (["--coupling", "nan"], "coupling=nan is out of range"),
        (["--seed", -1], "seed=-1 is out of range"),
        (
            ["--layout", "blok"],
            "layout='blok' is not accepted; accepted: 'element', 'block', 'auto'.",
        ),
        (["--split", "rndom"], "Did you mean 'random'?"),
        (["--fan-out", "none"], "fan_out='none' is not accepted"),
        (["--bias", "two"], "bias='two' is not accepted"),
        (["--tile-size", 8], "tile_size=8 needs layout='block'"),
        (["--target", "vit.layers.7.mlp"], "targets: 'vit.layers.7.mlp' names no MLP block"),
        (["--exclude", "decoder"], "exclude: 'decoder' names no MLP block"),
        (["--exclude", "vit"], "exclude leaves no block to widen"),
    ],
)
def test_bad_settings_are_errors(
    options: list[object], message: str, dense: Path, old: Path
) -> None:
    result = fpe_hf("widen", dense, "--out", old, "--overwrite", *options)
    assert_refused(result, message)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--alpha", "two"], "Invalid value for '--alpha'"),
        (["--dtype", "int8"], "'int8' is not one of 'auto', 'float32'"),
        (["--max-shard-size", "big"], "'big' is not a size such as 500MB or 5GB"),
        (["--max-shard-size", "0GB"], "'0GB' is not above 0"),
        (["--config", "none.json"], "does not exist"),
        (["--alhpa", 2], "No such option: --alhpa"),
    ],
)
def test_wrong_usage(options: list[object], message: str, dense: Path, old: Path) -> None:
    result = fpe_hf("widen", dense, "--out", old, "--overwrite", *options)
    assert_refused(result, message, code=2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"alhpa": 2}', "'alhpa' is not a field of FPEConfig"),
        ('{"alpha": "2"}', "alpha='2' must be an integer"),
        ('{"alpha": 2', "The configuration is not JSON"),
        ("[]", "must be a JSON object, not list"),
    ],
)
def test_a_bad_config_file_is_named(
    text: str, message: str, dense: Path, old: Path, tmp_path: Path
) -> None:
    (tmp_path / "fpe.json").write_text(text)
    options = ["--config", tmp_path / "fpe.json"]
    result = fpe_hf("widen", dense, "--out", old, "--overwrite", *options)
    assert_refused(result, message)
    assert str(tmp_path / "fpe.json") in result.err


def test_refuses_a_widened_model(widened: Path, old: Path) -> None:
    result = fpe_hf("widen", widened, "--out", old, "--overwrite")
    assert_refused(result, "already widened")


def test_a_source_that_cannot_be_read_is_an_error(dense: Path, old: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(dense, source)
    weights = (source / WEIGHTS).read_bytes()
    (source / WEIGHTS).write_bytes(weights[:-1])
    assert_refused(fpe_hf("widen", source, "--out", old, "--overwrite"), "Error")
    (source / WEIGHTS).unlink()
    assert_refused(fpe_hf("widen", source, "--out", old, "--overwrite"), WEIGHTS)
    (source / CONFIG).write_text("{")
    assert_refused(fpe_hf("widen", source, "--out", old, "--overwrite"), "config")


def test_what_cannot_be_streamed_is_loaded_as_a_whole(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tiny_model("bert_masked_lm").save_pretrained(tmp_path / "dense")
    config = json.loads((tmp_path / "dense" / CONFIG).read_text())
    del config["architectures"]  # it becomes a BertModel, whose pooler is not in the files
    (tmp_path / "dense" / CONFIG).write_text(json.dumps(config))
    result = fpe_hf("widen", tmp_path / "dense", "--out", tmp_path / "out")
    assert result.code == 0, result
    assert result.out.endswith(f"Saved the widened BertModel to {tmp_path / 'out'}\n")
    assert "is loaded as a whole, which takes the memory of all its weights" in caplog.text
    assert "'pooler.dense.weight' is not in its files." in caplog.text
    assert contents(tmp_path / "out").keys() == {CONFIG, WEIGHTS}
    assert fpe_hf("validate", tmp_path / "out").code == 0


def test_streaming_is_the_rule(
    dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fpe_hf.streaming.widening.widen_in_memory", None)
    assert fpe_hf("widen", dense, "--out", tmp_path / "out").code == 0


def test_an_interruption_while_saving_leaves_nothing(
    dense: Path, old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fpe_hf.hub.companions.copy_companions", interrupt)
    assert fpe_hf("widen", dense, "--out", old, "--overwrite").code == 130


def test_refuses_a_full_folder_and_its_own_source(dense: Path, old: Path) -> None:
    assert_refused(fpe_hf("widen", dense, "--out", old), "--overwrite replaces it")
    before = contents(dense.parent)
    for out in (dense, dense.parent):
        result = fpe_hf("widen", dense, "--out", out, "--overwrite")
        assert_refused(result, "holds the model that is read")
    assert contents(dense.parent) == before


def test_a_coupling_alone_is_no_exact_start_and_says_why(
    dense: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    result = fpe_hf("widen", dense, "--out", tmp_path / "out", "--coupling", "1")
    assert result.code == 0, result
    assert 'further: fan_out="replicate" copies outgoing weights' in caplog.text
