"""Selection in a loop of one's own: `python examples/plain_loop.py [MODEL]`."""

import torch
from data import collator, model_and_rows

from greentrainer import AdaptiveBackprop

model, tokenizer, rows = model_and_rows()
collate = collator(tokenizer)
batches = [collate(rows[i : i + 4]) for i in range(0, len(rows), 4)]
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
model.train()

total = 2 * len(batches)
with AdaptiveBackprop(
    model, optimizer, batches[0], rho=0.6, total_batches=total, every=len(batches)
) as engine:
    for batch in batches * 2:
        if engine.due:
            engine.reselect(batches[:1])
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    print(f"spent {engine.ledger.rho_spent:.3f} of full fine-tuning's FLOPs")
