"""What batches cut in two were told to cost, held against what they execute."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

from greentrainer.cost import flop_counter
from greentrainer.engine import GraphCache
from greentrainer.forward import LabelledHead, SplitForward


def require_foretold(
    model: Any, batches: Sequence[dict[str, Any]], tails: Sequence[int | None], head: bool
) -> None:
    """Count each batch with each tail, all and some of its tensors trained.

    head: whether logits are made on labelled positions only.
    """
    split, labelled = SplitForward(model), LabelledHead(model) if head else None
    candidates = {n: p for n, p in model.named_parameters() if p.requires_grad}
    graphs = GraphCache(model, candidates.values(), None, head=labelled, split=split)
    for batch in batches:
        whole = graphs.of_batch(batch)
        for tail in tails:
            with split.at(tail):
                graph = graphs.of_batch(batch)
            assert graph.full_flops == whole.full_flops
            for share in (1, 4):
                names = graph.tensors[::share]
                for name, parameter in candidates.items():
                    parameter.requires_grad_(name in names)
                with split.at(tail), split.on(), labelled.on() if labelled else nullcontext():
                    with flop_counter() as forward:
                        loss = model(**batch).loss
                    with flop_counter() as backward:
                        loss.backward()
                assert forward.get_total_flops() == graph.forward_flops
                assert backward.get_total_flops() == graph.backward_flops(names)
