"""What a task is: a name, and examples of prompt and completion for each split."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

SPLITS = ("train", "validation", "test")
"""Names a split can have; a task may lack validation."""
SCORES = ("rouge", "exact", "choice")
"""ROUGE-1/2/L; exact match and token F1; accuracy among an example's choices."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat.

    role: system, developer, user, assistant or tool.
    content: its text; empty of a turn that only calls tools.
    trained: of the assistant's: whether the loss covers it.
    more: other keys that a chat template may look at (`tool_calls`, `name`, ...), as JSON.
    """

    role: str
    content: str
    trained: bool = True
    more: str = ""

    @property
    def calls(self) -> bool:
        """Whether it calls tools."""
        return bool(self.more) and bool(json.loads(self.more).get("tool_calls"))

    @property
    def learned(self) -> bool:
        """Whether it is the assistant's, and the loss covers it."""
        return self.role == "assistant" and self.trained


@dataclass(frozen=True, slots=True)
class Example:
    """A model reads `prompt + cue` and should write `completion`.

    prompt: cut at its end where it does not fit the window.
    completion: what the loss covers; never cut.
    cue: stands between the two and is never cut, such as "\\n# Summary:\\n".
    references: every right answer, for scoring; the completion alone if empty.
    choices: completions to choose among, where the task is a choice.
    ends: whether an end-of-sequence token follows the completion.
    messages: of a chat, read in place of prompt and cue (the prompt only tells the turns before the
        last); the loss covers what the assistant says, and the completion is its last message.
    tools: that the assistant may call, as the chat template is told of them, in JSON.
    either: a chat that is read as prompt and cue where the tokenizer has no chat template.
    text: the completion is a text without a prompt, all of it learned; such examples fill windows
        one after the other.
    where: the row that it came from, for errors.
    """

    prompt: str
    completion: str
    cue: str = ""
    references: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    ends: bool = True
    messages: tuple[Message, ...] = ()
    tools: str = ""
    either: bool = False
    text: bool = False
    where: str = field(default="", compare=False)

    @property
    def key(self) -> str:
        """What tells it from others when some are held out: what is read, as a template has it.

        A question alone is the same in a chat and as a prompt.  Of a text it is the text.
        """
        if self.text:
            return self.completion
        return _told(self.messages[:-1]) if self.messages else self.prompt

    @property
    def keys(self) -> tuple[str, ...]:
        """Of a chat what is read at each turn that is learned, so at the last `key`; or `key`."""
        earlier = (i for i, m in enumerate(self.messages[:-1]) if m.learned)
        return (*(_told(self.messages[:i]) for i in earlier), self.key)

    @property
    def answers(self) -> tuple[str, ...]:
        """Every right answer."""
        return self.references or (self.completion,)


def _told(messages: Sequence[Message]) -> str:
    """The turns as one text."""
    if len(messages) == 1 and messages[0].role == "user":
        return messages[0].content.strip()
    names = {"developer": "system"}
    return "\n".join(f"{names.get(m.role, m.role)}: {m.content.strip()}" for m in messages)


class Task(Protocol):
    """A source of examples, the same at every call and in every process."""

    @property
    def name(self) -> str:
        """What results and logs call it."""

    @property
    def scores(self) -> tuple[str, ...]:
        """What its answers are judged by, beside the loss: names of `SCORES`."""

    def examples(self, split: str) -> Sequence[Example]:
        """The examples of a split, in an order that is fixed but otherwise arbitrary.

        Raises ValueError for a split that the task lacks.
        """

    def describe(self) -> str:
        """One line: where the examples come from, and how many there are of each split."""


def pick(split: str, parts: Mapping[str, Sequence[Example]], task: str) -> Sequence[Example]:
    """The examples of `split`; raises ValueError naming those that the task has."""
    if split not in parts:
        raise ValueError(f"{task} has no split {split!r}: use one of {', '.join(parts)}")
    found = parts[split]
    return list(found) if isinstance(found, list) else found


def sizes(parts: Mapping[str, Sequence[Example]]) -> str:
    """How many examples each split has, in words."""
    return ", ".join(f"{len(examples):,} {split}" for split, examples in parts.items())
