"""What of the forward pass need not be computed, exactly or by choice: see `docs/forward.md`.

Start with `savings.py`, which the engine holds.  When which of it is worth its cost, `engine` says.
"""

from greentrainer.forward.check import mixing, piece
from greentrainer.forward.handed import handing, take_plain_keys
from greentrainer.forward.head import LabelledHead
from greentrainer.forward.host import moved, on_host
from greentrainer.forward.options import ForwardOptions, Positions
from greentrainer.forward.packed import unpacked
from greentrainer.forward.savings import SHORT_TAILS, ForwardSavings
from greentrainer.forward.shapes import (
    Alike,
    NoneAlike,
    Signature,
    labelled,
    matched,
    signature,
    template_of,
    tensors,
    tokens_of,
    with_labels,
)
from greentrainer.forward.split import SplitForward
from greentrainer.forward.store import SIDE_BY_SIDE

__all__ = [
    "SHORT_TAILS",
    "SIDE_BY_SIDE",
    "Alike",
    "ForwardOptions",
    "ForwardSavings",
    "LabelledHead",
    "NoneAlike",
    "Positions",
    "Signature",
    "SplitForward",
    "handing",
    "labelled",
    "matched",
    "mixing",
    "moved",
    "on_host",
    "piece",
    "signature",
    "take_plain_keys",
    "template_of",
    "tensors",
    "tokens_of",
    "unpacked",
    "with_labels",
]
