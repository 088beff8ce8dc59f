"""Models that look at their batch are traced as if they were run; what they asked tells batches."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from greentrainer.cost import flop_counter, trace
from greentrainer.engine.graph_cache import GraphCache

SIZE = 8


def by_mask(x: Any, ids: Any) -> Any:
    return x[ids > 0]


def by_selection(x: Any, ids: Any) -> Any:
    return torch.masked_select(x, (ids > 0)[..., None]).view(-1, SIZE)


def by_places(x: Any, ids: Any) -> Any:
    rows, columns = torch.nonzero(ids, as_tuple=True)
    return x[rows, columns]


def by_length(x: Any, ids: Any) -> Any:
    return x[:, : int((ids > 0).sum(1).max())]


def by_lengths(x: Any, ids: Any) -> Any:
    counts = (ids > 0).sum(1).tolist()
    return torch.cat([row[:count] for row, count in zip(x, counts, strict=True)])


def by_kinds(x: Any, ids: Any) -> Any:
    return x[:, : len(torch.unique(ids))]


def by_branch(x: Any, ids: Any) -> Any:
    return x if bool((ids[:, -1] == 0).all()) else x[:, 1:]


def by_equality(x: Any, ids: Any) -> Any:
    return x[:, 2:] if torch.equal(ids[0], ids[1]) else x


def by_change(x: Any, ids: Any) -> Any:
    kept = torch.zeros_like(ids, dtype=torch.bool)
    kept[:, ::2] = True
    kept &= ids > 0
    return x[kept]


def by_repeats(x: Any, ids: Any) -> Any:
    return torch.repeat_interleave(x[:, 0], (ids > 0).sum(1), dim=0)


LOOKS = [
    by_mask, by_selection, by_places, by_length, by_lengths, by_kinds, by_branch, by_equality,
    by_change, by_repeats,
]  # fmt: skip


class Net(nn.Module):
    """Computes what `look` leaves of its batch, and notes a number that nobody needs."""

    def __init__(self, look: Any) -> None:
        super().__init__()
        self.below, self.above = nn.Linear(SIZE, SIZE), nn.Linear(SIZE, 3)
        self.look, self.noted = look, [0.0]

    def forward(self, x: Any, ids: Any) -> Any:
        out = self.above(self.look(self.below(x).tanh(), ids))
        self.noted.append(out.detach().abs().mean().item())
        return SimpleNamespace(loss=out.square().mean())


def batch_of(seed: int, rows: int = 4, length: int = 7) -> Any:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 4, (rows, length), generator=generator)
    return {"x": torch.randn(rows, length, SIZE, generator=generator), "ids": ids}


def executed(model: nn.Module, batch: Any) -> int:
    with flop_counter() as count:
        model(**batch).loss.backward()
    return int(count.get_total_flops())


@pytest.mark.parametrize("look", LOOKS)
def test_a_model_that_looks_at_its_batch_is_traced_without_running_it(look: Any) -> None:
    model = Net(look).train()
    passed: list[Any] = []
    cache = GraphCache(model, list(model.parameters()), None, on_real_pass=passed.append)
    for seed in range(6):
        batch = batch_of(seed, length=7 + seed % 2)
        kept = {key: value.clone() for key, value in batch.items()}
        assert cache.of_batch(batch).full_flops == executed(model, batch)
        assert all(torch.equal(batch[key], kept[key]) for key in kept)
    assert passed == []


def test_batches_that_answer_alike_are_traced_once() -> None:
    model = Net(by_branch).train()
    graph = trace(model, batch_of(0))
    assert graph.questions.paths == {"['ids']"}
    assert graph.questions.answers == graph.questions.of(batch_of(1))
    same = batch_of(1)
    same["ids"][:, -1] = 0
    assert graph.questions.answers != graph.questions.of(same)
    assert graph.questions.of({"ids": torch.zeros(())}) is None


def test_numbers_that_are_only_noted_are_no_questions() -> None:
    model = Net(lambda x, ids: x)
    assert trace(model, batch_of(0)).questions is None


def test_a_branch_on_weights_takes_a_real_pass() -> None:
    def look(x: Any, _ids: Any) -> Any:
        return x[x.mean(-1) > 0]

    model = Net(look).train()
    made: list[Any] = []
    cache = GraphCache(model, list(model.parameters()), None, on_real_pass=made.append)
    batch = batch_of(0)
    assert cache.of_batch(batch).full_flops == executed(model, batch)
    assert len(made) == 1


def test_hidden_states_are_taken_to_be_numbers() -> None:
    def look(x: Any, _ids: Any) -> Any:
        if torch.isnan(x).any() or torch.isinf(x).any() or not torch.isfinite(x).all():
            return x[:1]
        return x

    model, batch = Net(look).train(), batch_of(0)
    graph = trace(model, batch)
    assert graph.notes == ()
    assert graph.full_flops == executed(model, batch)
