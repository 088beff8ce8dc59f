"""How good a model is on examples: the loss, and scores of what it answers.

Where there are several processes, all are asked, and share the examples.
"""

from collections.abc import Sequence
from typing import Any

from greentrainer.config import RunConfig
from greentrainer.model import Alone, is_sharded, joined
from greentrainer.run.asked import collator_of
from greentrainer.run.inputs import RunInputs
from greentrainer.tasks import Encoded, encode, metrics

DECODINGS = {"greedy": metrics.GREEDY, "paper": metrics.PAPER}
"""How completions are generated, by the configuration's name for it."""


def loss(inputs: RunInputs, examples: Sequence[Encoded], config: RunConfig) -> float:
    """Loss per completion token."""
    collate = collator_of(config, inputs.tokenizer)
    padded = [
        collate([examples[i] for i in rows]) for rows in encode.batches(examples, config.batch_size)
    ]
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
        processes=_sharing(inputs.model),
    )


def predictions(inputs: RunInputs, result: dict[str, Any]) -> list[dict[str, Any]]:
    """What the model answered in an evaluation, beside what it was asked."""
    texts = result.get("predictions", [])
    asked = [one for one in inputs.test_examples if not one.text]
    return [
        {"prompt": one.prompt + one.cue, "references": list(one.answers), "prediction": text}
        for one, text in zip(asked, texts, strict=False)  # the first are asked
    ]
