"""What a backward pass costs: autograd's own graph, counted once under fake tensors."""

from greentrainer.cost.flops import ATTENTION, FORMULAS, count_flops, flop_counter
from greentrainer.cost.trace import trace
from greentrainer.types import CostGraph

__all__ = ["ATTENTION", "FORMULAS", "CostGraph", "count_flops", "flop_counter", "trace"]
