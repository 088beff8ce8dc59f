"""The output projection and the loss on labelled positions only.

A hook before the model swaps the labels for the short list of those that count, and a hook before
its output projection picks the positions that predict them.  The rest stays the model's own:
biases, caps and scales of the logits, the loss and what is added to it.

A decoder moves its labels one step to the left before it compares them.  So the list begins with an
ignored label, and one spare position, whose label moving leaves empty, is picked at its end.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from greentrainer.forward.host import on_host, to_device
from greentrainer.types import IGNORED, Batch


@dataclass(frozen=True)
class Picked:
    """What one batch is computed on.

    positions: (N,) of the hidden states, as one row, from which labels are predicted.
    labels: (1, N), as the model takes them.
    """

    positions: torch.Tensor
    labels: torch.Tensor


class LabelledHead:
    """Lets a model compute its logits only where there is a label.

    It works while gradients are enabled and the model is in training mode, or within `on`.  The
    logits of the model's output are then (1, N, vocabulary).

    Raises ValueError for a model that does not say which module its output projection is.
    """

    def __init__(self, model: nn.Module) -> None:
        found = getattr(model, "get_output_embeddings", lambda: None)()
        if not isinstance(found, nn.Module):
            raise ValueError(f"{type(model).__name__} does not say which module its head is")
        self.model: Any = model
        self.moves = int(not getattr(model.config, "is_encoder_decoder", False))
        self.enabled = True
        self._always = False
        self._given: Picked | None = None
        self._picked: Picked | None = None
        self._handles = [
            model.register_forward_pre_hook(self._before_model, with_kwargs=True),
            model.register_forward_hook(self._after_model, always_call=True),
            found.register_forward_pre_hook(self._before_head),
        ]

    def close(self) -> None:
        """Leave the model as it was."""
        for handle in self._handles:
            handle.remove()

    def positions(self, batch: Batch) -> int | None:
        """Positions that the head works on for a batch; None for one without labels."""
        labels = batch.get("labels") if isinstance(batch, Mapping) else None
        if not isinstance(labels, torch.Tensor):
            return None
        return int((on_host(labels)[:, self.moves :] != IGNORED).sum()) + self.moves

    @contextmanager
    def on(self, batch: Batch = None, more: int = 0, count: int | None = None) -> Iterator[None]:
        """In here it works in any mode.

        batch: the one that the model is called with, where that has no values to look at.
        more: as many positions besides.  count: so many positions, whatever the batch.
        """
        self._always = True
        if count is not None:
            self._given = Picked(*batch["labels"].new_zeros(2, count).unbind())
            self._given = Picked(self._given.positions, self._given.labels[None])
        elif batch is not None:
            self._given = pick(batch["labels"], self.moves, more)
        try:
            yield
        finally:
            self._always, self._given = False, None

    @contextmanager
    def off(self) -> Iterator[None]:
        """In here the model computes all logits."""
        before, self.enabled = self.enabled, False
        try:
            yield
        finally:
            self.enabled = before

    def _before_model(self, _model: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        self._picked = None  # Ctrl-C may have broken off the pass before
        labels = kwargs.get("labels")
        working = self._always or (self.model.training and torch.is_grad_enabled())
        if not (self.enabled and working and isinstance(labels, torch.Tensor)):
            return None
        self._picked = self._given or pick(labels, self.moves)
        swapped = {**kwargs, "labels": self._picked.labels}
        if not self.moves and kwargs.get("decoder_input_ids") is None:
            swapped["decoder_input_ids"] = self.model.prepare_decoder_input_ids_from_labels(labels)
        return args, swapped

    def _before_head(self, _head: Any, args: tuple[Any, ...]) -> Any:
        if self._picked is None:
            return None
        hidden, *rest = args
        picked = hidden.reshape(-1, hidden.shape[-1]).index_select(0, self._picked.positions)
        return picked[None], *rest

    def _after_model(self, *_: Any) -> None:
        self._picked = None


def pick(labels: torch.Tensor, moves: int, more: int = 0) -> Picked:
    """The labelled positions of a batch.  labels: (B, T).

    moves: steps that the model moves them by.
    more: unlabelled positions besides (copies of the first).
    """
    here = on_host(labels)
    rows, columns = (here[:, moves:] != IGNORED).nonzero(as_tuple=True)
    positions = rows * labels.shape[1] + columns
    wanted = here[rows, columns + moves].to(positions)
    spare = positions.new_zeros(moves + more)
    blank = wanted.new_full((moves,), IGNORED), wanted.new_full((more,), IGNORED)
    both = torch.stack([torch.cat([positions, spare]), torch.cat([blank[0], wanted, blank[1]])])
    there = to_device(both, labels.device)
    return Picked(there[0], there[1:].to(labels.dtype))
