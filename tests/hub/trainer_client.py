"""What `test_processes` runs to train with the Hub: `push` trains a little and pushes checkpoints,
`resume` goes on from the last one."""

import json
import sys
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from transformers import Trainer, TrainingArguments

import fpe_hf
from tiny_models import tiny_model

task, token = sys.argv[1:]
STEPS = {"push": 2, "resume": 4}


class Examples(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids = torch.randint(3, 96, (6,), generator=torch.Generator().manual_seed(index))
        return {"input_ids": ids, "labels": torch.tensor(index % 5)}


arguments = TrainingArguments(
    output_dir=f"{Path.cwd()}/{task}",
    max_steps=STEPS[task],
    save_steps=2,
    per_device_train_batch_size=4,
    push_to_hub=True,
    hub_model_id="user/run",
    hub_strategy="checkpoint",
    hub_token=token,
    report_to="none",
    use_cpu=True,
)
if task == "push":
    model = fpe_hf.widen(tiny_model("bert_classifier").train())
    trainer = Trainer(model, arguments, train_dataset=Examples())
    trainer.train()
else:
    place = Path(snapshot_download("user/run", token=token))
    checkpoint = place / "last-checkpoint"
    assert json.loads((checkpoint / "trainer_state.json").read_text())["global_step"] == 2
    trainer = Trainer(fpe_hf.from_pretrained(checkpoint), arguments, train_dataset=Examples())
    trainer.train(resume_from_checkpoint=str(checkpoint))
    assert trainer.state.global_step == 4
    assert trainer.state.log_history[0]["step"] >= 2
assert fpe_hf.audit(trainer.model, strict=True).ok
