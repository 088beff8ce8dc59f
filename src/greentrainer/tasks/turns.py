"""Where in a chat the assistant speaks, in the context in which the template shows it.

What the assistant is to learn at a turn is what the template writes for it, after what the template
writes when the turn is asked for: the context of inference.  Templates rewrite earlier turns (they
take thinking out, say), so a chat written to its end may show an earlier turn in another form than
the one it had to have, or in another context.  Such a turn is no part of what is learned from the
whole chat: the chat up to there becomes an example of its own (`expanded`).

    f(i) = the template on messages 0..i            c(i) = on messages 0..i-1, asking for a turn
    learned at i:  f(i) from where it parts from c(i), to the end of the turn
    in place in f(n):  if f(n) begins with f(i) up to that end
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from greentrainer.tasks.base import Example, Message
from greentrainer.tasks.template import rendered, spelled

_MARK = "\ue000\ue001"
_SENTINEL = re.compile("\ue000([0-9]+)\ue001")
"""Stands for a content while the template is rendered; private characters, in no template."""


@dataclass(frozen=True)
class Span:
    """A part of a chat's text, from `start` to `end`.  learned: or else it may be cut."""

    start: int
    end: int
    learned: bool


@dataclass(frozen=True)
class Written:
    """A chat as its template writes it.

    text: of all of it, to the end of the last learned turn.
    spans: in order, not overlapping; what lies between is neither learned nor cut.
    said: where what the assistant says last ends, without what ends its turn.
    ended: whether the template itself ends the assistant's turns with a special token.
    missing: numbers of learned turns that are shown otherwise here than they were to be written.
    """

    text: str
    spans: tuple[Span, ...]
    said: int
    ended: bool
    missing: tuple[int, ...]


def written(example: Example, tokenizer: Any) -> Written:
    """An example's chat under the tokenizer's template.

    Raises ValueError if the template refuses it, or leaves out what is said.
    """
    messages, tools = spelled(to_learn(example.messages), example.tools, tokenizer)
    last = len(messages) - 1
    final = _spoken(messages, tools, tokenizer)
    learned = [Span(final.start, final.end, True)]
    missing = []
    for number, message in enumerate(messages[:last]):
        if message.learned:
            turn = _spoken(messages[: number + 1], tools, tokenizer)
            if final.text[: final.start].startswith(turn.text[: turn.end]):
                learned.append(Span(turn.start, turn.end, True))
            else:
                missing.append(number)
    cuttable = _contents(messages, final, tools, tokenizer)
    kept = (span for span in cuttable if not any(_meet(span, other) for other in learned))
    spans = sorted([*learned, *kept], key=lambda span: span.start)
    text = final.text[: final.end]
    return Written(text, tuple(spans), final.said, final.closed, tuple(missing))


def to_learn(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The messages up to the last that is learned.  Raises ValueError if none is."""
    numbers = [number for number, message in enumerate(messages) if message.learned]
    if not numbers:
        raise ValueError("no turn of the assistant is to be learned: train at least one")
    return tuple(messages[: numbers[-1] + 1])


def expanded(example: Example, tokenizer: Any, last_only: bool = False) -> list[Example]:
    """The examples that together learn each of a chat's turns once, in the context it is given.

    One where the template leaves earlier turns as they were; those of earlier turns come first.
    last_only: the last turn that is to be learned alone, of every chat.
    """
    if not example.messages or not tokenizer.chat_template:
        return [example]
    messages = to_learn(example.messages)
    if last_only:
        before = (replace(message, trained=False) for message in messages[:-1])
        return [_ending(example, (*before, messages[-1]))]
    found: list[Example] = []
    while True:
        made = _ending(example, messages)
        missing = written(made, tokenizer).missing
        turns = [replace(m, trained=m.trained and i not in missing) for i, m in enumerate(messages)]
        found.append(_ending(example, tuple(turns)))
        if not missing:
            return found[::-1]
        earlier = messages[: missing[-1] + 1]
        messages = tuple(
            replace(m, trained=m.trained and i in missing) for i, m in enumerate(earlier)
        )


def _ending(example: Example, messages: tuple[Message, ...]) -> Example:
    """The example of a chat that ends here."""
    return replace(example, messages=messages, completion=messages[-1].content)


@dataclass(frozen=True)
class Turn:
    """A chat that ends with what the assistant says.

    text: as far as the template writes it, and as the assistant is to write it from `start` on.
    said, end: where what it says ends, and where what ends its turn does.
    asks: whether the template writes something for the assistant to go on from.
    closed: whether a special token ends the turn.
    """

    text: str
    start: int
    said: int
    end: int
    asks: bool
    closed: bool


def _spoken(messages: Sequence[Message], tools: str, tokenizer: Any) -> Turn:
    """The turn that the last of the messages is.

    What the template writes for it begins with the context in which it is asked for.  Where it does
    not (it takes thinking out at once, or asks for thinking that it does not show), the turn is
    that context, the message as it is, and what ends it.
    Raises ValueError where the template leaves out what the assistant says.
    """
    *before, message = messages
    content = message.content.strip()
    text = rendered(tokenizer, messages, tools)
    bare = rendered(tokenizer, before, tools) if before else ""
    asked = rendered(tokenizer, before, tools, asks=True) if before else ""
    start, asks = len(asked), asked != bare
    if not asks:  # what stands before the content is no answer
        start = _shared(text, bare)
        if content:
            marked = rendered(
                tokenizer, [*before, replace(message, content=_MARK)], tools
            ).partition(_MARK)[0]
            start = (
                len(marked) if text.startswith(marked) else max(text.find(content, start), start)
            )
    begins = not asks or text.startswith(asked)
    place = text.find(content, start) if content and begins else -1
    if content and place < 0 and not (asks and not message.calls):
        raise ValueError(
            f"the chat template leaves out what the assistant says in turn {len(messages)}: give "
            "another with --chat-template FILE"
        )
    if place < 0 and not begins and message.calls:
        start = _shared(text, asked)
    if content and place < 0:
        rest = content[_overlap(asked, content) :]
        ends = _special_end(text, len(bare), tokenizer)
        said = len(asked) + len(rest)
        return Turn(asked + rest + ends, len(asked), said, said + len(ends), True, bool(ends))
    said = place + len(content) if place >= 0 else len(text.rstrip())
    ends = _special_end(text, said if place >= 0 else start, tokenizer)
    if place < 0:
        return Turn(text, start, said - len(ends), said, asks, bool(ends))
    end = text.rindex(ends) + len(ends) if ends else len(text.rstrip())
    return Turn(text, start, said, max(end, said), asks, bool(ends))


def _special_end(text: str, start: int, tokenizer: Any) -> str:
    """The last special token that the template writes from `start` on, if it writes one."""
    found = list(_specials(tokenizer).finditer(text, start))
    return found[-1].group() if found else ""


def _overlap(asked: str, content: str) -> int:
    """How much of the content's beginning the context ends with already."""
    most = min(len(asked), len(content))
    sizes = (n for n in range(most, 0, -1) if asked.endswith(content[:n]))
    return next(sizes, 0)


def _shared(a: str, b: str) -> int:
    """How many characters two texts begin with alike."""
    pairs = enumerate(zip(a, b, strict=False))
    return next((i for i, (x, y) in pairs if x != y), min(len(a), len(b)))


def _specials(tokenizer: Any) -> re.Pattern[str]:
    known = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    known |= {str(token) for token in tokenizer.all_special_tokens}
    return re.compile("|".join(re.escape(one) for one in sorted(known, key=len, reverse=True)))


def _contents(messages: Sequence[Message], final: Turn, tools: str, tokenizer: Any) -> list[Span]:
    """Where the contents are that are not the assistant's; each may be cut.

    Raises ValueError where what system and user say is not written once.  What the template reads
    and writes otherwise (a tool's answer) may not be cut.
    """
    given = messages[:-1] if final.asks else messages
    if not given:
        return []
    marked = [
        m if m.role == "assistant" else replace(m, content=f"\ue000{i}\ue001")
        for i, m in enumerate(given)
    ]
    pieces = _SENTINEL.split(rendered(tokenizer, marked, tools, asks=final.asks))
    numbers = [int(number) for number in pieces[1::2]]
    wanted = [i for i, m in enumerate(given) if m.role not in ("assistant", "tool")]
    if sorted(i for i in numbers if given[i].role != "tool") != wanted:
        raise ValueError(
            f"the chat template does not write each of the {len(messages)} messages once "
            f"({', '.join(m.role for m in messages)})"
        )
    spans, place = [], len(pieces[0])
    for number, gap in zip(numbers, pieces[2::2], strict=True):
        size = len(given[number].content.strip())
        spans.append(Span(place, place + size, False))
        place += size + len(gap)
    text = final.text[: final.start] if final.asks else final.text
    whole = (place == len(text) or not final.asks) and all(
        text[s.start : s.end] == given[n].content.strip()
        for s, n in zip(spans, numbers, strict=True)
    )
    return [span for span in spans if span.end <= final.start] if whole else []


def _meet(a: Span, b: Span) -> bool:
    return a.start < b.end and b.start < a.end
