"""FLOPs of fused attention where several heads of queries share one of keys."""

import pytest
import torch

from greentrainer.cost import ATTENTION, count_flops

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
