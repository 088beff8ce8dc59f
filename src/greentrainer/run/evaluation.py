"""How good a model is on examples: the loss, and scores of what it answers.

Where there are several processes, all are asked, and share the examples.
"""

from collections.abc import Sequence
from typing import Any

from greentrainer.config import RunConfig
from greentrainer.model import Alone, is_sharded, joined
from greentrainer.run.asked import collator_of
from greentrainer.run.inputs import RunInputs
from greentrainer.run.memory import evaluation_rows, kept_way
from greentrainer.tasks import Encoded, encode, metrics

DECODINGS = {"greedy": metrics.GREEDY, "paper": metrics.PAPER}
"""How completions are generated, by the configuration's name for it."""
ANSWERED = 8
"""Rows at a time that are answered."""


def loss(inputs: RunInputs, examples: Sequence[Encoded], config: RunConfig) -> float:
    """Loss per completion token."""
    collate = collator_of(config, inputs.tokenizer)
    rows = _rows(inputs, examples, config)
    padded = [collate([examples[i] for i in group]) for group in encode.batches(examples, rows)]
    return metrics.loss_per_token(inputs.model, padded, _sharing(inputs.model))


def _sharing(model: Any) -> Alone:
    """The processes that share the work; of a sharded model all make every pass together."""
    return Alone() if is_sharded(model) else joined()


def evaluate(inputs: RunInputs, config: RunConfig) -> dict[str, Any]:
    """Held-out loss per completion token, and scores of `config.generate` completions."""
    result: dict[str, Any] = {"loss": loss(inputs, inputs.test, config)}
    return result | metrics.evaluate_answers(
        inputs.model,
        inputs.tokenizer,
        inputs.test_examples,
        inputs.scores,
        DECODINGS[config.decoding],
        max_length=config.max_length,
        generated=config.generate,
        batch_size=_rows(inputs, inputs.test, config, ANSWERED),
        processes=_sharing(inputs.model),
    )


def _rows(
    inputs: RunInputs, examples: Sequence[Encoded], config: RunConfig, most: int | None = None
) -> int:
    """So many at a time, or as many fewer as the memory demands."""
    most = most or config.batch_size
    way = kept_way(config)
    if way is not None and way.rows is not None:
        most = min(most, way.rows)
    if config.memory is None or not examples:
        return most
    longest = sorted(examples, key=lambda one: one.length)[-most:]
    batch = collator_of(config, inputs.tokenizer)(longest)
    return evaluation_rows(config.memory, inputs.model, batch, most)


def predictions(inputs: RunInputs, result: dict[str, Any]) -> list[dict[str, Any]]:
    """What the model answered in an evaluation, beside what it was asked."""
    texts = result.get("predictions", [])
    asked = [one for one in inputs.test_examples if not one.text]
    return [
        {"prompt": one.prompt + one.cue, "references": list(one.answers), "prediction": text}
        for one, text in zip(asked, texts, strict=False)  # the first are asked
    ]
