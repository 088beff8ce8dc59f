"""What counting steps adds to a run, SmolLM2's shape: `python benchmarks counting [--tiny]`.

The same steps are made in turn with and without being counted, 4 rows of 128 tokens, every second
of all tensors trained; of each kind the median counts.  A run of 200 steps that selects four times
counts as many steps as `engine.verifier` does: two at first, one more for each other selection, and
one for each 100 steps without.  `--tiny` does the same with two small layers, and writes nothing.
"""

import argparse
import statistics
import time
from typing import Any

import torch
import transformers as tf
from shared.results import check, write

from greentrainer.cost import flop_counter
from greentrainer.engine.verifier import APART, FIRST

RUN, SELECTIONS = 200, 4
ROWS, LENGTH, REPEATS = 4, 128, 9
SHAPE = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
         "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152}  # fmt: skip
TINY = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 512}  # fmt: skip


def step(model: Any, optimizer: Any, batch: Any, counted: bool) -> float:
    """Seconds of one step."""
    start = time.perf_counter()
    if counted:
        with flop_counter():
            loss = model(**batch).loss
        with flop_counter():
            loss.backward()
    else:
        model(**batch).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return time.perf_counter() - start


def measured(tiny: bool) -> dict[str, Any]:
    """Medians of both kinds of steps, and what that comes to in a run."""
    torch.manual_seed(0)
    config = tf.LlamaConfig(**(TINY if tiny else SHAPE), tie_word_embeddings=True)
    model: Any = tf.LlamaForCausalLM(config).train()
    for parameter in list(model.parameters())[::2]:
        parameter.requires_grad_(False)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], fused=True)
    ids = torch.randint(3, config.vocab_size, (ROWS, LENGTH))
    batch = {"input_ids": ids, "labels": ids}
    for counted in (False, True):
        step(model, optimizer, batch, counted)
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(REPEATS):
        for counted in (False, True):
            seconds[counted].append(step(model, optimizer, batch, counted))
    plain, more = (statistics.median(seconds[kind]) for kind in (False, True))
    count = FIRST + (SELECTIONS - 1) + RUN // APART
    return {
        "counted / plain step": more / plain,
        "steps counted": count,
        "of a run": count * max(0.0, more - plain) / (RUN * plain),
    }


def main() -> None:
    """Measure, check, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tiny", action="store_true")
    tiny = parser.parse_args().tiny
    row = measured(tiny)
    if tiny:
        print(row)
        return
    write("counting", [row], [check("counting, of a run of 200 steps", row["of a run"], 0.01)])


if __name__ == "__main__":
    main()
