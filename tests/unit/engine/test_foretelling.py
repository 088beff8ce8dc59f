"""Shapes that cannot be foretold: told once, in one line; a fault is raised."""

import warnings

import pytest
import torch
from torch import nn

from greentrainer.engine import GraphCache
from greentrainer.types import Batch


class Particular(nn.Module):
    """Multiplies rows of up to `most` positions, and raises for any others."""

    def __init__(self, error: type[Exception], most: int = 9) -> None:
        super().__init__()
        self.inner, self.error, self.most = nn.Linear(8, 8), error, most

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[1] > self.most:
            raise self.error(f"no more than {self.most},\nand here are {x.shape[1]}")
        out: torch.Tensor = self.inner(x)
        return out


def loss(model: nn.Module, batch: Batch) -> torch.Tensor:
    out: torch.Tensor = model(batch["x"])
    return out.sum()


def batch(length: int) -> dict[str, torch.Tensor]:
    return {"x": torch.ones(2, length, 8)}


@pytest.mark.parametrize("error", [RuntimeError, IndexError, ValueError, ZeroDivisionError])
def test_why_each_shape_is_traced_by_itself_is_told_once(
    error: type[Exception], traced: list[int]
) -> None:
    model = Particular(error)
    cache = GraphCache(model, model.parameters(), loss)
    with warnings.catch_warnings():  # two shapes are no trouble
        warnings.simplefilter("error")
        for length in (8, 9, 8):
            assert cache.of_batch(batch(length)).forward_flops == 2 * 2 * length * 64
    with pytest.warns(UserWarning, match="cannot be foretold") as told:
        flops = [cache.of_batch(batch(length)).forward_flops for length in (7, 6, 5, 7)]
    assert flops == [2 * 2 * length * 64 for length in (7, 6, 5, 7)]
    assert len(told) == 1
    line = str(told[0].message)
    assert f"{error.__name__}: no more than 9, and here are" in line
    assert "each new shape is traced by itself, in about 0" in line
    assert "\n" not in line


def test_a_fault_is_raised() -> None:
    model = Particular(AttributeError)
    with pytest.raises(AttributeError, match="no more than 9"):
        GraphCache(model, model.parameters(), loss).of_batch(batch(8))


def test_what_can_be_foretold_is_in_silence(traced: list[int]) -> None:
    model = Particular(RuntimeError, 10**6)
    cache = GraphCache(model, model.parameters(), loss)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        flops = [cache.of_batch(batch(length)).forward_flops for length in (8, 9, 20)]
    assert flops == [2 * 2 * length * 64 for length in (8, 9, 20)]
    assert len(traced) == 2
