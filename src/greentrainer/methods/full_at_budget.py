"""Full fine-tuning stopped early: as many steps as `rho` of the run's FLOPs pay for.

The learning rate schedule is compressed into these steps.  The control that any cheaper method must
beat: the same FLOPs, with no other idea than to do less.
"""

from greentrainer.methods.base import Method

FULL_AT_BUDGET = Method("full_at_budget", "every tensor, in fewer steps", shortened=True)
