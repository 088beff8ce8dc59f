"""How a row is read, told by its columns.

| read as | columns |
|---|---|
| prompt and completion | `prompt`, `completion` (texts, or turns of a chat) |
| chat | `messages` (or `conversations`) of `role` and `content`; `tools` |
| ShareGPT | `conversations` (or `messages`) of `from` and `value`; `system`, `tools` |
| Alpaca | `instruction`, `output`; `input`, `history`, `system` |
| Dolly | `instruction`, `response`; `context` |
| text | `text`: learned whole, filling the window |
| preference pairs | `chosen`, `rejected`: for Trainers of preferences only |

Each row is read by its own columns, so files of several kinds may be mixed.
"""

from collections import Counter
from dataclasses import dataclass

from greentrainer.tasks.base import Example, Message
from greentrainer.tasks.conversation import (
    chat,
    read_messages,
    system_of,
    tools_of,
    turns_of,
    whole,
)
from greentrainer.tasks.row import Row

CHATS = ("messages", "conversations", "conversation")
"""Columns of chats, where there is no column of prompts."""
ALPACA = ("### Instruction:\n", "\n\n### Input:\n", "\n\n### Response:\n")
"""What stands between an instruction's parts where the tokenizer has no chat template (Stanford
Alpaca, Taori et al., 2023, without its preamble)."""


@dataclass(frozen=True)
class Columns:
    """Names that the user gave.  messages: of a column of chats; cue: put after each prompt."""

    prompt: str = "prompt"
    completion: str = "completion"
    messages: str | None = None
    cue: str = ""


@dataclass(frozen=True)
class ReadAs:
    """An example, and what its row was taken for."""

    example: Example
    kind: str


def read_as(row: Row, columns: Columns) -> ReadAs:
    """The example of a row.

    Raises ValueError, naming the row, for columns of no known kind, and for anything wrong in them.
    """
    has = {name for name, value in row.values.items() if value is not None or not row.unified}
    if columns.messages is not None:
        return _chat(row, columns.messages)
    if {"chosen", "rejected"} <= has and columns.completion not in has:
        raise ValueError(
            f"{row.where}: preference pairs (chosen, rejected) are for a Trainer of preferences: "
            "use examples/dpo.py, or train on one side with --set completion_column=chosen"
        )
    chats = next((name for name in CHATS if name in has), None)
    if columns.prompt in has and (columns.completion in has or chats is None):
        if _is_turns(row.listed(columns.prompt)):
            return _asked(row, columns)
        if row.values.get("system"):
            raise ValueError(
                f"{row.where}: a column 'system' beside a prompt: give messages, or leave it out"
            )
        prompt, answers = row.text(columns.prompt), row.texts(columns.completion)
        more = answers if len(answers) > 1 else ()
        made = Example(prompt, answers[0], columns.cue, more, where=row.where)
        return ReadAs(made, "prompt and completion")
    if chats is not None:
        return _chat(row, chats)
    if "instruction" in has and ("output" in has or "response" in has):
        return _instruction(row)
    if "text" in has:
        return ReadAs(Example("", row.text("text"), text=True, where=row.where), "text")
    raise ValueError(row.lacks(columns.prompt))


def _is_turns(value: object) -> bool:
    return isinstance(value, list) and any(isinstance(one, dict) for one in value)


def _chat(row: Row, column: str) -> ReadAs:
    messages = read_messages(row, column)
    turns = row.values[column]
    first = turns[0] if isinstance(turns, list) else None
    kind = "ShareGPT" if isinstance(first, dict) and "from" in first else "chats"
    return ReadAs(chat(messages, tools_of(row), where=row.where), kind)


def _asked(row: Row, columns: Columns) -> ReadAs:
    """Prompt and completion that are turns both, as TRL has them; the latter are learned."""
    where = f"{row.where}: {columns.prompt!r}"
    given = turns_of(row.listed(columns.prompt), where, row.unified)
    key = row.key(columns.completion)
    said = turns_of(row.listed(key), f"{row.where}: {key!r}", row.unified)
    before = (Message(m.role, m.content, False, m.more) for m in given)
    messages = whole((*system_of(row, given), *before, *said), where)
    made = chat(messages, tools_of(row), where=row.where)
    return ReadAs(made, "prompt and completion in turns")


def _instruction(row: Row) -> ReadAs:
    """An instruction and its answer, with turns before it if there are any."""
    has = row.values
    alpaca = "output" in has
    more = "input" if alpaca else "context"
    instruction, answer = row.text("instruction"), row.text("output" if alpaca else "response")
    given = has.get(more)
    blank = given is None or (isinstance(given, str) and not given.strip())
    context = "" if blank else row.text(more)
    turns = [*system_of(row)]
    for number, pair in enumerate(_history(row), 1):
        where = f"{row.where}: 'history', turn {number}"
        if not (
            isinstance(pair, list) and len(pair) == 2 and all(isinstance(t, str) for t in pair)
        ):
            raise ValueError(f"{where}: no pair of question and answer")
        turns += [Message("user", pair[0]), Message("assistant", pair[1])]
    asked = f"{instruction}\n{context}" if context else instruction
    made = chat((*turns, Message("user", asked), Message("assistant", answer)), either=True)
    head, between, cue = ALPACA
    written = {"system": "{}\n\n", "user": head + "{}", "assistant": cue + "{}\n\n"}
    earlier = "".join(written[turn.role].format(turn.content) for turn in turns)
    prompt = earlier + head + instruction + (between + context if context else "")
    kind = "Alpaca" if alpaca else "Dolly"
    return ReadAs(
        Example(prompt, answer, cue, messages=made.messages, either=True, where=row.where), kind
    )


def _history(row: Row) -> list[object]:
    value = row.listed("history") or []
    if not isinstance(value, list):
        raise ValueError(f"{row.where}: 'history' is a {type(value).__name__}, not a list of pairs")
    return value


class Tally:
    """What rows were read as: how many of each kind, and how many turns they have."""

    def __init__(self) -> None:
        self.kinds: Counter[str] = Counter()
        self.turns: dict[str, tuple[int, int]] = {}

    def add(self, one: ReadAs) -> None:
        """Count a row."""
        self.kinds[one.kind] += 1
        if count := len(one.example.messages):
            low, high = self.turns.get(one.kind, (count, count))
            self.turns[one.kind] = min(low, count), max(high, count)

    def __str__(self) -> str:
        parts = []
        for kind, count in self.kinds.most_common():
            share = f" ({count:,} rows)" if len(self.kinds) > 1 else ""
            parts.append(f"{kind}{self._range(kind)}{share}")
        return "; ".join(parts)

    def _range(self, kind: str) -> str:
        if kind not in self.turns:
            return ""
        low, high = self.turns[kind]
        return f", {low} turns" if low == high else f", {low} to {high} turns"
