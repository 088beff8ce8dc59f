"""Prefix tuning (Li and Liang, ACL 2021), by PEFT: keys and values put before each layer's own.

They start as the keys and values that the model itself computes for words drawn from its
vocabulary, which that paper found to be far better than random numbers where data is scarce.
"""

from typing import Any

import torch

from greentrainer.config import RunConfig
from greentrainer.hf import peft
from greentrainer.methods.adapters import adapted, task_type
from greentrainer.methods.base import Method
from greentrainer.tasks import evaluating


def _adapt(model: Any, config: RunConfig) -> Any:
    if config.activation_checkpointing:
        raise ValueError("prefix tuning needs the cache, which activation checkpointing drops")
    prefix = peft().PrefixTuningConfig(
        task_type=task_type(model), num_virtual_tokens=config.virtual_tokens
    )
    if model.config.is_encoder_decoder:
        return adapted(model, prefix, config.revision)
    start = _of_words(model, config.virtual_tokens)
    wrapped = adapted(model, prefix, config.revision)
    prefixes = wrapped.prompt_encoder[wrapped.active_adapter].embedding.weight
    if start.shape != prefixes.shape:
        raise ValueError(f"PEFT knows no prefix for {type(model).__name__}: use prompt tuning")
    with torch.no_grad():
        prefixes.copy_(start)
    return wrapped


def _of_words(model: Any, count: int) -> torch.Tensor:
    """Keys and values of words, (count, layers * 2 * heads * dimension), as PEFT has them."""
    words = torch.randint(model.config.vocab_size, (1, count), device=model.device)
    with evaluating(model):
        cache = model(input_ids=words, use_cache=True).past_key_values
    pairs = [
        half[0].transpose(0, 1) for layer in cache.layers for half in (layer.keys, layer.values)
    ]
    return torch.stack(pairs, dim=1).reshape(count, -1)


PREFIX = Method("prefix", "keys and values before each layer's own", adapt=_adapt, virtual=True)
