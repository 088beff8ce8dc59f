"""Functions with a derivative of their own: what they cost for each operand, whatever they do."""

from collections.abc import Iterator
from itertools import chain, combinations
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from greentrainer.cost import flop_counter, trace

SIZE = 8


class Lazy(torch.autograd.Function):
    """Computes what is needed, and something shared whatever is."""

    @staticmethod
    def forward(ctx: Any, x: Any, w: Any, v: Any) -> Any:
        ctx.save_for_backward(x, w, v)
        return x @ w.t() + x @ v.t()

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        x, w, v = ctx.saved_tensors
        x @ w.t()  # computed again, as fused losses do
        need_x, need_w, need_v = ctx.needs_input_grad
        gx = grad @ w + grad @ v if need_x else None
        return gx, grad.t() @ x if need_w else None, grad.t() @ x if need_v else None


class Eager(torch.autograd.Function):
    """Computes gradients in its forward pass, of what requires one."""

    @staticmethod
    def forward(ctx: Any, x: Any, w: Any, v: Any) -> Any:
        out = x @ w.t() + x @ v.t()
        ones = torch.ones_like(out)
        ctx.save_for_backward(
            ones @ (w + v) if x.requires_grad else None,
            ones.t() @ x if w.requires_grad else None,
            ones.t() @ x if v.requires_grad else None,
        )
        return out

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        scale = grad.flatten()[0]
        return tuple(g if g is None else scale * g for g in ctx.saved_tensors)


class Paired(Lazy):
    """Two operands share a product that the third does not need."""

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        x, w, v = ctx.saved_tensors
        need_x, need_w, need_v = ctx.needs_input_grad
        both = grad.t() @ x if need_w or need_v else None
        return (grad @ (w + v) if need_x else None, both if need_w else None,
                both if need_v else None)  # fmt: skip


class InPieces(Lazy):
    """Adds products up in place, a few rows at a time."""

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        x, w, v = ctx.saved_tensors
        need_x, need_w, need_v = ctx.needs_input_grad
        gx = torch.zeros_like(x) if need_x else None
        gw = torch.zeros_like(w) if need_w else None
        gv = torch.zeros_like(v) if need_v else None
        for start in range(0, len(x), 3):
            rows = slice(start, start + 3)
            if gx is not None:
                gx[rows].addmm_(grad[rows], w + v)
            for own in (gw, gv):
                if own is not None:
                    own.addmm_(grad[rows].t(), x[rows])
        return gx, gw, gv


class Once(Lazy):
    """Cannot be run a second time in the backward pass of the same call."""

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        if hasattr(ctx, "done"):
            raise RuntimeError("done already")
        ctx.done = True
        return Lazy.backward(ctx, grad)


BOUND_EARLY = Lazy.apply
"""As modules do that are imported before anybody traces."""


class Net(nn.Module):
    def __init__(self, apply: Any, again: bool = False) -> None:
        super().__init__()
        self.below = nn.Linear(SIZE, SIZE)
        self.w = nn.Parameter(torch.randn(SIZE, SIZE))
        self.v = nn.Parameter(torch.randn(SIZE, SIZE))
        self.apply_function, self.again = apply, again

    def forward(self, x: Any) -> Any:
        below: Any = lambda x: self.below(x).tanh()  # noqa: E731
        hidden = checkpoint(below, x, use_reentrant=False) if self.again else below(x)
        return SimpleNamespace(loss=self.apply_function(hidden, self.w, self.v).square().mean())


def all_sets(names: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    return chain.from_iterable(combinations(names, n) for n in range(1, len(names) + 1))


def executed(model: nn.Module, batch: Any, names: Any) -> int:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
    with flop_counter() as count:
        model(**batch).loss.backward()
    return int(count.get_total_flops())


FUNCTIONS = {
    "lazy": Lazy.apply,
    "eager": Eager.apply,
    "paired": Paired.apply,
    "in pieces": InPieces.apply,
    "once": Once.apply,
    "bound early": BOUND_EARLY,
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("again", [False, True], ids=["plain", "checkpointed"])
def test_every_set_costs_what_is_counted(name: str, again: bool) -> None:
    torch.manual_seed(0)
    model = Net(FUNCTIONS[name], again).train()
    batch = {"x": torch.randn(4, SIZE)}
    graph = trace(model, batch)
    for chosen in all_sets(graph.tensors):
        told = graph.forward_flops + graph.backward_flops(chosen)
        assert told == executed(model, batch, chosen), chosen


class Many(torch.autograd.Function):
    """More operands than are tried in every combination."""

    @staticmethod
    def forward(ctx: Any, x: Any, *weights: Any) -> Any:
        ctx.save_for_backward(x, *weights)
        return sum(x @ w.t() for w in weights)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        x, *weights = ctx.saved_tensors
        x @ weights[0].t()
        need_x, *needed = ctx.needs_input_grad
        own = [grad.t() @ x if need else None for need in needed]
        return (grad @ torch.stack(weights).sum(0) if need_x else None, *own)


MANY: Any = Many.apply


def test_many_operands_share_and_own() -> None:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weights = nn.ParameterList(torch.randn(SIZE, SIZE) for _ in range(6))

        def forward(self, x: Any) -> Any:
            return SimpleNamespace(loss=MANY(x, *self.weights).square().mean())

    model, batch = Wide().train(), {"x": torch.randn(4, SIZE)}
    graph = trace(model, batch)
    for chosen in all_sets(graph.tensors):
        told = graph.forward_flops + graph.backward_flops(chosen)
        assert told == executed(model, batch, chosen), chosen


def test_products_added_in_place_are_counted_by_anybody() -> None:
    """Also by a counter that knows nothing of this package."""
    from torch.utils.flop_counter import FlopCounterMode

    a, b = torch.randn(4, 5), torch.randn(5, 6)
    with FlopCounterMode(display=False) as count:
        torch.zeros(4, 6).addmm_(a, b)
        torch.zeros(2, 4, 6).baddbmm_(a.expand(2, 4, 5), b.expand(2, 5, 6))
    assert count.get_total_flops() == 3 * 2 * 4 * 5 * 6
