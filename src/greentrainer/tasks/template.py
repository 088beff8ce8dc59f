"""Chat templates: programs that come with a tokenizer, run within bounds and told of in one line.

A template is somebody else's program.  transformers runs it in a sandbox; here it also has a time
limit, and whatever it raises becomes a `ValueError` of one line.  A power (`9**9**9`) is one step
that no time limit ends, so it is refused before.
"""

import json
import re
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from typing import Any

from greentrainer.tasks.base import Message
from greentrainer.tasks.row import HALF

SECONDS = 5.0
"""How long a template may take to write one chat."""


class _TookTooLong(Exception):
    """The time limit."""


def rendered(
    tokenizer: Any, messages: Sequence[Message], tools: str = "", *, asks: bool = False
) -> str:
    """What the tokenizer's chat template makes of the messages.

    tools: see `Example`.  asks: with what it writes for the assistant to go on from.
    Raises ValueError, in one line, for a tokenizer without a template, and for a template that
    raises, takes longer than `SECONDS`, or writes no text.
    """
    if not tokenizer.chat_template:
        raise ValueError(
            "the tokenizer has no chat template, which messages need: give prompt and completion, "
            "a model that was made for chats, or --chat-template FILE"
        )
    _require_no_powers(tokenizer.chat_template)
    told = [_turn(message, "developer" in str(tokenizer.chat_template)) for message in messages]
    given = {"tools": json.loads(tools)} if tools else {}
    try:
        return _written(tokenizer, told, given, asks)
    except ValueError:
        texts = [_in_text(turn) for turn in told]
        if texts == told:
            raise
        return _written(tokenizer, texts, given, asks)  # some write arguments as they come


def _require_no_powers(template: str | dict[str, str]) -> None:
    """Raise ValueError where a template, or one of several by name, holds a power."""
    several = template.values() if isinstance(template, dict) else (template,)
    if any(_has_power(str(one)) for one in several):
        raise ValueError(
            "the chat template raises a number to a power, which may take for ever: mend it, or "
            "give another with --chat-template FILE"
        )


@lru_cache(maxsize=8)
def _has_power(template: str) -> bool:
    """Whether `**` stands behind a value; behind a bracket or a comma it hands on names."""
    from jinja2 import Environment, TemplateSyntaxError

    before = ""
    try:
        for _, kind, text in Environment().lex(template):
            if kind in ("whitespace", "comment"):
                continue
            if text == "**" and before not in ("(", ","):
                return True
            before = text
    except TemplateSyntaxError:  # transformers says so in its turn
        return False
    return False


def _written(tokenizer: Any, turns: list[dict[str, Any]], given: dict[str, Any], asks: bool) -> str:
    try:
        with _limited(SECONDS):
            text = tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=asks, **given
            )
    except _TookTooLong:
        raise ValueError(
            f"the chat template took longer than {SECONDS:g} s to write one chat: mend it, or "
            "give another with --chat-template FILE"
        ) from None
    except Exception as error:  # a template can raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"the chat template refuses these messages: {reason[:200]}") from error
    if not isinstance(text, str):
        raise ValueError(f"the chat template writes a {type(text).__name__}, not a text")
    if not text.isascii() and HALF.search(text):
        raise ValueError("the chat template writes half of a surrogate pair, which is no text")
    return text


def _in_text(turn: dict[str, Any]) -> dict[str, Any]:
    """The turn with its calls' arguments as JSON."""
    calls = []
    for call in turn.get("tool_calls", ()):
        function = call.get("function")
        if isinstance(function, dict) and isinstance(function.get("arguments"), dict):
            text = json.dumps(function["arguments"])
            call = {**call, "function": {**function, "arguments": text}}
        calls.append(call)
    return {**turn, "tool_calls": calls} if calls else turn


def spelled(
    messages: Sequence[Message], tools: str, tokenizer: Any
) -> tuple[tuple[Message, ...], str]:
    """Messages and tools as the tokenizer's template can write them.

    A template that knows no tools would leave calls out without a word; they are written into the
    contents, and the tools into the first one, in the form of Hermes 2 Pro (Nous Research, 2024),
    which most open models that call tools have learned.
    """
    calling = [m for m in messages if m.calls]
    if not (tools or calling) or _knows_tools(tokenizer):
        return tuple(messages), tools
    told = [_calls_told(m) if m in calling else m for m in messages]
    if tools:
        listed = "\n".join(json.dumps(one) for one in json.loads(tools))
        head = f"{TOOLS_HEAD}\n<tools>\n{listed}\n</tools>"
        first = told[0]
        both = (
            (first.content, head)
            if first.role in ("system", "developer")
            else (head, first.content)
        )
        told[0] = replace(first, content="\n\n".join(part for part in both if part))
    return tuple(told), ""


def _knows_tools(tokenizer: Any) -> bool:
    """Whether the template looks at calls: comments and texts in it aside."""
    program = re.sub(r"{#.*?#}", "", str(tokenizer.chat_template), flags=re.DOTALL)
    return "tool_calls" in program


TOOLS_HEAD = "You may call these functions:"
"""Before the list of tools, where the template has no words for it."""


def _calls_told(message: Message) -> Message:
    """The message with its calls in its content."""
    more = json.loads(message.more)
    calls = [call.get("function", call) for call in more.pop("tool_calls")]
    texts = [f"<tool_call>\n{json.dumps(call)}\n</tool_call>" for call in calls]
    content = "\n".join(part for part in (message.content, *texts) if part)
    return replace(message, content=content, more=json.dumps(more) if more else "")


def _turn(message: Message, developer: bool) -> dict[str, Any]:
    """A message as templates take it; one that knows no developer is told of the system."""
    role = message.role
    if role == "developer" and not developer:
        role = "system"
    more = json.loads(message.more) if message.more else {}
    return {"role": role, "content": message.content.strip(), **more}


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Raise `_TookTooLong` in here after so many seconds, where signals can be had."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGALRM"):
        yield
        return

    def raise_(*_: Any) -> None:
        raise _TookTooLong

    before = signal.signal(signal.SIGALRM, raise_)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
