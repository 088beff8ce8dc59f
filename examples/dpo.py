"""Selection in TRL's DPOTrainer, on pairs of answers: `python examples/dpo.py [MODEL]`.

The loss lies outside the model and takes a second one: `Green` is mixed into the Trainer.
"""

import copy
import tempfile

from data import model_and_rows
from datasets import Dataset
from trl import DPOConfig, DPOTrainer

from greentrainer import tasks
from greentrainer.hf import Green, GreenConfig


class GreenDPO(Green, DPOTrainer):
    """Direct preference optimization within a budget."""


model, tokenizer, _ = model_and_rows(1)
some = tasks.load("pydoc").examples("train")[:48]
data = Dataset.from_list(
    [
        {"prompt": [{"role": "user", "content": one.prompt[:100]}],
         "chosen": [{"role": "assistant", "content": one.completion[:60]}],
         "rejected": [{"role": "assistant", "content": other.completion[:60]}]}
        for one, other in zip(some, reversed(some), strict=True)
    ]
)  # fmt: skip
with tempfile.TemporaryDirectory() as folder:
    trainer = GreenDPO(
        model,
        ref_model=copy.deepcopy(model),
        args=DPOConfig(folder, num_train_epochs=2, per_device_train_batch_size=4, max_length=128,
                       save_strategy="no", report_to=[], bf16=False),
        train_dataset=data,
        processing_class=tokenizer,
        green=GreenConfig(rho=0.8, probe_batches=1),
    )  # fmt: skip
    trainer.train()
print(f"spent {trainer.ledger.rho_spent:.3f} of full preference training's FLOPs")
