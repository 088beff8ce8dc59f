"""Attention that stands in for transformers' own is called as that is: by position or by name."""

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from greentrainer.forward.handed import take_plain_keys
from tests.conformance.families import build


def test_a_mask_may_be_given_by_name() -> None:
    take_plain_keys(build("llama", "sdpa"))
    attention = ALL_ATTENTION_FUNCTIONS["sdpa"]
    module = nn.Module()
    module.is_causal = False  # type: ignore[assignment]
    query, key, value = torch.randn(3, 1, 2, 4, 8)
    mask = torch.zeros(1, 1, 4, 4, dtype=torch.bool).fill_(True).tril()
    one = attention(module, query, key, value, mask)[0]
    other = attention(module, query, key, value, attention_mask=mask)[0]
    assert torch.equal(one, other)
