"""Every family in every mode of the Trainer: what trains is the selection, the books are right."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import count, islice
from pathlib import Path
from random import Random
from typing import Any, ClassVar

import pytest
import torch
from functorch.compile import make_boxed_func
from peft import LoraConfig, get_peft_model
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch.fx.node import map_arg

from greentrainer import AdaptiveBackprop, CostGraph, Selection, select
from greentrainer.cost import count_flops, flop_counter
from greentrainer.cost.trace import trace
from greentrainer.engine import Selector
from greentrainer.forward import ForwardOptions, SplitForward
from greentrainer.forward.check import compare
from greentrainer.forward.lower_right import seen
from greentrainer.hf import GreenConfig, GreenTrainer, compile_blocks
from greentrainer.model import blocks
from greentrainer.run.arguments import checkpointing_argument
from tests.conformance.families import batch_for, build
from tests.conformance.test_split import ragged
from tests.trainer import Counted, Witness, arguments, rows, witnessed

FAMILIES = ["opt", "bloom", "t5", "bart", "gpt2", "llama", "qwen3", "gemma3"]
MODES: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulation": {"gradient_accumulation_steps": 3},
    "bf16": {"bf16": True},
    "checkpointing": {checkpointing_argument(): True},
}
GREEN = GreenConfig(rho=0.6, probe_batches=1, every_epochs=0.5)


def check(model: nn.Module, folder: Path, **mode: Any) -> Counted:
    trainer = witnessed(model, folder, GREEN, rows(40), **mode)
    asked = [event for event in trainer.engine.history if event["asked"]]
    assert len(asked) == 2
    assert 0 < len(asked[0]["names"]) < len(trainer.engine.graph.tensors)
    assert trainer.ledger.rho_spent <= 0.6
    return trainer


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_run_trains_the_selection_and_costs_what_the_ledger_says(
    family: str, mode: str, tmp_path: Path
) -> None:
    check(build(family), tmp_path, **MODES[mode])


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_are_selected_like_any_tensor(family: str, tmp_path: Path) -> None:
    kind = "SEQ_2_SEQ_LM" if family in ("t5", "bart") else "CAUSAL_LM"
    config = LoraConfig(
        target_modules="all-linear", r=2, task_type=kind, fan_in_fan_out=family == "gpt2"
    )
    model = get_peft_model(build(family), config)
    trainer = check(model, tmp_path)
    assert trainer.engine.selection is not None
    assert all("lora_" in name for name in trainer.engine.selection.names)


class CountingBackend:
    """Compiles ahead of time as inductor's front end does, and counts what its graphs execute."""

    def __init__(self) -> None:
        self.flops = 0
        self.graphs = 0

    def __call__(self, module: Any, inputs: Any) -> Any:
        return aot_autograd(fw_compiler=self._count, bw_compiler=self._count)(module, inputs)

    def _count(self, graph: Any, _inputs: Any) -> Any:
        flops = sum(_flops_of(node) for node in graph.graph.nodes if node.op == "call_function")
        self.graphs += 1

        def run(*args: Any) -> Any:
            self.flops += flops
            return graph(*args)

        return make_boxed_func(run)


def _flops_of(node: Any) -> int:
    if not hasattr(node.target, "overloadpacket"):
        return 0
    args, kwargs = map_arg((node.args, node.kwargs), lambda other: other.meta["val"])
    return count_flops(node.target.overloadpacket, args, kwargs, node.meta["val"])


def executed_in_blocks(model: nn.Module, backend: CountingBackend, names: set[str]) -> int:
    """FLOPs that the compiled blocks execute in a step that trains `names`."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
        parameter.grad = None
    backend.flops = 0
    model(**batch_for("")).loss.backward()
    assert {n for n, p in model.named_parameters() if p.grad is not None} == names
    return backend.flops


@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.parametrize(
    "family",
    [pytest.param(f, marks=[pytest.mark.thorough] if f != "llama" else []) for f in FAMILIES],
)
def test_compiled_blocks_execute_what_the_graph_says(family: str) -> None:
    """Tensors of blocks alone are trained: what is outside them costs the same each time."""
    torch._dynamo.reset()
    backend = CountingBackend()
    model: Any = build(family).train()
    for module in model.modules():  # a compiled model makes no cache in training
        if hasattr(getattr(module, "config", None), "use_cache"):
            module.config.use_cache = False
    graph = trace(model, batch_for(""))
    compile_blocks(model, backend=backend, dynamic=False)
    assert trace(model, batch_for("")) == graph
    assert backend.graphs == 0  # tracing goes around the compiler
    inside = {id(p) for block in blocks(model) for p in block.parameters()}
    named = {name: id(p) for name, p in model.named_parameters()}
    tensors = [name for name in graph.tensors if named[name] in inside]
    all_executed = executed_in_blocks(model, backend, set(tensors))
    assert backend.graphs > 0
    for chosen in (tensors[: len(tensors) // 4], tensors[:1], tensors[::3], tensors):
        saved = all_executed - executed_in_blocks(model, backend, set(chosen))
        assert saved == graph.backward_flops(tensors) - graph.backward_flops(chosen)


class Compiled(GreenTrainer):
    """Notes what the compiled blocks execute in each training step."""

    backend = CountingBackend()
    executed: ClassVar[list[int]] = []

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        self.backend.flops = 0
        loss = super().training_step(*args, **kwargs)
        self.executed.append(self.backend.flops)
        return loss


def only_in_blocks(model: nn.Module) -> Selector:
    """The exact selector, offered the tensors of blocks alone, and half of them at a time."""
    inside = {id(p) for block in blocks(model) for p in block.parameters()}
    names = [name for name, p in model.named_parameters() if id(p) in inside]
    turns = count()

    def choose(graph: CostGraph, importance: Any, budget: float) -> Selection:
        offered = names[next(turns) % 2 :: 2]
        return select(graph, {n: importance[n] for n in offered if n in importance}, budget)

    return choose


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.parametrize("family", FAMILIES)
def test_a_run_with_compiled_blocks(family: str, tmp_path: Path) -> None:
    """As the other modes; what is outside the blocks costs the same in every step."""
    torch._dynamo.reset()
    model, witness = build(family), Witness()
    compile_blocks(model, backend=Compiled.backend, dynamic=False)
    Compiled.executed.clear()
    trainer = Compiled(
        model, arguments(tmp_path), train_dataset=rows(24), callbacks=[witness],
        green=replace(GREEN, selector=only_in_blocks(model)),
    )  # fmt: skip
    witness.trainer = trainer
    trainer.train()
    assert witness.wrong == []
    assert len({event["names"] for event in trainer.engine.history}) >= 2
    booked = [entry for entry in trainer.ledger if entry.kind == "train"]
    pairs = list(zip(booked, Compiled.executed, strict=True))
    assert [executed for entry, executed in pairs if entry.counted_flops] == [
        0 for entry in booked if entry.counted_flops
    ]  # what is counted is not compiled
    compiled = [(entry.flops, executed) for entry, executed in pairs if not entry.counted_flops]
    assert min(executed for _, executed in compiled) > 0
    assert len({told - executed for told, executed in compiled}) == 1


@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_compiled_blocks_stay_compiled_with_positions(family: str) -> None:
    """Trying, tracing and counting go around the compiler; the gradient is the uncompiled one's."""
    found = {}
    for compiled in (False, True):
        torch._dynamo.reset()
        backend, model = CountingBackend(), build(family).train()
        if compiled:
            compile_blocks(model, backend=backend)
        batches = [ragged(left) for left in (False, True, False, True, False)]
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        with AdaptiveBackprop(
            model, optimizer, batches[0], rho=0.9, total_batches=5, positions=2, steps="choose",
            forward=ForwardOptions(labelled_head=True),
        ) as engine:  # fmt: skip
            engine.reselect(batches[:2])
            engine._bookkeeper.verifier.enabled = False  # counting goes around the compiler
            made = []
            for batch in batches:
                engine.loss(batch).backward()
                made.append(backend.graphs)
        found[compiled] = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        assert (made[0] > 0) == compiled
        assert made[-1] == made[1]  # none is made for a batch of a kind met before
    assert found[True].keys() == found[False].keys()
    for name, gradient in found[True].items():
        torch.testing.assert_close(gradient, found[False][name], rtol=1e-4, atol=1e-6)


class Graphs:
    """Counts the graphs that the compiler makes, and runs them as they are."""

    def __init__(self) -> None:
        self.made = 0

    def __call__(self, module: Any, _inputs: Any) -> Any:
        self.made += 1
        return module


def dry(family: str, attention: str) -> Any:
    """The family's model in training mode, without dropout."""
    model: Any = build(family, attention).train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("dropout", "attention_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    return model


def uneven(seed: int) -> dict[str, Any]:
    """A batch of its own number of columns, rows and prompts of any length."""
    chance = Random(seed)
    length = chance.randint(14, 40)
    batch: dict[str, Any] = batch_for("", 3, length, seed)
    for row in range(3):
        size = chance.randint(12, length)
        blank = slice(0, length - size) if seed % 2 else slice(size, length)
        batch["attention_mask"][row, blank] = 0
        begin = length - size if seed % 2 else 0
        batch["labels"][row, : begin + chance.randint(6, size - 3)] = -100
    batch["labels"][batch["attention_mask"] == 0] = -100
    return batch


def trained_on(model: Any, batches: list[Any]) -> Iterator[tuple[Any, AdaptiveBackprop]]:
    """Losses and gradients of a run's steps, every tensor trained, and its engine."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with AdaptiveBackprop(
        model, optimizer, batches[0], rho=0.95, total_batches=len(batches), positions=2, every=17,
        steps="choose", forward=ForwardOptions(labelled_head=True),
    ) as engine:  # fmt: skip
        for batch in batches:
            engine.prepare(lambda: batches[:2])
            assert engine.selection is not None
            assert len(engine.selection.names) == len(engine.trainable)
            loss = engine.loss(batch)
            loss.backward()
            yield [loss.detach(), *(p.grad.clone() for p in model.parameters())], engine
            optimizer.step()
            optimizer.zero_grad()


@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.parametrize("family", ["llama", "qwen3", "opt", "gemma3", "mistral", "phi"])
def test_few_graphs_serve_all_blocks_and_batches(family: str) -> None:
    """Fifty steps of uneven batches through the ends of their rows, and three selections."""
    torch._dynamo.reset()
    backend, model, plain = Graphs(), dry(family, "sdpa"), dry(family, "sdpa")
    compile_blocks(model, backend=backend)
    batches = [uneven(seed) for seed in range(50)]
    both = zip(trained_on(model, batches), trained_on(plain, batches), strict=True)
    for (found, engine), (wanted, other) in both:
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5)
        ways = [one._savings.split.keeping for one in (engine, other) if one._savings.split]
    assert ways == ["handed", "roomy"]
    assert sum(event["asked"] for event in engine.history) == 3
    assert 2 <= backend.made <= 4


def even(length: int) -> dict[str, Any]:
    """Rows of one length, half of them prompts."""
    batch: dict[str, Any] = batch_for("", 3, length, length)
    batch["labels"][:, : length // 2] = -100
    return batch


@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.parametrize("family", ["llama", "opt"])
def test_compiled_tails_do_without_a_mask_too(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no row is padded; one graph more serves batches that are."""
    monkeypatch.setattr(seen, "anywhere", True)
    torch._dynamo.reset()
    backend, model, plain = Graphs(), dry(family, "sdpa"), dry(family, "sdpa")
    compile_blocks(model, backend=backend)
    batches = 8 * [even(18), even(24), uneven(0), even(31), uneven(3), even(22)]
    both = zip(trained_on(model, batches), trained_on(plain, batches), strict=True)
    for (found, engine), (wanted, other) in islice(both, 12):
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5)
        splits = [one._savings.split for one in (engine, other)]
        assert [split and split.maskless for split in splits] == [True, True]
    assert 2 <= backend.made <= 5


@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.parametrize(("family", "attention"), [("bloom", "eager"), ("llama", "eager")])
def test_attention_that_takes_no_plain_keys_is_left_its_cache(family: str, attention: str) -> None:
    torch._dynamo.reset()
    model, batch = dry(family, attention), uneven(0)
    compile_blocks(model, backend=Graphs())
    split = SplitForward(model)
    with flop_counter():  # as a run tries it: around the compiler
        assert split.settle(batch, lambda small, on: compare(model, small, None, on)) is None
    assert split.keeping == "roomy"
