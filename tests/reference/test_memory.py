"""The peak of a step, against torch's own tracker of modules and against arithmetic."""

from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker

from greentrainer.cost import step_memory
from greentrainer.cost.draws import CertainDraws
from tests.conformance.families import batch_for, build

MEGA = 2**20


def loss(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    total: torch.Tensor = model(batch).sum()
    return total


def test_a_stack_of_products_by_hand() -> None:
    """Each layer keeps its input, one step's gradient is alive, and gradients stay."""
    rows, width, layers = 64, 128, 6
    model = nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(layers)))
    batch = torch.ones(rows, width)
    one = rows * width * 4
    found = step_memory(model, batch, [name for name, _ in model.named_parameters()], loss)
    weight = width * width * 4
    assert found.weights == found.gradients == layers * weight
    assert found.optimizer == 2 * found.gradients
    assert (
        0 <= found.activations <= 3 * one + 64
    )  # at its peak the first layers' gradients are made
    top = step_memory(model, batch, [f"{layers - 1}.weight"], loss)
    assert top.gradients == weight
    assert top.weights == layers * weight
    assert one <= top.activations <= 3 * one + 64  # its input is kept


@pytest.mark.filterwarnings("ignore:Module is None")
@pytest.mark.parametrize("family", ["opt", "llama", "t5"])
def test_the_peak_is_that_of_torch_s_tracker(family: str) -> None:
    batch = batch_for(family, 4, 24)
    names = [name for name, p in build(family).named_parameters() if p.requires_grad]
    told = step_memory(build(family).train(), batch, names)
    with FakeTensorMode():
        model: Any = build(family).train()
        fake = {name: torch.ones(t.shape, dtype=t.dtype) for name, t in batch.items()}
        tracker = MemTracker()
        tracker.track_external(model)
        with tracker, CertainDraws():
            model(**fake).loss.backward()
        peak = tracker.get_tracker_snapshot("peak")
    [seen] = [device["Total"] for device in peak.values()]
    own = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    assert told.total - told.optimizer == pytest.approx(seen, rel=0.05)
    assert told.weights == own


@pytest.mark.parametrize("family", ["opt", "llama"])
def test_less_trained_takes_less(family: str) -> None:
    """And nothing of the model is changed by asking."""
    model = build(family).train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    names = [name for name, _ in model.named_parameters()]
    batch = batch_for(family, 4, 24)
    whole = step_memory(model, batch, names)
    last = step_memory(model, batch, names[-1:])
    assert last.total < whole.total
    assert last.gradients < whole.gradients
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_kept_optimizer_state_counts() -> None:
    model = build("opt").train()
    names = [name for name, _ in model.named_parameters()]
    alone = step_memory(model, batch_for("opt"), names[:2])
    more = step_memory(model, batch_for("opt"), names[:2], trained_before=names[2:4])
    elements = sum(p.numel() for name, p in model.named_parameters() if name in names[2:4])
    assert more.optimizer - alone.optimizer == 8 * elements
