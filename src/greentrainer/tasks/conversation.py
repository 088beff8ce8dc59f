"""Chats: from a row's list of turns to an example."""

import json

from greentrainer.tasks.base import Example, Message
from greentrainer.tasks.tables import Row, checked

ROLES = ("system", "user", "assistant")


def read_messages(row: Row, column: str) -> tuple[Message, ...]:
    """The turns in a column: a list of objects with `role` and `content` (in CSV: as JSON).

    Raises ValueError, naming row and turn, for an unknown role, a content that is empty or no
    text, a chat that does not end with the assistant, or one in which nobody else speaks.
    """
    key = row.key(column)
    where = f"{row.where}: {key!r}"
    turns = _turns(row.values[key], where)
    messages = tuple(_message(turn, f"{where}, turn {i}") for i, turn in enumerate(turns, 1))
    if not messages or messages[-1].role != "assistant":
        last = messages[-1].role if messages else "missing"
        raise ValueError(f"{where}: the last turn is {last}: a chat must end with the assistant's")
    if all(message.role == "assistant" for message in messages):
        raise ValueError(f"{where}: nobody but the assistant speaks: begin with a user's turn")
    return messages


def chat(messages: tuple[Message, ...]) -> Example:
    """The example of a chat; its prompt tells the turns before the last, in words."""
    before = "\n".join(f"{message.role}: {message.content}" for message in messages[:-1])
    return Example(before, messages[-1].content, messages=messages)


def _turns(value: object, where: str) -> list[object]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{where} is a text that is not JSON: write a list of turns"
            ) from error
    if not isinstance(value, list):
        raise ValueError(f"{where} is a {type(value).__name__}, not a list of turns")
    return value


def _message(turn: object, where: str) -> Message:
    if not isinstance(turn, dict) or not {"role", "content"} <= turn.keys():
        raise ValueError(f"{where}: no object with 'role' and 'content'")
    if turn["role"] not in ROLES:
        raise ValueError(f"{where}: the role is {turn['role']!r}: use one of {', '.join(ROLES)}")
    return Message(str(turn["role"]), checked(turn["content"], f"{where}: 'content'"))
