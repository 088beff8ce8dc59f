"""Full fine-tuning: every tensor at every step.  What all other bills are compared with."""

from greentrainer.methods.base import Method
from greentrainer.methods.lora import if_asked, merged

FULL = Method("full", "every tensor", adapt=if_asked, finish=merged, optional=True)
