"""An example as a list of segments of tokens: what is read, what is learned, what may be cut.

A prompt is `specials | prompt | cue`, of which the prompt may be cut.  A chat is what the
tokenizer's chat template makes of it: the contents of system and user may be cut, what the
assistant says is learned, and what the template writes between them is neither.  In a window that
is too small the oldest segment that may be cut gives way first, at its end, down to one token.

Each segment is tokenised by itself, so that boundaries fall between two tokens.  A blank before a
content goes with the content, where tokenizers expect it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from greentrainer.tasks.base import Example, Message
from greentrainer.tasks.turns import written


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
    chat = example.messages and (tokenizer.chat_template or not example.either)
    made = _chat(example, tokenizer) if chat else _text(example, tokenizer)
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
        cut = segment.ids[: len(segment.ids) - loss]
        kept.append(replace(segment, ids=cut) if loss else segment)
    return kept, max(over, 0)


class Told:
    """A tokenizer that was given texts all at once, and answers for them from what it was told.

    All else it is asked or told goes to the tokenizer itself.
    """

    def __init__(self, tokenizer: Any, texts: Iterable[str]) -> None:
        asked = list(dict.fromkeys(texts))
        plain = {"return_attention_mask": False, "return_token_type_ids": False}
        told = tokenizer(asked, add_special_tokens=False, verbose=False, **plain) if asked else None
        ids = told.input_ids if told else []
        self.tokenizer = tokenizer
        self.known = {text: tuple(one) for text, one in zip(asked, ids, strict=True)}
        self.specials = specials(tokenizer)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)

    def __call__(self, text: str, **options: Any) -> Any:
        """As the tokenizer itself."""
        return self.tokenizer(text, **options)


def ids_of(tokenizer: Any, text: str) -> tuple[int, ...]:
    """The tokens of a text by itself, without special tokens around it."""
    if isinstance(tokenizer, Told) and text in tokenizer.known:
        return tokenizer.known[text]
    return tuple(tokenizer(text, add_special_tokens=False, verbose=False).input_ids)


def specials(tokenizer: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Tokens that the tokenizer puts before and after a text, such as BOS and EOS."""
    if isinstance(tokenizer, Told):
        return tokenizer.specials
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

    A learned turn ends with the last special token that the template writes for it; if it writes
    none, the last turn ends with the end of sequence.
    """
    chat = written(example, tokenizer)
    given: list[Segment] = []
    place = 0
    for span in chat.spans:
        gap = chat.text[place : span.start]
        head = gap.rstrip(" ")
        given.append(Segment(ids_of(tokenizer, head)))
        said = gap[len(head) :] + chat.text[span.start : span.end]
        given.append(
            Segment(ids_of(tokenizer, said), trained=span.learned, cuttable=not span.learned)
        )
        place = span.end
    asked = given.pop().ids
    if not example.ends:
        asked = ids_of(tokenizer, chat.text[chat.spans[-1].start : chat.said])
    elif not chat.ended:
        asked += (tokenizer.eos_token_id,)
    return Parts(tuple(given), asked)


def stop_ids(tokenizer: Any) -> list[int]:
    """The tokens that end an answer: the end of sequence, and what ends a turn of a chat."""
    asked = Example("a", "b", messages=(Message("user", "a"), Message("assistant", "b")))
    try:
        chat = written(asked, tokenizer)
    except ValueError:  # no template, or one for other chats than these
        return [tokenizer.eos_token_id]
    turn_end = ids_of(tokenizer, chat.text)[-1:] if chat.ended else ()
    return list(dict.fromkeys([tokenizer.eos_token_id, *turn_end]))
