"""Chats: from a row's list of turns to an example.

Turns are `role` and `content`, or as in ShareGPT `from` and `value`.  A content may be a text,
parts of text, or nothing where the assistant calls tools.  `train: false` or `weight: 0` on a turn
of the assistant leaves it out of the loss.
"""

import json
from collections.abc import Mapping
from typing import Any

from greentrainer.tasks.base import Example, Message
from greentrainer.tasks.row import Row, checked

ROLES = ("system", "developer", "user", "assistant", "tool")
ALIASES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "ai": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "function": "tool",
    "ipython": "tool",
}
"""Other names of the roles."""
_KNOWN = frozenset({"role", "content", "from", "value", "train", "weight"})


def read_messages(row: Row, column: str) -> tuple[Message, ...]:
    """The turns in a column: a list of objects with `role` and `content` (in CSV: as JSON).

    Raises ValueError, naming row and turn, for an unknown role, a content that is empty or no
    text, a chat that does not end with the assistant, or one in which nobody else speaks.
    """
    key = row.key(column)
    where = f"{row.where}: {key!r}"
    messages = turns_of(row.values[key], where, row.unified)
    return whole((*system_of(row, messages), *messages), where)


def system_of(row: Row, messages: tuple[Message, ...] = ()) -> tuple[Message, ...]:
    """The turn that a column `system` holds.  Raises ValueError beside another of that kind."""
    if not row.values.get("system"):
        return ()
    turn = Message("system", row.text("system"))
    if not messages or messages[0].role not in ("system", "developer"):
        return (turn,)
    if messages[0].content.strip() == turn.content.strip():
        return ()
    raise ValueError(f"{row.where}: a column 'system' and a turn of the system: leave one out")


def turns_of(value: object, where: str, unified: bool = False) -> tuple[Message, ...]:
    """The turns that a value lists.  unified: see `Row`.

    Raises ValueError, beginning with `where`.
    """
    turns = enumerate(_turns(value, where), 1)
    made = [_message(turn, f"{where}, turn {i}", unified) for i, turn in turns]
    return tuple(one for one in made if one.content or one.calls or one.role == "tool")


def whole(messages: tuple[Message, ...], where: str) -> tuple[Message, ...]:
    """The messages, if there is something to learn in them and something to learn it from."""
    if not messages or messages[-1].role != "assistant":
        last = messages[-1].role if messages else "missing"
        raise ValueError(f"{where}: the last turn is {last}: a chat must end with the assistant's")
    if all(message.role == "assistant" for message in messages):
        raise ValueError(f"{where}: nobody but the assistant speaks: begin with a user's turn")
    if not any(message.learned for message in messages):
        raise ValueError(f"{where}: no turn is to be learned: leave train or weight out on one")
    return messages


def chat(
    messages: tuple[Message, ...], tools: str = "", *, either: bool = False, where: str = ""
) -> Example:
    """The example of a chat, up to the last turn that is learned.

    Its prompt tells the turns before that, in words.
    """
    last = max(number for number, message in enumerate(messages) if message.learned)
    *earlier, last_turn = messages[: last + 1]
    before = "\n".join(f"{message.role}: {message.content}" for message in earlier)
    said = last_turn.content or last_turn.more
    return Example(
        before, said, messages=messages[: last + 1], tools=tools, either=either, where=where
    )


def tools_of(row: Row) -> str:
    """The tools that a row names, as JSON; nothing if it names none.

    Raises ValueError, naming the row, for what is no list of objects.
    """
    found = _objects(row.values.get("tools"), f"{row.where}: 'tools'")
    if not found:
        return ""
    return json.dumps(_filled(found) if row.unified else found, default=str)


def _parsed(value: object, what: str, advice: str = "") -> object:
    """A value that may come as JSON.  Raises ValueError, beginning with `what`."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{what} is a text that is not JSON{advice}") from error


def _objects(value: object, what: str) -> list[dict[str, Any]]:
    """A list of objects, or the JSON of one; empty where there is nothing."""
    found = _parsed(value, what) if not isinstance(value, str) or value.strip() else None
    if not found:
        return []
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise ValueError(f"{what} is no list of objects")
    return found


def _turns(value: object, where: str) -> list[object]:
    found = _parsed(value, where, ": write a list of turns")
    if not isinstance(found, list):
        raise ValueError(f"{where} is a {type(found).__name__}, not a list of turns")
    return found


def _message(turn: object, where: str, unified: bool) -> Message:
    turn = _filled(turn) if unified else turn
    if not isinstance(turn, dict) or not (
        {"role", "content"} <= turn.keys() or {"from", "value"} <= turn.keys()
        or ("role" in turn and turn.keys() & {"tool_calls", "function_call"})
        or (unified and turn.keys() & {"role", "from"})
    ):  # fmt: skip
        raise ValueError(f"{where}: no object with 'role' and 'content', or 'from' and 'value'")
    key = "content" if "role" in turn else "value"
    named = turn.get("role", turn.get("from"))
    role = ALIASES.get(named, named) if isinstance(named, str) else named
    if role not in ROLES:
        raise ValueError(f"{where}: the role is {named!r:.100}: use one of {', '.join(ROLES)}")
    more = {name: value for name, value in turn.items() if name not in _KNOWN and value is not None}
    content = turn.get(key)
    if named == "function_call":
        calls, content = _called(content, where), None
    elif more.get("function_call"):
        calls = _called(more.pop("function_call"), where)
    else:
        calls = _objects(more.pop("tool_calls", None), f"{where}: 'tool_calls'")
    if calls:
        more["tool_calls"] = [_with_arguments(call) for call in calls]
    empty = bool(calls) or role in ("tool", "system", "developer")
    text = _content(content, f"{where}: {key!r}", empty)
    return Message(role, text, _trained(turn, where), json.dumps(more, default=str) if more else "")


def _content(value: object, where: str, empty: bool) -> str:
    """The text of a content.  empty: whether there may be none."""
    if isinstance(value, list):
        texts = []
        for number, part in enumerate(value, 1):
            if not isinstance(part, dict):
                raise ValueError(f"{where} is a list, not a text, and part {number} is no object")
            kind = part.get("type", "text")
            if kind != "text":
                raise ValueError(
                    f"{where}, part {number} is {kind}: texts alone are trained on by command; "
                    "for images and sound use a Trainer with a processor (docs/huggingface.md)"
                )
            texts.append(part.get("text"))
        value = "\n".join(checked(text, where) for text in texts)
    if empty and (value is None or (isinstance(value, str) and not value.strip())):
        return ""
    return checked(value, where)


def _trained(turn: Mapping[str, Any], where: str) -> bool:
    weight, train = turn.get("weight"), turn.get("train")
    if weight not in (None, 0, 1):
        raise ValueError(f"{where}: the weight is {weight!r}: give 0 or 1")
    if train not in (None, True, False):
        raise ValueError(f"{where}: train is {train!r}: give true or false")
    return weight != 0 and train is not False


def _called(value: object, where: str) -> list[dict[str, Any]]:
    """Calls as ShareGPT has them: the JSON of one or several, of name and arguments."""
    found = _parsed(value, f"{where}: the call")
    calls = found if isinstance(found, list) else [found]
    if not all(isinstance(call, dict) and "name" in call for call in calls):
        raise ValueError(f"{where}: the call is no object with 'name' and 'arguments'")
    return [{"type": "function", "function": call} for call in calls]


def _with_arguments(call: object) -> object:
    """A call whose arguments are an object, as templates expect; often they come as JSON."""
    if not isinstance(call, dict) or not isinstance(call.get("function"), dict):
        return call
    function = dict(call["function"])
    if isinstance(function.get("arguments"), str):
        try:
            parsed = json.loads(function["arguments"])
        except (ValueError, RecursionError):
            parsed = None
        if isinstance(parsed, dict):
            function["arguments"] = parsed
    return {**call, "function": function}


def _filled(value: Any) -> Any:
    """Without keys that hold nothing, which Parquet gives to every object alike."""
    if isinstance(value, dict):
        return {name: _filled(one) for name, one in value.items() if one is not None}
    return [_filled(one) for one in value] if isinstance(value, list) else value
