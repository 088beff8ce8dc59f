"""The dynamic programme: fronts flow from state to state, one decision at a time.

The paper's table `P[k, t]` is here one `Front` a state: all undominated (t, P), with true costs and
no bins.  The programme runs first with small fronts, which finds a good selection, then, as long as
points were thinned out, with larger ones that hold only what could beat the best known.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from greentrainer.select.bounds import Bounds, bounds_of
from greentrainer.select.frontier import Front, Part, merge, origin, taken, thin
from greentrainer.select.reduce import Problem
from greentrainer.select.states import MOST_STATES, Step, steps_of

FIRST_CAP = 256
GROWTH = 4  # of the cap from one run to the next
POINTS = 1024  # the mean size of fronts beyond which no further run is made
TOLERANCE = 1e-11  # of all profit: rounding in a bound must not drop an optimum


def solve(problem: Problem, budget: int) -> list[int]:
    """The nodes to take for the greatest profit within `budget`, which is less than all cost."""
    steps = steps_of(problem, sum(problem.profits) / max(budget, 1))
    bounds = bounds_of(problem, steps, budget)
    cap = FIRST_CAP
    best = run = _run(problem, steps, bounds, cap, 0.0)
    most = POINTS * sum(len(step.live) for step in steps)
    while run.thinned and run.points * GROWTH <= most:
        cap *= GROWTH
        run = _run(problem, steps, bounds, cap, best.value)
        best = max(best, run, key=lambda outcome: outcome.value)
    return best.nodes


def at_most(problem: Problem, budget: int, known: float) -> float | None:
    """What no selection within `budget` is worth more than, where one is worth `known`.

    The optimum itself if no front outgrows its cap, else the Lagrangian bound; None if there are
    more states than are kept.
    """
    steps = steps_of(problem, sum(problem.profits) / max(budget, 1))
    if max(len(step.live) for step in steps) >= MOST_STATES:
        return None
    bounds = bounds_of(problem, steps, budget)
    run = _run(problem, steps, bounds, FIRST_CAP, known)
    if not run.thinned:
        return max(known, run.value)
    room = budget - problem.costs[0]
    best = room * bounds.rates + bounds.after[0][int(steps[0].take[0])]
    return max(known, problem.profits[0] + float(best.min()))


@dataclass(frozen=True)
class _Outcome:
    """What one run of the programme found, and how.

    value: summed `I[k]` of the `nodes` taken.  points: summed over all fronts.  thinned: whether
    any front outgrew its cap; if none did the value is optimal.
    """

    value: float
    nodes: list[int]
    points: int
    thinned: bool


def _run(
    problem: Problem, steps: Sequence[Step], bounds: Bounds, cap: int, known: float
) -> _Outcome:
    """The programme, with fronts of at most `cap` points that can reach a value of `known`."""
    slack = TOLERANCE * sum(problem.profits)
    points, thinned = 0, False
    fronts: list[Front | None] = [origin()]
    for number, step in enumerate(steps):
        after: list[Front | None] = []
        for state, parts in enumerate(_parts(problem, step, fronts)):
            front = merge(parts, bounds.budget) if parts else None
            if front is not None and len(front.cost):
                known = max(known, float(front.value[-1]))
                front, cut = _pruned(front, bounds, number, state, cap, known - slack)
                points += len(front.cost)
                thinned |= cut
            after.append(front if front is not None and len(front.cost) else None)
        fronts = after
    final = fronts[0]
    if final is None:
        return _Outcome(0.0, [], points, thinned)
    nodes = taken(final, len(final.value) - 1)
    return _Outcome(float(final.value[-1]), nodes, points, thinned)


def _parts(problem: Problem, step: Step, fronts: Sequence[Front | None]) -> list[list[Part]]:
    """For each state after the step what flows into it."""
    cost, value = problem.costs[step.node], problem.profits[step.node]
    parts: list[list[Part]] = [[] for _ in step.live]
    for front, skip in zip(fronts, step.skip.tolist(), strict=True):
        if front is not None and skip >= 0:
            parts[skip].append(Part(front if step.live[skip] else front.last()))
    for front, take in zip(fronts, step.take.tolist(), strict=True):
        if front is not None and take >= 0:
            parts[take].append(Part(front, step.node, cost, value))
    return parts


def _pruned(
    front: Front, bounds: Bounds, step: int, state: int, cap: int, floor: float
) -> tuple[Front, bool]:
    """Without the points that cannot reach `floor`, nor more than `cap`; and whether that cut."""
    reach = bounds.of(front, step, state)
    index = np.flatnonzero(reach >= floor)
    if len(index) < len(reach):
        front, reach = front.keep(index), reach[index]
    if len(reach) <= cap:
        return front, False
    return thin(front, reach, cap), True
