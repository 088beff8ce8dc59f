"""What a run works on: a model, and the examples of a task that are trained on and held out."""

import random
from dataclasses import dataclass
from typing import Any

from greentrainer import tasks
from greentrainer.config import RunConfig
from greentrainer.tasks import Encoded, Example, Task


@dataclass(frozen=True)
class RunInputs:
    """A loaded model and the data of a run, tokenised.

    scores: what the task's answers are judged by (names of `base.SCORES`).
    """

    model: Any
    tokenizer: Any
    train: list[Encoded]
    validation: list[Encoded]
    test: list[Encoded]
    test_examples: list[Example]
    scores: tuple[str, ...] = ("rouge",)

    @property
    def seq2seq(self) -> bool:
        """Whether the model has an encoder and a decoder."""
        return bool(self.model.config.is_encoder_decoder)


def load_task(config: RunConfig, tokenizer: Any) -> Task:
    """The task that a run is on."""
    return tasks.load(
        config.task,
        data_dir=config.data_dir,
        prompt_format=config.prompt_format,
        eos=tokenizer.eos_token,
        prompt=config.prompt_column,
        completion=config.completion_column,
        messages=config.messages_column,
        test_path=config.test_path,
        seed=config.data_seed,
    )


def training_examples(task: Task, config: RunConfig) -> tuple[list[Example], list[Example]]:
    """What is trained on, and what is held back of the training split to choose by.

    Raises ValueError if nothing is left to train on.
    """
    held = config.validation_limit
    examples = task.examples("train")
    whole = len(examples) if held else None  # held back of all of them, in random order
    limit = whole if config.train_limit is None else config.train_limit + held
    given = sample(examples, limit, config.data_seed)
    if held >= len(given):
        raise ValueError(
            f"validation_limit is {held} and there are {len(given)} examples to train on: lower it"
        )
    return given[: len(given) - held], given[len(given) - held :]


def sample(examples: list[Example], limit: int | None, seed: int) -> list[Example]:
    """A random `limit` of the examples, the same each time."""
    if limit is None:
        return list(examples)
    return random.Random(seed).sample(examples, min(limit, len(examples)))
