"""What a run works on: a model, and the examples of a task that are trained on and held out."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from greentrainer import tasks
from greentrainer.config import RunConfig
from greentrainer.tasks import Encoded, Example, Task, encode


@dataclass(frozen=True)
class RunInputs:
    """A loaded model and the data of a run, tokenised.

    scores: what the task's answers are judged by (names of `base.SCORES`).
    """

    model: Any
    tokenizer: Any
    train: Sequence[Encoded]
    validation: Sequence[Encoded]
    test: Sequence[Encoded]
    test_examples: Sequence[Example]
    scores: tuple[str, ...] = ("rouge",)

    @property
    def seq2seq(self) -> bool:
        """Whether the model has an encoder and a decoder."""
        return bool(self.model.config.is_encoder_decoder)


def load_task(config: RunConfig, tokenizer: Any) -> Task:
    """The task that a run is on, or the mix of several."""
    if not config.tasks:
        return _task(config, config.task, tokenizer)
    if config.test_path is not None:
        raise ValueError("test_path is for one task: of several each is split by itself")
    parts = (
        tasks.Part(_task(config, one.path, tokenizer, mixed=True), one.weight, one.limit)
        for one in config.tasks
    )
    return tasks.Mixed(tuple(parts), config.data_seed)


def _task(config: RunConfig, name: str, tokenizer: Any, mixed: bool = False) -> Task:
    published = tasks.is_published(name) or not mixed
    return tasks.load(
        name,
        data_dir=config.data_dir if published else None,
        prompt_format=config.prompt_format if published else "plain",
        eos=tokenizer.eos_token,
        prompt=config.prompt_column,
        completion=config.completion_column,
        messages=config.messages_column,
        test_path=config.test_path,
        seed=config.data_seed,
    )


def to_learn(examples: Iterable[Example], tokenizer: Any, config: RunConfig) -> list[Example]:
    """The examples, with those of turns that the chat template shows otherwise later on."""
    last = config.turns == "last"
    found = []
    for row, example in enumerate(examples, 1):
        try:
            found += tasks.expanded(example, tokenizer, last)
        except ValueError as error:
            raise ValueError(f"{example.where or f'row {row}'}: {error}") from error
    return found


def encoded(
    examples: Sequence[Example], tokenizer: Any, config: RunConfig, seq2seq: bool
) -> encode.EncodedRows:
    """Tokens and labels of the examples, and of those that their chats become."""
    expand = partial(to_learn, tokenizer=tokenizer, config=config)
    return tasks.encoded(examples, tokenizer, config.max_length, seq2seq, expand)


def with_template(tokenizer: Any, path: Path | None) -> Any:
    """The tokenizer, with the chat template in a file where one is given.

    Raises ValueError for a file that cannot be read.
    """
    if path is not None:
        try:
            tokenizer.chat_template = path.expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"cannot read the chat template {path}: {error}") from error
    return tokenizer


def training_examples(task: Task, config: RunConfig) -> tuple[Sequence[Example], Sequence[Example]]:
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
    train, chosen = given[: len(given) - held], given[len(given) - held :]
    # a prompt may come more than once, and is on one side only
    return tasks.apart(train, chosen) if held else train, chosen


def sample(examples: Sequence[Example], limit: int | None, seed: int) -> Sequence[Example]:
    """A random `limit` of the examples, the same each time."""
    if limit is None:
        return examples
    places = random.Random(seed).sample(range(len(examples)), min(limit, len(examples)))
    return tasks.Chosen(examples, places)
