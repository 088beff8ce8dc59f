"""What processes send one another, by volume."""

import pytest

from greentrainer.config import RunConfig
from greentrainer.cost import Memory, Sizes, held_by_shard, sent_by_replicas, sent_by_shards
from greentrainer.hf import layout
from greentrainer.plan.together import sizes_of, together
from tests.conformance.families import build

SIZES = Sizes({0: 100, 1: 100, 2: 100, 3: 100}, 40)


def test_replicas_send_what_is_trained() -> None:
    assert sent_by_replicas(1000, 1) == 0
    assert sent_by_replicas(1000, 2) == 1000
    assert sent_by_replicas(1000, 4) == 1500
    assert sent_by_replicas(500, 4) == 750


@pytest.mark.parametrize(("depth", "passed"), [(0, 0), (1, 100), (4, 400)])
def test_shards_gather_what_gradient_passes(depth: int, passed: int) -> None:
    assert sent_by_shards(SIZES, depth, 60, 2) == 0.5 * (440 + passed + 60)
    assert sent_by_shards(SIZES, depth, 60, 2, batches=3) == 1.5 * (440 + passed + 60)
    assert sent_by_shards(SIZES, depth, 60, 1) == 0


def test_a_shard_holds_its_part_and_two_whole_blocks() -> None:
    memory = Memory(weights=440, gradients=80, optimizer=160, activations=50)
    own = held_by_shard(memory, SIZES, 4)
    assert (own.weights, own.gradients, own.optimizer) == (110, 20, 40)
    assert own.activations == 50 + 2 * 100 + 40
    one = Sizes({}, 440)
    assert held_by_shard(memory, one, 4).activations == 50 + 440


def test_a_plan_tells_both_strategies() -> None:
    network = build("llama")
    sizes = sizes_of(network, layout(network))
    assert sizes.whole == sum(p.nbytes for p in network.parameters())
    names = [name for name, _ in network.named_parameters()]
    memory = Memory(sizes.whole, sizes.whole, 2 * sizes.whole, 1000)
    config = RunConfig(processes=4, accumulate=2)
    blocks = len(sizes.blocks)
    ddp, fsdp = together(config, network, [(1.0, names, blocks, memory)], bandwidth=1e6)
    assert (ddp.parallel, fsdp.parallel) == ("ddp", "fsdp")
    assert ddp.sent == 1.5 * sizes.whole
    assert ddp.seconds == ddp.sent / 1e6
    assert fsdp.sent == 0.75 * 2 * (3 * sizes.whole - sizes.outside)
    assert fsdp.memory < ddp.memory
    only = together(
        config.model_copy(update={"parallel": "ddp"}), network, [(1.0, names, 1, memory)]
    )
    assert [row.parallel for row in only] == ["ddp"]
    assert only[0].seconds is None
