"""Tiny tokenizers, saved checkpoints and refusals in one line: what several tests need."""

import string
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import transformers as tf
from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE, WordLevel

from tests.conformance.families import VOCABULARY, build

SPECIALS = {"<pad>": 0, "</s>": 1, "<unk>": 2, "<s>": 3}
PAD, EOS, UNK, BOS = SPECIALS.values()
CHARACTERS = string.ascii_lowercase + string.digits + " \n#.,:;()=+-*/_'\"?!<>[]"
"""Each is one token of `characters`; those that do not fit the tiny models' vocabulary are not."""
KNOWN = CHARACTERS[: VOCABULARY - len(SPECIALS)]


def characters(before: str = "", after: str = "", **specials: str | None) -> Any:
    """A tokenizer with one token a character, for the vocabulary of the tiny models.

    before, after: special tokens put around a text, such as "<s>" and "</s>".
    specials: in place of pad_token "<pad>" and eos_token "</s>"; None for none.
    """
    vocabulary = {**SPECIALS, **{c: i for i, c in enumerate(KNOWN, len(SPECIALS))}}
    backend = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    backend.post_processor = processors.TemplateProcessing(
        single=f"{before} $A {after}".split(), special_tokens=list(SPECIALS.items())
    )
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", **specials}
    return tf.PreTrainedTokenizerFast(tokenizer_object=backend, **names)


def merging() -> Any:
    """A tokenizer that knows `a`, `b` and the merged `ab`."""
    vocabulary = {**SPECIALS, "a": 4, "b": 5, "ab": 6}
    backend = Tokenizer(BPE(vocabulary, [("a", "b")], unk_token="<unk>"))
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def saved(folder: Path, family: str = "llama", tokenizer: Any = None) -> Path:
    """A family's tiny model with a tokenizer, as `save_pretrained` writes them, without a bar."""
    tf.utils.logging.disable_progress_bar()
    model: Any = build(family)
    model.save_pretrained(folder)
    (tokenizer or characters()).save_pretrained(folder)
    return folder


@contextmanager
def refusal(*fragments: str) -> Iterator[None]:
    """Expects a ValueError of one line that holds each fragment."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the text is looked at below)
        yield
    message = str(caught.value)
    assert "\n" not in message
    for fragment in fragments:
        assert fragment in message


def cut(path: Path, size: int) -> None:
    """Keep a file's first `size` bytes."""
    path.write_bytes(path.read_bytes()[:size])
