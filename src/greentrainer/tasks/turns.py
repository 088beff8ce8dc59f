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
    ended: whether the template itself writes what ends the assistant's turns.
    missing: numbers of learned turns that are shown otherwise here than they were to be written.
    """

    text: str
    spans: tuple[Span, ...]
    said: int
    ended: bool
    missing: tuple[int, ...]


def written(example: Example, tokenizer: Any) -> Written:
    """An example's chat under the tokenizer's template.

    Raises ValueError if the template refuses it, or does not write what system and user say.
    """
    messages, tools = spelled(to_learn(example.messages), example.tools, tokenizer)
    last = len(messages) - 1
    text = rendered(tokenizer, messages, tools)
    cuttable = _contents(messages, text, tools, tokenizer)
    learned: list[Span] = []
    missing: list[int] = []
    said, ended = 0, False
    for number, message in enumerate(messages):
        if not message.learned:
            continue
        alone = text
        if number < last:
            alone = rendered(tokenizer, messages[: number + 1], tools)
        start, said, end = _spoken(messages[: number + 1], alone, tools, tokenizer)
        ended = end > said
        if number == last or text.startswith(alone[:end]):
            learned.append(Span(start, end, True))
        else:
            missing.append(number)
    close = learned[-1].end
    kept = (span for span in cuttable if not any(_meet(span, other) for other in learned))
    spans = sorted([*learned, *(s for s in kept if s.end <= close)], key=lambda s: s.start)
    return Written(text[:close], tuple(spans), said, ended, tuple(missing))


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


def _spoken(
    messages: Sequence[Message], text: str, tools: str, tokenizer: Any
) -> tuple[int, int, int]:
    """Where in `text` the last of the messages, as the assistant writes it, begins and ends.

    And where what ends the turn ends, the template's last special token, if it writes one.
    """
    *before, message = messages
    content = message.content.strip()
    bare = rendered(tokenizer, before, tools) if before else ""
    asked = rendered(tokenizer, before, tools, asks=True) if before else ""
    start = _shared(text, asked)
    if asked == bare:  # the template asks for nothing: what stands before the content is no answer
        start = max(text.find(content, start), start) if content else start
    place = text.find(content, start) if content else -1
    said = place + len(content) if place >= 0 else len(text.rstrip())
    ends = list(_specials(tokenizer).finditer(text, said if place >= 0 else start))
    if not ends:
        return start, said, said
    return start, said if place >= 0 else ends[-1].start(), ends[-1].end()


def _shared(a: str, b: str) -> int:
    """How many characters two texts begin with alike."""
    pairs = enumerate(zip(a, b, strict=False))
    return next((i for i, (x, y) in pairs if x != y), min(len(a), len(b)))


def _specials(tokenizer: Any) -> re.Pattern[str]:
    known = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    known |= {str(token) for token in tokenizer.all_special_tokens}
    return re.compile("|".join(re.escape(one) for one in sorted(known, key=len, reverse=True)))


def _contents(messages: Sequence[Message], text: str, tools: str, tokenizer: Any) -> list[Span]:
    """Where the contents are that are not the assistant's; each may be cut.

    Raises ValueError where what system and user say is not written once, in order.  What the
    template reads and writes otherwise (a tool's answer) may not be cut.
    """
    marked = [
        m if m.role == "assistant" else replace(m, content=f"\ue000{i}\ue001")
        for i, m in enumerate(messages)
    ]
    pieces = _SENTINEL.split(rendered(tokenizer, marked, tools))
    numbers = [int(number) for number in pieces[1::2]]
    wanted = [i for i, m in enumerate(messages) if m.role not in ("assistant", "tool")]
    if [i for i in numbers if messages[i].role != "tool"] != wanted:
        raise ValueError(
            f"the chat template does not write each of the {len(messages)} messages once, in their "
            f"order ({', '.join(m.role for m in messages)})"
        )
    spans, place = [], len(pieces[0])
    for number, gap in zip(numbers, pieces[2::2], strict=True):
        size = len(messages[number].content.strip())
        spans.append(Span(place, place + size, False))
        place += size + len(gap)
    whole = place == len(text) and all(
        text[s.start : s.end] == messages[n].content.strip()
        for s, n in zip(spans, numbers, strict=True)
    )
    return spans if whole else []


def _meet(a: Span, b: Span) -> bool:
    return a.start < b.end and b.start < a.end
