"""Lagrangian bounds: what a state of the programme can still become worth.

At a price of `rate` importance a FLOP the budget no longer binds, and the best continuation of
each state follows from one backward sweep over the decisions.  A point that has spent `cost` and
gathered `value` in a state then ends at most at

    value + min over rates of (rate * (budget - cost) + best net continuation of the state)

Points that cannot reach the best selection known are dropped, which loses no optimum; and of
points that cost nearly the same the most promising is kept when there are too many.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from greentrainer.select.frontier import Front, Values
from greentrainer.select.reduce import Problem
from greentrainer.select.states import Step

GRID = 24
AROUND_BEST = (0.5, 0.8, 0.93, 1.0, 1.07, 1.25, 2.0)


@dataclass(frozen=True)
class Bounds:
    """rates: shape (rates,); after: for each step an array of shape (states after, rates)."""

    budget: int
    rates: Values
    after: list[Values]

    def of(self, front: Front, step: int, state: int) -> Values:
        """Shape (points,): the most each point can end with."""
        room = (self.budget - front.cost).astype(np.float64)
        future = self.after[step][state]
        best = room * self.rates[0] + future[0]
        for rate, net in zip(self.rates[1:].tolist(), future[1:].tolist(), strict=True):
            np.minimum(best, room * rate + net, out=best)
        result: Values = front.value + best
        return result


def bounds_of(problem: Problem, steps: Sequence[Step], budget: int) -> Bounds:
    """Bounds at rates around the best one, which a grid and a finer grid have found.

    The best rate cannot exceed (all importance) / budget: the bound would exceed that of rate 0.
    """
    highest = sum(problem.profits) / max(budget, 1)
    grid = highest * np.geomspace(1e-4, 1.0, GRID)
    best = _best(problem, steps, budget, grid)
    finer = np.linspace(grid[max(best - 1, 0)], grid[min(best + 1, GRID - 1)], GRID)
    rate = finer[_best(problem, steps, budget, finer)]
    rates = np.concatenate(([0.0], rate * np.array(AROUND_BEST)))
    return Bounds(budget, rates, _sweep(problem, steps, rates)[1:])


def _best(problem: Problem, steps: Sequence[Step], budget: int, rates: Values) -> int:
    """Which of `rates` bounds the whole problem lowest."""
    return int(np.argmin(_sweep(problem, steps, rates)[0][0] + rates * budget))


def _sweep(problem: Problem, steps: Sequence[Step], rates: Values) -> list[Values]:
    """Best net continuation before each step and after the last: shapes (states, rates)."""
    impossible = np.full((1, len(rates)), -np.inf)
    future: Values = np.zeros((len(steps[-1].live), len(rates)))
    sweep = [future]
    for step in reversed(steps):
        padded: NDArray[np.float64] = np.concatenate((future, impossible))
        net = problem.profits[step.node] - rates * problem.costs[step.node]
        future = np.maximum(padded[step.take] + net, padded[step.skip])
        sweep.append(future)
    sweep.reverse()
    return sweep
