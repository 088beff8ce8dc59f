"""A probe leaves no trace: in the model, the optimizer, the random streams, and later training."""

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, TensorDataset

from greentrainer.importance import measure_importance, measure_statistics
from greentrainer.types import Batch, LossFn
from tests.probe import METRICS, OPTIMIZERS, batches, in_training, noisy, picture, plain, train_step


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_probe_leaves_no_trace(kind: str, steps: int, metric: str) -> None:
    model, optimizer = in_training(kind, steps)
    before = picture(model, optimizer)
    importance = measure_importance(model, batches(2), optimizer, noisy, metric=metric)
    assert picture(model, optimizer) == before
    assert importance["first.weight"] != 0
    measure_statistics(model, batches(2), noisy, ["first.weight", "last.bias"])
    assert picture(model, optimizer) == before


def broken(call: int, fault: str) -> LossFn:
    """A loss that meddles with modes, and fails at the `call`th call."""
    calls = itertools.count(1)

    def loss_fn(model: Any, batch: Batch) -> torch.Tensor:
        loss = noisy(model.train(), batch)
        if next(calls) < call:
            return loss
        if fault == "raises":
            raise OSError("no such file")
        return loss * float(fault)

    return loss_fn


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("call", [1, 2, 3, 4])  # the even ones: the new weights of two_pass
@pytest.mark.parametrize("fault", ["raises", "nan", "inf"])
def test_a_failing_loss_leaves_no_trace(fault: str, call: int, metric: str) -> None:
    model, optimizer = in_training()
    before = picture(model, optimizer)
    with pytest.raises((OSError, ValueError), match=f"no such file|is {fault}"):
        measure_importance(model, batches(4), optimizer, broken(call, fault), metric=metric)
    assert picture(model, optimizer) == before


class Jammed(AdamW):
    """Raises at the tensor whose gradient comes last."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        (weight,) = self.param_groups[0]["params"]
        if weight.shape == (8, 6):
            raise OSError("jammed")


def test_a_failure_inside_the_backward_pass_leaves_no_trace() -> None:
    model, _ = in_training()
    optimizer = Jammed(model.parameters())
    before = picture(model, optimizer)
    with pytest.raises(OSError, match="jammed"):
        measure_importance(model, batches(1), optimizer, noisy)
    assert picture(model, optimizer) == before


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_training_goes_on_as_if_there_had_been_no_probe(kind: str) -> None:
    states = []
    for probes in (False, True):
        model, optimizer = in_training(kind)
        for batch, metric in zip(batches(6), METRICS * 3, strict=True):
            if probes:
                measure_importance(model, batches(2, seed=5), optimizer, noisy, metric=metric)
            train_step(model, optimizer, batch)
        states.append(plain([model.state_dict(), optimizer.state_dict()]))
    assert states[0] == states[1]


def test_a_schedule_is_neither_advanced_nor_told_of_a_step() -> None:
    model, optimizer = in_training(steps=0)
    scheduler = LambdaLR(optimizer, lambda epoch: 1 / (1 + epoch))
    hooks: list[int] = []
    optimizer.register_step_pre_hook(lambda *_: hooks.append(0))
    optimizer.register_step_post_hook(lambda *_: hooks.append(1))
    before = picture(model, optimizer), scheduler.state_dict().copy()
    measure_importance(model, batches(2), optimizer, noisy)
    assert (picture(model, optimizer), scheduler.state_dict()) == before
    assert hooks == []
    optimizer.step()
    scheduler.step()  # a warning of the wrong order would be an error here
    assert scheduler.last_epoch == 1
    assert hooks == [0, 1]


def test_a_probe_does_not_pass_for_a_step() -> None:
    model, optimizer = in_training(steps=0)
    scheduler = LambdaLR(optimizer, lambda epoch: 1.0)
    measure_importance(model, batches(1), optimizer, noisy)
    with pytest.warns(UserWarning, match=r"lr_scheduler.step\(\)` before"):
        scheduler.step()


def stream_of(loader: DataLoader[Any]) -> Iterator[Any]:
    """The same shuffled batches each time."""
    loader.generator.manual_seed(3)
    return iter(loader)


@pytest.mark.parametrize("taken", [1, 3])
def test_a_loader_is_advanced_by_the_batches_taken(taken: int) -> None:
    model, optimizer = in_training()
    data = TensorDataset(torch.randn(24, 6), torch.randn(24, 3))
    generator = torch.Generator()
    loader = DataLoader(data, batch_size=4, shuffle=True, generator=generator)
    untouched = list(map(plain, stream_of(loader)))
    stream = stream_of(loader)
    measure_importance(model, itertools.islice(stream, taken), optimizer, noisy)
    assert list(map(plain, stream)) == untouched[taken:]
