"""Selection among LoRA's adapters: `python examples/lora.py [MODEL]`.

The share is one of full LoRA training, whose forward pass is as long as ever: a budget has less to
choose from than on whole weights.
"""

import tempfile

from data import collator, model_and_rows
from peft import LoraConfig, get_peft_model
from transformers import TrainingArguments

from greentrainer.hf import GreenConfig, GreenTrainer

model, tokenizer, rows = model_and_rows()
model = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"))
with tempfile.TemporaryDirectory() as folder:
    trainer = GreenTrainer(
        model,
        TrainingArguments(folder, num_train_epochs=2, per_device_train_batch_size=4,
                          learning_rate=1e-3, save_strategy="no", report_to=[]),
        train_dataset=rows,
        data_collator=collator(tokenizer),
        green=GreenConfig(rho=0.8, probe_batches=1),
    )  # fmt: skip
    trainer.train()
print(f"spent {trainer.ledger.rho_spent:.3f} of full LoRA training's FLOPs")
