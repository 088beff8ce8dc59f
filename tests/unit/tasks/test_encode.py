"""From examples to batches: labels, cutting, special tokens, padding, and the order."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from greentrainer.tasks import Encoded, Example
from greentrainer.tasks.encode import (
    IGNORED,
    Collator,
    batches,
    collate,
    encode,
    encode_all,
    encode_prompt,
)
from greentrainer.types import rounded
from tests.tiny import BOS, EOS, KNOWN, PAD, characters, merging, refusal

LETTERS = KNOWN.replace("<", "")  # so that no text spells a special token
TEXT = st.text(LETTERS, min_size=1, max_size=12)
EXAMPLES = st.builds(Example, TEXT, TEXT, st.text(LETTERS, max_size=4))
PLAIN, FRAMED = characters(), characters("<s>", "</s>")
OPENED, ENDED = characters("<s>"), characters(after="</s>")
TOKENIZERS = st.sampled_from([PLAIN, FRAMED, OPENED, ENDED])
EXAMPLE = Example("prompt text", "done.", " ->")


def ids(text: str) -> tuple[int, ...]:
    """One token a character, looked up without a tokenizer."""
    return tuple(4 + KNOWN.index(character) for character in text)


def start_of(tokenizer: Any) -> tuple[int, ...]:
    return (BOS,) if tokenizer in (FRAMED, OPENED) else ()


def end_of(tokenizer: Any) -> tuple[int, ...]:
    return (EOS,) if tokenizer in (FRAMED, ENDED) else ()


def smallest(example: Example, tokenizer: Any, two_sided: bool) -> int:
    """The window in which one token of the prompt is left."""
    given_part = len(start_of(tokenizer)) + 1 + len(example.cue)
    asked = len(example.completion) + 1
    if two_sided:
        return max(given_part + len(end_of(tokenizer)), len(start_of(tokenizer)) + asked)
    return given_part + asked


@settings(deadline=None)
@given(EXAMPLES, TOKENIZERS, st.integers(0, 15))
def test_a_decoder_reads_all_and_is_asked_for_completion_and_end(
    example: Example, tokenizer: Any, more: int
) -> None:
    start, asked = start_of(tokenizer), (*ids(example.completion), EOS)
    encoded = encode(example, tokenizer, smallest(example, tokenizer, False) + more)
    given_part = start + ids(example.prompt)[: 1 + more] + ids(example.cue)
    assert encoded.input_ids == given_part + asked
    assert encoded.labels == (IGNORED,) * len(given_part) + asked


@settings(deadline=None)
@given(EXAMPLES, TOKENIZERS, st.integers(0, 15))
def test_an_encoder_reads_the_prompt_and_its_decoder_is_asked(
    example: Example, tokenizer: Any, more: int
) -> None:
    start, end = start_of(tokenizer), end_of(tokenizer)
    window = smallest(example, tokenizer, True) + more
    encoded = encode(example, tokenizer, window, is_encoder_decoder=True)
    room = window - len(start + end) - len(example.cue)
    assert encoded.input_ids == start + ids(example.prompt)[:room] + ids(example.cue) + end
    assert encoded.labels == (*start, *ids(example.completion), EOS)


@settings(deadline=None)
@given(EXAMPLES, TOKENIZERS, st.booleans())
def test_what_fits_only_with_cue_or_completion_cut_is_refused(
    example: Example, tokenizer: Any, two_sided: bool
) -> None:
    window = smallest(example, tokenizer, two_sided)
    assert encode(example, tokenizer, window, two_sided).length == window
    with refusal("row 1: ", "1 tokens too long", "raise max_length"):
        encode_all([example], tokenizer, window - 1, two_sided)


@settings(deadline=None)
@given(EXAMPLES, TOKENIZERS, st.booleans(), st.integers(0, 15))
def test_a_prompt_is_the_same_in_training_and_in_generation(
    example: Example, tokenizer: Any, two_sided: bool, more: int
) -> None:
    window = smallest(example, tokenizer, two_sided) + more
    encoded = encode(example, tokenizer, window, two_sided)
    reserved = 0 if two_sided else len(example.completion) + 1
    alone = encode_prompt(example, tokenizer, window, two_sided, reserved)
    assert alone == (encoded.input_ids if two_sided else encoded.input_ids[:-reserved])


def test_no_token_spans_the_boundary() -> None:
    """A merge of the prompt's last letter with the next text's first would hide the boundary."""
    tokenizer = merging()
    assert tokenizer("ab").input_ids == [6]
    encoded = encode(Example("a", "b", "b"), tokenizer, 8)
    assert encoded == Encoded((4, 5, 5, EOS), (IGNORED, IGNORED, 5, EOS))


def test_a_too_long_row_is_named() -> None:
    long = Example("p", "x" * 20, " ->")
    with refusal("row 2: completion with its cue is 5 tokens too long", "window of 20"):
        encode_all([EXAMPLE, long], PLAIN, 20)  # 1 + 3 + 20 + the end
    with refusal("row 2: completion is 1 tokens too long"):
        encode_all([EXAMPLE, long], PLAIN, 20, is_encoder_decoder=True)
    with refusal("row 1: cue is 2 tokens too long"):
        encode_all([Example("p", "c", "x" * 20)], FRAMED, 21, is_encoder_decoder=True)
    with refusal("cue is 1 tokens too long"):
        encode_prompt(EXAMPLE, PLAIN, 3)


ROWS = [Encoded((5, 6, 7), (IGNORED, 6, 7)), Encoded((8,), (8,))]


def test_padding_is_masked_and_has_no_label() -> None:
    batch = collate(ROWS, PAD, multiple=4)
    assert {key: tensor.tolist() for key, tensor in batch.items()} == {
        "input_ids": [[5, 6, 7, PAD], [8, PAD, PAD, PAD]],
        "attention_mask": [[1, 1, 1, 0], [1, 0, 0, 0]],
        "labels": [[IGNORED, 6, 7, IGNORED], [8, IGNORED, IGNORED, IGNORED]],
    }
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


def test_a_real_token_that_equals_padding_is_not_masked() -> None:
    batch = collate([Encoded((5, EOS), (5, EOS)), ROWS[0]], EOS, multiple=1)
    assert batch["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]
    assert batch["labels"].tolist()[0] == [5, EOS, IGNORED]


ENCODED = st.builds(
    lambda one, other: Encoded((5,) * one, (6,) * other), st.integers(1, 70), st.integers(1, 70)
)


@settings(deadline=None)
@given(st.lists(ENCODED, min_size=1, max_size=5), st.integers(1, 64), st.integers(70, 100))
def test_widths_are_multiples_within_the_window(
    rows: list[Encoded], multiple: int, window: int
) -> None:
    batch = collate(rows, PAD, multiple, window)
    assert batch["input_ids"].shape == batch["attention_mask"].shape
    for key, longest in [
        ("input_ids", max(len(row.input_ids) for row in rows)),
        ("labels", max(len(row.labels) for row in rows)),
    ]:
        width = batch[key].shape[1]
        assert longest <= width <= min(longest + multiple - 1, window)
        assert width % multiple == 0 or width == window
    assert batch["attention_mask"].sum(1).tolist() == [len(row.input_ids) for row in rows]
    assert (batch["labels"] != IGNORED).sum(1).tolist() == [len(row.labels) for row in rows]


def test_a_collator_is_collate_with_its_settings() -> None:
    one, other = Collator(PAD, 4, 6)(ROWS), collate(ROWS, PAD, 4, 6)
    assert all(torch.equal(one[key], other[key]) for key in other)
    assert Collator(PAD)(ROWS)["input_ids"].shape == (2, max(one.length for one in ROWS))
    assert Collator(PAD, 64)(ROWS)["input_ids"].shape == (2, 64)


@given(st.integers(1, 5000), st.sampled_from([1, 8]))
def test_a_length_is_padded_by_less_than_an_eighth(size: int, least: int) -> None:
    """Or by less than the multiple that it is in any case."""
    found = rounded(size, least=least)
    assert size <= found
    assert found - size < max(least, size / 8 + 1e-9)
    assert found % least == 0
    assert len({rounded(n, least=8) for n in range(1, 1025)}) <= 40


def of_lengths(lengths: list[int]) -> list[Encoded]:
    return [Encoded((5,) * length, (5,) * length) for length in lengths]


@settings(deadline=None)
@given(st.lists(st.integers(1, 50), max_size=300), st.integers(1, 7), st.integers(0, 9))
def test_an_epoch_takes_every_example_once(lengths: list[int], size: int, seed: int) -> None:
    encoded = of_lengths(lengths)
    groups = list(batches(encoded, size, seed, epoch=3))
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    sizes = sorted(len(group) for group in groups)
    assert sizes[1:] == [size] * (len(sizes) - 1)  # one may be smaller
    assert groups == list(batches(encoded, size, seed, epoch=3))


def test_seed_and_epoch_set_the_order() -> None:
    encoded = of_lengths([1 + i % 40 for i in range(200)])
    keys = [(0, 0), (0, 1), (1, 0), (1, 1), (1, 10), (11, 0)]
    orders = [list(batches(encoded, 4, seed, epoch)) for seed, epoch in keys]
    assert all(a != b for i, a in enumerate(orders) for b in orders[:i])


def test_batches_hold_like_lengths_in_a_random_order() -> None:
    lengths = [1 + (i * 37) % 200 for i in range(200)]
    groups = list(batches(of_lengths(lengths), 4))
    spans = [max(lengths[i] for i in g) - min(lengths[i] for i in g) for g in groups]
    assert spans == [3] * 50  # 200 lengths, all different, sorted and cut
    firsts = [lengths[group[0]] for group in groups]
    assert firsts != sorted(firsts)


@pytest.mark.parametrize("size", [0, -1])
def test_a_batch_size_below_one_is_refused(size: int) -> None:
    with refusal(f"batch_size is {size}"):
        list(batches(of_lengths([1]), size))
