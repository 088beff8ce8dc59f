"""No training: what the model can do as it is."""

from greentrainer.methods.base import Method

ZERO_SHOT = Method("zero_shot", "nothing", trains=False)
