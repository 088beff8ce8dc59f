"""Whether a run packs its batches: several examples a row (`tasks/packing.py`).

By itself it does where that saves a tenth of the positions, and the model takes an example in a
row with others for what it is alone: this is tried on a few short pieces.  What was decided is kept
in the run's folder, so that a resumed run goes on with it.
"""

import inspect
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from torch import nn

from greentrainer.config import RunConfig
from greentrainer.cost import flop_counter
from greentrainer.forward import mixing
from greentrainer.methods import METHODS
from greentrainer.records import Entry, write_json
from greentrainer.run.asked import collator_of, forward_of
from greentrainer.run.reference import EpochOrder
from greentrainer.tasks import Encoded, encode, packing

WORTH = 0.1
"""Share of the positions that packing must save to be done unasked."""
LOOKED_AT = 1000
"""Batches of the first pass by which that is told."""
PIECES = (5, 3, 4, 2)
"""Tokens of the pieces that a model is tried with, two a row."""
KEPT = "packing.json"


@dataclass(frozen=True)
class Positions:
    """Of some batches: tokens of examples, and positions of all rows, padded and packed."""

    tokens: int = 0
    padded: int = 0
    packed: int = 0

    @property
    def saved(self) -> float:
        """The share of the padded ones that packing saves."""
        return 1 - self.packed / self.padded


@dataclass(frozen=True)
class Packing:
    """What was decided.  says: that, and why, in one line.  flops: of trying the model."""

    packs: bool
    says: str
    flops: int = 0


def positions_in(
    config: RunConfig, train: Sequence[Encoded], collate: encode.Collator, most: int | None = None
) -> Positions:
    """Of the batches of a pass, or of the first `most`."""
    tokens = padded = packed = 0
    for rows in islice(EpochOrder(train, config.batch_size, config.seed).groups(), most):
        lengths = [encode.length_at(train, i) for i in rows]
        tokens += sum(lengths)
        padded += len(rows) * packing.width_of(max(lengths), collate.multiple, collate.max_length)
        packed += collate.layout(lengths).positions
    return Positions(tokens, padded, packed)


def require_packing(config: RunConfig) -> None:
    """Raise ValueError where packing is asked for and other keys do not go with it."""
    reason = _hindered(config)
    if config.packing == "on" and reason:
        raise ValueError(f"packing: {reason}: leave packing out, or that")


def decided(
    config: RunConfig, model: nn.Module, train: Sequence[Encoded], collate: encode.Collator
) -> Packing:
    """Whether batches are packed.  collate: as it pads.  model: as it was loaded.

    Raises ValueError where packing is asked for and cannot be.
    """
    asked = config.packing == "on"
    reason = _hindered(config)
    if config.packing == "off":
        return Packing(False, "packing: off")
    flops = 0
    found = positions_in(config, train, collate, LOOKED_AT) if reason is None else Positions()
    if reason is None and not asked and found.saved < WORTH:
        reason = f"it would save {max(0.0, found.saved):.1%} of the positions, not {WORTH:.0%}"
    elif reason is None:
        reason, flops = _tried(model, train, collate.pad_id)
    if reason and asked:
        raise ValueError(f"packing: {reason}: leave packing out")
    if reason:
        return Packing(False, f"packing: off, {reason}", flops)
    return Packing(True, f"packing: on, {found.saved:.1%} fewer positions", flops)


def packing_collator(
    config: RunConfig,
    model: nn.Module,
    tokenizer: Any,
    train: Sequence[Encoded],
    told: Callable[[str], None] = lambda _line: None,
    home: Path | None = None,
) -> tuple[encode.Collator, list[Entry]]:
    """What makes the batches that a run trains on, and what finding out has executed.

    home: folder in which is kept what was decided; a run that resumes looks there first.
    """
    collate = collator_of(config, tokenizer)
    place = home / KEPT if home and home.is_dir() and config.count == 1 else None
    if place and config.resume and place.is_file():
        found = Packing(**json.loads(place.read_text(encoding="utf-8")))
    else:
        found = decided(config, model, train, collate)
        if place:
            write_json(place, {"packs": found.packs, "says": found.says})
    told(found.says)
    spent = [Entry("probe", forward_flops=found.flops)] if found.flops else []
    return replace(collate, packs=found.packs), spent


def packs_by_lengths(
    config: RunConfig, model: nn.Module, train: Sequence[Encoded], collate: encode.Collator
) -> bool:
    """Whether batches are packed as far as is told without running the model."""
    able = "position_ids" in inspect.signature(type(model).forward).parameters
    if config.packing == "off" or _hindered(config) or not able or _encodes(model):
        return False
    return config.packing == "on" or positions_in(config, train, collate, LOOKED_AT).saved >= WORTH


def _encodes(model: nn.Module) -> bool:
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))


def _hindered(config: RunConfig) -> str | None:
    """Why batches are not packed, whatever the model and the data."""
    method = METHODS[config.method]
    if config.count > 1:
        return "each of several processes has rows of one example"
    if config.memory is not None:
        return "what fits into memory is told of rows of one example"
    if method.virtual:
        return f"{method.name} puts tokens before each row, not before each example"
    if forward_of(config, method, 0).keep != "nothing":
        return "activations are kept of rows of one example (keep_activations)"
    return None


def _tried(model: nn.Module, train: Sequence[Encoded], pad_id: int) -> tuple[str | None, int]:
    """Why a model cannot have examples packed, if so; and the FLOPs of trying."""
    if _encodes(model):
        return "an encoder-decoder reads each example for itself", 0
    if getattr(getattr(model, "config", None), "output_router_logits", False):
        return "its loss takes something from padding too (output_router_logits)", 0
    ids = [token for one in islice(train, 2 * len(PIECES)) for token in one.input_ids]
    ids = (ids * sum(PIECES))[: sum(PIECES)]
    ends = [sum(PIECES[: i + 1]) for i in range(len(PIECES))]
    parts = [tuple(ids[end - size : end]) for end, size in zip(ends, PIECES, strict=True)]
    width = max(sum(PIECES[:2]), sum(PIECES[2:])) + 1
    laid = packing.Layout(((0, 1), (2, 3)), width)
    batch = packing.filled([Encoded(part, part) for part in parts], laid, pad_id)
    with flop_counter() as count:
        reason = mixing(model, encode.placed(batch, next(model.parameters()).device))
    return reason, int(count.get_total_flops())
