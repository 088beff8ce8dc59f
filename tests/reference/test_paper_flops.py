"""The trained sets of the paper's methods against products counted by hand.

A two-layer cut of OPT-2.7B, in multiply-accumulates of a batch of n tokens, T a row:

    blocks   12 H^2 n a layer: query, key, value, output (4 H^2), up and down (8 H^2)
    scores   2 T H n a layer: queries by keys, weights by values
    head     V H n
"""

import pytest
import torch
import transformers as tf
from paper import published_counts as rule
from paper.paper_flops import TASKS
from paper.paper_models import ROWS, adapted, batch, hollow, opt, top_two
from paper.published_flops import PUBLISHED

from greentrainer import trace

LAYERS, H, V, T = 2, 2560, 50272, 512
N = ROWS * T
BLOCK, SCORES, HEAD = 12 * H * H * N, 2 * T * H * N, V * H * N
FORWARD = LAYERS * (BLOCK + SCORES) + HEAD
PASSED_ON = LAYERS * (BLOCK + 2 * SCORES) + HEAD


def config() -> tf.OPTConfig:
    return opt(H, LAYERS, 32)


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return hollow(config())


def test_full_and_top_two_are_what_the_hand_counts(model: torch.nn.Module) -> None:
    graph = trace(model, batch(T))
    top = top_two(model)
    assert graph.forward_flops == 2 * FORWARD
    assert graph.backward_flops() == 2 * (PASSED_ON + LAYERS * BLOCK + HEAD)
    assert graph.backward_flops(top) == 2 * (PASSED_ON + BLOCK + HEAD)


def test_below_a_last_block_without_the_tied_head_nothing_is_paid(model: torch.nn.Module) -> None:
    graph = trace(model, batch(T))
    block = [name for name in top_two(model) if "embed" not in name]
    within = BLOCK + 2 * SCORES  # its projections pass on too: its first norm lies below them
    assert graph.backward_flops(block) == 2 * (HEAD + within + BLOCK)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_lora_pays_all_that_is_passed_on_to_the_lowest_adapter() -> None:
    graph = trace(adapted(hollow(config()), "lora"), batch(T))
    adapters = LAYERS * 2 * 2 * 8 * H * N  # query and value, down and up, rank 8
    unpaid = 3 * H * H * N  # the lowest block's projections pass nothing on
    lowest_down = 2 * 8 * H * N  # nor do its adapters' lower halves
    expected = FORWARD + PASSED_ON - unpaid + 3 * adapters - lowest_down
    keys = SCORES // 2  # nothing below the lowest block's keys is trained
    assert graph.full_flops == 2 * (expected - keys)


def test_the_published_rule_adds_vectors_only(model: torch.nn.Module) -> None:
    found = rule.charges(model, T, None)
    hand = FORWARD + PASSED_ON + LAYERS * BLOCK + HEAD
    assert hand < rule.full(found) < 1.001 * hand
    assert rule.adapters(found) == rule.full(found) * 2 / 3


def test_every_published_figure_belongs_to_a_known_task() -> None:
    assert {key.task for key in PUBLISHED} <= set(TASKS)
