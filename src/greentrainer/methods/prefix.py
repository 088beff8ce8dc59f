"""Prefix tuning (Li and Liang, ACL 2021), by PEFT: keys and values put before each layer's own."""

from typing import Any

from greentrainer.config import RunConfig
from greentrainer.methods.adapters import peft, task_type
from greentrainer.methods.base import Method


def _adapt(model: Any, config: RunConfig) -> Any:
    prefix = peft().PrefixTuningConfig(
        task_type=task_type(model), num_virtual_tokens=config.virtual_tokens
    )
    return peft().get_peft_model(model, prefix)


PREFIX = Method("prefix", "keys and values before each layer's own", adapt=_adapt)
