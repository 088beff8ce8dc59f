"""How good a model is on examples: the loss, and scores of what it answers."""

from typing import Any

from greentrainer.config import RunConfig
from greentrainer.material import Material
from greentrainer.tasks import encode, metrics
from greentrainer.tasks.encode import Encoded

DECODINGS = {"greedy": metrics.GREEDY, "paper": metrics.PAPER}
"""How completions are generated, by the configuration's name for it."""


def loss(material: Material, examples: list[Encoded], config: RunConfig) -> float:
    """Loss per completion token."""
    pad = encode.pad_id(material.tokenizer)
    order = encode.batches(examples, config.batch_size)
    padded = (
        encode.collate([examples[i] for i in rows], pad, config.pad_multiple, config.max_length)
        for rows in order
    )
    return metrics.loss_per_token(material.model, padded)


def evaluate(material: Material, config: RunConfig) -> dict[str, Any]:
    """Held-out loss per completion token, and scores of `config.generate` completions."""
    result: dict[str, Any] = {"loss": loss(material, material.test, config)}
    return result | metrics.evaluate_answers(
        material.model,
        material.tokenizer,
        material.test_examples,
        material.scores,
        DECODINGS[config.decoding],
        max_length=config.max_length,
        generated=config.generate,
    )


def predictions(material: Material, result: dict[str, Any]) -> list[dict[str, Any]]:
    """What the model answered in an evaluation, beside what it was asked."""
    texts = result.get("predictions", [])
    return [
        {"prompt": one.prompt + one.cue, "references": list(one.answers), "prediction": text}
        for one, text in zip(material.test_examples, texts, strict=False)  # the first are asked
    ]
