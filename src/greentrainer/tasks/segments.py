"""An example as a list of segments of tokens: what is read, what is learned, what may be cut.

A prompt is `specials | prompt | cue`, of which the prompt may be cut.  A chat is what the
tokenizer's chat template makes of it: the contents of system and user may be cut, what the
assistant says is learned, and what the template writes between them is neither.  In a window that
is too small the oldest segment that may be cut gives way first, at its end, down to one token.

Each segment is tokenised by itself, so that boundaries fall between two tokens.  A blank before a
content goes with the content, where tokenizers expect it.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from greentrainer.tasks.base import Example, Message

_SENTINEL = re.compile("\ue000([0-9]+)\ue001")
"""Stands for a content while the template is rendered; private characters, in no template."""


@dataclass(frozen=True)
class Segment:
    """Tokens with one fate.  trained: the loss covers them; cuttable: they may give way."""

    ids: tuple[int, ...]
    trained: bool = False
    cuttable: bool = False


@dataclass(frozen=True)
class Parts:
    """given: what a model reads; asked: what it is to write then, with the end of sequence."""

    given: tuple[Segment, ...]
    asked: tuple[int, ...]


def parts(example: Example, tokenizer: Any, is_encoder_decoder: bool = False) -> Parts:
    """The segments of an example.

    An encoder-decoder has the tokenizer's special tokens around either side.  Raises ValueError
    for a chat whose tokenizer has no chat template, or one that does not write it.
    """
    made = _chat(example, tokenizer) if example.messages else _text(example, tokenizer)
    if not is_encoder_decoder:
        return made
    before, after = specials(tokenizer)
    written = tuple(i for segment in made.given for i in segment.ids)
    start = () if written[: len(before)] == before else (Segment(before),)
    end = (after or (tokenizer.eos_token_id,)) if example.ends else ()
    asked = before + ids_of(tokenizer, example.completion) + end
    return Parts((*start, *made.given, Segment(after)), asked)


def fitted(given: Sequence[Segment], room: int) -> tuple[list[Segment], int]:
    """The segments cut to `room` tokens in all, and how many tokens are still too many."""
    over = sum(len(segment.ids) for segment in given) - room
    kept = []
    for segment in given:
        loss = min(over, len(segment.ids) - 1) if segment.cuttable else 0
        loss = max(loss, 0)
        over -= loss
        kept.append(replace(segment, ids=segment.ids[: len(segment.ids) - loss]))
    return kept, max(over, 0)


def ids_of(tokenizer: Any, text: str) -> tuple[int, ...]:
    """The tokens of a text by itself, without special tokens around it."""
    return tuple(tokenizer(text, add_special_tokens=False, verbose=False).input_ids)


def specials(tokenizer: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Tokens that the tokenizer puts before and after a text, such as BOS and EOS."""
    bare, full = ids_of(tokenizer, "a"), tuple(tokenizer("a").input_ids)
    start = next(i for i in range(len(full)) if full[i : i + len(bare)] == bare)
    return full[:start], full[start + len(bare) :]


def _text(example: Example, tokenizer: Any) -> Parts:
    before, _ = specials(tokenizer)
    given = (
        Segment(before),
        Segment(ids_of(tokenizer, example.prompt), cuttable=True),
        Segment(ids_of(tokenizer, example.cue)),
    )
    end = (tokenizer.eos_token_id,) if example.ends else ()
    return Parts(given, ids_of(tokenizer, example.completion) + end)


def _chat(example: Example, tokenizer: Any) -> Parts:
    """A chat's segments; the template writes its own special tokens, none are added.

    The assistant's turn ends with what the template writes from there to the next special token;
    if it writes none, the last turn ends with the end of sequence.
    """
    *gaps, tail = _gaps(example.messages, tokenizer)
    turn_end = _turn_end(tail, tokenizer)
    given: list[Segment] = []
    blank = ""
    for number, gap in enumerate(gaps):
        if number:
            message = example.messages[number - 1]
            given.append(_content(message, blank, tokenizer))
            if message.role == "assistant" and turn_end and gap.startswith(turn_end):
                given.append(Segment(ids_of(tokenizer, turn_end), trained=True))
                gap = gap[len(turn_end) :]
        head = gap.rstrip(" ")
        blank = gap[len(head) :]
        given.append(Segment(ids_of(tokenizer, head)))
    asked = ids_of(tokenizer, blank + example.completion.strip())
    end = ids_of(tokenizer, turn_end) if turn_end else (tokenizer.eos_token_id,)
    return Parts(tuple(given), asked + (end if example.ends else ()))


def _content(message: Message, blank: str, tokenizer: Any) -> Segment:
    ids = ids_of(tokenizer, blank + message.content.strip())
    trained = message.role == "assistant"
    return Segment(ids, trained=trained, cuttable=not trained)


def _gaps(messages: Sequence[Message], tokenizer: Any) -> list[str]:
    """What the template writes before, between and after the contents of the messages."""
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        raise ValueError(
            "the tokenizer has no chat template, which messages need: give prompt and completion, "
            "or a model that was made for chats"
        )
    turns = [{"role": m.role, "content": f"\ue000{i}\ue001"} for i, m in enumerate(messages)]
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False)
    except TemplateError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"the chat template refuses these messages: {reason}") from error
    pieces = _SENTINEL.split(text)
    if pieces[1::2] != [str(i) for i in range(len(messages))]:
        raise ValueError(
            f"the chat template does not write each of the {len(messages)} messages once, in their "
            f"order ({', '.join(m.role for m in messages)})"
        )
    return pieces[0::2]


def stop_ids(tokenizer: Any) -> list[int]:
    """The tokens that end an answer: the end of sequence, and what ends a turn of a chat."""
    chat = (Message("user", "a"), Message("assistant", "b"))
    try:
        tail = _gaps(chat, tokenizer)[-1]
    except ValueError:  # no template, or one for other chats than these
        return [tokenizer.eos_token_id]
    turn_end = ids_of(tokenizer, _turn_end(tail, tokenizer))[-1:]
    return list(dict.fromkeys([tokenizer.eos_token_id, *turn_end]))


def _turn_end(tail: str, tokenizer: Any) -> str:
    """What the template writes after the last content, up to and with its first special token."""
    known = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    known |= set(tokenizer.all_special_tokens)
    found = [(tail.find(token), -len(token)) for token in known if token in tail]
    if not found:
        return ""
    start, length = min(found)
    return tail[: start - length]
