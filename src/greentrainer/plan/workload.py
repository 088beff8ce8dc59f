"""What a run that is only planned will have to do: the batches of an epoch, and their FLOPs."""

from dataclasses import dataclass, replace
from typing import Any

import torch

from greentrainer.config import RunConfig
from greentrainer.engine import GraphCache
from greentrainer.forward import tokens_of
from greentrainer.run import (
    EpochOrder,
    collator_of,
    encoded_of,
    load_task,
    packs_by_lengths,
    training_examples,
    with_template,
)


@dataclass(frozen=True)
class Workload:
    """Batches of an epoch.  sample: the one whose cost is nearest the mean; largest: the dearest.

    full_flops: of plain full fine-tuning of all of them.  says: what they are, in words.
    """

    sample: dict[str, torch.Tensor]
    largest: dict[str, torch.Tensor]
    full_flops: int
    batches: int
    examples: int | None
    tokens: int
    says: str


def padded_batch(config: RunConfig, seq2seq: bool) -> dict[str, torch.Tensor]:
    """A batch of the greatest length, every position labelled."""
    ids = torch.ones(config.batch_size, config.max_length, dtype=torch.long)
    labels = torch.ones_like(ids[:, : max(1, config.max_length // 4)]) if seq2seq else ids
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def of_padded(
    config: RunConfig, batch: dict[str, torch.Tensor], full_flops: int, seq2seq: bool
) -> Workload:
    """So many batches like this one as the configuration says.  full_flops: of one."""
    batches = -(-(config.train_limit or config.batch_size) // config.batch_size)
    lengths = ("input_ids", "labels") if seq2seq else ("input_ids",)
    shape = " + ".join(f"{batch[name].shape[1]}" for name in lengths)
    return Workload(
        batch,
        batch,
        batches * full_flops,
        batches,
        config.train_limit,
        batches * batch["input_ids"].numel(),
        f"{batches} batch{'es' * (batches > 1)} of {config.batch_size} x {shape} tokens, "
        "every position labelled",
    )


def of_task(config: RunConfig, tokenizer: Any, graphs: GraphCache, seq2seq: bool) -> Workload:
    """The batches of an epoch of the task.  graphs: of the model, with everything trained."""
    task = load_task(config, with_template(tokenizer, config.chat_template))
    examples, _ = training_examples(task, config)
    encoded = encoded_of(examples, tokenizer, config, seq2seq)
    collate = collator_of(config, tokenizer)
    collate = replace(collate, packs=packs_by_lengths(config, graphs.model, encoded, collate))
    order = EpochOrder(encoded, config.batch_size, config.seed)
    batches = [collate([encoded[i] for i in rows]) for rows in order.groups()]
    costs = [graphs.of_batch(batch).full_flops for batch in batches]
    mean = sum(costs) / len(costs)
    nearest = min(range(len(costs)), key=lambda i: abs(costs[i] - mean))
    largest = max(range(len(costs)), key=costs.__getitem__)
    tokens = sum(tokens_of(batch)[0] for batch in batches)
    return Workload(
        batches[nearest], batches[largest], sum(costs), len(batches), len(encoded), tokens,
        f"{task.name}: {len(encoded)} examples in {len(batches)} batches, {tokens} tokens",
    )  # fmt: skip
