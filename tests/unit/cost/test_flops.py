"""FLOPs of fused attention where heads of queries share one of keys, and of vectors."""

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from greentrainer.cost import ATTENTION, count_flops, flop_counter, trace

QUERY, SHARED, SPREAD = ((2, 8, 5, 16), (2, 2, 7, 16), (2, 8, 7, 16))
PRODUCT = 2 * 2 * 8 * 5 * 7 * 16
"""FLOPs of one product of a query with all keys, for all heads."""


@pytest.mark.parametrize("packet", ATTENTION, ids=str)
@pytest.mark.parametrize("keys", [SHARED, SPREAD])
def test_shared_keys_cost_what_keys_of_each_head_do(packet: object, keys: tuple[int, ...]) -> None:
    query, key = torch.empty(QUERY, device="meta"), torch.empty(keys, device="meta")
    backward = str(packet).endswith("backward")
    given = (query, query, key, key) if backward else (query, key, key)
    assert count_flops(packet, given, {}, None) == (5 if backward else 2) * PRODUCT


@pytest.mark.parametrize(
    ("product", "flops"),
    [
        (lambda: torch.mv(torch.ones(3, 5), torch.ones(5)), 30),
        (lambda: torch.addmv(torch.ones(3), torch.ones(3, 5), torch.ones(5)), 30),
        (lambda: torch.addr(torch.ones(3, 5), torch.ones(3), torch.ones(5)), 30),
    ],
)
def test_products_with_vectors(product: Callable[[], torch.Tensor], flops: int) -> None:
    with flop_counter() as count:
        product()
    assert count.get_total_flops() == flops


class Vector(nn.Module):
    """A matrix on one vector."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.weight @ x).sum()


def test_a_step_with_vectors_is_counted() -> None:
    model, batch = Vector(), {"x": torch.ones(5)}
    graph = trace(model, batch, lambda model, batch: model(**batch))
    with flop_counter() as count:
        model(**batch).backward()
    assert graph.uncounted_ops == ()
    assert graph.forward_flops == 30
    assert count.get_total_flops() == graph.forward_flops + graph.full_backward_flops


def test_what_only_asks_for_a_device_is_no_work() -> None:
    """Counting tensors without values asks each for its device, by an operation without kernels."""
    with FakeTensorMode(), flop_counter() as count:
        one = torch.ones(3, 5)
        assert one.device.type == "cpu"
        torch.nn.functional.silu(one @ one.t())
    assert count.get_total_flops() == 2 * 3 * 5 * 3


def test_counting_changes_no_bit() -> None:
    """Silu's backward pass has a kernel, and parts that give other bits."""
    found = []
    for around in (nullcontext(), flop_counter()):
        given = torch.linspace(-9, 9, 4001, requires_grad=True)
        with around:
            (torch.nn.functional.silu(given) ** 2).sum().backward()
        found.append(given.grad)
    assert torch.equal(*found)  # type: ignore[arg-type]
