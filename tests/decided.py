"""Tiny models sure of what they say, bare or under PEFT's adapters: what metrics are tested on."""

from typing import Any

import torch

from greentrainer.tasks import Example
from tests.conformance.families import build

EXAMPLES = [
    Example("how are you today?", "fine, thanks.", " ->"),
    Example("no", "why not?"),
    Example("one two three four five", "six."),
    Example("a", "b", "c"),
    Example("the rain in spain", "falls mainly on the plain.", ":"),
]
DECODERS = ["llama", "gpt2", "opt", "bloom", "gemma3", "mistral"]
TWO_SIDED = ["t5", "flan-t5", "bart"]

VIRTUAL = 5
"""Virtual tokens of a prompt or prefix."""


def decided(family: str) -> Any:
    """A model sure of what it writes: reordering a float32 sum changes no token."""
    model: Any = build(family)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8)
    model.generation_config.forced_eos_token_id = None  # bart's, an id of its own vocabulary
    return model.eval()


def wrapped(family: str, adapter: str) -> Any:
    """A decided model under an adapter of PEFT that changes what it says.

    adapter: lora, prompt or prefix.
    """
    import peft

    model = decided(family)
    task = "SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM"
    configs: dict[str, Any] = {
        "lora": lambda: peft.LoraConfig(
            task_type=task, r=4, init_lora_weights=False, fan_in_fan_out=family == "gpt2"
        ),
        "prompt": lambda: peft.PromptTuningConfig(task_type=task, num_virtual_tokens=VIRTUAL),
        "prefix": lambda: peft.PrefixTuningConfig(task_type=task, num_virtual_tokens=VIRTUAL),
    }
    torch.manual_seed(1)
    return peft.get_peft_model(model, configs[adapter]()).eval()
