"""Pushed in one process, loaded in another: a CLIP, a BERT and a Llama, in every way there is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import fpe_hf
from checkpoint.fresh import outputs_of
from cli.running import fpe_hf as command
from hub.processes import run_client
from hub.server import Hub
from tiny_models import tiny_inputs, tiny_model

TOKEN = "hf_writer"

LOAD = """
import sys
from pathlib import Path
import torch
import fpe_hf
from checkpoint.fresh import outputs_of
from huggingface_hub import constants, snapshot_download
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, CLIPModel
from transformers import BertForMaskedLM, LlamaForCausalLM

place, token = Path(sys.argv[1]), sys.argv[2]


def check(family, kind, *models):
    case = torch.load(place / f"{family}.pt")
    for model in models:
        assert type(model) is kind, type(model)
        found = outputs_of(model.eval(), case["inputs"])
        assert all(torch.equal(found[name], value) for name, value in case["outputs"].items())


def load_all(**options):
    clip = [auto.from_pretrained("user/clip", **options) for auto in (AutoModel, fpe_hf)]
    check("clip", CLIPModel, *clip)
    private = {"token": token, **options}
    bert = [auto.from_pretrained("user/bert", **private) for auto in (AutoModelForMaskedLM, fpe_hf)]
    check("bert_masked_lm", BertForMaskedLM, *bert)
    v1 = {"revision": "v1", **options}
    llama = [auto.from_pretrained("user/llama", **v1) for auto in (AutoModelForCausalLM, fpe_hf)]
    check("llama", LlamaForCausalLM, *llama)


load_all()
folder = snapshot_download("user/bert", token=token)
check("bert_masked_lm", BertForMaskedLM, fpe_hf.from_pretrained(folder))
try:
    AutoModelForMaskedLM.from_pretrained("user/bert", force_download=True)
    raise AssertionError("a private model was loaded without a token")
except OSError as error:
    assert "not a valid model identifier" in str(error)
load_all(local_files_only=True)
constants.HF_HUB_OFFLINE = True
load_all()
"""

WITHOUT_FPE_HF = """
import sys
sys.modules["fpe_hf"] = None
from pathlib import Path
import torch
from transformers import AutoModelForCausalLM

case = torch.load(Path(sys.argv[1]) / "llama.pt")
stock = AutoModelForCausalLM.from_pretrained("user/llama", revision="dense").eval()
assert "fpe_hf" not in str(sorted(name for name, module in sys.modules.items() if module))
found = stock(**case["inputs"]).logits
torch.testing.assert_close(found, case["outputs"]["logits"], rtol=1e-5, atol=1e-5)
try:
    AutoModelForCausalLM.from_pretrained("user/llama", revision="v1")
    raise AssertionError("a widened model was loaded without fpe_hf")
except RuntimeError as error:
    assert "mismatch" in str(error).lower(), error
"""


def test_push_and_load(hub: Hub, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    models: dict[str, Any] = {
        "clip": fpe_hf.widen(tiny_model("clip"), split="feature"),
        "bert_masked_lm": fpe_hf.widen(tiny_model("bert_masked_lm"), layout="block"),
        "llama": fpe_hf.widen(tiny_model("llama"), coupling=1.0, fan_out="partition"),
    }
    for family, model in models.items():
        inputs = tiny_inputs(model)
        case = {"inputs": inputs, "outputs": outputs_of(model, inputs)}
        torch.save(case, tmp_path / f"{family}.pt")

    # As transformers does it, in one file; in shards, private; by the command line, on branches.
    models["clip"].push_to_hub("user/clip", token=TOKEN)
    options: dict[str, Any] = {"private": True, "token": TOKEN, "max_shard_size": "10KB"}
    pushed = fpe_hf.push_to_hub(models["bert_masked_lm"], "user/bert", **options)
    assert sum(name.endswith(".safetensors") for name in pushed.files) > 1
    models["llama"].save_pretrained(tmp_path / "llama")
    for words in (("--revision", "v1"), ("--revision", "dense", "--dense")):
        result = command("push", tmp_path / "llama", "user/llama", "--token", TOKEN, *words)
        assert result.code == 0, result
        assert TOKEN not in result.out + result.err

    repos = hub.repos
    private = {name: repo.private for name, repo in repos.items()}
    assert private == {"user/clip": False, "user/bert": True, "user/llama": False}
    assert len(repos["user/bert"].history()) == 2  # the first commit is the Hub's own
    assert repos["user/llama"].files() == {}, "main has been touched"
    assert b"import fpe_hf" in repos["user/bert"].files()["README.md"]
    assert b"AutoModelForCausalLM" in repos["user/llama"].files("dense")["README.md"]

    written = run_client(hub, tmp_path / "second", LOAD, tmp_path, TOKEN)
    assert TOKEN not in written + "".join(capfd.readouterr())
    run_client(hub, tmp_path / "third", WITHOUT_FPE_HF, tmp_path)


@pytest.mark.slow
def test_trainer_pushes_and_resumes(server: Hub, tmp_path: Path) -> None:
    """`hub_strategy="checkpoint"`, then training goes on from what is on the Hub."""
    code = (Path(__file__).parent / "trainer_client.py").read_text()
    run_client(server, tmp_path / "first", code, "push", TOKEN)
    assert "last-checkpoint/trainer_state.json" in server.repos["user/run"].files()
    run_client(server, tmp_path / "second", code, "resume", TOKEN)
