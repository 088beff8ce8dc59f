"""An encoder-decoder: `python examples/seq2seq.py MODEL`, such as google/flan-t5-small."""

import tempfile

from data import collator, model_and_rows
from transformers import Seq2SeqTrainingArguments

from greentrainer.hf import GreenConfig, GreenSeq2SeqTrainer

model, tokenizer, rows = model_and_rows()
with tempfile.TemporaryDirectory() as folder:
    trainer = GreenSeq2SeqTrainer(
        model,
        Seq2SeqTrainingArguments(folder, num_train_epochs=2, per_device_train_batch_size=4,
                                 gradient_accumulation_steps=2, save_strategy="no", report_to=[]),
        train_dataset=rows,
        data_collator=collator(tokenizer),
        green=GreenConfig(rho=0.6, probe_batches=1),
    )  # fmt: skip
    trainer.train()
print(f"spent {trainer.ledger.rho_spent:.3f} of full fine-tuning's FLOPs")
