"""Prompt tuning (Lester et al., EMNLP 2021), by PEFT: embeddings put before those of the text.

They start as embeddings of words drawn from the vocabulary, which that paper found to be better
than random numbers.
"""

from typing import Any

from greentrainer.config import RunConfig
from greentrainer.hf import peft
from greentrainer.methods.adapters import adapted, task_type
from greentrainer.methods.base import Method


def _adapt(model: Any, config: RunConfig) -> Any:
    prompt = peft().PromptTuningConfig(
        task_type=task_type(model),
        num_virtual_tokens=config.virtual_tokens,
        prompt_tuning_init="SAMPLE_VOCAB",
    )
    return adapted(model, prompt, config.revision)


PROMPT = Method("prompt", "embeddings before those of the text", adapt=_adapt, virtual=True)
