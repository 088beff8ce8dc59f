"""Encoding many examples: in thousands, by several processes, the same tokens in the same order."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from greentrainer.records import in_order, over, processes
from greentrainer.tasks.base import Example
from greentrainer.tasks.encode import AT_ONCE, Block, EncodedRows, encode_some, windows

Expand = Callable[[Sequence[Example]], Iterable[Example]]
"""From examples to what is learned of them: of a chat several."""
WORTH = 4
"""Thousands of examples from which on other processes help."""


def encoded(
    examples: Sequence[Example],
    tokenizer: Any,
    max_length: int,
    is_encoder_decoder: bool = False,
    expand: Expand = list,
    count: int | None = None,
) -> EncodedRows:
    """What `encode_all` makes of the examples once they are expanded, on the disk.

    count: processes at a time; as many as there are processors when None, and one for few examples.
    Raises ValueError as `encode_all` does.
    """
    starts = range(0, len(examples), AT_ONCE)
    if count is None:
        count = processes() if len(starts) >= WORTH else 1

    def block(start: int) -> Block:
        some = list(expand(examples[start : start + AT_ONCE]))
        return Block.of(*encode_some(some, tokenizer, max_length, is_encoder_decoder, start + 1))

    made, stream = EncodedRows(), bytearray()
    with in_order(block, starts, count) as blocks:
        for one in over(blocks, "encoding examples", len(starts)):
            made.add(one)
            stream += one.texts
    for window in windows(stream, max_length):
        made.add(Block.of([window]))
    return made
