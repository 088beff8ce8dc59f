"""Models that draw a number and look at it: traced without values where the answer is certain."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from greentrainer.cost import trace


class LayerDrop(nn.Module):
    """Leaves its second layer out where a number drawn says so."""

    def __init__(self, leaves_out: Callable[[], object], device: str = "meta") -> None:
        super().__init__()
        self.first = nn.Linear(8, 8, device=device)
        self.second = nn.Linear(8, 8, device=device)
        self.leaves_out = leaves_out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.first(x)
        return y if self.leaves_out() else nn.functional.linear(y, self.second.weight)


def cost(leaves_out: Callable[[], object]) -> tuple[int, bool]:
    """FLOPs of a forward pass, and whether it took a real pass to know them."""
    graph = trace(
        LayerDrop(leaves_out), {"x": torch.randn(4, 8)}, lambda model, batch: model(**batch).sum()
    )
    return graph.forward_flops, any("real pass" in note for note in graph.notes)


LAYER = 2 * 4 * 8 * 8


@pytest.mark.parametrize(
    ("leaves_out", "layers"),
    [
        (lambda: torch.rand([]) < 0.0, 2),
        (lambda: torch.rand([]) < 1.0, 1),
        (lambda: torch.rand([]) <= 1, 1),
        (lambda: torch.rand(1) <= -0.5, 2),
        (lambda: torch.rand([]) > 1.0, 2),
        (lambda: torch.rand([]) >= 0.0, 1),
        (lambda: 0.0 > torch.rand([]), 2),  # noqa: SIM300
        (lambda: torch.empty([]).uniform_(0, 1) < 0.0, 2),
        (lambda: torch.empty([]).uniform_(2, 3) > 1.5, 1),
        (lambda: torch.lt(torch.rand([]), 0.0), 2),
    ],
)
def test_a_draw_that_is_certain_needs_no_values(
    leaves_out: Callable[[], object], layers: int
) -> None:
    assert cost(leaves_out) == (layers * LAYER, False)


@pytest.mark.parametrize(
    "leaves_out",
    [
        lambda: torch.rand([]) < 0.5,
        lambda: torch.rand([]) <= 0.0,  # a draw may be 0
        lambda: torch.rand([]) * 2 < 0.0,  # another number than the one drawn
        lambda: torch.empty([]).uniform_(0, 1) < 0.2,
        lambda: torch.rand([]).mul_(2) < 1.0,  # written to since
    ],
)
def test_a_draw_that_is_not_certain_does(leaves_out: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match="depend on its data"):
        cost(leaves_out)
    model = LayerDrop(leaves_out, device="cpu")
    batch = {"x": torch.randn(4, 8)}
    before = torch.random.get_rng_state()
    graph = trace(model, batch, lambda model, batch: model(**batch).sum())
    assert any("real pass" in note for note in graph.notes)
    assert torch.equal(torch.random.get_rng_state(), before)
