"""Fine-tuning methods, one file each over one interface: start with `base.py` and `green.py`.

A method says what is trained; the run, its books and its budget are the same for all.
"""

from greentrainer.methods.base import Method
from greentrainer.methods.bitfit import BITFIT
from greentrainer.methods.full import FULL
from greentrainer.methods.full_at_budget import FULL_AT_BUDGET
from greentrainer.methods.green import GREEN
from greentrainer.methods.lisa import LISA
from greentrainer.methods.lora import LORA
from greentrainer.methods.prefix import PREFIX
from greentrainer.methods.prompt import PROMPT
from greentrainer.methods.top2 import TOP2
from greentrainer.methods.top_blocks import TOP_BLOCKS
from greentrainer.methods.zero_shot import ZERO_SHOT

__all__ = ["METHODS", "Method"]

METHODS = {
    method.name: method
    for method in (
        ZERO_SHOT, FULL, FULL_AT_BUDGET, GREEN, TOP2, TOP_BLOCKS,
        LORA, PREFIX, PROMPT, BITFIT, LISA,
    )
}  # fmt: skip
"""All of them by name, as `RunConfig.method` has it."""
