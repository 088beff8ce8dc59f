"""Puts the watched step together: autograd nodes and charges -> a `CostGraph`."""

from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import reduce

from torch.autograd.graph import Node

from greentrainer.cost.questions import Questions
from greentrainer.cost.record import Recorder, Step
from greentrainer.types import CostGraph, Stage, descendants, dominators, meet

Variants = tuple[tuple[frozenset[str], CostGraph], ...]


@dataclass
class Walk:
    """What one watched step left behind.

    steps: what the backward pass's nodes did, in the order they ran.
    leaves: tensor name, its node, its number of elements, in the order gradients arrived.
    spans: module path, first sequence number of its operations, and the one after the last.
    stages: path of each stage as it ended, its forward FLOPs, and whether gradients were enabled.
    masks: nodes that made an attention mask which needs a gradient.
    forced: nodes that a gradient is computed for whatever is trained.
    questions: what was asked of the batch's values.
    """

    recorder: Recorder
    steps: list[Step] = field(default_factory=list)
    leaves: list[tuple[str, Node, int]] = field(default_factory=list)
    spans: list[tuple[str, int, int]] = field(default_factory=list)
    stages: list[tuple[str, int, bool]] = field(default_factory=list)
    masks: set[Node] = field(default_factory=set)
    forced: set[Node] = field(default_factory=set)
    questions: Questions = field(default_factory=Questions)

    def learned_masks(self) -> set[frozenset[str]]:
        """For each attention mask that is learned, the tensors it is made from."""
        names = {node: name for name, node, _ in self.leaves}
        found = set()
        for mask in self.masks:
            seen, stack = {mask}, [mask]
            while stack:
                children = [c for c, _ in stack.pop().next_functions if c and c not in seen]
                seen.update(children)
                stack += children
            found.add(frozenset(names[node] for node in seen if node in names))
        return found - {frozenset()}


@dataclass
class _Draft:
    """A graph under construction: nodes may be added anywhere, numbers are given at the end."""

    parents: list[set[int]] = field(default_factory=list)
    costs: list[int] = field(default_factory=list)
    rank: list[tuple[int, int]] = field(default_factory=list)

    def add(self, rank: tuple[int, int], parents: set[int], cost: int) -> int:
        self.parents.append(parents)
        self.costs.append(cost)
        self.rank.append(rank)
        return len(self.costs) - 1

    def numbering(self) -> list[int]:
        """Old number -> new, by rank: parents before children."""
        order = sorted(range(len(self.rank)), key=self.rank.__getitem__)
        new = [0] * len(order)
        for number, old in enumerate(order):
            new[old] = number
        return new


def assemble(walk: Walk, variants: Variants, notes: tuple[str, ...]) -> CostGraph:
    """Number the nodes, loss first, and move every charge to the node that causes it."""
    draft = _Draft()
    number = {
        node: draft.add((i, 0), set(), 0) for i, node in enumerate(s.node for s in walk.steps)
    }
    for step in walk.steps:
        _pass_on(draft, number, step)
    _add_recomputation(draft, walk, number)
    new = draft.numbering()
    old = sorted(range(len(new)), key=new.__getitem__)
    parents = tuple(tuple(sorted(new[p] for p in draft.parents[o])) for o in old)
    modules = _nodes_of_modules(walk, {node: new[n] for node, n in number.items()})
    forced = walk.forced - {node for _, node, _ in walk.leaves}  # these are frozen if not chosen
    whole = CostGraph(
        parents=parents,
        costs=tuple(draft.costs[o] for o in old),
        leaves={name: new[number[node]] for name, node, _ in walk.leaves},
        sizes={name: size for name, _, size in walk.leaves},
        forward_flops=walk.recorder.forward_flops,
        stages=_stages(walk, parents, modules),
        modules=modules,
        uncounted_ops=tuple(sorted(walk.recorder.uncounted)),
        forced=tuple(sorted(new[number[node]] for node in forced if node in number)),
        variants=variants,
        notes=notes,
        questions=walk.questions or None,
    )
    return _slim(whole)


def _slim(graph: CostGraph) -> CostGraph:
    """The graph without nodes outside of the model that cost nothing: the same costs.

    A loss may go through its rows one by one, and has then as many nodes as there are rows; the
    graphs of batches alike are to be alike.
    """
    named = (node for nodes in graph.modules.values() for node in nodes)
    stages = (stage.node for stage in graph.stages if stage.node is not None)
    kept = {0, *graph.leaves.values(), *graph.forced, *stages, *named}
    parents: list[tuple[int, ...]] = []
    costs: list[int] = []
    above: list[tuple[int, ...]] = []
    for node, (own, cost) in enumerate(zip(graph.parents, graph.costs, strict=True)):
        reached = tuple(sorted({new for old in own for new in above[old]}))
        if cost or node in kept:
            above.append((len(parents),))
            parents.append(reached)
            costs.append(cost)
        else:
            above.append(reached)
    new = {node: above[node][0] for node in kept}
    return replace(
        graph,
        parents=tuple(parents),
        costs=tuple(costs),
        leaves={name: new[node] for name, node in graph.leaves.items()},
        stages=tuple(
            stage if stage.node is None else replace(stage, node=new[stage.node])
            for stage in graph.stages
        ),
        modules={path: tuple(new[n] for n in nodes) for path, nodes in graph.modules.items()},
        forced=tuple(new[node] for node in graph.forced),
    )


def _children(number: dict[Node, int], step: Step) -> dict[int, int]:
    """Operand's position -> the node its gradient is passed to."""
    operands = enumerate(child for child, _ in step.node.next_functions)
    return {i: number[child] for i, child in operands if child is not None}


def _pass_on(draft: _Draft, number: dict[Node, int], step: Step) -> None:
    """Give each operand its own cost; costs that several share become nodes above them."""
    me = number[step.node]
    children = _children(number, step)
    for child in children.values():
        draft.parents[child].add(me)
    for position, (flops, operands) in enumerate(step.charges, 1):
        served = {children[i] for i in operands}
        if len(served) == 1:
            draft.costs[served.pop()] += flops
        else:
            shared = draft.add((draft.rank[me][0], position), {me}, flops)
            for child in served:
                draft.parents[child].add(shared)


def _add_recomputation(draft: _Draft, walk: Walk, number: dict[Node, int]) -> None:
    """Charge checkpointed regions for the forward work repeated in the backward pass.

    Recomputation starts at the region's beginning and stops at the last activation that the
    backward pass recalls, so an operand whose gradient recalls one causes all the work before it.
    """
    regions = walk.recorder.regions()
    if not regions:
        return
    recallers = {
        step.node._sequence_nr(): {_children(number, step)[i] for i in step.recalling}
        for step in walk.steps
        if step.recalling
    }
    new = draft.numbering()
    old = sorted(range(len(new)), key=new.__getitem__)
    idom = dominators([[new[p] for p in draft.parents[o]] for o in old])
    for operations in regions:
        times = sorted({time for time, _ in operations if time - 1 in recallers})
        inside = [(time, recallers[time - 1]) for time in times]
        if inside:
            nodes = [new[node] for _, served in inside for node in served]
            top = reduce(lambda a, b: meet(idom, a, b), nodes)
            _add_region(draft, operations, inside, old[idom[top] if top in nodes else top])


def _add_region(
    draft: _Draft, operations: list[tuple[int, int]], inside: list[tuple[int, set[int]]], top: int
) -> None:
    """A chain of nodes below `top`, one for each stretch of work between two recalls."""
    above, paid = top, 0
    for position, (time, served) in enumerate(inside, 1):
        prefix = sum(flops for at, flops in operations if at < time)
        if prefix > paid:
            above = draft.add((draft.rank[top][0], 10**6 + position), {above}, prefix - paid)
            paid = prefix
        if paid:
            for node in served:
                draft.parents[node].add(above)


def _nodes_of_modules(walk: Walk, number: dict[Node, int]) -> dict[str, tuple[int, ...]]:
    """Module path -> the nodes that were created while it ran."""
    inner = [step.node for step in walk.steps if getattr(step.node, "variable", None) is None]
    born = sorted((node._sequence_nr(), number[node]) for node in inner)
    times: Sequence[int] = [time for time, _ in born]
    found: dict[str, list[int]] = defaultdict(list)
    for name, start, end in walk.spans:
        span = born[bisect_left(times, start) : bisect_right(times, end - 1)]
        found[name] += [node for _, node in span]
    return {name: tuple(nodes) for name, nodes in found.items()}


def _stages(
    walk: Walk, parents: Sequence[Sequence[int]], modules: dict[str, tuple[int, ...]]
) -> tuple[Stage, ...]:
    """The stages up to the first that ran twice, or that a gradient can leave unseen.

    A stage may run once with gradients and once without, as where a batch is split.
    """
    found: list[Stage] = []
    inside: list[int] = []
    runs = Counter((path, graded) for path, _, graded in walk.stages)
    flops = Counter[str]()
    for path, spent, _ in walk.stages:
        flops[path] += spent
    for path in dict.fromkeys(path for path, _, _ in walk.stages):
        inside += modules[path]
        node = min(modules[path], default=None)
        twice = max(runs[path, True], runs[path, False]) > 1
        if twice or not _passed_by_all(parents, node, inside):
            break
        found.append(Stage(path, flops[path], node))
    return tuple(found)


def _passed_by_all(
    parents: Sequence[Sequence[int]], node: int | None, others: Sequence[int]
) -> bool:
    """Whether no gradient is computed at any of `others` unless one is at `node`."""
    if node is None:
        return not others
    below = descendants(parents, node)
    return all(below[other] for other in others)
