"""Cost graphs for tests and benchmarks: random ones of several shapes, and the shapes of models."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import combinations
from random import Random

import numpy as np
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array, csr_array

from greentrainer.types import CostGraph


@dataclass
class Builder:
    """A cost graph under construction: `node` adds an inner node, `leaf` a tensor."""

    parents: list[tuple[int, ...]] = field(default_factory=lambda: [()])
    costs: list[int] = field(default_factory=lambda: [0])
    leaves: dict[str, int] = field(default_factory=dict)

    def node(self, parents: Iterable[int], cost: int = 0) -> int:
        self.parents.append(tuple(sorted(set(parents))))
        self.costs.append(cost)
        return len(self.costs) - 1

    def leaf(self, parents: Iterable[int], cost: int = 0, name: str = "") -> int:
        node = self.node(parents, cost)
        self.leaves[name or f"t{len(self.leaves)}"] = node
        return node

    def graph(self) -> CostGraph:
        return CostGraph(
            tuple(self.parents),
            tuple(self.costs),
            self.leaves,
            dict.fromkeys(self.leaves, 1),
            forward_flops=sum(self.costs) // 2 + 1,
        )


def importance_of(graph: CostGraph, seed: int, negative: float = 0.1) -> dict[str, float]:
    """Importance spread over orders of magnitude, a share of it negative."""
    draw = np.random.default_rng(seed)
    sizes = draw.lognormal(0.0, 1.5, len(graph.tensors))
    signs = np.where(draw.random(len(sizes)) < negative, -1.0, 1.0)
    return dict(zip(graph.tensors, (sizes * signs).tolist(), strict=True))


# Small instances, for comparison with all subsets


@st.composite
def small_graphs(draw: st.DrawFn) -> CostGraph:
    """Any DAG: leaves with several parents, diamonds, free nodes, equal costs."""
    build = Builder()
    inner = draw(st.integers(0, 7))
    costs = st.integers(0, draw(st.sampled_from([0, 3, 20])))
    build.costs[0] = draw(costs)
    for node in range(1, inner + 1):
        above = st.sets(st.integers(0, node - 1), min_size=1, max_size=3)
        build.node(draw(above), draw(costs))
    for _ in range(draw(st.integers(1, 8))):
        above = st.sets(st.integers(0, inner), min_size=1, max_size=3)
        build.leaf(draw(above), draw(costs))
    return build.graph()


@st.composite
def small_variants(draw: st.DrawFn) -> CostGraph:
    """As `small_graphs`, with nodes that are always computed, and with variants.

    While one or two sets of tensors are frozen, other costs hold, whether higher or lower.
    """
    graph = draw(small_graphs())
    inner = min(graph.leaves.values())
    graph = replace(graph, forced=tuple(draw(st.sets(st.integers(0, inner - 1), max_size=2))))
    names = list(graph.tensors)
    first = draw(st.sets(st.sampled_from(names), min_size=1, max_size=2))
    second = draw(st.sets(st.sampled_from(names), max_size=2)) - first
    changes = st.lists(st.integers(0, 9), min_size=len(graph.costs), max_size=len(graph.costs))
    masks = [frozenset(mask) for mask in (first, second) if mask]
    return _with_variants(graph, masks, lambda: draw(changes))


def _with_variants(
    graph: CostGraph, masks: Sequence[frozenset[str]], costs: Callable[[], list[int]]
) -> CostGraph:
    """The graph with a variant for every set of `masks` that are frozen."""

    @cache
    def build(frozen: frozenset[str]) -> CostGraph:
        variants = tuple(
            (mask, build(frozen | mask))
            for mask in masks
            if not mask <= frozen and not mask | frozen >= set(graph.tensors)
        )
        left = {name: node for name, node in graph.leaves.items() if name not in frozen}
        other = tuple(costs()) if frozen else graph.costs
        return replace(graph, leaves=left, costs=other, variants=variants)

    return build(frozenset())


@st.composite
def small_instances(
    draw: st.DrawFn, graphs: st.SearchStrategy[CostGraph]
) -> tuple[CostGraph, dict[str, float], int]:
    """A graph, whole importances, and a budget between nothing and everything."""
    graph = draw(graphs)
    values = draw(st.lists(st.integers(-3, 9), min_size=8, max_size=8))
    importance = {name: float(v) for name, v in zip(graph.tensors, values, strict=False)}
    return graph, importance, draw(st.integers(0, graph.full_backward_flops + 1))


def brute_force(
    graph: CostGraph, importance: dict[str, float], budget: float
) -> tuple[float, int] | None:
    """Value and cost of the best non-empty set of positive tensors within budget, or None."""
    names = [n for n in graph.tensors if importance.get(n, 0.0) > 0]
    subsets = (s for k in range(1, len(names) + 1) for s in combinations(names, k))
    priced = ((sum(importance[n] for n in s), graph.backward_flops(s)) for s in subsets)
    fitting = [(value, cost) for value, cost in priced if cost <= budget]
    return max(fitting, key=lambda found: (found[0], -found[1]), default=None)


# Random shapes


def chain(size: int, random: Random, cost: Callable[[], int]) -> CostGraph:
    """A spine with one or two tensors hanging off each node."""
    build, spine = Builder(), 0
    for _ in range(size):
        for _ in range(random.choice((1, 1, 2))):
            build.leaf([spine], cost())
        spine = build.node([spine], cost())
    build.leaf([spine], cost())
    return build.graph()


def tree(size: int, random: Random, cost: Callable[[], int]) -> CostGraph:
    """Each node below a random earlier one, a tensor below each."""
    build = Builder()
    inner = [0]
    for _ in range(size):
        inner.append(build.node([random.choice(inner[-12:])], cost()))
        build.leaf([inner[-1]], cost())
    return build.graph()


def series_parallel(size: int, random: Random, cost: Callable[[], int]) -> CostGraph:
    """Stretches in series or in parallel, nested, about `size` tensors."""
    build = Builder()

    def stretch(top: int, tensors: int) -> int:
        if tensors <= 1:
            build.leaf([top], cost())
            return build.node([top], cost())
        if random.random() < 0.5:
            cut = random.randint(1, tensors - 1)
            return stretch(stretch(top, cut), tensors - cut)
        branches = min(tensors, random.choice((2, 2, 3, 4)))
        ends = [stretch(top, tensors // branches) for _ in range(branches)]
        return build.node(ends, random.choice((0, cost())))

    bottom = stretch(0, size)
    build.leaf([bottom], cost())
    return build.graph()


SHAPES: dict[str, Callable[[int, Random, Callable[[], int]], CostGraph]] = {
    "chain": chain,
    "tree": tree,
    "series_parallel": series_parallel,
}


def noisy(random: Random) -> Callable[[], int]:
    """Costs of 1e8 to 1e11 FLOPs of which no two are equal."""
    return lambda: int(10 ** random.uniform(8, 11))


def uniform(random: Random) -> Callable[[], int]:
    """Costs as of equal blocks: few sizes, and free ones (biases)."""
    return lambda: random.choice((0, 0, 1, 1, 1, 4, 4)) * 2_097_152_000


COSTS: dict[str, Callable[[Random], Callable[[], int]]] = {"noisy": noisy, "uniform": uniform}


# The shapes of models


def linear(build: Builder, above: int, name: str, cost: int, bias: bool = True) -> int:
    """A linear layer: its weight and bias, and the node that passes the gradient on."""
    matmul = build.node([above])
    if bias:
        build.leaf([matmul], 0, f"{name}.bias")
    build.leaf([build.node([matmul], cost)], 0, f"{name}.weight")
    return build.node([build.node([matmul], cost)])


def norm(build: Builder, above: Sequence[int], name: str) -> int:
    """A LayerNorm: two tensors that cost nothing once the gradient is there."""
    node = build.node(above)
    build.leaf([node], 0, f"{name}.weight")
    build.leaf([node], 0, f"{name}.bias")
    return build.node([node])


def transformer(
    blocks: int = 32,
    width: int = 2560,
    tokens: int = 2048,
    length: int = 512,
    vocabulary: int = 50272,
    noise: Random | None = None,
) -> CostGraph:
    """Shaped like OPT (the defaults are OPT-2.7B, batch 4 x 512): 16 tensors a block.

    noise: makes every matrix cost a little different, which no model does, to test the selector.
    """
    build = Builder()

    def flops(columns: int, rows: int = width) -> int:
        return int(2 * tokens * rows * columns * (noise.uniform(0.7, 1.3) if noise else 1))

    head_weight = build.node([0], flops(vocabulary))
    spine = norm(build, [build.node([0], flops(vocabulary))], "final_norm")
    for block in range(blocks - 1, -1, -1):
        add = build.node([spine])
        hidden = build.node([linear(build, add, f"{block}.fc2", flops(4 * width))])
        hidden = linear(build, hidden, f"{block}.fc1", flops(4 * width))
        add = build.node([add, norm(build, [hidden], f"{block}.mlp_norm")])
        mixed = linear(build, add, f"{block}.out", flops(width))
        attention = build.node([mixed], flops(5 * length) // 2)
        ends = [linear(build, attention, f"{block}.{x}", flops(width)) for x in "qkv"]
        spine = build.node([add, norm(build, ends, f"{block}.attention_norm")])
    build.leaf([spine], 0, "positions.weight")
    build.leaf([head_weight, spine], 0, "embedding.weight")
    return build.graph()


def mixture_of_experts(
    blocks: int = 34, experts: int = 64, noise: Random | None = None
) -> CostGraph:
    """A residual spine with attention and many gated experts a block: some 9 tensors an expert."""
    build = Builder()

    def flops(columns: int) -> int:
        return int(2 * 2048 * 1024 * columns * (noise.uniform(0.2, 1.8) if noise else 1))

    spine = norm(build, [build.node([0], flops(32000))], "final_norm")
    for block in range(blocks - 1, -1, -1):
        add = build.node([spine])
        ends = [linear(build, add, f"{block}.router", flops(64), bias=False)]
        for expert in range(experts):
            name = f"{block}.{expert}"
            scaled = build.node([add])
            build.leaf([scaled], 0, f"{name}.scale")
            hidden = norm(build, [linear(build, scaled, f"{name}.down", flops(1024))], name)
            gate = linear(build, hidden, f"{name}.gate", flops(1024))
            up = linear(build, hidden, f"{name}.up", flops(1024))
            ends.append(build.node([gate, up]))
        add = build.node([add, norm(build, ends, f"{block}.mlp_norm")])
        mixed = linear(build, add, f"{block}.out", flops(1024))
        attention = build.node([mixed], flops(1280))
        ends = [linear(build, attention, f"{block}.{x}", flops(1024)) for x in "qkv"]
        spine = build.node([add, norm(build, ends, f"{block}.attention_norm")])
    build.leaf([spine], 0, "embedding.weight")
    return build.graph()


def encoder_decoder(blocks: int = 6, width: int = 64, noise: Random | None = None) -> CostGraph:
    """A decoder whose every block looks at what a stack of encoder blocks put out, as in T5."""
    build = Builder()

    def flops(columns: int) -> int:
        return int(2 * 512 * width * columns * (noise.uniform(0.7, 1.3) if noise else 1))

    spine, looks = build.node([0], flops(8 * width)), []
    for block in range(blocks - 1, -1, -1):
        hidden = linear(build, spine, f"decoder.{block}.ff", flops(4 * width))
        spine = build.node([spine, norm(build, [hidden], f"decoder.{block}.norm")])
        attention = build.node([spine], flops(width))
        looks += [linear(build, attention, f"decoder.{block}.{x}", flops(width)) for x in "kv"]
        query = linear(build, attention, f"decoder.{block}.q", flops(width))
        spine = build.node([spine, query])
    build.leaf([spine], 0, "decoder.embedding")
    spine = norm(build, looks, "encoder.norm")
    for block in range(blocks - 1, -1, -1):
        hidden = linear(build, spine, f"encoder.{block}.ff", flops(4 * width))
        spine = build.node([spine, norm(build, [hidden], f"encoder.{block}.norm")])
    build.leaf([spine], 0, "encoder.embedding")
    return build.graph()


# The optimum, found by somebody else


def milp_optimum(
    graph: CostGraph, importance: dict[str, float], budget: float, seconds: float = 20.0
) -> float:
    """The greatest value that `scipy.optimize.milp` finds, in the graph or a variant of it."""
    best, graphs = 0.0, [graph]
    for found in graphs:  # grows while it is read
        best = max(best, _milp(found, importance, budget, seconds))
        graphs += [v for _, v in found.variants if not any(v is other for other in graphs)]
    return best


def _milp(graph: CostGraph, importance: dict[str, float], budget: float, seconds: float) -> float:
    """x[n] <= x[parent of n] and cost . x <= budget, with one tensor of every mask at least."""
    size = len(graph.costs)
    arrows = [(n, p) for n, above in enumerate(graph.parents) for p in above]
    child, parent = np.array(arrows).T
    rows, ones = np.arange(len(arrows)), np.ones(len(arrows))
    where = (np.concatenate((rows, rows)), np.concatenate((child, parent)))
    data = np.concatenate((ones, -ones))
    precedence = csr_array(coo_array((data, where), shape=(len(arrows), size)))
    limits = [LinearConstraint(precedence, -np.inf, 0)]
    limits.append(LinearConstraint(np.array([graph.costs]) / budget, -np.inf, 1))
    for mask, _ in graph.variants:
        holds = np.zeros((1, size))
        holds[0, [graph.leaves[name] for name in mask]] = 1
        limits.append(LinearConstraint(holds, 1, np.inf))
    least, most = np.zeros(size), np.ones(size)
    least[list(graph.forced)] = 1
    worth = np.zeros(size)
    for name, node in graph.leaves.items():
        worth[node] = importance.get(name, 0.0)
        most[node] = float(importance.get(name, 0.0) > 0)  # the others are never selected
    options = {"mip_rel_gap": 1e-6, "time_limit": seconds}
    ranges = Bounds(least, most)
    found = milp(
        -worth, integrality=np.ones(size), bounds=ranges, constraints=limits, options=options
    )
    return 0.0 if found.fun is None else float(-found.fun)
