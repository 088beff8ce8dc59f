"""Steps are counted while they run, and the books corrected where graphs told wrong."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from greentrainer import AdaptiveBackprop
from greentrainer.cost import flop_counter, trace
from greentrainer.engine.verifier import APART
from tests.conformance.families import batch_for, build
from tests.trainer import arguments, rows

SIZE = 16


@pytest.fixture
def plain() -> Any:
    """Torch's backward as it is before a test."""
    return torch.autograd.backward


class Sly(nn.Module):
    """Works more while some layer is frozen, which no graph of the whole model can know."""

    def __init__(self, extra: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(SIZE, SIZE) for _ in range(6))
        self.extra = extra

    def forward(self, x: Any) -> Any:
        frozen = not all(p.requires_grad for p in self.parameters())
        for layer in self.layers:
            x = layer(x).tanh()
        for _ in range(self.extra * frozen):
            x = x + (x.detach() @ x.detach().t()) @ torch.zeros_like(x)
        return SimpleNamespace(loss=x.square().mean())


def through(engine: AdaptiveBackprop, batches: list[Any], wrapped: bool = False) -> list[int]:
    """FLOPs of each step, as a counter around it sees them."""
    spent = []
    for batch in batches:
        if engine.due:
            engine.reselect([batch])
        with flop_counter() as count:
            if wrapped:
                with engine.batch(batch):
                    engine.model(**batch).loss.backward()
            else:
                engine.model(**batch).loss.backward()
        engine.optimizer.step()
        engine.optimizer.zero_grad()
        spent.append(int(count.get_total_flops()))
    return spent


def engine_for(model: nn.Module, rho: float, batches: int, **more: Any) -> AdaptiveBackprop:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    sample = {"x": torch.randn(8, SIZE)}
    return AdaptiveBackprop(
        model, optimizer, sample, rho=rho, total_batches=batches, every=batches // 2, **more
    )


def sly_batches(count: int) -> list[Any]:
    return [{"x": torch.randn(8, SIZE)} for _ in range(count)]


@pytest.mark.parametrize("wrapped", [False, True], ids=["hooks", "engine.batch"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_graph_that_tells_wrong_is_corrected(wrapped: bool, plain: Any) -> None:
    with engine_for(Sly(2).train(), 0.8, 40) as engine:
        spent = through(engine, sly_batches(40), wrapped)
        ledger = engine.ledger
        booked = [entry.flops for entry in ledger if entry.kind == "train"]
        assert ledger.worst_deviation > 0.05
        assert booked == spent  # the first is counted, and the others are told by it
        assert ledger.spent_flops <= 0.8 * ledger.full_flops
    assert torch.autograd.backward is plain


def test_it_is_said_once() -> None:
    with (
        engine_for(Sly(2).train(), 0.8, 40) as engine,
        pytest.warns(UserWarning, match="times the FLOPs that its graph tells") as told,
    ):
        through(engine, sly_batches(40))
    assert len([one for one in told if "graph tells" in str(one.message)]) == 1


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_cannot_be_met_is_refused_before_anything_is_trained(plain: Any) -> None:
    model = Sly(40).train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with (
        engine_for(model, 0.6, 40) as engine,
        pytest.raises(ValueError, match=r"training anything takes 1\.9"),
    ):
        through(engine, sly_batches(40))
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    assert torch.autograd.backward is plain


@pytest.mark.parametrize("family", ["opt", "t5", "bloom"])
def test_true_graphs_are_found_true_and_nothing_is_changed(family: str) -> None:
    """With and without counting a run ends in the same bits."""
    ended = []
    for enabled in (True, False):
        torch.manual_seed(0)
        model = build(family).train()
        batches = [batch_for(family, seed=i) for i in range(2 * APART + 20)]
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
        with AdaptiveBackprop(
            model, optimizer, batches[0], rho=0.6, total_batches=len(batches), every=60
        ) as engine:
            engine._bookkeeper.verifier.enabled = enabled
            through(engine, batches)
            assert engine.ledger.worst_deviation == 0
            asked = {(event["names"], event["tail"]) for event in engine.history if event["asked"]}
            counted = engine.ledger.verified
            assert counted >= max(len(asked), len(batches) // APART) if enabled else counted == 0
        ended.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*ended, strict=True))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_resumed_run_goes_on_with_its_corrections() -> None:
    model, batches = Sly(2).train(), sly_batches(40)
    with engine_for(model, 0.8, 40) as engine:
        through(engine, batches[:10])
        state, booked = engine.state_dict(), engine.ledger.batches
    with engine_for(model, 0.8, 40) as again:
        again.load_state_dict(state)
        assert again._bookkeeper.verifier.state == state["verified"]
        spent = through(again, batches[10:20])
        later = [entry for entry in again.ledger if entry.kind == "train"][booked:]
        assert [entry.flops for entry in later] == spent


def test_a_step_that_breaks_off_leaves_torch_as_it_was(plain: Any) -> None:
    class Broken(Sly):
        def forward(self, x: Any) -> Any:
            if bool((x == 7).any()):
                raise KeyboardInterrupt
            return super().forward(x)

    with engine_for(Broken(0).train(), 0.8, 40) as engine:
        bad = {"x": torch.full((8, SIZE), 7.0)}
        engine.graphs.of_batch(sly_batches(1)[0])
        with pytest.raises(KeyboardInterrupt):
            through(engine, [*sly_batches(1), bad])
        through(engine, sly_batches(5))
        assert engine.ledger.verified
    assert torch.autograd.backward is plain


def test_the_bill_says_what_was_counted(tmp_path: Any) -> None:
    from greentrainer.hf import GreenConfig, GreenTrainer

    trainer = GreenTrainer(
        build("llama"), arguments(tmp_path), train_dataset=rows(24), green=GreenConfig(rho=0.6)
    )
    trainer.train()
    told = trainer.ledger.summary()
    assert told["verified_batches"] >= 1
    assert told["worst_deviation"] == 0


def test_a_trace_is_no_step_of_an_engine_that_waits() -> None:
    """One that was never closed waits for an update while another model is traced."""
    waiting = engine_for(Sly(0).train(), 0.8, 40)
    batch = sly_batches(1)[0]
    waiting.reselect([batch])
    waiting.model(**batch).loss.backward()
    counted = list(waiting._bookkeeper.verifier._counted)
    other = build("llama").train()
    graph = trace(other, batch_for("llama"))
    assert waiting._bookkeeper.verifier._counted == counted
    waiting.close()
    assert trace(other, batch_for("llama")) == graph
