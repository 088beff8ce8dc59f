"""What is taken where a configuration says nothing: units of cost, and lengths of batches."""

import pytest
import torch

from greentrainer.config import RunConfig
from greentrainer.methods import METHODS
from greentrainer.run.asked import collator_of, cost_of
from greentrainer.tasks import Encoded
from tests.tiny import characters

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


@pytest.mark.parametrize(
    ("given", "width"),
    [
        ({}, 20),
        ({"pad_multiple": 16}, 32),
        ({"epochs": 2, "steps": "all"}, 64),
        ({"keep_activations": "disk"}, 64),
        ({"keep_activations": "disk", "pad_multiple": 8}, 24),
        ({"method": "full", "epochs": 2}, 20),
    ],
)
def test_rows_are_padded_to_few_lengths_where_activations_are_kept(
    given: dict[str, object], width: int
) -> None:
    config = RunConfig.model_validate(given)
    row = Encoded(tuple(range(19)), (-100, *range(18)))
    assert collator_of(config, characters()).widths([row]) == (width, width)
