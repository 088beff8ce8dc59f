"""What a backward pass costs: autograd's own graph, traced once under fake tensors.

Start with `trace.py`.  The graph itself is a value (`types.CostGraph`); choosing by it is `select`.
"""

from greentrainer.cost.blank import faked, unseen
from greentrainer.cost.exchange import Sizes, held_by_shard, sent_by_replicas, sent_by_shards
from greentrainer.cost.flops import ATTENTION, FORMULAS, count_flops, flop_counter
from greentrainer.cost.memory import (
    MOMENTS,
    Memory,
    pass_memory,
    probe_memory,
    rows_that_fit,
    step_memory,
)
from greentrainer.cost.plain import foretold_of, graph_of, plain_foretold, plain_graph
from greentrainer.cost.questions import Questions
from greentrainer.cost.sizes import LESS, ROOM, SMALLEST, Foretold, added, form_of, symbols
from greentrainer.cost.trace import is_tracing, trace

__all__ = [
    "ATTENTION",
    "FORMULAS",
    "LESS",
    "MOMENTS",
    "ROOM",
    "SMALLEST",
    "Foretold",
    "Memory",
    "Questions",
    "Sizes",
    "added",
    "count_flops",
    "faked",
    "flop_counter",
    "foretold_of",
    "form_of",
    "graph_of",
    "held_by_shard",
    "is_tracing",
    "pass_memory",
    "plain_foretold",
    "plain_graph",
    "probe_memory",
    "rows_that_fit",
    "sent_by_replicas",
    "sent_by_shards",
    "step_memory",
    "symbols",
    "trace",
    "unseen",
]
