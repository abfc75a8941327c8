"""`push_to_hub`: what arrives, what stays behind, and what is refused."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, ModelCard, constants
from transformers import BertTokenizerFast

import fpe_hf
from checkpoint.fresh import outputs_of
from cli.running import contents
from fpe_hf.errors import CheckpointError, ConfigError
from fpe_hf.hub import HubError
from hub.conftest import LEFT_OUT
from hub.server import Hub
from tiny_models import tiny_inputs, tiny_model

NAME = "user/name"
PUSHED = {
    "README.md",
    "audit.json",
    "config.json",
    "model.safetensors",
    "recipe.yaml",
    "report.png",
    "tokenizer.json",
}


@pytest.fixture
def folder(widened: Path, tmp_path: Path) -> Path:
    """A copy of the widened folder, to change."""
    return Path(shutil.copytree(widened, tmp_path / "folder"))


def test_what_belongs_to_the_model_arrives_in_one_commit(hub: Hub, widened: Path) -> None:
    before = contents(widened)
    pushed = fpe_hf.push_to_hub(widened, NAME)
    assert contents(widened) == before
    repo = hub.repos[NAME]
    assert set(repo.files()) == PUSHED == set(pushed.files)
    assert len(repo.history()) == 2
    assert repo.history()[0].oid == pushed.commit
    assert repo.history()[0].title.startswith("Upload widened BertForMaskedLM (fpe_hf ")
    assert set(pushed.left_out) == {*LEFT_OUT, "checkpoint-1"}
    assert pushed.url.endswith(f"/{NAME}/commit/{pushed.commit}")
    assert repo.files()["model.safetensors"] == before["model.safetensors"]


def test_pushing_again_changes_nothing_or_what_has_changed(hub: Hub, folder: Path) -> None:
    first = fpe_hf.push_to_hub(folder, NAME)
    assert fpe_hf.push_to_hub(folder, NAME).commit == first.commit
    (folder / "recipe.yaml").write_text("changed: true")
    second = fpe_hf.push_to_hub(folder, NAME)
    assert [commit.oid for commit in hub.repos[NAME].history()[:2]] == [second.commit, first.commit]
    assert hub.repos[NAME].files()["recipe.yaml"] == b"changed: true"
    assert hub.count("PUT /storage/.* 200") == 2  # the weights and the picture, once


def test_weights_of_an_earlier_push_are_removed(hub: Hub) -> None:
    model = fpe_hf.widen(tiny_model("bert"))
    sharded = fpe_hf.push_to_hub(model, NAME, max_shard_size="20KB")
    assert sum(name.endswith(".safetensors") for name in sharded.files) > 2
    single = fpe_hf.push_to_hub(model, NAME)
    assert single.deleted
    weights = {name for name in hub.repos[NAME].files() if "safetensors" in name}
    assert weights == {"model.safetensors"}
    inputs = tiny_inputs(model)
    expected = outputs_of(model, inputs)
    found = outputs_of(fpe_hf.from_pretrained(NAME), inputs)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_processor_comes_along(hub: Hub) -> None:
    from transformers import ViTImageProcessor

    processor = ViTImageProcessor(size={"height": 16, "width": 16})
    fpe_hf.push_to_hub(fpe_hf.widen(tiny_model("vit")), NAME, processor=processor)
    assert "preprocessor_config.json" in hub.repos[NAME].files()


def test_modules_licence_and_code_that_a_config_names_are_pushed(hub: Hub, folder: Path) -> None:
    modules = [{"path": ""}, {"path": "1_Pooling"}, {"path": "2_Dense"}, {"path": "../up"}]
    (folder / "modules.json").write_text(json.dumps(modules))
    for name in ("1_Pooling/config.json", "2_Dense/model.safetensors", "2_Dense/a.bin", "LICENSE"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("{}")
    added = {"modules.json", "1_Pooling/config.json", "2_Dense/model.safetensors", "LICENSE"}
    pushed = fpe_hf.push_to_hub(folder, NAME)
    assert set(hub.repos[NAME].files()) == {*PUSHED, *added}
    assert set(pushed.left_out) == {*LEFT_OUT, "checkpoint-1", "2_Dense/a.bin"}
    fpe_hf.push_to_hub(folder, NAME, dense=True)
    assert "2_Dense/model.safetensors" in hub.repos[NAME].files()

    (folder / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": "modeling.T"}}')
    pushed = fpe_hf.push_to_hub(folder, NAME)
    assert "modeling.py" in pushed.files
    (folder / "modeling.py").write_text("token = 'hf_" + "aB3" * 12 + "'")
    with pytest.raises(HubError, match=r"modeling\.py holds what looks like an access token"):
        fpe_hf.push_to_hub(folder, NAME)


def test_weights_in_folders_that_others_have_pushed_stay(hub: Hub, widened: Path) -> None:
    HfApi().create_repo(NAME)
    HfApi().upload_file(path_or_fileobj=b"x", path_in_repo="other/a.safetensors", repo_id=NAME)
    assert fpe_hf.push_to_hub(widened, NAME).deleted == ()
    assert "other/a.safetensors" in hub.repos[NAME].files()


def test_the_card_names_the_model_that_was_widened_by_its_id(hub: Hub, tmp_path: Path) -> None:
    tiny_model("bert").save_pretrained(tmp_path / "dense")
    HfApi().create_repo("user/base")
    HfApi().upload_folder(folder_path=tmp_path / "dense", repo_id="user/base")
    model = fpe_hf.widen("user/base")
    assert model.config._name_or_path == model.name_or_path == ""
    model.save_pretrained(tmp_path / "widened")
    fpe_hf.push_to_hub(tmp_path / "widened", NAME)
    assert ModelCard.load(NAME).data.base_model == "user/base"
    fpe_hf.push_to_hub(tmp_path / "widened", NAME, base_model="user/other")
    assert ModelCard.load(NAME).data.base_model == "user/other"
    local = fpe_hf.widen(str(tmp_path / "dense"))
    fpe_hf.push_to_hub(local, NAME)
    assert ModelCard.load(NAME).data.base_model is None


def test_a_model_of_sentence_transformers_is_pushed_whole(
    hub: Hub, tokenizer: BertTokenizerFast, tmp_path: Path
) -> None:
    library = pytest.importorskip("sentence_transformers", minversion="6")
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    tiny_model("bert").save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    modules = [Transformer(str(tmp_path)), Pooling(32, "mean"), Normalize()]
    model = fpe_hf.widen(library.SentenceTransformer(modules=modules, device="cpu"))
    pushed = fpe_hf.push_to_hub(model, NAME)
    assert {"modules.json", "1_Pooling/config.json", "tokenizer.json"} <= set(pushed.files)
    card = hub.repos[NAME].files()["README.md"].decode()
    code = "import fpe_hf\nfrom sentence_transformers import SentenceTransformer\n\n"
    assert f'{code}model = SentenceTransformer("{NAME}")\n' in card
    assert "pipeline_tag: sentence-similarity" in card
    assert "- sentence-transformers" in card
    again = library.SentenceTransformer(NAME, device="cpu")
    assert (again.encode(["the cat"]) == model.encode(["the cat"])).all()


def test_a_branch_is_made(hub: Hub, widened: Path) -> None:
    fpe_hf.push_to_hub(widened, NAME, revision="v1")
    assert hub.repos[NAME].files() == {}
    assert set(hub.repos[NAME].files("v1")) == PUSHED
    assert b'revision="v1"' in hub.repos[NAME].files("v1")["README.md"]


def test_the_stock_variant_replaces_the_weights_on_its_branch(hub: Hub, widened: Path) -> None:
    fpe_hf.push_to_hub(widened, NAME)
    fpe_hf.push_to_hub(widened, NAME, revision="dense", dense=True)
    files = hub.repos[NAME].files("dense")
    assert set(files) == PUSHED
    assert b"quantization_config" not in files["config.json"]
    assert b"quantization_config" in hub.repos[NAME].files()["config.json"]
    stock = fpe_hf.from_pretrained(NAME, revision="dense")
    inputs = tiny_inputs(stock)
    expected = outputs_of(fpe_hf.from_pretrained(NAME), inputs)
    torch.testing.assert_close(outputs_of(stock, inputs), expected, rtol=1e-5, atol=1e-5)


def test_a_pull_request_leaves_main_alone(hub: Hub, widened: Path) -> None:
    HfApi().create_repo(NAME)
    pushed = fpe_hf.push_to_hub(widened, NAME, create_pr=True)
    assert pushed.pull_request == f"{hub.url}/{NAME}/discussions/1"
    assert hub.repos[NAME].files() == {}
    assert set(hub.repos[NAME].files("refs/pr/1")) == PUSHED
    again = fpe_hf.push_to_hub(widened, NAME, revision="refs/pr/1")
    assert again.commit == pushed.commit


def test_anyone_may_open_a_pull_request(
    hub: Hub, widened: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    HfApi().create_repo(NAME)
    hub.users["hf_other"] = "other"
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    with pytest.raises(HubError, match=r"403.*right to write"):
        fpe_hf.push_to_hub(widened, NAME)
    assert fpe_hf.push_to_hub(widened, NAME, create_pr=True).pull_request is not None


def test_transformers_own_push(hub: Hub) -> None:
    model = fpe_hf.widen(tiny_model("bert"))
    model.push_to_hub(NAME, commit_message="by transformers", max_shard_size="20KB")
    assert hub.repos[NAME].history()[0].title == "by transformers"
    inputs = tiny_inputs(model)
    loaded = fpe_hf.from_pretrained(NAME)
    assert torch.equal(*(outputs_of(m, inputs)["pooler_output"] for m in (model, loaded)))


# -- the card --------------------------------------------------------------------------------------


def test_a_card_in_the_folder_is_pushed_as_it_is(hub: Hub, folder: Path) -> None:
    (folder / "README.md").write_text("---\nlicense: mit\n---\nMine.")
    fpe_hf.push_to_hub(folder, NAME)
    assert hub.repos[NAME].files()["README.md"] == b"---\nlicense: mit\n---\nMine."


def test_a_card_edited_on_the_hub_is_kept(hub: Hub, widened: Path) -> None:
    fpe_hf.push_to_hub(widened, NAME)
    HfApi().upload_file(path_or_fileobj=b"Mine.", path_in_repo="README.md", repo_id=NAME)
    fpe_hf.push_to_hub(widened, NAME)
    assert hub.repos[NAME].files()["README.md"] == b"Mine."


def test_a_card_that_was_written_here_is_renewed(hub: Hub, widened: Path) -> None:
    fpe_hf.push_to_hub(widened, NAME)
    fpe_hf.push_to_hub(widened, NAME, license="mit")
    assert ModelCard.load(NAME).data.license == "mit"


def test_the_licence_of_the_base_model_is_carried_over(hub: Hub, widened: Path) -> None:
    api = HfApi()
    api.create_repo("user/base")
    card = b"---\nlicense: other\nlicense_name: my-licence\nlicense_link: LICENSE\n---\n"
    api.upload_file(path_or_fileobj=card, path_in_repo="README.md", repo_id="user/base")
    fpe_hf.push_to_hub(widened, NAME, base_model="user/base")
    data = ModelCard.load(NAME).data
    found = data.base_model, data.license, data.license_name, data.license_link
    assert found == ("user/base", "other", "my-licence", "LICENSE")


def test_an_unknown_licence_is_left_out(hub: Hub, widened: Path) -> None:
    fpe_hf.push_to_hub(widened, NAME, base_model="user/not-there")
    data = ModelCard.load(NAME).data
    assert (data.base_model, data.license) == ("user/not-there", None)


# -- refusals --------------------------------------------------------------------------------------


def test_a_damaged_or_dense_folder_is_not_pushed(hub: Hub, folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")
    tiny_model("bert").save_pretrained(tmp_path / "dense")
    for place, message in ((folder, "broken"), (tmp_path / "dense", "does not describe a widened")):
        with pytest.raises(CheckpointError, match=message):
            fpe_hf.push_to_hub(place, NAME)
    assert hub.requests == []


@pytest.mark.parametrize(
    ("token", "message"),
    [
        ("hf_reader", r"403.*rights.*right to write"),
        ("hf_unknown", r"401.*Invalid username or password.*Log in: `hf auth login`"),
    ],
)
def test_no_right_to_write(hub: Hub, widened: Path, token: str, message: str) -> None:
    with pytest.raises(HubError, match=message):
        fpe_hf.push_to_hub(widened, NAME, token=token)
    assert hub.repos == {}


def test_arguments_are_checked_before_anything_else(hub: Hub, widened: Path) -> None:
    with pytest.raises(HubError, match="Repo id must"):
        fpe_hf.push_to_hub(widened, "user/a/b")
    with pytest.raises(ConfigError, match=r"revision='v1'.*against the main branch"):
        fpe_hf.push_to_hub(widened, NAME, revision="v1", create_pr=True)
    assert hub.requests == []


def test_offline_mode_is_named(hub: Hub, widened: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="offline mode is on; unset HF_HUB_OFFLINE"):
        fpe_hf.push_to_hub(widened, NAME)


# -- tokens ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("secret", ["hf_" + "aB3" * 12, "hf_writer"])
def test_a_file_with_a_token_is_not_pushed(hub: Hub, folder: Path, secret: str) -> None:
    (folder / "recipe.yaml").write_text(f"token: {secret}")
    with pytest.raises(HubError, match=r"recipe\.yaml holds what looks like an access token"):
        fpe_hf.push_to_hub(folder, NAME, token="hf_writer")
    assert hub.requests == []


def test_tokens_reach_no_file_no_log_and_no_message(
    hub: Hub, widened: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    token = "hf_writer"
    hub.fail("POST .*/commit/", status=500)
    with caplog.at_level(logging.DEBUG):
        fpe_hf.push_to_hub(widened, NAME, token=token, private=True)
        fpe_hf.from_pretrained(NAME, token=token)
    assert "Trying again" in caplog.text
    assert token not in caplog.text + "".join(capfd.readouterr())
    assert not any(token.encode() in content for content in hub.repos[NAME].files().values())


def test_a_token_that_the_hub_repeats_is_hidden(hub: Hub, widened: Path) -> None:
    hub.fail("POST .*/create", status=400, headers={"X-Error-Message": "hf_writer is bad"})
    with pytest.raises(HubError, match="<token> is bad") as caught:
        fpe_hf.push_to_hub(widened, NAME, token="hf_writer")
    assert "hf_writer" not in str(caught.value)
