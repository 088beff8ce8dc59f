"""`CostGraph`: what the backward pass of one batch costs, for any set of trained tensors.

Tracing produces it and everything else reads it.  A backward pass is seen as a set of
nodes with precedence: computing the gradient at a node takes computing it at the node's parents,
which lie closer to the loss.  A parameter is a leaf.  Training a set of leaves costs the sum over
the leaves and all their ancestors: no case of any kind is left to treat apart.

===========================  ==============================================================
paper (section 3)            here
===========================  ==============================================================
``T_fp``                     `CostGraph.forward_flops`
``t_dw[k]``                  `CostGraph.own_flops`: nodes that lead to leaf k alone
``t_dy[k]``                  cost of the other nodes above leaf k
``sum of t_dw and t_dy``     `CostGraph.backward_flops(names)`
``rho T_full - T_fp``        `CostGraph.backward_budget(rho)`
``I[k]``                     `Importance`, a mapping from tensor name to float
===========================  ==============================================================
"""

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from greentrainer.types.dag import ancestors, closure_costs, descendants, sole_ends


@dataclass(frozen=True)
class Stage:
    """A part of the forward pass that need not run where what leaves it is known.

    path: of the module.
    flops: of its forward pass.
    node: computed whenever a gradient is computed in this stage or in an earlier one; None if that
        cannot be.
    """

    path: str
    flops: int
    node: int | None


@dataclass(frozen=True)
class CostGraph:
    """What the backward pass of one batch costs, for any set of trained tensors.

    parents: for each node the nodes that must be computed before it, all smaller than it; node 0
        is the loss.
    costs: FLOPs of each node (2 per multiply-accumulate, matrix work only).
    leaves: tensor name -> node, closest to the loss first (the order in which gradients arrive).
    sizes: tensor name -> number of elements.
    forward_flops: FLOPs of the forward pass.
    plain_flops: FLOPs of plain full fine-tuning of the same batch, where this pass leaves out some
        of them; else None.
    stages: parts of the forward pass that run one after the other, first to last.
    modules: module path -> nodes created while that module ran.
    uncounted_ops: operations met that have matrix work but no formula; they count 0.
    forced: nodes computed whatever is trained (a module hook that demands a gradient there).
    variants: (tensors, graph) pairs: while none of these tensors is trained the model runs other
        kernels, and that graph, which lacks them, holds instead (attention with a learned mask).
    notes: what the user should know about how the graph was obtained.
    questions: what the pass asked of its batch's values (`cost.Questions`): the graph holds for
        batches that answer the same.  None where it holds for all of these shapes.
    """

    parents: tuple[tuple[int, ...], ...]
    costs: tuple[int, ...]
    leaves: Mapping[str, int]
    sizes: Mapping[str, int]
    forward_flops: int
    plain_flops: int | None = None
    stages: tuple[Stage, ...] = ()
    modules: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    uncounted_ops: tuple[str, ...] = ()
    forced: tuple[int, ...] = ()
    variants: tuple[tuple[frozenset[str], "CostGraph"], ...] = ()
    notes: tuple[str, ...] = ()
    questions: Any = field(default=None, compare=False, repr=False)

    @cached_property
    def tensors(self) -> tuple[str, ...]:
        """Names of all trainable tensors, closest to the loss first."""
        return tuple(self.leaves)

    def backward_flops(self, names: Iterable[str] | None = None) -> int:
        """FLOPs of a backward pass that trains `names` (all tensors when None).

        Equal to what `torch.utils.flop_counter.FlopCounterMode` counts when `requires_grad` is
        set to exactly these.  Raises ValueError for a name that is not in the graph.
        """
        chosen = set(self.leaves if names is None else names)
        if not chosen:
            return 0
        graph = self.variant(chosen)
        active = graph.active_nodes(chosen)
        return sum(cost for cost, on in zip(graph.costs, active, strict=True) if on)

    def variant(self, names: Set[str]) -> "CostGraph":
        """The graph that holds while exactly `names` are trained (see `variants`)."""
        for mask, graph in self.variants:
            if mask.isdisjoint(names):
                return graph.variant(names)
        return self

    def active_nodes(self, names: Iterable[str]) -> bytearray:
        """One byte a node: 1 where this graph computes a gradient when `names` are trained."""
        seeds = [*self.forced, *(self._leaf(name) for name in names)]
        return ancestors(self.parents, seeds)

    @cached_property
    def full_backward_flops(self) -> int:
        """FLOPs of the backward pass that trains every tensor."""
        return self.backward_flops()

    @property
    def full_flops(self) -> int:
        """`T_full`: FLOPs of plain full fine-tuning, one forward and one full backward pass."""
        if self.plain_flops is not None:
            return self.plain_flops
        return self.forward_flops + self.full_backward_flops

    def backward_budget(self, rho: float) -> float:
        """FLOPs left for the backward pass when a step may cost `rho` of full fine-tuning."""
        return rho * self.full_flops - self.forward_flops

    def smallest_rho(self) -> float:
        """The smallest share of full fine-tuning's FLOPs at which some tensor can be trained."""
        return (self.forward_flops + min(self.closure_flops.values())) / self.full_flops

    @cached_property
    def closure_flops(self) -> dict[str, int]:
        """For each tensor the backward FLOPs of training it alone."""
        alone = {}
        for graph in {id(g): g for g in (self.variant({n}) for n in self.leaves)}.values():
            flops = graph._closures
            alone.update({n: flops[n] for n in graph.leaves if self.variant({n}) is graph})
        return {name: alone[name] for name in self.leaves}

    @cached_property
    def owners(self) -> tuple[int, ...]:
        """For each node the only leaf that it leads to; -1 where there are several or none."""
        return sole_ends(self.parents, self.leaves.values())

    @cached_property
    def own_flops(self) -> dict[str, int]:
        """`t_dw`: FLOPs of each tensor's own gradient, which nothing else needs."""
        own = dict.fromkeys(self.leaves.values(), 0)
        for owner, cost in zip(self.owners, self.costs, strict=True):
            if owner >= 0:
                own[owner] += cost
        return {name: own[leaf] for name, leaf in self.leaves.items()}

    def affordable(self, backward_budget: float) -> tuple[str, ...]:
        """Tensors that some selection within the budget could hold.

        backward_budget: FLOPs, as `backward_budget(rho)`.

        In whichever variant the tensor costs least: others trained with it may bring that about.
        """
        return tuple(name for name, flops in self._least.items() if flops <= backward_budget)

    @cached_property
    def _closures(self) -> dict[str, int]:
        """Cost of each tensor with all its ancestors, and what is forced, in this very graph."""
        forced = ancestors(self.parents, self.forced)
        base = sum(cost for cost, on in zip(self.costs, forced, strict=True) if on)
        extra = [0 if on else cost for cost, on in zip(self.costs, forced, strict=True)]
        total = closure_costs(self.parents, extra)
        return {name: base + total[node] for name, node in self.leaves.items()}

    @cached_property
    def _least(self) -> dict[str, int]:
        """The least of `_closures` over this graph and its variants."""
        least = dict(self._closures)
        for _, graph in self.variants:
            for name, flops in graph._least.items():
                least[name] = min(least[name], flops)
        return least

    def idle_modules(self, names: Iterable[str]) -> tuple[str, ...]:
        """Modules that no gradient passes through when `names` are trained."""
        chosen = set(names)
        graph = self.variant(chosen)
        active = graph.active_nodes(chosen)
        return tuple(m for m, nodes in graph.modules.items() if not any(active[n] for n in nodes))

    def cut(self, names: Iterable[str]) -> int:
        """How many of the first stages no gradient passes through when `names` are trained."""
        chosen = set(names)
        graph = self.variant(chosen)
        active = graph.active_nodes(chosen)
        idle = (stage.node is None or not active[stage.node] for stage in graph.stages)
        return next((i for i, still in enumerate(idle) if not still), len(graph.stages))

    def above(self, cut: int) -> frozenset[str]:
        """Tensors that can be trained while no gradient passes through the first `cut` stages."""
        node = self.stages[cut - 1].node if cut else None
        names = frozenset(self.leaves)
        if node is not None:
            below = descendants(self.parents, node)
            names -= {name for name, leaf in self.leaves.items() if below[leaf]}
        for mask, graph in self.variants:
            names &= graph.above(cut) | mask
        return names

    def expecting(self, hits: Sequence[float]) -> "CostGraph":
        """The graph of an average batch, where activations at each stage may be known.

        hits: for each stage the share of batches in which it need not run if it is idle.  Its
        forward FLOPs become a cost of the gradient that rules this out.
        """
        spared = [round(s.flops * hit) for s, hit in zip(self.stages, hits, strict=True)]
        costs = list(self.costs)
        for stage, flops in zip(self.stages, spared, strict=True):
            if stage.node is not None:
                costs[stage.node] += flops
        return replace(
            self,
            costs=tuple(costs),
            forward_flops=self.forward_flops - sum(spared),
            plain_flops=self.full_flops,
            variants=tuple((mask, graph.expecting(hits)) for mask, graph in self.variants),
        )

    def _leaf(self, name: str) -> int:
        try:
            return self.leaves[name]
        except KeyError:
            raise ValueError(f"no tensor {name!r} in this cost graph") from None
