"""Selection in TRL's SFTTrainer, on chat data: `python examples/sft.py [MODEL]`.

Two lines are added to what one would write without: the import and the callback.
"""

import tempfile

from data import model_and_rows
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from greentrainer import tasks
from greentrainer.hf import GreenCallback, GreenConfig

model, tokenizer, _ = model_and_rows(1)
data = Dataset.from_list(
    [
        {"prompt": [{"role": "user", "content": one.prompt[:200]}],
         "completion": [{"role": "assistant", "content": one.completion}]}
        for one in tasks.load("pydoc").examples("train")[:48]
    ]
)  # fmt: skip
with tempfile.TemporaryDirectory() as folder:
    green = GreenCallback(GreenConfig(rho=0.6, probe_batches=1))
    trainer = SFTTrainer(
        model,
        SFTConfig(folder, num_train_epochs=2, per_device_train_batch_size=4, max_length=128,
                  save_strategy="no", report_to=[], bf16=False),
        train_dataset=data,
        processing_class=tokenizer,
        callbacks=[green],
    )  # fmt: skip
    trainer.train()
assert green.engine is not None
print(f"spent {green.engine.ledger.rho_spent:.3f} of full fine-tuning's FLOPs")
