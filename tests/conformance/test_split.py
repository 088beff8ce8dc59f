"""Batches cut in two: the same loss, and the gradient that leaves out the prefix."""

from typing import Any

import pytest
import torch
from torch import nn

from greentrainer.forward.check import compare
from greentrainer.forward.split import SplitForward
from tests.conformance.families import FAMILIES, batch_for, build

DECODERS = [n for n in FAMILIES if "t5" not in n and "bart" not in n and "checkpointed" not in n]
ENCODERS = [n for n in FAMILIES if ("t5" in n or "bart" in n) and "checkpointed" not in n]
ROWS, LENGTH = 3, 18
PROMPTS = (11, 4, 13)


def still(family: str) -> Any:
    """The family's model in evaluation mode, so that no dropout is in the way."""
    return build(family).eval()


def ragged(left: bool = False) -> dict[str, Any]:
    """Rows of different lengths, prompts and completions."""
    batch: dict[str, Any] = batch_for("", ROWS, LENGTH)
    for row, (size, prompt) in enumerate(zip((18, 14, 16), PROMPTS, strict=True)):
        blank = slice(0, LENGTH - size) if left else slice(size, LENGTH)
        batch["attention_mask"][row, blank] = 0
        first = LENGTH - size if left else 0
        batch["labels"][row, : first + prompt] = -100
    batch["labels"][batch["attention_mask"] == 0] = -100
    batch["input_ids"][batch["attention_mask"] == 0] = 0
    return batch


def split_loss(model: Any, batch: Any, tail: int) -> Any:
    """The loss with so many positions of the prompt in the tail."""
    split = SplitForward(model)
    assert split.settle(ragged(), lambda small, on: compare(model, small, None, on)) is None
    try:
        with split.at(tail), split.on():
            return model(**batch).loss
    finally:
        split.close()


def gradients(model: nn.Module, loss: Any) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("tail", [0, 3, 100])
@pytest.mark.parametrize("family", [*DECODERS, *ENCODERS])
def test_the_loss_is_that_of_the_whole_batch(family: str, tail: int, left: bool) -> None:
    model, batch = still(family), ragged(left)
    whole, parted = model(**batch).loss, split_loss(model, batch, tail)
    torch.testing.assert_close(parted, whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", DECODERS)
def test_a_tail_of_everything_has_the_whole_gradient(family: str) -> None:
    model, batch = still(family), ragged()
    whole = gradients(model, model(**batch).loss)
    parted = gradients(model, split_loss(model, batch, LENGTH))
    assert whole.keys() == parted.keys()
    for name, gradient in whole.items():
        torch.testing.assert_close(parted[name], gradient, rtol=1e-4, atol=1e-6)
