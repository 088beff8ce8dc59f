"""How examples look to a model: their tokens with the loss mask, and how long they are."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count as count_from
from statistics import median
from typing import Any

from rich.text import Text

from greentrainer.records import visible
from greentrainer.tasks.base import Example
from greentrainer.tasks.encode import IGNORED, Encoded, encode

_BARS, _WIDTH = 12, 40
_NO_WINDOW = 2**40


def marked(encoded: Encoded, tokenizer: Any, is_encoder_decoder: bool) -> Text:
    """The tokens of an example as text, those with a label in green.

    An encoder-decoder's labels follow on a line of their own.
    """
    ids, labels = encoded.input_ids, encoded.labels
    beside = (IGNORED,) * len(ids) if is_encoder_decoder else labels
    labelled = sum(label != IGNORED for label in labels)
    text = Text(f"example of {len(ids)} tokens, {labelled} labelled (in green):\n")
    start = 0
    for end in range(1, len(ids) + 1):
        if end == len(ids) or (beside[end] == IGNORED) != (beside[start] == IGNORED):
            style = "dim" if beside[start] == IGNORED else "bold green"
            text.append(visible(tokenizer.decode(list(ids[start:end]))), style)
            start = end
    if is_encoder_decoder:
        text.append("\n" + visible(tokenizer.decode(list(labels))), "bold green")
    return text


@dataclass(frozen=True)
class Lengths:
    """How long examples are, in tokens.

    whole: each example before it is cut (of an encoder-decoder, its longer side).
    labelled: tokens that the loss covers in each.
    window: what each is cut to.
    """

    whole: tuple[int, ...]
    labelled: tuple[int, ...]
    window: int

    @property
    def cut_share(self) -> float:
        """Share of the examples that do not fit the window whole."""
        return sum(length > self.window for length in self.whole) / len(self.whole)

    def quantile(self, share: float) -> int:
        """The length that `share` of the examples do not exceed."""
        ordered = sorted(self.whole)
        return ordered[max(0, -int(-share * len(ordered) // 1) - 1)]

    def line(self) -> str:
        """The figures in words."""
        return (
            f"{len(self.whole):,} examples: median {median(self.whole):.0f} tokens, 90% within "
            f"{self.quantile(0.9)}, longest {max(self.whole)}; {self.cut_share:.1%} cut by the "
            f"window of {self.window}; {median(self.labelled):.0f} tokens labelled (median)"
        )


def lengths(
    examples: Sequence[Example], tokenizer: Any, window: int, is_encoder_decoder: bool
) -> Lengths:
    """Measure the examples, of which there is at least one."""
    whole = [encode(one, tokenizer, _NO_WINDOW, is_encoder_decoder) for one in examples]
    labelled = (sum(label != IGNORED for label in one.labels) for one in whole)
    return Lengths(tuple(one.length for one in whole), tuple(labelled), window)


def histogram(found: Lengths) -> Text:
    """A bar for each range of lengths; what lies beyond the window is red."""
    longest = max(found.whole)
    steps = (digit * 10**power for power in count_from(0) for digit in (1, 2, 5))
    step = next(step for step in steps if longest <= step * _BARS)
    counts = Counter((length - 1) // step for length in found.whole)
    text = Text()
    for i in range(min(counts), max(counts) + 1):
        count, low, high = counts[i], i * step + 1, (i + 1) * step
        text.append(f"{low:6}-{high:<6} ")
        bar = "█" * -(-count * _WIDTH // max(counts.values()))
        text.append(bar, "red" if low > found.window else "green")
        text.append(f" {count:,}\n")
    text.rstrip()
    return text
