"""Prompts read in part: as if the part were all that they say."""

import math
from typing import Any

import pytest
import torch

from greentrainer.cost import flop_counter
from greentrainer.engine import GraphCache
from greentrainer.forward import LabelledHead, SplitForward
from greentrainer.forward.check import compare
from greentrainer.forward.parts import reads
from greentrainer.types import PARTS, Part
from tests.conformance.families import build
from tests.conformance.test_split import DECODERS, LENGTH, PROMPTS, ragged, still

SOME = ["last half", "first quarter", "ends half", "grounds half"]


def columns_read(which: str, share: float, size: int) -> list[int]:
    """Of the positions before a tail, counted from the prompt's first."""
    count = math.ceil(size * share)
    if which == "last":
        return list(range(size - count, size))
    if which == "first":
        return list(range(count))
    if which == "ends":
        return [*range(count // 2), *range(size - (count - count // 2), size)]
    return list(range(size))  # one passage holds them all


def cut_short(batch: dict[str, Any], tail: int, part: str) -> dict[str, Any]:
    """The batch with the part alone in the place of each prompt, padded on the right."""
    own = PARTS[part]
    rows = []
    for row, prompt in enumerate(PROMPTS):
        real = batch["attention_mask"][row].nonzero().flatten().tolist()
        before = max(0, prompt - 1 - tail)
        kept = [real[k] for k in columns_read(own.which, own.share, before)] + real[before:]
        rows.append((batch["input_ids"][row, kept], batch["labels"][row, kept]))
    width = max(len(ids) for ids, _ in rows)
    short = {
        "input_ids": torch.zeros(len(rows), width, dtype=torch.long),
        "labels": torch.full((len(rows), width), -100),
        "attention_mask": torch.zeros(len(rows), width, dtype=torch.long),
    }
    for row, (ids, labels) in enumerate(rows):
        short["input_ids"][row, : len(ids)] = ids
        short["labels"][row, : len(ids)] = labels
        short["attention_mask"][row, : len(ids)] = 1
    return short


def splitting(model: Any) -> SplitForward:
    split = SplitForward(model)
    assert split.settle(ragged(), lambda small, on: compare(model, small, None, on)) is None
    return split


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("tail", [0, 3])
@pytest.mark.parametrize("part", SOME)
@pytest.mark.parametrize("family", DECODERS)
def test_the_loss_is_that_of_the_part(family: str, part: str, tail: int, left: bool) -> None:
    model, batch = still(family), ragged(left)
    short = cut_short(batch, tail, part)
    split = splitting(model)
    if split.numbered:  # by columns, from a row's first that is no padding
        first = batch["attention_mask"].argmax(1, keepdim=True)
        short["position_ids"] = first + torch.arange(short["labels"].shape[1])
    wanted = model(**short).loss
    with split.at(tail, PARTS[part]), split.on():
        found = model(**batch).loss
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("part", SOME)
@pytest.mark.parametrize("family", DECODERS)
def test_executed_flops_are_those_foretold(family: str, part: str) -> None:
    model = build(family).train()
    split, head = SplitForward(model), LabelledHead(model)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    graphs = GraphCache(model, trained, None, head=head, split=split)
    split.tail, split.part = 2, PARTS[part]
    with head.on():
        for left in (False, True):
            graph = graphs.of_batch(ragged(left))
            with flop_counter() as count:
                model(**ragged(left)).loss.backward()
            executed = count.get_total_flops()
            assert executed == graph.forward_flops + graph.full_backward_flops
        with split.at(2):
            assert graph.forward_flops <= graphs.of_batch(ragged()).forward_flops


def test_of_several_passages_those_are_read_that_say_what_the_completion_says() -> None:
    """Rare words count more; of equal passages the later are read."""
    ids = torch.full((1, 16 * 4 + 3), 9)
    ids[0, 20] = 5  # said once, in the second passage
    ids[0, 35], ids[0, 36] = 6, 6  # said twice, in the third
    ids[0, -2:] = torch.tensor([5, 6])
    labels = torch.full_like(ids, -100)
    labels[0, -2:] = ids[0, -2:]
    begin, start = torch.tensor([0]), torch.tensor([16 * 4])

    def read(share: float) -> list[int]:
        found = reads(Part("grounds", share), begin, start, ids, labels)
        passages = found[0, : 16 * 4].view(4, 16).all(1).nonzero().flatten().tolist()
        assert int(found.sum()) == 16 * len(passages)
        return [int(n) for n in passages]

    assert read(0.5) == [1, 2]
    assert read(0.75) == [1, 2, 3]
    ids[0, 50] = 5  # said twice now, and not rarer than the other
    assert read(0.25) == [2]
    assert read(1.0) == [0, 1, 2, 3]


def test_rows_without_a_prompt_and_without_a_label_are_whole() -> None:
    model, batch = still("llama"), ragged()
    batch["labels"][0] = batch["input_ids"][0]
    batch["labels"][1] = -100
    split = splitting(model)
    for part in PARTS:
        with split.at(0, PARTS[part]):
            where = split.cut(batch)
        assert where is not None
        assert where.read is not None
        assert (where.read[0] < 0).all()
        assert where.tail >= LENGTH
        with split.at(0, PARTS[part]), split.on():
            assert torch.isfinite(model(**batch).loss)


def test_words_are_told_by_ids_whatever_they_are() -> None:
    """A placeholder may be negative; without ids there are no words, and the other parts do."""
    labels = torch.full((1, 8), -100)
    labels[0, -2:] = 7
    ids = torch.tensor([[-200, 7, 3, 3, 3, 3, 7, 7]])
    begin, start = torch.tensor([0]), torch.tensor([5])
    assert reads(Part("grounds", 0.5), begin, start, ids, labels).sum() == 5  # one passage
    last = reads(Part("last", 0.4), begin, start, None, labels)
    assert last[0].nonzero().flatten().tolist() == [3, 4]
    with pytest.raises(ValueError, match="found by token ids"):
        reads(Part("grounds", 0.5), begin, start, None, labels)
