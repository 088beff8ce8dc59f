"""The contract of the cost graph: predicted FLOPs equal counted ones, exactly, for every family."""

import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import greentrainer.cost
from greentrainer import CostGraph, trace
from greentrainer.cost import flop_counter, form_of
from greentrainer.types import Batch
from tests.conformance.families import CASES, FAMILIES, batch_for, build

SUBSETS = 50


def counted(model: nn.Module, batch: Batch, names: set[str]) -> tuple[int, int]:
    """Forward and backward FLOPs that are really executed when `names` are trained."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
        parameter.grad = None
    with flop_counter() as forward:
        loss = model(**batch).loss
    with flop_counter() as backward:
        loss.backward()
    return forward.get_total_flops(), backward.get_total_flops()


def subsets(graph: CostGraph, count: int) -> list[set[str]]:
    """Random subsets of every size, all tensors, and the few that lie closest to the loss."""
    rng = random.Random(0)
    tensors = graph.tensors
    drawn = [set(tensors), set(tensors[: len(tensors) // 4]), {tensors[0]}, {tensors[-1]}]
    while len(drawn) < count:
        drawn.append(set(rng.sample(tensors, rng.randint(1, max(1, len(tensors) // 2)))))
    return drawn


@pytest.mark.parametrize(("family", "attention"), CASES)
def test_predicted_flops_are_the_counted_ones(family: str, attention: str) -> None:
    model, batch = build(family, attention), batch_for(family)
    graph = trace(model, batch)
    assert graph.uncounted_ops == ()
    wrong = []
    for names in subsets(graph, SUBSETS):
        predicted = (graph.forward_flops, graph.backward_flops(names))
        executed = counted(model, batch, names)
        if predicted != executed:
            wrong.append((len(names), predicted, executed))
    assert wrong == []


@pytest.mark.parametrize("family", ["opt", "t5", "llama"])
def test_meta_and_real_models_cost_the_same(family: str) -> None:
    with torch.device("meta"):
        hollow = build(family, "sdpa")
    real = build(family, "sdpa")
    batch = batch_for(family)
    a, b = trace(hollow, batch), trace(real, batch)
    assert a.tensors == b.tensors
    assert a.forward_flops == b.forward_flops
    for names in subsets(a, 10):
        assert a.backward_flops(names) == b.backward_flops(names)


@pytest.mark.parametrize("family", FAMILIES)
def test_each_tensor_alone_costs_its_closure(family: str) -> None:
    graph = trace(build(family), batch_for(family))
    assert all(graph.backward_flops({n}) == f for n, f in graph.closure_flops.items())


def test_a_forced_input_gradient_is_part_of_every_cost() -> None:
    model, batch = build("llama-checkpointed"), batch_for("llama")
    model.enable_input_require_grads()  # type: ignore[operator]
    graph = trace(model, batch)
    assert graph.forced
    for names in subsets(graph, 10):
        assert graph.backward_flops(names) == counted(model, batch, names)[1]


def test_no_architecture_is_named_in_the_cost_package() -> None:
    folder = Path(greentrainer.cost.__file__).parent
    text = "\n".join(p.read_text(encoding="utf-8").lower() for p in folder.glob("*.py"))
    words = ["llama", "t5", "bloom", "bart", "gpt", "qwen", "gemma", "falcon", "mistral", "q_proj",
             "lm_head", "embed", "lora", "self_attn", "fc1", "layernorm"]  # fmt: skip
    assert [word for word in words if word in text] == []


@pytest.mark.parametrize(
    "size",
    ["opt-2.7b", *(pytest.param(n, marks=pytest.mark.thorough) for n in ("opt-6.7b", "llama-70b"))],
)
def test_full_size_models_are_traced_quickly_and_in_little_memory(size: str) -> None:
    script = Path(__file__).parents[2] / "benchmarks"
    out = subprocess.run(
        [sys.executable, str(script), "trace_full_size", size],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    seconds, gigabytes = float(out[1]), float(out[2])
    assert gigabytes < 1.5
    assert seconds < 30, "the target is 10 s on an idle machine; the benchmark records the figure"
    if size == "opt-2.7b":  # the paper's 41.8 PFLOPs: multiply-accumulates of 5 x 498 batches
        macs = 5 * 498 * (int(out[3]) + int(out[4])) / 2
        assert abs(macs / 41.8e15 - 1) < 0.005


def by_rows(model: nn.Module, batch: Batch) -> torch.Tensor:
    """A loss that goes through its rows one by one."""
    logits = model(input_ids=batch["input_ids"]).logits
    return torch.stack([torch.logsumexp(row, -1).sin().mean() for row in logits]).sum()


def test_a_loss_that_goes_through_its_rows_has_one_graph_for_any_number_of_them() -> None:
    model, batch = build("llama", "sdpa"), batch_for("llama")
    graphs = []
    for rows in (2, 5):
        ids = batch["input_ids"][:1].repeat(rows, 1)
        graphs.append(trace(model.requires_grad_(True), {"input_ids": ids}, by_rows))
        for names in subsets(graphs[-1], 8):
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(name in names)
            loss = by_rows(model, {"input_ids": ids})
            with flop_counter() as backward:
                loss.backward()
            assert graphs[-1].backward_flops(names) == backward.get_total_flops()
    assert form_of(graphs[0]) == form_of(graphs[1])
