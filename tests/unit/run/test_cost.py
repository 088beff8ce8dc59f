"""What a share of full fine-tuning is a share of."""

import pytest
import torch

from greentrainer.config import RunConfig
from greentrainer.methods import METHODS
from greentrainer.run.asked import cost_of

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("given", "device", "cost"),
    [
        ({}, CPU, "flops"),
        ({}, GPU, "seconds"),
        ({"cost": "flops"}, GPU, "flops"),
        ({"cost": "seconds"}, CPU, "seconds"),
        ({"steps": "all"}, GPU, "flops"),
        ({"published": True}, GPU, "flops"),
        ({"flops": 1e12}, GPU, "flops"),
        ({"hours": 1.0}, GPU, "flops"),
        ({"method": "full_at_budget"}, GPU, "flops"),
    ],
)
def test_seconds_count_on_a_gpu_where_steps_are_chosen(
    given: dict[str, object], device: torch.device, cost: str
) -> None:
    config = RunConfig.model_validate(given)
    assert cost_of(config, METHODS[config.method], device) == cost
