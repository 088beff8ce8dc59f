"""Selection in Hugging Face's Trainer: `python examples/trainer.py [MODEL]`.

The same file runs on several processes: `torchrun --nproc_per_node 2 examples/trainer.py [MODEL]`.
"""

import tempfile

from data import collator, model_and_rows
from transformers import TrainingArguments

from greentrainer.hf import GreenConfig, GreenTrainer

model, tokenizer, rows = model_and_rows()
with tempfile.TemporaryDirectory() as folder:
    trainer = GreenTrainer(
        model,
        TrainingArguments(folder, num_train_epochs=2, per_device_train_batch_size=4,
                          save_strategy="no", report_to=[]),
        train_dataset=rows,
        data_collator=collator(tokenizer),
        green=GreenConfig(rho=0.6, probe_batches=1),
    )  # fmt: skip
    trainer.train()
print(f"spent {trainer.ledger.rho_spent:.3f} of full fine-tuning's FLOPs")
