"""LoRA (Hu et al., ICLR 2022), by PEFT: low-rank adapters beside frozen weights.

As the paper's baseline has it: rank 8, alpha 32, dropout 0.1, on the projections that PEFT holds to
be usual for a family (query and value); `lora_targets: all-linear` is the stronger form.
"""

import sys
from typing import Any

from transformers.pytorch_utils import Conv1D

from greentrainer.config import RunConfig
from greentrainer.hf import is_quantised, peft
from greentrainer.methods.adapters import adapted, task_type
from greentrainer.methods.base import Method

RANK = 8
DROPOUT = 0.1


def wrapped(
    model: Any,
    rank: int,
    targets: str | None,
    alpha: int,
    dropout: float,
    revision: str | None = None,
) -> Any:
    """The model with adapters.  targets: "all-linear", or None for those usual for its family."""
    lora = peft().LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=targets,
        lora_dropout=dropout,
        task_type=task_type(model),
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
    )
    return adapted(model, lora, revision)


def if_asked(model: Any, config: RunConfig) -> Any:
    """With adapters on all linear layers where `lora_rank` is given, to be chosen among."""
    rank = config.lora_rank
    if rank is None:
        return model
    return wrapped(model, rank, "all-linear", 2 * rank, 0.0, config.revision)


def _adapt(model: Any, config: RunConfig) -> Any:
    rank = config.lora_rank or RANK
    targets = None if config.lora_targets == "attention" else config.lora_targets
    return wrapped(model, rank, targets, 4 * rank, DROPOUT, config.revision)


def merged(model: Any) -> Any:
    """The adapters' product added to the weights: an ordinary model again.

    Beside weights of few bits, which would round it away, adapters stay as they are.
    """
    adapted = "peft" in sys.modules and isinstance(model, peft().PeftModel)
    if not adapted or model.active_peft_config.is_prompt_learning:  # loaded with virtual tokens
        return model
    if is_quantised(model):
        return model
    return model.merge_and_unload()


LORA = Method("lora", "low-rank adapters", adapt=_adapt, finish=merged)
