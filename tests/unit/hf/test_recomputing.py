"""Activation checkpointing switched on for some passes."""

from typing import Any

import pytest
from torch.utils.flop_counter import FlopCounterMode

from greentrainer.hf import recomputing
from tests.conformance.families import batch_for, build


def backward(name: str, on: bool) -> tuple[int, int]:
    """FLOPs of a whole forward pass, and of the backward pass of the last block's last tensor."""
    model: Any = build(name).train()
    names = [n for n, _ in model.named_parameters() if ".layers." in n or ".h." in n]
    for key, parameter in model.named_parameters():
        parameter.requires_grad_(key == names[-1])
    with recomputing(model, on):
        with FlopCounterMode(display=False) as forward:
            loss = model(**batch_for(name)).loss
        with FlopCounterMode(display=False) as counted:
            loss.backward()
    return forward.get_total_flops(), counted.get_total_flops()


@pytest.mark.parametrize("name", ["llama", "opt", "bloom"])
def test_only_blocks_that_the_gradient_passes_are_made_again(name: str) -> None:
    """transformers demands a gradient at the embeddings, for which all would be."""
    forward, plain = backward(name, on=False)
    built: Any = build(name)
    layers = built.config.num_hidden_layers
    _, again = backward(name, on=True)
    assert 0 <= again - plain <= forward / layers


def test_a_model_demands_gradients_again_afterwards() -> None:
    """As it did before."""
    model: Any = build("llama")
    with recomputing(model):
        pass
    model.enable_input_require_grads()
    assert model._require_grads_hooks
